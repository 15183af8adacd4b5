"""Core lists, cgroup limits and the shares of the workers."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus_grpc.cpus import assign, available_cpus, default_worker_count, parse_cpu_list, quota_cores


def make_cgroup_v2(root: Path, *, group: str, limits: dict[str, str]) -> Path:
    """A filesystem with /proc/self/cgroup and, by folder, the contents of cpu.max."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(f"0::{group}\n")
    for folder, limit in limits.items():
        path = root / "sys/fs/cgroup" / folder
        path.mkdir(parents=True, exist_ok=True)
        (path / "cpu.max").write_text(limit + "\n")
    return root


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("", []), ("  ", []), ("0", [0]), ("0-3,6", [0, 1, 2, 3, 6]), ("6, 0-1 ,1-2", [0, 1, 2, 6]), ("5-5", [5])],
)
def test_parse_cpu_list(text: str, cpus: list[int]) -> None:
    assert parse_cpu_list(text) == cpus


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a", "'a' is neither"),
        ("0,,1", "'' is neither"),
        ("-1", "'-1' is neither"),
        ("3-1", "'3-1' runs backwards"),
        ("0-99999", "core 99999 does not exist"),
        ("0-999999999", "is neither"),
        ("٣", "is neither"),
    ],
)
def test_parse_cpu_list_refuses(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_cpu_list(text)


@given(st.sets(st.integers(0, 8191), max_size=64))
def test_parse_cpu_list_reads_back_what_was_written(cpus: set[int]) -> None:
    assert parse_cpu_list(",".join(map(str, cpus))) == sorted(cpus)


@given(st.text(max_size=30))
def test_parse_cpu_list_raises_only_value_error(text: str) -> None:
    try:
        cpus = parse_cpu_list(text)
    except ValueError:
        return
    assert cpus == sorted(set(cpus))


@pytest.mark.parametrize(
    ("limits", "quota"),
    [
        ({}, None),
        ({"": "max 100000"}, None),
        ({"": "150000 100000"}, 1.5),
        ({"a/b": "400000 100000", "a": "200000 100000", "": "max 100000"}, 2.0),
        ({"a/b": "rubbish"}, None),
        ({"a/b": "100000 0"}, None),
    ],
)
def test_quota_of_cgroup_v2(tmp_path: Path, limits: dict[str, str], quota: float | None) -> None:
    assert quota_cores(make_cgroup_v2(tmp_path, group="/a/b", limits=limits)) == quota


def test_quota_where_a_container_shows_its_own_group_as_the_root(tmp_path: Path) -> None:
    root = make_cgroup_v2(tmp_path, group="/kubepods/pod1/../elsewhere", limits={"": "50000 100000"})
    assert quota_cores(root) == 0.5


@pytest.mark.parametrize(("quota_us", "quota"), [("-1", None), ("250000", 2.5)])
def test_quota_of_cgroup_v1(tmp_path: Path, quota_us: str, quota: float | None) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("4:memory:/m\n3:cpu,cpuacct:/docker/x\n")
    group = tmp_path / "sys/fs/cgroup/cpu/docker/x"
    group.mkdir(parents=True)
    (group / "cpu.cfs_quota_us").write_text(quota_us)
    (group / "cpu.cfs_period_us").write_text("100000")
    assert quota_cores(tmp_path) == quota


def test_available_cpus_are_those_of_the_affinity_without_a_quota(tmp_path: Path) -> None:
    assert available_cpus(tmp_path) == sorted(os.sched_getaffinity(0))


def test_a_quota_below_one_core_still_gives_one(tmp_path: Path) -> None:
    root = make_cgroup_v2(tmp_path, group="/", limits={"": "20000 100000"})
    assert available_cpus(root) == sorted(os.sched_getaffinity(0))[:1]


def test_available_cpus_of_this_machine() -> None:
    assert set(available_cpus()) <= os.sched_getaffinity(0)


@pytest.mark.parametrize(("cpus", "workers"), [([0], 1), ([0, 1], 1), ([4, 5, 6, 7], 3)])
def test_default_worker_count(cpus: list[int], workers: int) -> None:
    assert default_worker_count(cpus) == workers


@pytest.mark.parametrize(
    ("cpus", "workers", "sets"),
    [
        ([0], 2, [(0,), (0,)]),
        ([0, 1], 1, [(1,)]),
        ([0, 1], 3, [(1,), (1,), (1,)]),
        ([0, 1, 2, 3], 3, [(1,), (2,), (3,)]),
        ([2, 4, 6, 8, 10, 12, 14, 16], 3, [(4, 6, 8), (10, 12), (14, 16)]),
    ],
)
def test_assign(cpus: list[int], workers: int, sets: list[tuple[int, ...]]) -> None:
    assert assign(cpus, workers) == sets


@given(st.sets(st.integers(0, 500), min_size=2, max_size=130).map(sorted), st.integers(1, 140))
def test_assign_is_even_and_disjoint(cpus: list[int], workers: int) -> None:
    sets = assign(cpus, workers)
    used = [cpu for cores in sets for cpu in cores]
    assert len(sets) == workers
    assert cpus[0] not in used
    assert max(map(len, sets)) - min(map(len, sets)) <= 1
    if workers < len(cpus):
        assert used == cpus[1:]


@pytest.mark.parametrize(("cpus", "workers"), [([], 1), ([0], 0)])
def test_assign_refuses_nothing_to_share(cpus: list[int], workers: int) -> None:
    with pytest.raises(ValueError, match="at least one core and one worker"):
        assign(cpus, workers)

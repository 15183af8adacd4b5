"""Which cores this process may use, and which of them each worker gets.

Standard library only: affinity is set before grpc or onnxruntime is imported, so this module must be importable first.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

# Above any machine Linux supports today (CONFIG_NR_CPUS is at most 8192); keeps "0-999999999" from filling memory.
CPU_INDEX_MAX = 8191
_RANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)


def parse_cpu_list(text: str) -> list[int]:
    """Reads a list of cores in the kernel's notation, such as "0-3,6" (cpuset(7), "List format").

    Returns:
        Core numbers, ascending, each once; empty for an empty text.

    Raises:
        ValueError: the text is not such a list; the message names the part that is wrong.
    """
    cpus: set[int] = set()
    if not text.strip():
        return []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"{part.strip()!r} is neither a core number nor a range; expected a list such as 0-3,6")
        first = int(match[1])
        last = first if match[2] is None else int(match[2])
        if last < first:
            raise ValueError(f"the range {part.strip()!r} runs backwards; expected a list such as 0-3,6")
        if last > CPU_INDEX_MAX:
            raise ValueError(f"core {last} does not exist; the largest core number is {CPU_INDEX_MAX}")
        cpus.update(range(first, last + 1))
    return sorted(cpus)


def available_cpus(filesystem: Path = Path("/")) -> list[int]:
    """The cores this process may use, ascending: its affinity, cut to as many as the cgroup's quota pays for.

    A quota of 2.5 cores gives two: a third core's threads would be throttled for up to 100 ms at a time, which shows in
    the tail latency long before it shows in the throughput.

    Args:
        filesystem: the root under which proc/ and sys/ are found; tests point it elsewhere.
    """
    cpus = sorted(os.sched_getaffinity(0))
    quota = quota_cores(filesystem)
    if quota is None:
        return cpus
    return cpus[: max(1, int(quota))]


def quota_cores(filesystem: Path = Path("/")) -> float | None:
    """The cgroup's CPU quota in cores, the tightest of the group and its ancestors; None where there is no limit."""
    quotas = [_quota_v2(group) for group in _cgroup_folders(filesystem, controller="")]
    quotas += [_quota_v1(group) for group in _cgroup_folders(filesystem, controller="cpu")]
    return min((quota for quota in quotas if quota is not None), default=None)


def _cgroup_folders(filesystem: Path, *, controller: str) -> list[Path]:
    """The folders of this process's cgroup and of its ancestors; `controller` is empty for cgroup v2.

    /proc/self/cgroup has lines `hierarchy:controllers:path` (cgroups(7)); version 2's has no controllers.
    """
    try:
        lines = (filesystem / "proc/self/cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    mount = filesystem / "sys/fs/cgroup"
    for line in lines:
        fields = line.split(":", 2)
        if len(fields) != 3 or controller not in fields[1].split(","):
            continue
        # In a container the path may be the host's while the mount shows the container's own group as its root:
        # folders that are not there are skipped, and the mount itself is always looked at.
        base = mount / controller if controller else mount
        parts = [part for part in fields[2].split("/") if part not in ("", ".", "..")]
        return [base.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]
    return []


def _quota_v2(group: Path) -> float | None:
    """Reads cpu.max: `$MAX $PERIOD` in microseconds, or `max $PERIOD` (kernel's cgroup-v2.rst)."""
    fields = _read_words(group / "cpu.max")
    if len(fields) != 2 or fields[0] == "max":
        return None
    return _ratio(fields[0], fields[1])


def _quota_v1(group: Path) -> float | None:
    """Reads cpu.cfs_quota_us and cpu.cfs_period_us; a quota of -1 is no limit (kernel's sched-bwc.rst)."""
    quota, period = _read_words(group / "cpu.cfs_quota_us"), _read_words(group / "cpu.cfs_period_us")
    if len(quota) != 1 or len(period) != 1:
        return None
    return _ratio(quota[0], period[0])


def _read_words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").split()
    except OSError:
        return []


def _ratio(quota: str, period: str) -> float | None:
    if not (quota.isdecimal() and period.isdecimal()) or int(quota) <= 0 or int(period) <= 0:
        return None
    return int(quota) / int(period)


def default_worker_count(cpus: Sequence[int]) -> int:
    """How many workers to start when nobody said: one per core, less one core for the fronts, at least one."""
    return max(1, len(cpus) - 1)


def assign(cpus: Sequence[int], workers: int) -> list[tuple[int, ...]]:
    """Shares the cores out: the first is left to the fronts, the rest go to the workers, as evenly as they divide.

    The sets are disjoint, except where there are more workers than cores to give: then workers take turns on them; and
    with a single core everybody shares it.

    Args:
        cpus: core numbers, at least one.
        workers: how many workers, at least one.

    Raises:
        ValueError: no cores or no workers.
    """
    if not cpus or workers < 1:
        raise ValueError(f"expected at least one core and one worker, got {len(cpus)} and {workers}")
    rest = list(cpus[1:]) or [cpus[0]]
    if workers >= len(rest):
        return [(rest[index % len(rest)],) for index in range(workers)]
    share, extra = divmod(len(rest), workers)
    sets: list[tuple[int, ...]] = []
    start = 0
    for index in range(workers):
        end = start + share + (1 if index < extra else 0)
        sets.append(tuple(rest[start:end]))
        start = end
    return sets


def front_cpus(cpus: Sequence[int], index: int) -> tuple[int, list[int]]:
    """Front number `index`'s core for its own threads, and the cores for those of gRPC's core.

    Kept apart because they wake each other at every event: on one core they would wait for each other, and left to the
    scheduler they follow each other around (docs/decisions/0006).
    """
    own = cpus[index % len(cpus)]
    return own, [core for core in cpus if core != own] or [own]

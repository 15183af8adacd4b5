"""Versions come, change and go while the server runs, and no request notices."""

import os
import pathlib
import shutil
from collections.abc import Iterator

import pytest

from tests.harness import Server, running_server
from tests.lifecycle import NAME, Admin, Load, put, refused, times, wait_for


@pytest.fixture
def repository(tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / "models"
    put(folder, 1)
    return folder


@pytest.fixture
def server(repository: pathlib.Path, tmp_path: pathlib.Path) -> Iterator[Server]:
    with running_server(tmp_path, "--poll-seconds=0.3", repository=repository) as running:
        yield running


@pytest.fixture
def admin(server: Server) -> Iterator[Admin]:
    with Admin(server.address) as admin:
        yield admin


def age(path: pathlib.Path) -> None:
    """Make a file look as if its copying had ended long ago."""
    os.utime(path, (1_700_000_000, 1_700_000_000 + os.stat(path).st_ino % 1000))


def test_changes_under_load_lose_and_mix_nothing(repository: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """200 swaps, loads, unloads and splits with 32 requests in flight."""
    for version in (2, 3):
        put(repository, version)
    quick = ("--keep-previous-seconds=0", "--model-control=none")
    with (
        running_server(tmp_path, *quick, repository=repository) as server,
        Admin(server.address) as admin,
        Load(server.address) as load,
    ):
        changes = 0
        for number in range(40):
            version, other = str(number % 3 + 1), str((number + 1) % 3 + 1)
            admin.models("Activate", id=NAME, version=version)
            admin.traffic("Setup", model=NAME, candidate_version=other, percent=30)
            admin.traffic("Split", model=NAME, percent=70)
            admin.traffic("Promote" if number % 2 else "Abort", model=NAME)
            changes += 4
            spare = next(str(v) for v in (1, 2, 3) if str(v) != admin.models("Info", id=NAME).version)
            admin.models("Load", id=NAME, version=spare)
            admin.models("Activate", id=NAME, version=spare)
            changes += 2
        admin.models("Unload", id=NAME, version=next(v for v in "123" if v != spare))
    assert changes >= 200
    assert load.failures == []
    assert len(load.answers) > 1000
    wrong = [answer for _, answer in load.answers if answer.version != answer.by_values]
    assert wrong == []
    assert {answer.version for _, answer in load.answers} == {"1", "2", "3"}
    assert {answer.variant for _, answer in load.answers} == {"default", "A", "B"}


def test_a_loaded_version_takes_over_and_rollback_is_instant(admin: Admin, repository: pathlib.Path) -> None:
    assert admin.ask().by_values == "1"
    put(repository, 2)
    info = admin.models("Load", id=NAME, version="2")
    assert (info.version, info.state) == ("2", "READY")
    assert admin.ask().by_values == "2"
    # The one before stays for a rollback.
    assert admin.states() == {"1": "READY", "2": "READY"}
    assert admin.models("Rollback", id=NAME).version == "1"
    assert admin.ask().by_values == "1"
    with refused("FAILED_PRECONDITION") as said:
        admin.models("Rollback", id=NAME)
    assert "no earlier version" in said[0]
    assert admin.models("Activate", id=NAME, version="").version == "2"
    assert admin.ask("v1").version == "1"


def test_the_version_before_goes_after_its_time(repository: pathlib.Path, tmp_path: pathlib.Path) -> None:
    put(repository, 2)
    with (
        running_server(tmp_path, "--keep-previous-seconds=0.5", repository=repository) as server,
        Admin(server.address) as admin,
    ):
        assert admin.ask().version == "2"
        admin.models("Activate", id=NAME, version="1")
        wait_for(lambda: admin.states() == {"1": "READY", "2": "READY"})
        admin.models("Activate", id=NAME, version="")
        wait_for(lambda: admin.states() == {"1": "UNLOADED", "2": "READY"})
        with refused("UNAVAILABLE") as said:
            admin.ask("1")
        assert "unloaded" in said[0]


def test_a_file_put_there_by_hand_is_found(admin: Admin, repository: pathlib.Path) -> None:
    age(put(repository, 2))
    wait_for(lambda: admin.ask().by_values == "2")
    record = wait_for(lambda: admin.models("GetRecord", id=NAME))
    [second] = [each for each in record.versions if each.version == "2"]
    assert (second.source, second.state, len(second.sha256)) == ("repository", "READY", 64)
    assert (record.active_version, second.created_by) == ("2", "repository")


def test_a_new_model_put_there_by_hand_is_found_and_a_removed_one_goes(admin: Admin, repository: pathlib.Path) -> None:
    age(put(repository, 1, name="other"))
    wait_for(lambda: admin.states("other") == {"1": "READY"})
    shutil.rmtree(repository / "other")
    wait_for(lambda: "other" not in {entry.id for entry in admin.models("List").models})
    [missing] = admin.models("GetRecord", id="other").versions
    assert missing.state == "MISSING"


def test_a_changed_file_is_loaded_anew(admin: Admin, repository: pathlib.Path) -> None:
    assert admin.ask().by_values == "1"
    age(put(repository, 1, times(7)))
    wait_for(lambda: admin.ask().by_values == "7")
    assert admin.ask().version == "1"


def test_a_broken_new_version_leaves_the_old_one(admin: Admin, repository: pathlib.Path, server: Server) -> None:
    age(put(repository, 2, b"no model"))
    wait_for(lambda: admin.states() == {"1": "READY", "2": "UNAVAILABLE"})
    assert admin.ask().by_values == "1"
    with refused("INVALID_ARGUMENT") as said:
        admin.models("Load", id=NAME, version="2")
    assert "not an ONNX model" in said[0]
    assert admin.ask().by_values == "1"
    age(put(repository, 2))
    wait_for(lambda: admin.ask().by_values == "2")
    assert len(server.children("worker")) == 1


def test_reload_and_current(admin: Admin, repository: pathlib.Path) -> None:
    put(repository, 2)
    (repository / NAME / "current").symlink_to("1")
    answer = admin.reload()
    assert [(each.model, each.current_version) for each in answer.models] == [(NAME, "1")]
    assert admin.ask().by_values == "1"
    (repository / NAME / "next").symlink_to("2")
    os.replace(repository / NAME / "next", repository / NAME / "current")
    wait_for(lambda: admin.ask().by_values == "2")
    with refused("NOT_FOUND"):
        admin.reload("nobody")


def test_explicit_loads_what_it_is_told_to_and_remembers(repository: pathlib.Path, tmp_path: pathlib.Path) -> None:
    put(repository, 1, name="other")
    options = ("--model-control=explicit", "--load-model=other")
    with running_server(tmp_path, *options, repository=repository) as server, Admin(server.address) as admin:
        assert admin.states("other") == {"1": "READY"}
        assert admin.states() == {"1": "UNLOADED"}
        admin.models("Load", id=NAME)
        assert admin.ask().by_values == "1"
        admin.models("Unload", id="other")
    with running_server(tmp_path, *options, repository=repository) as server, Admin(server.address) as admin:
        assert admin.ask().by_values == "1"
        assert admin.states("other") == {"1": "UNLOADED"}


def test_version_policies(repository: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for version in (2, 3, 4):
        put(repository, version)
    config = repository / NAME / "config.pbtxt"
    cases = {
        "latest {num_versions: 2}": {"3", "4"},
        "all {}": {"1", "2", "3", "4"},
        "specific {versions: [1, 3]}": {"1", "3"},
    }
    config.write_text("version_policy {latest {num_versions: 1}}")
    with (
        running_server(tmp_path, "--keep-previous-seconds=0", repository=repository) as server,
        Admin(server.address) as admin,
    ):
        for policy, expected in cases.items():
            config.write_text(f"version_policy {{{policy}}}")
            admin.reload()
            ready = {version for version, state in admin.states().items() if state == "READY"}
            assert ready == expected, policy
            assert admin.ask().version == max(expected)


def test_unload_delete_and_what_is_protected(admin: Admin, repository: pathlib.Path) -> None:
    put(repository, 2)
    admin.models("Load", id=NAME, version="2")
    for method in ("Unload", "Delete"):
        with refused("FAILED_PRECONDITION") as said:
            admin.models(method, id=NAME, version="2")
        assert "takes traffic" in said[0]
    with refused("FAILED_PRECONDITION") as said:
        admin.models("Delete", id=NAME)
    assert "unload it" in said[0]
    with refused("NOT_FOUND"):
        admin.models("Delete", id=NAME, version="9")
    assert list(admin.models("Delete", id=NAME, version="1").versions) == ["1"]
    assert not (repository / NAME / "1").exists()
    admin.models("Unload", id=NAME)
    with refused("UNAVAILABLE"):
        admin.ask()
    assert list(admin.models("Delete", id=NAME).versions) == ["2"]
    assert not (repository / NAME).exists()
    with refused("NOT_FOUND"):
        admin.ask()
    actions = [entry.action for entry in admin.models("History", id=NAME).entries]
    assert actions == ["delete", "unload", "delete", "load", "found"]


@pytest.mark.parametrize("cycles", [4, pytest.param(20, marks=pytest.mark.long)])
def test_memory_returns(repository: pathlib.Path, tmp_path: pathlib.Path, cycles: int) -> None:
    """200 MB loaded and unloaded again and again: what all processes hold is as before, within 5 %."""
    put(repository, 1, times(5, megabytes=200), name="large")
    options = ("--model-control=explicit", f"--load-model={NAME}", "--keep-previous-seconds=0")
    with running_server(tmp_path, *options, repository=repository) as server, Admin(server.address) as admin:

        def cycle() -> None:
            admin.models("Load", id="large")
            assert admin.models("Info", id="large").state == "READY"
            admin.models("Unload", id="large")

        def resident() -> float:
            return server.metric("nexus_process_resident_memory_bytes")

        cycle()  # the first brings in code and what the trial leaves
        before = resident()
        for _ in range(cycles):
            cycle()
        wait_for(lambda: abs(resident() - before) <= 0.05 * before)

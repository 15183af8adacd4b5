"""What takes traffic is loaded: after every change, every look at the files and every start."""

import contextlib
import os
import pathlib
import shutil
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from nexus_grpc.pb.nexus.v1.models_pb2 import UploadResponse
from tests.harness import Server, running_server
from tests.integration.uploading import send
from tests.lifecycle import NAME, Admin, put, refused, times, wait_for

OPTIONS = ("--fronts=1", "--workers=1", "--model-control=none")


@pytest.fixture
def repository(tmp_path: pathlib.Path) -> pathlib.Path:
    put(tmp_path / "models", 1)
    return tmp_path / "models"


@contextlib.contextmanager
def serving(repository: pathlib.Path, *options: str) -> Iterator[tuple[Server, Admin]]:
    with (
        running_server(repository.parent, *OPTIONS, *options, repository=repository) as server,
        Admin(server.address) as admin,
    ):
        yield server, admin


def upload(admin: Admin, version: int, **header: Any) -> UploadResponse:
    return send(admin, times(version), id=NAME, version=str(version), **header)


def candidate(admin: Admin, repository: pathlib.Path, how: str) -> None:
    """Version 2, which somebody wanted out of memory."""
    if how == "store_only":
        assert upload(admin, 2, store_only=True).state == "UNLOADED"
    else:
        put(repository, 2)
        admin.models("Load", id=NAME, version="2")
        admin.models("Activate", id=NAME, version="1")
        admin.models("Unload", id=NAME, version="2")
    assert admin.states() == {"1": "READY", "2": "UNLOADED"}
    assert admin.ask().by_values == "1"


@pytest.mark.parametrize("how", ["store_only", pytest.param("unload", marks=pytest.mark.long)])
def test_a_candidate_that_was_unloaded_once_keeps_its_share(repository: pathlib.Path, how: str) -> None:
    both = {"1": "READY", "2": "READY"}
    with serving(repository) as (server, admin):
        candidate(admin, repository, how)
        admin.traffic("Setup", model=NAME, candidate_version="2", percent=50)
        admin.traffic("Split", model=NAME, percent=100)
        assert (admin.states(), admin.ask().by_values) == (both, "2")
        server.process.kill()
        server.process.wait()
    with serving(repository) as (_, admin):
        assert (admin.states(), admin.ask().variant) == (both, "B")
        admin.traffic("Split", model=NAME, percent=10)
        admin.traffic("Ramp", model=NAME, steps=[50, 100], every_seconds=0.1, min_requests=1)

        def promoted() -> bool:
            assert admin.ask().version in "12"
            assert admin.states() == both
            return not admin.traffic("Status", model=NAME).active

        wait_for(promoted)
        assert (admin.ask().by_values, admin.states()) == ("2", both)
    with serving(repository) as (_, admin):
        assert admin.ask().by_values == "2"


def test_a_candidate_that_was_only_stored_goes_again_when_it_is_taken_back(repository: pathlib.Path) -> None:
    with serving(repository) as (_, admin):
        candidate(admin, repository, "store_only")
        admin.traffic("Setup", model=NAME, candidate_version="2", percent=50)
        with refused("FAILED_PRECONDITION") as said:
            admin.models("Unload", id=NAME, version="2")
        assert "takes traffic" in said[0]
        admin.traffic("Abort", model=NAME)
        assert (admin.states(), admin.ask().by_values) == ({"1": "READY", "2": "UNLOADED"}, "1")
        admin.traffic("Setup", model=NAME, candidate_version="2", percent=50)
        admin.traffic("Promote", model=NAME)
        # Somebody chose it: it is the newest from now on, and not unloaded any more.
        admin.models("Activate", id=NAME, version="1")
        assert admin.models("Activate", id=NAME, version="").version == "2"


def test_a_version_that_is_only_stored_takes_nobody_down(repository: pathlib.Path) -> None:
    """Though it is the newest, which the version policy selects: over a restart, too."""
    with serving(repository) as (_, admin):
        candidate(admin, repository, "store_only")
    with serving(repository) as (_, admin):
        assert (admin.states(), admin.ask().by_values) == ({"1": "READY", "2": "UNLOADED"}, "1")


def test_a_model_that_was_unloaded_comes_back_with_what_was_chosen(repository: pathlib.Path) -> None:
    put(repository, 2)
    with serving(repository) as (_, admin):
        admin.models("Activate", id=NAME, version="1")
        admin.models("Unload", id=NAME)
        assert set(admin.states().values()) == {"UNLOADED"}
        admin.models("Load", id=NAME)
        assert admin.ask().by_values == "1"
        admin.models("Unload", id=NAME)
    with serving(repository) as (_, admin):
        assert set(admin.states().values()) == {"UNLOADED"}
        assert upload(admin, 3).state == "READY"
        assert admin.states()["1"] == "READY"
        assert admin.ask().by_values == "1", "which was chosen"
        assert admin.models("Activate", id=NAME, version="").version == "3"


def test_what_cannot_be_loaded_changes_nothing(repository: pathlib.Path) -> None:
    put(repository, 2)
    with serving(repository) as (_, admin):
        admin.models("Activate", id=NAME, version="1")
        admin.models("Unload", id=NAME)
        put(repository, 1, b"no model")
        before = admin.states(), admin.models("History", id=NAME).entries
        for call in ({"id": NAME}, {"id": NAME, "version": "2"}):
            with pytest.raises(grpc.RpcError):
                admin.models("Load", **call)
        assert (admin.states()["2"], admin.models("History", id=NAME).entries) == ("UNLOADED", before[1])
        # The way out.
        assert admin.models("Activate", id=NAME, version="2").version == "2"
        assert admin.ask().by_values == "2"


def test_a_folder_deleted_by_hand_unloads_its_versions(repository: pathlib.Path) -> None:
    for version in (2, 3):
        put(repository, version)
    with serving(repository, "--model-control=poll", "--poll-seconds=0.3") as (server, admin):
        admin.models("Activate", id=NAME, version="2")
        admin.traffic("Setup", model=NAME, candidate_version="3", percent=100)
        assert admin.ask().by_values == "3"
        shutil.rmtree(repository / NAME / "3")
        wait_for(lambda: not admin.traffic("Status", model=NAME).active)
        status = admin.traffic("Status", model=NAME)
        assert status.last_outcome == "the experiment ended: version 3 has no file any more"
        wait_for(lambda: "3" not in admin.states())
        assert admin.ask().by_values == "2"
        shutil.rmtree(repository / NAME / "2")
        wait_for(lambda: admin.ask().by_values == "1")
        # Who chose it meant it: it answers as soon as it is back.
        old = put(repository, 2)
        os.utime(old, (time.time() - 60,) * 2)
        wait_for(lambda: admin.ask().by_values == "2")
        shutil.rmtree(repository / NAME)
        wait_for(lambda: NAME not in {each.id for each in admin.models("List").models})
        wait_for(lambda: not server.metric("nexus_model_state", model=NAME, state="READY"))


def test_a_start_without_an_arm_goes_back_to_what_is_left(repository: pathlib.Path) -> None:
    put(repository, 2)
    with serving(repository) as (_, admin):
        admin.models("Activate", id=NAME, version="1")
        admin.traffic("Setup", model=NAME, candidate_version="2", percent=100)
    put(repository, 2, b"no model")
    with serving(repository) as (server, admin):
        status = admin.traffic("Status", model=NAME)
        assert (status.active, admin.ask().by_values) == (False, "1")
        assert status.last_outcome.startswith("the experiment ended: version 2 cannot be loaded: ")
        assert "experiment ended" in server.log_text()
        [entry] = admin.models("History", id=NAME, limit=1).entries
        assert (entry.action, entry.actor) == ("abort", "server")
    put(repository, 2)
    with serving(repository) as (_, admin):
        admin.models("Activate", id=NAME, version="2")
    put(repository, 2, b"no model")
    with serving(repository) as (_, admin):
        # Nobody chose version 1, but it is what there is.
        assert (admin.ask().by_values, admin.states()) == ("1", {"1": "READY", "2": "UNAVAILABLE"})
        put(repository, 2)
        admin.models("Load", id=NAME, version="2")
        assert admin.ask().by_values == "2"


def test_a_version_that_goes_down_while_it_takes_traffic(repository: pathlib.Path) -> None:
    """Its file was overwritten, which nobody looked at, and then its worker died."""
    put(repository, 2)
    with serving(repository) as (server, admin):
        admin.models("Activate", id=NAME, version="1")
        admin.traffic("Setup", model=NAME, candidate_version="2", percent=100)
        put(repository, 2, b"no model")
        server.children("worker")[0].kill()
        wait_for(lambda: not admin.traffic("Status", model=NAME).active)
        wait_for(lambda: admin.ask().by_values == "1")
        assert admin.states() == {"1": "READY", "2": "UNAVAILABLE"}
        put(repository, 2)
        admin.models("Activate", id=NAME, version="2")
        admin.models("Unload", id=NAME, version="1")
        put(repository, 2, b"no model")
        server.children("worker")[0].kill()
        # Version 1 was unloaded by somebody: it does not stand in.
        wait_for(lambda: admin.states() == {"1": "UNLOADED", "2": "UNAVAILABLE"})
        put(repository, 2)
        admin.reload()
        assert admin.ask().by_values == "2"


def test_a_link_that_stayed_as_it_was_has_no_say(repository: pathlib.Path) -> None:
    put(repository, 2)
    current = repository / NAME / "current"
    current.symlink_to("1")
    with serving(repository) as (_, admin):
        wait_for(lambda: admin.ask().by_values == "1")
        admin.traffic("Setup", model=NAME, candidate_version="2", percent=10)
        admin.traffic("Promote", model=NAME)
        admin.reload()
        assert admin.ask().by_values == "2"
    with serving(repository) as (_, admin):
        admin.reload()
        assert admin.ask().by_values == "2"
        current.unlink()
        admin.reload()
        assert admin.ask().by_values == "2"
        current.symlink_to("1")
        admin.reload()
        assert admin.ask().by_values == "1", "that is news"
    current.unlink()
    current.symlink_to("2")
    with serving(repository) as (_, admin):
        wait_for(lambda: admin.ask().by_values == "2")


def test_who_unloaded_it_when_and_why(repository: pathlib.Path) -> None:
    for version in (2, 3):
        put(repository, version)
    with serving(repository, "--keep-previous-seconds=0.1") as (server, admin):
        upload(admin, 4, store_only=True)
        admin.models("Activate", id=NAME, version="2")
        wait_for(lambda: admin.states()["3"] == "UNLOADED")
        admin.models("Load", id=NAME, version="1")
        admin.models("Unload", id=NAME, version="1")
        stored, left = reason(admin, "4"), reason(admin, "3")
        assert stored.startswith("stored only, not loaded, by grpc 127.0.0.1:")
        assert reason(admin, "1").startswith("unloaded by grpc 127.0.0.1:")
        assert left.startswith("unloaded by the server: another version answers since 20")
        with refused("UNAVAILABLE") as said:
            admin.ask("1")
        assert reason(admin, "1") in said[0]
        assert '"event": "model version unloaded"' in server.log_text()
    with serving(repository, "--keep-previous-seconds=0.1") as (_, admin):
        assert (reason(admin, "4"), reason(admin, "3")) == (stored, left)
        admin.models("Unload", id=NAME)
        assert reason(admin, "2").startswith("unloaded with the whole model by grpc 127.0.0.1:")


def reason(admin: Admin, version: str) -> str:
    return next(each.reason for each in admin.models("Info", id=NAME).versions if each.version == version)

"""A fault at any step of an upload, or a kill -9: a complete version or nothing; what was there is untouched."""

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest

from nexus_grpc.ipc.errors import AlreadyExists, InvalidInput, ModelNotServable
from nexus_grpc.registry.open import open_registry
from nexus_grpc.registry.records import Change, ModelRow, VersionRow
from nexus_grpc.supervisor import uploads
from tests.chaos.upload_faults import CASES, CONTENT, INFO, KINDS, MODEL, Case, World, recorded_trial
from tests.harness import ROOT

Report = dict[str, Any]
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FAULTS = ("EIO", "ENOSPC", "ENOSPC-on")
KILLS = ("before", "after")
CASE_SECONDS = 60
# An upload makes more of them, of each kind; with fewer, faults are not where the work is.
CALLS_MIN = 10


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory: who is killed is not cut off from power, so that nothing here depends on what fsync waits for."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="upload-faults-") as name:
        yield Path(name)


def run(case: str, folder: Path, *kinds: str) -> list[Report]:
    command = [sys.executable, "-m", "tests.chaos.upload_faults", case, str(folder), *kinds]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=CASE_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def reports(case: str, folder: Path, *kinds: str) -> Iterator[Report]:
    """Of all runs; one for each call, and one without a fault at the end of each kind."""
    with futures.ThreadPoolExecutor(max_workers=2) as pool:
        for found in pool.map(lambda kind: run(case, folder, kind), kinds):
            assert len(found) > CALLS_MIN
            yield from found


def is_complete(case: Case, before: Report, after: Report) -> bool:
    """The version is there in full, beside what was there."""
    home = f"{MODEL}/{case.number}"
    expected = {**before["files"], MODEL: "folder", home: "folder", f"{home}/model.onnx": SHA256}
    info = after["info"] or {}
    named = {"id": MODEL, "version": str(case.number), "sha256": SHA256, "size_bytes": len(CONTENT)}
    row = [MODEL, case.number, SHA256, len(CONTENT), True]
    return (
        {name: content for name, content in after["files"].items() if not name.endswith(".json")} == expected
        and named.items() <= info.items()
        and {"inputs", "outputs", "created_at", "name"} <= info.keys()
        and (case.is_tried or (info["inputs"], info["outputs"]) == (INFO["inputs"], INFO["outputs"]))
        and info["version_name"] == case.version
        and after["versions"] == [*before["versions"], row]
        and after["models"] == [MODEL]
    )


def is_as_before(before: Report, after: Report) -> bool:
    """Nothing of the upload is left; lines of the audit log stay."""
    return all(before[what] == after[what] for what in ("files", "info", "versions", "models"))


def check(case: Case, report: Report) -> None:
    """What holds after every run, whatever happened in it."""
    before, started = report["before"], report["started"]
    assert report["is_untouched"], report
    assert started["staged"] == []
    assert is_complete(case, before, started) or is_as_before(before, started), report


@pytest.mark.parametrize("name", ["new", "version"])
def test_a_call_that_fails_leaves_nothing(folder: Path, name: str) -> None:
    case, uploaded = CASES[name], 0
    for report in reports(name, folder, *FAULTS, *(["EIO-lstat"] if name == "new" else [])):
        check(case, report)
        before, state = report["before"], report["state"]
        # Without the sweep of the next start: unless it was a removal that failed.
        assert state["staged"] == [] or report["is_removing"], report
        if report["said"] == "ok":
            assert is_complete(case, before, state), report
            uploaded += 1
            continue
        assert report["struck"]
        assert not report["is_removing"], "what is left over is no reason to refuse an upload"
        assert report["said"].startswith(("StorageFailed", "ModelNotServable")), report
        assert ("no space left" in report["said"].lower()) == ("ENOSPC" in report["kind"]), report
        assert is_as_before(before, state), report
        assert state["audit"] == before["audit"]
        # And the server goes on: the same upload succeeds.
        assert report["again"] == "ok"
        assert is_complete(case, before, report["state_again"]), report
    assert uploaded >= len(FAULTS)


@pytest.mark.parametrize("name", ["new", "version", "undone", "undone-version", "refused", "refused-version"])
def test_a_kill_leaves_a_complete_version_or_nothing(folder: Path, name: str) -> None:
    case, endings = CASES[name], set()
    for report in reports(name, folder, *KILLS):
        check(case, report)
        if report["killed"]:
            endings.add(is_as_before(report["before"], report["started"]))
        elif case.is_loaded or case.refused:
            check_taken_back(case, report)
    assert endings == {True, False}, "it was killed before and after the version's rename"


def check_taken_back(case: Case, report: Report) -> None:
    """After a run without a fault whose upload is refused in the end."""
    before, state = report["before"], report["state"]
    assert is_as_before(before, state), report
    assert state["staged"] == []
    if case.refused:
        assert report["said"].startswith("StorageFailed: the registry"), report
        assert state["audit"] == before["audit"]
    else:
        assert report["said"].startswith("ModelNotServable: no worker"), report
        assert [action for action, _ in state["audit"][:2]] == ["upload_undone", "upload"]


@pytest.mark.parametrize("name", ["undone", "undone-version"])
def test_a_fault_beside_a_failed_load(folder: Path, name: str) -> None:
    """The upload is refused in any case; one fault more may keep it from being taken back, but not halfway."""
    case = CASES[name]
    for report in reports(name, folder, *FAULTS):
        check(case, report)
        assert report["said"] != "ok"
        if not report["struck"]:
            check_taken_back(case, report)


def test_the_real_trial(folder: Path) -> None:
    """The one thing that the other runs leave out."""
    (report,) = run("tried", folder)
    assert (report["said"], report["killed"], report["struck"]) == ("ok", 0, "")
    assert is_complete(CASES["tried"], report["before"], report["state"]), report
    assert report["state"]["info"]["inputs"][0]["datatype"]


def test_every_kind_is_used() -> None:
    assert {*FAULTS, *KILLS, "EIO-lstat"} == set(KINDS)


@pytest.fixture
def world(folder: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(uploads, "try_model", recorded_trial)
    made = World(CASES[getattr(request, "param", "new")], folder)
    made.make()
    return made


def attempts(world: World, *headers: dict[str, Any]) -> list[dict[str, Any] | BaseException]:
    """What uploads with these changes to their headers, all at once, end with."""

    async def all_at_once() -> list[dict[str, Any] | BaseException]:
        with world.lifecycle() as life:
            work = uploads.Uploads(life)
            return await asyncio.gather(*(world.upload_to(work, **each) for each in headers), return_exceptions=True)

    return asyncio.run(all_at_once())


@pytest.mark.parametrize("world", ["new", "version"], indirect=True)
def test_two_uploads_of_one_version_at_once(world: World) -> None:
    before, number = world.seen(), str(world.case.number)
    ends = attempts(world, *[{"version": number}] * 2)
    assert sorted(type(end).__name__ for end in ends) == ["AlreadyExists", "dict"]
    after = world.seen()
    assert is_complete(dataclasses.replace(world.case, version=""), before, after)
    assert after["staged"] == []
    assert len(after["audit"]) == len(before["audit"]) + 1


def test_uploads_without_a_number_get_one_each(world: World) -> None:
    ends = attempts(world, *[{"version": name} for name in ("", "1.0.0", "spring")])
    assert sorted(end["model"]["version"] for end in ends if isinstance(end, dict)) == ["1", "2", "3"]
    assert [row[:2] for row in world.seen()["versions"]] == [[MODEL, 1], [MODEL, 2], [MODEL, 3]]


def test_a_version_that_is_there_is_not_replaced(world: World) -> None:
    """Also when nobody has seen it: it came by hand, or from another server."""
    folder = world.repository / MODEL / "1"
    folder.mkdir(parents=True)
    (end,) = attempts(world, {"version": "1"})
    assert isinstance(end, AlreadyExists)
    assert list(folder.iterdir()) == []
    assert (world.seen()["staged"], world.seen()["versions"]) == ([], [])


def test_text_that_the_registry_does_not_take(world: World) -> None:
    before = world.seen()
    (end,) = attempts(world, {"name": "a\0b"})
    assert isinstance(end, InvalidInput)
    assert world.seen() == before


def test_the_configuration_names_the_file(world: World) -> None:
    (world.repository / MODEL).mkdir()
    (world.repository / MODEL / "config.pbtxt").write_text('default_model_filename: "net.onnx"')
    (end,) = attempts(world, {})
    assert isinstance(end, dict)
    assert end["model"]["path"] == "shop/1/net.onnx"
    assert (world.repository / MODEL / "1" / "net.onnx").read_bytes() == CONTENT


def test_a_broken_configuration_takes_no_upload(world: World) -> None:
    (world.repository / MODEL).mkdir()
    (world.repository / MODEL / "config.pbtxt").write_text("max_batch_size: many")
    before = world.seen()
    (end,) = attempts(world, {})
    assert isinstance(end, ModelNotServable)
    assert "config.pbtxt" in end.message
    assert world.seen() == before


def test_a_failed_load_gives_a_record_back(world: World) -> None:
    """The version was registered before there was a file: so it is again."""
    known = VersionRow(MODEL, 1, stage="staging", labels={"team": "a"}, source="register", present=False)
    with contextlib.closing(open_registry("", world.data)) as registry:
        model = ModelRow(MODEL, name="Shop")
        registry.apply(Change("test", "register", MODEL, put_models=(model,), put_versions=(known,)))
    (end,) = attempts(world, {"store_only": False, "version": "1", "name": "Other", "labels": {"team": "b"}})
    assert isinstance(end, ModelNotServable)
    with contextlib.closing(open_registry("", world.data)) as registry:
        assert (registry.models(), registry.versions()) == ([model], [known])
    assert world.seen()["files"] == {}

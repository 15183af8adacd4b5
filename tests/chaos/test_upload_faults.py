"""A fault at any step of an upload, and a kill -9 at any step: a complete version, or nothing; what serves is untouched."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.upload_faults import CASES, CONTENT, INFO, KINDS, MODEL, Case
from tests.harness import ROOT

Report = dict[str, Any]
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FAULTS = ("EIO", "ENOSPC")
KILLS = ("before", "after")
CASE_SECONDS = 60
# An upload makes more of them; with fewer, faults are not where the work is.
CALLS_MIN = 20


def reports(case: str, folder: Path, *kinds: str) -> Iterator[Report]:
    command = [sys.executable, "-m", "tests.chaos.upload_faults", case, str(folder), *kinds]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=CASE_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for kind in kinds:
        assert sum(report["kind"] == kind for report in found) > CALLS_MIN, done.stderr
    return iter(found)


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
    assert report["is_untouched"]
    assert started["staged"] == []
    assert is_complete(case, before, started) or is_as_before(before, started)


@pytest.mark.parametrize("name", ["new", "version"])
def test_a_call_that_fails_leaves_nothing(tmp_path: Path, name: str) -> None:
    case, uploaded = CASES[name], 0
    for report in reports(name, tmp_path, *FAULTS):
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
        assert ("no space left" in report["said"]) == (report["kind"] == "ENOSPC"), report
        assert is_as_before(before, state), report
        assert state["audit"] == before["audit"]
        # And the server goes on: the same upload succeeds.
        assert report["again"] == "ok"
        assert is_complete(case, before, report["state_again"]), report
    assert uploaded >= len(FAULTS)


@pytest.mark.parametrize("name", ["new", "version", "undone", "undone-version", "refused", "refused-version"])
def test_a_kill_leaves_a_complete_version_or_nothing(tmp_path: Path, name: str) -> None:
    case, endings = CASES[name], set()
    for report in reports(name, tmp_path, *KILLS):
        check(case, report)
        if report["killed"]:
            endings.add(is_as_before(report["before"], report["started"]))
    assert endings == {True, False}, "it was killed before and after the version's rename"


@pytest.mark.parametrize("name", ["undone", "undone-version"])
def test_a_fault_beside_a_failed_load(tmp_path: Path, name: str) -> None:
    """The upload is refused in any case; one fault more may keep it from being taken back, but not halfway."""
    case = CASES[name]
    for report in reports(name, tmp_path, *FAULTS):
        check(case, report)
        assert report["said"] != "ok"
        if not report["struck"]:
            assert is_as_before(report["before"], report["state"]), report
            assert report["state"]["staged"] == []
            assert [action for action, _ in report["state"]["audit"][:2]] == ["upload_undone", "upload"]


@pytest.mark.parametrize("name", ["new", "version"])
def test_a_disk_that_stays_full(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    for report in reports(name, tmp_path, "ENOSPC-on"):
        check(case, report)


@pytest.mark.parametrize("name", ["refused", "refused-version"])
def test_a_registry_that_refuses(tmp_path: Path, name: str) -> None:
    """The rename is taken back: the last run of a kind is one without a fault."""
    *_, report = reports(name, tmp_path, "before")
    assert (report["killed"], report["struck"]) == (0, "")
    assert report["said"].startswith("StorageFailed: the registry")
    assert is_as_before(report["before"], report["state"])
    assert report["state"]["audit"] == report["before"]["audit"]
    assert report["state"]["staged"] == []
    check(CASES[name], report)


def test_every_kind_is_used() -> None:
    assert {*FAULTS, *KILLS, "ENOSPC-on"} == set(KINDS)

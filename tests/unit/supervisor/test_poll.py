"""Looks at the repository: each model is taken up for itself, and what is wrong with one is said once."""

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from nexus_grpc.ipc.errors import ModelNotServable, NexusError, UnknownModel
from nexus_grpc.registry.open import open_registry
from nexus_grpc.registry.records import Change, ModelRow
from nexus_grpc.repository import read_repository
from nexus_grpc.settings import load_settings
from nexus_grpc.supervisor import storage
from nexus_grpc.supervisor.catalogue import UNAVAILABLE, Catalogue, Placement
from nexus_grpc.supervisor.deployment import Deployment
from nexus_grpc.supervisor.lifecycle import Lifecycle
from nexus_grpc.supervisor.model_state import ModelState
from nexus_grpc.supervisor.poll import Poll

OLD = (1_700_000_000, 1_700_000_000)


def add(repository: Path, name: str, version: str = "1", file: str = "model.onnx") -> Path:
    folder = repository / name / version
    folder.mkdir(parents=True)
    (folder / file).write_bytes(b"onnx")
    os.utime(folder / file, OLD)
    return folder / file


class Run:
    """One run of a supervisor without workers, which loads nothing by itself."""

    def __init__(self, repository: Path, data: Path) -> None:
        self.settings = load_settings(
            {"model_repository": repository, "data_dir": data, "model_control": "explicit", "auth": "off"}
        )
        self.registry = open_registry("", data)
        catalogue = Catalogue(Placement(1, ()))
        self.life = Lifecycle(self.settings, catalogue, self.registry)
        self.life.loading.deployment = Deployment(self.settings, catalogue, [], [], self.life.table, lambda: None)
        self.life.begin(read_repository(repository).beside({row.id for row in self.registry.models()}))
        self.poll = Poll(self.life)

    def records(self) -> dict[str, list[int]]:
        return {name: sorted(state.rows) for name, state in self.life.states.items() if state.rows}

    def look(self) -> list[dict[str, Any]]:
        """One look; what it logged."""
        with capture_logs() as logged:
            asyncio.run(self.poll._guarded(self.poll._look_if_changed))
        return [dict(line) for line in logged]

    def reload(self, model: str = "") -> dict[str, dict[str, str]]:
        answer = asyncio.run(self.poll.reload({"model": model}, "test"))
        assert [each["model"] for each in answer["models"]] == sorted(
            state.name for state in self.life.states.values() if model in ("", state.name)
        )
        return {each["model"]: each for each in answer["results"]}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    for name in ("a", "bad", "z"):
        add(folder, name)
    return folder


@pytest.fixture(autouse=True)
def _plain_log() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@contextlib.contextmanager
def running(repository: Path) -> Iterator[Run]:
    run = Run(repository, repository.parent / "data")
    with contextlib.closing(run.registry):
        yield run


@pytest.fixture
def run(repository: Path) -> Iterator[Run]:
    with running(repository) as run:
        yield run


def unreadable(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As a file that the disk cannot give; root may read every other."""
    real = storage.file_sha256

    def read(path: Path) -> str:
        if name in path.parts:
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(storage, "file_sha256", read)


def test_a_file_that_cannot_be_read_keeps_no_other_out_of_the_registry(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, capture_logs() as logged:
        unreadable(patch, "bad")
        asyncio.run(run.poll._record_all())
        assert run.records() == {"a": [1], "z": [1]}
        assert [line["model"] for line in logged if line["log_level"] == "error"] == ["bad"]
        first, second = run.look(), run.look()
    assert [line["event"] for line in first] == ["cannot take up a model"]
    assert first[0]["reason"] == "model 'bad': the file of version 1 (Permission denied) cannot be read"
    assert second == [], "said once"
    assert run.look() == []
    assert run.records() == {"a": [1], "bad": [1], "z": [1]}


def test_what_no_model_is_is_said_once(run: Run, repository: Path) -> None:
    for name in ("lost+found", "scripts", ".git"):
        (repository / name).mkdir()
    (repository / "README.md").write_text("")
    logged = run.look()
    assert {line["folder"]: line["log_level"] for line in logged} == {"lost+found": "warning", "scripts": "warning"}
    add(repository, "b")
    assert run.look() == []
    assert run.records()["b"] == [1]
    (repository / "scripts").rmdir()
    assert run.look() == []
    (repository / "scripts").mkdir()
    assert [line["folder"] for line in run.look()] == ["scripts"]


def test_a_reload_does_what_it_can_and_lists_each(run: Run, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (repository / "lost+found").mkdir()
    add(repository, "odd")
    (repository / "odd/config.pbtxt").write_text("bogus: 1")
    real = run.life.rescan

    async def rescan(state: ModelState) -> str:
        if state.name == "bad":
            raise KeyError("a bug, or a secret")
        return await real(state)

    monkeypatch.setattr(run.life, "rescan", rescan)
    results = run.reload()
    assert {name: each["outcome"] for name, each in results.items()} == {
        "a": "done",
        "bad": "failed",
        "lost+found": "skipped",
        "odd": "failed",
        "z": "done",
    }
    assert results["bad"]["reason"] == "internal error while model 'bad' was taken up; see the server's log"
    assert results["odd"]["reason"].startswith('odd/config.pbtxt:1:1: field "bogus" of ModelConfig is not supported')
    assert results["lost+found"]["reason"].startswith("not a model's name; expected")
    assert run.records() == {"a": [1], "z": [1]}


def test_a_reload_of_one_says_what_is_wrong_with_it(run: Run, repository: Path) -> None:
    assert run.reload("a")["a"] == {"model": "a", "version": "", "outcome": "done", "reason": ""}
    for name, error in (("nobody", UnknownModel), ("scripts", ModelNotServable), ("odd", ModelNotServable)):
        if name != "nobody":
            (repository / name).mkdir()
        if name == "odd":
            (repository / "odd/config.pbtxt").write_text("bogus: 1")
        with pytest.raises(error):
            run.reload(name)
    with pytest.raises(ModelNotServable, match="the folder scripts of the repository is no model"):
        run.reload("scripts")


def test_a_bug_ends_no_poll(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fingerprint(_: Path) -> None:
        raise KeyError("bug")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "repository_fingerprint", fingerprint)
        assert [line["event"] for line in run.look()] == ["cannot take up the repository"]
        assert run.look() == [], "said once"
    assert run.look() == []
    assert run.records() == {"a": [1], "bad": [1], "z": [1]}


def test_a_record_that_cannot_be_read_keeps_no_other_model_from_starting(repository: Path) -> None:
    with running(repository) as run:
        asyncio.run(run.poll._record_all())
        row = ModelRow("bad", traffic={"primary": 1, "experiment": "none of ours"})
        run.registry.apply(Change("test", "update", "bad", put_models=(row,)))
    with capture_logs() as logged, running(repository) as run:
        assert {state.name for state in run.life.states.values() if state.is_known} == {"a", "bad", "z"}
        assert run.reload()["bad"]["outcome"] == "done"
    assert [(line["model"], line["log_level"]) for line in logged] == [("bad", "error")]


def test_a_newcomer_by_case_is_skipped_by_looks_reloads_and_loads(run: Run, repository: Path) -> None:
    asyncio.run(run.poll._record_all())
    add(repository, "A")
    assert [line["folder"] for line in run.look()] == ["A"]
    assert run.reload()["A"]["outcome"] == "skipped"
    assert "A" not in run.records()
    with pytest.raises(ModelNotServable, match="'A' differs from the model 'a' by case only"):
        run.reload("A")


def test_what_breaks_at_run_time_is_listed_and_said_once(run: Run, repository: Path) -> None:
    assert run.look() == []
    (repository / "odd").mkdir()
    (repository / "odd/config.pbtxt").write_text("bogus: 1")
    (repository / "a/2").mkdir()
    os.utime(repository / "odd", OLD)
    os.utime(repository / "a/2", OLD)
    os.utime(repository / "a", OLD)
    logged = {(line["event"], line["model"], line["version"]): line["reason"] for line in run.look()}
    shown = {(v.name, v.version): v.reason for v in run.life.catalogue.listed if v.state == UNAVAILABLE}
    missing = "version 2 has no file a/2/model.onnx"
    bogus = 'odd/config.pbtxt:1:1: field "bogus" of ModelConfig is not supported'
    assert {place: reason.partition(";")[0] for place, reason in shown.items()} == {
        ("a", "2"): missing,
        ("odd", ""): bogus,
    }
    assert logged == {("model unavailable", *place): reason for place, reason in shown.items()}
    add(repository, "b")
    assert run.look() == [], "said once"


def test_a_folder_that_has_just_come_is_left_for_the_next_look(run: Run, repository: Path) -> None:
    (repository / "a/2").mkdir()
    assert run.look() == []
    assert run.life.states["a"].entry is not None
    assert not run.life.states["a"].entry.broken
    assert run.poll._left


def test_a_version_that_cannot_be_read_holds_up_no_other(
    run: Run, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(run.poll._record_all())
    taken_up: list[str] = []

    async def bring_about(name: str, *, retry: bool = False) -> dict[int, NexusError]:
        taken_up.append(name)
        return {}

    monkeypatch.setattr(run.life, "bring_about", bring_about)
    add(repository, "bad", "2")
    add(repository, "bad", "3")
    real = storage.file_sha256

    def read(path: Path) -> str:
        if path.parent.name == "2":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(storage, "file_sha256", read)
    assert [line["reason"] for line in run.look()] == [
        "model 'bad': the file of version 2 (Permission denied) cannot be read"
    ]
    assert taken_up == ["bad"]
    assert run.records()["bad"] == [1, 3]


def test_a_complaint_is_not_said_again_because_files_came_meanwhile(
    run: Run, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unreadable(monkeypatch, "bad")
    assert [line["event"] for line in run.look()] == ["cannot take up a model"]
    file = repository / "bad/1/model.onnx"
    os.utime(file)
    assert run.look() == [], "not looked at: it changed just now"
    os.utime(file, OLD)
    assert run.look() == [], "said once"


def test_permissions_that_change_are_seen(run: Run, repository: Path) -> None:
    path = repository / "a/1/model.onnx"
    before = storage.repository_fingerprint(repository)
    path.chmod(0o600)
    assert storage.repository_fingerprint(repository) != before

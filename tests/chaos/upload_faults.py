"""Uploads in processes of their own, each with one fault: python -m tests.chaos.upload_faults CASE FOLDER KIND...

The real code: staging, the upload's whole flow, storage, a SQLite registry; no workers. One JSON line per run: what the
upload said, what is on the disk and in the registry right after it, and again after a server's start.

The module is imported once and each run is a fork of it before there is any thread: a fresh interpreter for each of
some thousand runs would take a quarter of an hour.
"""

import asyncio
import contextlib
import dataclasses
import errno
import hashlib
import itertools
import json
import os
import shutil
import signal
import sqlite3
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nexus_grpc import logs
from nexus_grpc.ipc.errors import NexusError
from nexus_grpc.registry.open import open_registry
from nexus_grpc.registry.records import VersionRow
from nexus_grpc.repository import read_repository
from nexus_grpc.settings import Settings, load_settings
from nexus_grpc.staging import FOLDER, StagedFile
from nexus_grpc.supervisor import loading, storage, uploads
from nexus_grpc.supervisor.catalogue import Catalogue, Findings, Placement
from nexus_grpc.supervisor.deployment import Deployment
from nexus_grpc.supervisor.lifecycle import Lifecycle
from nexus_grpc.supervisor.model_state import file_fingerprint
from nexus_grpc.supervisor.poll import Poll
from nexus_grpc.supervisor.trial import Trial
from tests.harness import MODELS

MODEL, ACTOR = "shop", "test"
CONTENT = (MODELS / "scalar" / "1" / "model.onnx").read_bytes()
INFO = {"inputs": [{"name": "x"}], "outputs": [{"name": "y"}]}
# Every function through which this code reaches the file system. SQLite's own calls are not seen; its promises are
# tested with the registry (tests/unit/registry).
READING = ("listdir", "scandir", "stat")
FILLING = ("close", "fsync", "link", "mkdir", "open", "rename", "replace", "write")
# What makes room again. When one of these fails, what it was to remove may stay in the staging folder.
REMOVING = ("remove", "rmdir", "unlink")
CHANGING = (*FILLING, *REMOVING, "chmod")
# Which calls a kind of fault may strike. A kill before or after a call that only reads is one after or before another.
# lstat is a kind of its own because there are many: each resolved path has one for each of its folders.
KINDS = {
    "EIO": (*CHANGING, *READING),
    "EIO-lstat": ("lstat", "readlink"),
    "ENOSPC": FILLING,
    "ENOSPC-on": ("fsync", "mkdir", "open", "write"),
    "before": CHANGING,
    "after": CHANGING,
}
RUN_SECONDS = 20


@dataclasses.dataclass(frozen=True)
class Case:
    """One kind of upload.

    Attributes:
        has_model: version 1 is there, and recorded, and serves on.
        version: as in the upload's header.
        is_loaded: not store_only: there is no worker that could load it, so that the upload is taken back.
        refused: the registry refuses every version (by a trigger).
        is_tried: with the real trial.
    """

    has_model: bool = False
    version: str = ""
    is_loaded: bool = False
    refused: bool = False
    is_tried: bool = False

    @property
    def number(self) -> int:
        return 2 if self.has_model else 1


CASES = {
    "new": Case(),
    "version": Case(has_model=True, version="1.0.0"),
    "undone": Case(is_loaded=True),
    "undone-version": Case(has_model=True, is_loaded=True),
    "refused": Case(refused=True),
    "refused-version": Case(has_model=True, refused=True),
    "tried": Case(is_tried=True),
}


class Fault:
    """Wraps the calls of a kind: the `number`-th of them fails, or kills the process just before or after it.

    Args:
        kind: EIO or ENOSPC for that one call; ENOSPC-on: the disk is full from then on, but can be read and cleared;
            before or after: SIGKILL.
    """

    def __init__(self, kind: str, number: int) -> None:
        self._kind = kind
        self._number = number
        self._count = 0
        self.struck = ""
        self.is_removing = False

    @contextlib.contextmanager
    def armed(self) -> Iterator[None]:
        originals = {name: getattr(os, name) for name in KINDS[self._kind]}
        for name, function in originals.items():
            setattr(os, name, self._wrapped(name, function))
        try:
            yield
        finally:
            for name, function in originals.items():
                setattr(os, name, function)

    def _wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if self._kind == "ENOSPC-on" and not _takes_space(name, arguments):
                return function(*arguments, **options)
            self._count += 1
            if self._count < self._number or (self._count > self._number and self._kind != "ENOSPC-on"):
                return function(*arguments, **options)
            self._strike(name, lambda: function(*arguments, **options))

        return call

    def _strike(self, name: str, call: Callable[[], Any]) -> None:
        if self._kind == "after":
            with contextlib.suppress(OSError):
                call()
        if self._kind in ("before", "after"):
            os.kill(os.getpid(), signal.SIGKILL)
        if not self.struck:
            in_removal = any("rmtree" in frame.name for frame in traceback.extract_stack())
            self.struck, self.is_removing = name, name in REMOVING or in_removal
        if name == "close":
            call()  # Linux lets go of the descriptor, whatever it answers
        number = errno.EIO if self._kind.startswith("EIO") else errno.ENOSPC
        raise OSError(number, os.strerror(number))


def _takes_space(name: str, arguments: tuple[Any, ...]) -> bool:
    if name == "open":
        return bool(arguments[1] & os.O_CREAT)
    return name != "mkdir" or not os.path.isdir(arguments[0])


class World:
    """A repository and a registry in a folder."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case = case
        self.repository = folder / "models"
        self.data = folder / "data"
        self.settings: Settings = load_settings(
            {"model_repository": self.repository, "data_dir": self.data, "model_control": "none", "log_level": "error"}
        )

    def make(self) -> None:
        self.repository.mkdir(parents=True)
        if self.case.has_model:
            shutil.copytree(MODELS / "scalar", self.repository / MODEL)
        self.start()
        if self.case.refused:
            self._sql("CREATE TRIGGER no BEFORE INSERT ON versions BEGIN SELECT RAISE(ABORT, 'no'); END")

    def _sql(self, statement: str) -> None:
        with contextlib.closing(sqlite3.connect(self.data / "registry.db", isolation_level=None)) as file:
            file.execute(statement)

    def start(self) -> None:
        """What a server does with the files and the registry when it starts."""
        storage.sweep_all(self.repository)
        if (self.data / "registry.db").exists():
            self._sql("DROP TRIGGER IF EXISTS no")  # whatever it was, it works again

        async def begin() -> None:
            with self.lifecycle() as life:
                await Poll(life).run()

        asyncio.run(begin())

    @contextlib.contextmanager
    def lifecycle(self) -> Iterator[Lifecycle]:
        with contextlib.closing(open_registry("", self.data)) as registry:
            catalogue = Catalogue(Placement(1, ()))
            life = Lifecycle(self.settings, catalogue, registry)
            life.loading.deployment = Deployment(self.settings, catalogue, [], [], life.table, lambda: None)
            life.begin(read_repository(self.repository))
            yield life

    def upload(self, fault: Fault) -> dict[str, Any]:
        """Once with the fault, and if that failed once more without, in the same process."""

        async def attempts() -> dict[str, Any]:
            with self.lifecycle() as life:
                work = uploads.Uploads(life)
                with fault.armed():
                    answer = await said(self.upload_to(work))
                result: dict[str, Any] = {"said": answer, "state": self.seen()}
                if answer != "ok" and not self.case.refused and not self.case.is_loaded:
                    result["again"] = await said(self.upload_to(work))
                    result["state_again"] = self.seen()
                return result

        return asyncio.run(attempts())

    async def upload_to(self, work: uploads.Uploads, **changes: Any) -> dict[str, Any]:
        """Raises NexusError.

        Args:
            changes: to the header.
        """
        staged = StagedFile.create(self.repository, 1 << 20)
        try:
            half = len(CONTENT) // 2
            staged.write(CONTENT[:half])
            staged.write(CONTENT[half:])
            path, sha256, size_bytes = staged.finish()
        except NexusError:
            staged.discard()  # as front/upload.py does
            raise
        header = {"id": MODEL, "name": "", "version": self.case.version, "labels": {}}
        header |= {"store_only": not self.case.is_loaded, **changes}
        arguments = {"staged": str(path), "header": header, "sha256": sha256, "size_bytes": size_bytes}
        return await work.receive(arguments, ACTOR)

    def seen(self) -> dict[str, Any]:
        """What is there: files and their SHA-256, what waits in staging, the registry."""
        files, staged = {}, []
        for path in sorted(self.repository.rglob("*")):
            name = str(path.relative_to(self.repository))
            if name.startswith(FOLDER):
                staged += [name] if name != FOLDER else []
            elif path.is_dir():
                files[name] = "folder"
            else:
                files[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        info = self.repository / MODEL / str(self.case.number) / storage.INFO_FILE
        with contextlib.closing(open_registry("", self.data)) as registry:
            return {
                "files": files,
                "staged": staged,
                "info": json.loads(info.read_text()) if info.exists() else None,
                "live": file_fingerprint(str(self.repository / MODEL / "1" / "model.onnx"))
                if self.case.has_model
                else "",
                "models": [row.id for row in registry.models()],
                "versions": [_row(row) for row in registry.versions()],
                "audit": [(row.action, row.version) for row in registry.history()],
            }

    def live(self) -> str:
        """Tells the file of the version that was there before from any other."""
        return file_fingerprint(str(self.repository / MODEL / "1" / "model.onnx")) if self.case.has_model else ""


def _row(row: VersionRow) -> list[Any]:
    return [row.model, row.version, row.sha256, row.size_bytes, row.present]


async def said(upload: Any) -> str:
    try:
        await upload
    except NexusError as error:
        return f"{type(error).__name__}: {error.message}"
    return "ok"


async def recorded_trial(*_: Any) -> Trial:
    """The real one takes a second; it touches no file but the staged one, which it reads. CASES has one with it."""
    return Trial("", "", INFO["inputs"], INFO["outputs"], Findings())


def in_child(work: Callable[[], Any]) -> tuple[int, Any]:
    """(signal or 0, what `work` returned), in a forked process."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            signal.alarm(RUN_SECONDS)
            text = json.dumps(work())
            with os.fdopen(writer, "w") as file:
                file.write(text)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as file:
        text = file.read()
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status), None
    if os.WEXITSTATUS(status):
        raise SystemExit("a run ended with an exception")
    return 0, json.loads(text)


def runs(case: Case, kind: str, folder: Path) -> Iterator[dict[str, Any]]:
    """One for each call, until a run has none left that the fault could strike."""
    pristine = World(case, folder / "pristine")
    in_child(pristine.make)
    before = pristine.seen()
    for number in itertools.count(1):
        place = folder / str(number)
        shutil.copytree(folder / "pristine", place)
        report = _one(World(case, place), Fault(kind, number))
        yield {"kind": kind, "number": number, "before": before, **report}
        shutil.rmtree(place)
        if not report["killed"] and not report["struck"]:
            return


def _one(world: World, fault: Fault) -> dict[str, Any]:
    live = world.live()

    def upload() -> dict[str, Any]:
        return {**world.upload(fault), "struck": fault.struck, "is_removing": fault.is_removing}

    killed, report = in_child(upload)
    found = {"killed": killed, "struck": "", "is_removing": False, "state": world.seen(), **(report or {})}
    in_child(world.start)
    started = world.seen()
    is_untouched = all(seen["live"] == live for seen in (found["state"], started))
    return {**found, "started": started, "is_untouched": is_untouched}


def main() -> None:
    logs.configure("json", "critical", "test")
    case, folder = CASES[sys.argv[1]], Path(sys.argv[2])
    if case.is_tried:
        world = World(case, folder / "tried")
        world.make()
        print(json.dumps({"before": world.seen(), **_one(world, Fault("before", sys.maxsize))}))
        return
    # Where no worker could load the upload, the version before is tried, too.
    uploads.try_model = loading.try_model = recorded_trial
    for kind in sys.argv[3:]:
        for report in runs(case, kind, folder / kind):
            print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()

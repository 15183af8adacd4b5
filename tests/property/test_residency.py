"""What takes traffic is loaded, whatever is done in whatever order: the supervisor's operations, registry and files,
without processes, against a plain model of the rules."""

import asyncio
import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from typing import Any
from unittest import mock

from hypothesis import HealthCheck, settings
from structlog.testing import capture_logs

from nexus_grpc.ipc.errors import InvalidInput, ModelNotServable, NexusError
from nexus_grpc.registry.open import open_registry
from nexus_grpc.repository import read_repository
from nexus_grpc.settings import load_settings
from nexus_grpc.supervisor import loading, uploads
from nexus_grpc.supervisor.catalogue import Catalogue, Findings, Placement, Version
from nexus_grpc.supervisor.deployment import Deployment
from nexus_grpc.supervisor.lifecycle import Lifecycle
from nexus_grpc.supervisor.model_operations import ModelOperations
from nexus_grpc.supervisor.poll import Poll
from nexus_grpc.supervisor.traffic_operations import TrafficOperations
from nexus_grpc.supervisor.trial import Trial
from nexus_grpc.supervisor.uploads import Uploads
from nexus_grpc.supervisor.variant_statistics import VariantStatistics
from tests.effort import examples
from tests.plain_model import Refused, ResidencyMachine, Seen

NAME, ACTOR, BAD = "times", "test", b"bad"
FOR_EVER_S = 86_400.0


async def tried(path: str | pathlib.Path, *_: Any) -> Trial:
    """As a trial ends."""
    if pathlib.Path(path).read_bytes() == BAD:
        raise InvalidInput("it is no model")
    return Trial("", "", [], [], Findings())


class Instant(Deployment):
    """One worker that answers at once."""

    async def load(self, version: Version) -> None:
        if pathlib.Path(version.path).read_bytes() == BAD:
            self._catalogue.failed(version.slot, "it is no model")
            raise ModelNotServable(version.reason)
        self._catalogue.loaded(version.slot, 0, "", "")

    async def unload(self, version: Version) -> None:
        self._catalogue.drop(version)


class Supervised:
    """The operations of one supervisor after the other, on one folder."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder, self.repository = folder, folder / "models"
        self._write(1, True)
        self.restart(True)

    def restart(self, kill: bool) -> None:
        """A killed one has closed nothing."""
        given = {"model_repository": self.repository, "data_dir": self.folder / "data", "model_control": "none"}
        configured = load_settings({**given, "auth": "off", "keep_previous_seconds": FOR_EVER_S})
        self.catalogue = Catalogue(Placement(1, ()))
        self.life = Lifecycle(configured, self.catalogue, open_registry("", self.folder / "data"))
        deployment = Instant(configured, self.catalogue, [], [], self.life.table, lambda: None)
        self.life.loading.deployment = deployment
        self.catalogue.circuit_of = lambda slot: 0
        statistics = VariantStatistics(self.life, [], [])
        self.models, self.uploads, self.poll = ModelOperations(self.life), Uploads(self.life), Poll(self.life)
        self.traffic = TrafficOperations(self.life, statistics)
        asyncio.run(self._begin(deployment))

    async def _begin(self, deployment: Instant) -> None:
        self.life.begin(read_repository(self.repository))
        for version in self.catalogue.for_worker(0):
            try:
                await deployment.load(version)
            except NexusError:
                continue
        await self.life.after_start()
        await self.poll._record_all()

    # --- operations ---

    def _call(self, operation: Callable[..., Awaitable[Any]], **arguments: Any) -> None:
        try:
            asyncio.run(operation(arguments, ACTOR))  # type: ignore[arg-type]
        except NexusError as error:
            raise Refused(error.message) from error

    def upload(self, version: int, store_only: bool, good: bool = True) -> None:
        staged = self.folder / "staged"
        staged.write_bytes(b"good" if good else BAD)
        header = {"id": NAME, "name": "", "version": str(version), "labels": {}, "store_only": store_only}
        self._call(self.uploads.receive, staged=str(staged), header=header, sha256="x", size_bytes=4)

    def load(self, version: int | None) -> None:
        self._call(self.models.load, id=NAME, version=str(version or ""))

    def unload(self, version: int | None) -> None:
        self._call(self.models.unload, id=NAME, version=str(version or ""))

    def activate(self, version: int | None) -> None:
        self._call(self.models.activate, id=NAME, version=str(version or ""))

    def start(self, version: int, share: int) -> None:
        self._call(self.traffic.setup, model=NAME, candidate_version=str(version), percent=share, more=[])

    def split(self, share: int) -> None:
        self._call(self.traffic.split, model=NAME, percent=share, shares=[])

    def ramp(self, share: int) -> None:
        plan = {"steps": [share, 100], "every_seconds": FOR_EVER_S, "guards": [], "min_requests": 1}
        self._call(self.traffic.ramp, model=NAME, **plan)

    def promote(self) -> None:
        self._call(self.traffic.promote, model=NAME, version="")

    def abort(self) -> None:
        self._call(self.traffic.abort, model=NAME)

    def rollback(self) -> None:
        self._call(self.models.rollback, id=NAME)

    def delete(self, version: int) -> None:
        self._call(self.models.delete, id=NAME, version=str(version))

    def put(self, version: int, good: bool) -> None:
        self._write(version, good)
        self._call(self.poll.reload, model="")

    def _write(self, version: int, good: bool) -> None:
        home = self.repository / NAME / str(version)
        home.mkdir(parents=True)
        (home / "model.onnx").write_bytes(b"good" if good else BAD)

    def remove(self, version: int) -> None:
        shutil.rmtree(self.repository / NAME / str(version))
        if not os.listdir(self.repository / NAME):
            (self.repository / NAME).rmdir()
        self._call(self.poll.reload, model="")

    # --- what there is ---

    def seen(self) -> Seen:
        state = self.life.find(NAME)
        ready = {each.number for each in self.catalogue.of_model(NAME) if each.state == "READY"}
        experiment = state.traffic.experiment
        arms = [(arm.version, arm.basis_points // 100) for arm in experiment.arms] if experiment is not None else []
        return Seen(frozenset(ready), self.life.serving(state), tuple(arms))


class SupervisedMachine(ResidencyMachine):
    def __init__(self) -> None:
        super().__init__()
        self.until_the_end = contextlib.ExitStack()
        folder = self.until_the_end.enter_context(tempfile.TemporaryDirectory())
        self.until_the_end.enter_context(capture_logs())
        for module in (loading, uploads):
            self.until_the_end.enter_context(mock.patch.object(module, "try_model", tried))
        self.real = Supervised(pathlib.Path(folder))

    def teardown(self) -> None:
        self.until_the_end.close()


TestResidency = SupervisedMachine.TestCase
TestResidency.settings = settings(
    deadline=None, max_examples=examples(30), stateful_step_count=30, suppress_health_check=list(HealthCheck)
)


def replay(*steps: tuple[Any, ...]) -> None:
    """What was found once."""
    machine = SupervisedMachine()
    try:
        for what, *arguments in steps:
            machine.both(what, *arguments)
            machine.it_is_as_the_plain_model_says()
        before = machine.real.seen()
        machine.real.restart(True)
        assert machine.real.seen() == before
    finally:
        machine.teardown()


def test_a_load_beside_a_chosen_version_that_is_broken() -> None:
    replay(("activate", 1), ("put", 2, True), ("remove", 1), ("put", 1, False), ("load", 2))


def test_an_unloaded_model_has_no_version_that_answers_by_itself() -> None:
    replay(("activate", 1), ("unload", None), ("activate", None))


def test_a_load_of_a_model_whose_chosen_version_is_gone() -> None:
    replay(("put", 2, True), ("activate", 1), ("unload", None), ("remove", 1), ("load", None))


def test_a_model_whose_folder_went_with_an_experiment_running() -> None:
    replay(("put", 2, True), ("start", 1, 50), ("remove", 1), ("remove", 2), ("abort",), ("put", 1, True))

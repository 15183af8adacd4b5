"""What each variant has done: read off the pages, kept over a restart, counted anew by steps and experiments."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexus_grpc.ipc.errors import Code
from nexus_grpc.ipc.record import Method
from nexus_grpc.ipc.stats import FrontStats, WorkerStats
from nexus_grpc.registry.open import open_registry
from nexus_grpc.registry.store import Registry
from nexus_grpc.repository import read_repository
from nexus_grpc.settings import load_settings
from nexus_grpc.supervisor.catalogue import Catalogue, place
from nexus_grpc.supervisor.deployment import Deployment
from nexus_grpc.supervisor.lifecycle import Lifecycle
from nexus_grpc.supervisor.model_state import ModelState
from nexus_grpc.supervisor.pool import FrontSlot, WorkerSlot
from nexus_grpc.supervisor.variant_statistics import VariantStatistics
from nexus_grpc.traffic import policy
from nexus_grpc.traffic.statistics import VariantStats

MODEL = "m"


class Run:
    """One run of a supervisor with model m (versions 1 and 2), two fronts and two workers; no process is started."""

    def __init__(self, folder: Path) -> None:
        settings = load_settings({"model_repository": str(folder), "data_dir": str(folder / ".data")})
        self.registry: Registry = open_registry("", folder / ".data")
        contents = read_repository(folder)
        self.catalogue = Catalogue(place(contents.entries, 2))
        self.lifecycle = Lifecycle(settings, self.catalogue, self.registry)
        self.lifecycle.begin(contents)
        self.fronts = [FrontSlot(index) for index in range(2)]
        self.workers = [WorkerSlot(index, [0]) for index in range(2)]
        self.lifecycle.loading.deployment = Deployment(
            settings, self.catalogue, self.workers, self.fronts, self.lifecycle.table, lambda: None
        )
        self.statistics = VariantStatistics(self.lifecycle, self.fronts, self.workers)
        self.statistics.restore()
        for version in self.catalogue.versions:
            for worker in sorted(version.workers) if version.slot else ():
                self.catalogue.loaded(version.slot, worker, "", "", ["no", "yes"])
        self.state: ModelState = self.lifecycle.find(MODEL)
        asyncio.run(self.lifecycle.after_start())

    def close(self) -> None:
        self.registry.close()
        for slot in (*self.fronts, *self.workers):
            slot.close()

    def begin(self) -> None:
        """Version 1 against 2, half and half: committed, and an arm's slot for each."""
        serving = self.lifecycle.serving(self.state)
        assert serving == 2
        traffic = policy.start(self.state.traffic, serving, [(1, 5_000)], None, 1_000.0)
        asyncio.run(self.lifecycle.commit(self.state, "experiment", "test", traffic=traffic))
        for version in list(self.catalogue.of_model(MODEL)):
            self.catalogue.add_arm(version, "A" if version.number == serving else "B")
        assert traffic.experiment is not None
        self.statistics.begin(MODEL, traffic.experiment.id)

    def slot_of(self, variant: str) -> int:
        return next(arm.slot for arm in self.catalogue.arms_of(MODEL) if arm.variant == variant and not arm.retiring)

    def serve(self, variant: str, code: Code = Code.OK, front: int = 0) -> None:
        """One request, answered `yes`."""
        slot = self.slot_of(variant)
        FrontStats(self.fronts[front].page).completed(slot, Method.PREDICT, code, 60_000)
        if code is Code.OK:
            WorkerStats(self.workers[front].page).predicted(slot, [0, 1])

    @property
    def requests(self) -> dict[str, int]:
        return {name: stats.requests for name, stats in self.statistics.of(self.state).items()}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for version in (1, 2):
        folder = tmp_path / MODEL / str(version)
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(b"never opened")
    (tmp_path / MODEL / "config.pbtxt").write_text("version_policy { all {} }")
    return tmp_path


@pytest.fixture
def run(repository: Path) -> Iterator[Run]:
    run = Run(repository)
    yield run
    run.close()


def test_without_an_experiment_there_is_nothing(run: Run) -> None:
    assert run.statistics.of(run.state) == run.statistics.since_step(run.state) == {}
    assert run.statistics.shadow(run.state) is None
    assert run.statistics.labels(run.state) == ("no", "yes")


def test_counts_of_all_processes_by_variant(run: Run) -> None:
    run.begin()
    for front in range(2):
        run.serve("A", front=front)
        run.serve("B", Code.INTERNAL, front)
        run.serve("B", Code.INVALID_ARGUMENT, front)
        run.serve("B", front=front)
    found = run.statistics.of(run.state)
    assert {name: (stats.requests, stats.errors) for name, stats in found.items()} == {"A": (2, 0), "B": (6, 2)}
    assert found["A"].predictions[:3] == found["B"].predictions[:3] == (0, 2, 0)
    assert found["B"].latency.sum == 6 * 60_000


def test_a_step_counts_from_its_beginning(run: Run) -> None:
    run.begin()
    run.serve("B")
    assert {name: stats.requests for name, stats in run.statistics.since_step(run.state).items()} == {"A": 0, "B": 1}
    run.statistics.begin_step(MODEL)
    run.serve("B", Code.UNAVAILABLE)
    since = run.statistics.since_step(run.state)
    assert (since["B"].requests, since["B"].errors, since["B"].latency.count) == (1, 1, 1)
    assert since["A"] == VariantStats()
    assert run.requests == {"A": 0, "B": 2}


def test_a_restart_continues_counts_and_step(run: Run, repository: Path) -> None:
    run.begin()
    run.serve("A")
    run.serve("B")
    run.statistics.begin_step(MODEL)
    run.serve("B", Code.INTERNAL)
    asyncio.run(run.statistics.keep(run.state))
    second = Run(repository)
    try:
        assert second.requests == {"A": 1, "B": 2}
        assert second.statistics.of(second.state)["B"].predictions[1] == 1
        assert second.statistics.since_step(second.state)["B"].errors == 1
        second.serve("B")
        assert second.requests == {"A": 1, "B": 3}
        assert second.statistics.since_step(second.state)["B"].requests == 2
    finally:
        second.close()


def test_another_experiment_takes_over_nothing(run: Run, repository: Path) -> None:
    run.begin()
    run.serve("B")
    asyncio.run(run.statistics.keep(run.state))
    asyncio.run(run.lifecycle.commit(run.state, "abort", "test", traffic=policy.abort(run.state.traffic)))
    assert run.statistics.of(run.state) == {}
    for arm in list(run.catalogue.arms_of(MODEL)):
        run.catalogue.drop(arm)
    run.begin()
    assert run.requests == {"A": 0, "B": 0}
    second = Run(repository)  # the registry still has the first one's counts
    try:
        assert second.requests == {"A": 0, "B": 0}
    finally:
        second.close()


def test_an_arm_on_its_way_out_counts_no_more(run: Run) -> None:
    run.begin()
    run.serve("B")
    old = next(arm for arm in run.catalogue.arms_of(MODEL) if arm.variant == "B")
    old.retiring = True
    assert run.requests == {"A": 0, "B": 0}


def test_counts_are_kept_when_they_change_and_not_all_the_time(run: Run) -> None:
    run.begin()

    def kept() -> int:
        counts = run.registry.statistics(MODEL)
        return int(counts["variants"]["B"]["requests"]) if counts else -1

    assert kept() == -1
    run.serve("B")
    asyncio.run(run.statistics.keep(run.state))
    assert kept() == 1
    run.serve("B")
    asyncio.run(run.statistics.keep(run.state))
    assert kept() == 1, "that was a moment ago"


def test_a_shadow_s_counts_are_of_the_version_that_answers_and_its_arms(run: Run) -> None:
    run.begin()
    traffic = policy.with_shadow(run.state.traffic, policy.Shadow(1, 10_000))
    asyncio.run(run.lifecycle.commit(run.state, "shadow", "test", traffic=traffic))
    by_number = {version.number: version.slot for version in run.catalogue.of_model(MODEL)}
    for worker in run.workers:
        writer = WorkerStats(worker.page)
        writer.shadowed(by_number[2], 4, 1, 1_000, 3_000)
        writer.shadowed(run.slot_of("A"), 8, 2, 1_000, 3_000)
        writer.shadowed(run.slot_of("B"), 100, 100, 1, 1)
        writer.shadow_failed(by_number[2])
        writer.shadow_dropped(run.slot_of("A"))
    counts = run.statistics.shadow(run.state)
    assert counts is not None
    assert (counts.compared, counts.disagreed, counts.errors, counts.dropped) == (24, 6, 2, 2)
    assert (counts.primary_ns, counts.candidate_ns) == (24_000, 72_000)

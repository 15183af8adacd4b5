"""Series of variants and shadows from known pages, and what a version's counts keep of slots that were given back."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from nexus_grpc.ipc.errors import Code
from nexus_grpc.ipc.record import Method
from nexus_grpc.ipc.stats import FrontStats, WorkerStats
from nexus_grpc.repository import ModelEntry
from nexus_grpc.supervisor.catalogue import Catalogue, Version, place
from nexus_grpc.supervisor.metrics import ModelVersion, front_models, worker_models
from nexus_grpc.supervisor.past_counts import PastCounts
from nexus_grpc.supervisor.pool import FrontSlot, Slot, WorkerSlot
from nexus_grpc.supervisor.sources import sources_of
from nexus_grpc.supervisor.variant_metrics import Variant
from tests.unit.test_metrics import Fleet, Series, key, named, scrape

A, B = 4, 5
VARIANTS = {A: Variant("iris", "A", "1"), B: Variant("iris", "B", "2")}
REQUESTS, SECONDS = "nexus_variant_requests_total", "nexus_variant_duration_seconds"
SHADOW = ("compared", "disagreed", "errors", "dropped")


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


def test_requests_by_variant_and_code_over_all_fronts_and_methods(fleet: Fleet) -> None:
    for front in fleet.fronts:
        front.completed(A, Method.MODEL_INFER, Code.OK, 60_000)
    fleet.fronts[0].completed(A, Method.HTTP_PREDICT, Code.OK, 2_000_000)
    fleet.fronts[1].completed(B, Method.PREDICT, Code.INTERNAL, 60_000)
    series = scrape(fleet.sources(variants=VARIANTS))
    assert named(series, REQUESTS) == {
        key(REQUESTS, model="iris", variant="A", version="1", code="OK"): 3,
        key(REQUESTS, model="iris", variant="B", version="2", code="INTERNAL"): 1,
    }
    labels = {"model": "iris", "variant": "A", "version": "1"}
    assert series[key(SECONDS + "_count", **labels)] == 3
    assert series[key(SECONDS + "_sum", **labels)] == pytest.approx(0.00212)
    assert series[key(SECONDS + "_bucket", **labels, le="0.0001")] == 2
    assert series[key(SECONDS + "_bucket", **labels, le="0.0025")] == 3


def test_a_variant_with_two_slots_is_one_series(fleet: Fleet) -> None:
    """As while its version is loaded anew: a name that stood there twice would cost the whole scrape."""
    for slot in (A, B):
        fleet.fronts[0].completed(slot, Method.PREDICT, Code.OK, 60_000)
    series = scrape(fleet.sources(variants={A: VARIANTS[A], B: VARIANTS[A]}))
    assert list(named(series, REQUESTS).values()) == [2]
    assert list(named(series, SECONDS + "_count").values()) == [2]


def test_no_experiment_no_series(fleet: Fleet) -> None:
    fleet.fronts[0].completed(A, Method.PREDICT, Code.OK, 60_000)
    series = scrape(fleet.sources())
    assert not [name for name, _ in series if name.startswith(("nexus_variant_", "nexus_shadow_"))]
    assert not [name for name, _ in scrape(fleet.sources(variants=VARIANTS, processes=())) if "variant" in name]


def shadow_counts(series: Series, version: str) -> list[float | None]:
    return [series.get(key(f"nexus_shadow_{name}_total", model="iris", version=version)) for name in SHADOW]


def test_shadows_over_all_workers(fleet: Fleet) -> None:
    for worker in fleet.workers:
        worker.shadowed(1, 8, 3, 1_000, 2_000)
    fleet.workers[0].shadow_failed(1)
    fleet.workers[1].shadow_dropped(1)
    fleet.workers[1].shadow_dropped(1)
    series = scrape(fleet.sources())
    assert shadow_counts(series, "1") == [16, 6, 1, 2]
    assert shadow_counts(series, "2") == [None] * 4, "a version that nobody shadows"


# --- slots given back ---


class Pool:
    """Version 1 of model m, an arm of it, and a front's and a worker's page."""

    def __init__(self) -> None:
        self.entry = ModelEntry("m", Path("m"))
        self.catalogue = Catalogue(place([self.entry], 1))
        self.past = PastCounts()
        self.fronts, self.workers = [FrontSlot(0), FrontSlot(1)], [WorkerSlot(0, [0])]
        self.base = self.catalogue.add(self.entry, "1", "path")
        self.arm = self.catalogue.add_arm(self.base, "A")

    @property
    def slots(self) -> list[Slot]:
        return [*self.fronts, *self.workers]

    def serve(self, version: Version, count: int) -> None:
        for _ in range(count):
            for front in self.fronts:
                FrontStats(front.page).completed(version.slot, Method.PREDICT, Code.OK, 60_000)
            WorkerStats(self.workers[0].page).batch(version.slot, 2, 2, 1_000, 1_000, 1_000)

    def give_back(self, version: Version) -> None:
        """As Deployment.unload does."""
        self.past.keep(version, self.fronts, self.workers)
        self.catalogue.drop(version)
        self.past.forget_unless_in(self.catalogue)

    @property
    def counts(self) -> tuple[float | None, float | None]:
        """Requests and rows that the metrics have for version 1."""
        sources = sources_of((), (), self.catalogue, self.past, None, 0.0)
        fronts, workers = sources.past_fronts, sources.past_workers
        name = ModelVersion("m", "1")
        return (
            fronts[name].total.count if name in fronts else None,
            workers[name].batch_size.sum if name in workers else None,
        )


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool()
    yield pool
    for slot in pool.slots:
        slot.close()


def test_what_an_arm_did_stays_with_its_version(pool: Pool) -> None:
    pool.serve(pool.base, 1)
    for turn in range(1, 4):
        pool.serve(pool.arm, 5)
        slot = pool.arm.slot
        pool.give_back(pool.arm)
        assert pool.counts == (10 * turn, 10 * turn)
        pool.arm = pool.catalogue.add_arm(pool.base, "A")
        assert pool.arm.slot != slot
    assert pool.past.workers[ModelVersion("m", "1")].compute_count == 30


def test_shadow_counts_are_not_kept(pool: Pool) -> None:
    WorkerStats(pool.workers[0].page).shadowed(pool.arm.slot, 8, 3, 1_000, 2_000)
    pool.serve(pool.arm, 1)
    pool.give_back(pool.arm)
    kept = pool.past.workers[ModelVersion("m", "1")]
    assert (kept.batch_size.sum, kept.shadow_compared, kept.shadow_disagreed, kept.shadow_primary_ns) == (2, 0, 0, 0)


def test_a_version_without_a_slot_is_forgotten(pool: Pool) -> None:
    pool.serve(pool.arm, 1)
    pool.give_back(pool.arm)
    pool.give_back(pool.base)
    assert pool.counts == (None, None)


def test_a_scrape_adds_what_was_kept(fleet: Fleet) -> None:
    front, worker = fleet.fronts[0], fleet.workers[0]
    front.completed(A, Method.PREDICT, Code.OK, 60_000)
    worker.batch(A, 4, 1, 0, 0, 0)
    before = fleet.sources(models={A: ModelVersion("iris", "1")})
    kept = fleet.sources(past_fronts=front_models(before), past_workers=worker_models(before))
    front.completed(1, Method.PREDICT, Code.OK, 60_000)
    worker.batch(1, 8, 1, 0, 0, 0)
    series = scrape(kept)
    assert series[key("nexus_requests_total", method="Predict", model="iris", version="1", code="OK")] == 2
    assert series[key("nexus_batch_size_sum", model="iris", version="1")] == 12
    assert series[key("nexus_batch_size_sum", model="iris", version="2")] == 0

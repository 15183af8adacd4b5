"""Whose counts a slot has: predictions and shadows, and what begins anew with another owner or another shadow."""

import pytest

from nexus_grpc.ipc.errors import Code
from nexus_grpc.ipc.record import Method
from nexus_grpc.ipc.stats import (
    MODEL_SLOTS,
    PREDICTION_BUCKETS,
    FrontStats,
    PageKind,
    WorkerStats,
    read_front_model,
    read_model,
)
from tests.unit.test_stats import make_page

LAST_SLOT = MODEL_SLOTS - 1


@pytest.fixture
def worker_page() -> memoryview:
    return make_page(PageKind.WORKER)


@pytest.fixture
def front_page() -> memoryview:
    return make_page(PageKind.FRONT)


def filled(page: memoryview, slot: int) -> WorkerStats:
    """A slot in which everything was counted once, except for what `own` writes."""
    writer = WorkerStats(page)
    writer.queued(slot, [60_000])
    writer.batch(slot, 3, 1, 10, 20, 30)
    writer.succeeded(slot, 1)
    writer.failed(slot, 1)
    writer.expired(slot)
    writer.cancelled(slot)
    writer.predicted(slot, [*range(PREDICTION_BUCKETS)])
    writer.shadowed(slot, 4, 1, 100, 300)
    writer.shadow_failed(slot)
    writer.shadow_dropped(slot)
    return writer


def test_predictions_and_shadows_exact_values(worker_page: memoryview) -> None:
    filled(worker_page, LAST_SLOT).predicted(LAST_SLOT, [5])
    WorkerStats(worker_page).shadowed(LAST_SLOT, 2, 0, 10, 20)
    model = read_model(worker_page, LAST_SLOT)
    assert model.predictions == (5, *range(1, PREDICTION_BUCKETS))
    assert (model.shadow_compared, model.shadow_disagreed, model.shadow_errors, model.shadow_dropped) == (6, 1, 1, 1)
    assert (model.shadow_primary_ns, model.shadow_candidate_ns) == (4 * 100 + 2 * 10, 4 * 300 + 2 * 20)
    both = model + model
    assert both.predictions == tuple(2 * count for count in model.predictions)
    assert (both.shadow_compared, both.shadow_candidate_ns) == (12, 2 * model.shadow_candidate_ns)


def test_another_owner_begins_with_nothing(worker_page: memoryview) -> None:
    writer, nothing = WorkerStats(worker_page), read_model(worker_page, 7)
    writer.own(7, 41)
    filled(worker_page, 6)
    filled(worker_page, 7)
    counted = read_model(worker_page, 7)
    assert 0 not in (counted.success_count, counted.batch_size.sum, counted.shadow_errors, counted.predictions[-1])
    writer.own(7, 41)  # as a worker that takes the place of a dead one
    assert read_model(worker_page, 7) == counted
    writer.own(7, 42)
    assert read_model(worker_page, 7) == nothing
    filled(worker_page, 7)
    for _ in range(2):
        writer.own(7, 0)  # nobody in particular
        assert read_model(worker_page, 7) == nothing
        filled(worker_page, 7)
    assert read_model(worker_page, 6).success_count == 1, "a neighbour's"


def test_a_shadow_s_counts_begin_with_it(worker_page: memoryview) -> None:
    writer = filled(worker_page, 3)

    def compared() -> int:
        return read_model(worker_page, 3).shadow_compared

    writer.shadowed_by(3, 9)
    assert compared() == 0
    writer.shadowed(3, 4, 0, 1, 1)
    writer.shadowed_by(3, 9)  # its share changed, or a worker took the place of a dead one
    assert compared() == 4
    writer.shadowed_by(3, 0)
    assert compared() == 4, "what it found stays to be read"
    writer.shadowed_by(3, 9)
    assert compared() == 0
    model = read_model(worker_page, 3)
    assert (model.success_count, model.predictions[1]) == (1, 1)


def test_a_front_s_slot_is_emptied_alone(front_page: memoryview) -> None:
    writer = FrontStats(front_page)
    for slot in (4, 5, 6):
        writer.completed(slot, Method.PREDICT, Code.OK, 60_000)
    writer.reset(5)
    assert [read_front_model(front_page, slot).total.count for slot in (4, 5, 6)] == [1, 0, 1]
    assert read_front_model(front_page, 5).total.sum == 0

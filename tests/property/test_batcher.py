"""Whatever comes in whatever order: batches are not mixed, not too large, first in first out; nothing is lost."""

from hypothesis import given, settings
from hypothesis import strategies as st

from nexus_grpc.worker.batcher import Batcher
from nexus_grpc.worker.model import Model, QueuePolicy
from nexus_grpc.worker.requests import Request
from tests.effort import examples
from tests.unit.support import model_of, waiting_request

SIGNATURES = ((("x", (2,)),), (("x", (3,)),))
REQUESTS = st.tuples(
    st.integers(1, 2), st.integers(1, 6), st.sampled_from(SIGNATURES), st.sampled_from([False, False, False, True])
)
POLICIES = st.builds(
    QueuePolicy,
    max_queue_delay_ns=st.sampled_from([0, 0, 10]),
    preferred_batch_sizes=st.sampled_from([(), (2,), (2, 4)]),
)
STEPS = st.lists(REQUESTS | st.integers(0, 20), max_size=60)


def check_batch(model: Model, batch: list[Request]) -> None:
    rows = sum(request.rows for request in batch)
    assert batch
    assert len({request.signature for request in batch}) == 1
    if len(batch) > 1:
        assert 0 < rows <= model.max_batch_size
        assert not any(request.isolated for request in batch)


@given(st.lists(st.integers(1, 3), max_size=40), st.integers(1, 8))
def test_lower_levels_go_first_and_in_order(levels: list[int], size: int) -> None:
    batcher = Batcher()
    model = model_of(max_batch_size=size)
    batcher.add_model(model)
    queue = batcher.queue_of(model.slot)
    assert queue is not None
    for sequence, level in enumerate(levels):
        request = waiting_request(sequence)
        request.priority = level
        batcher.enqueue(queue, request)
    taken: list[int] = []
    while found := batcher.next_batch(0):
        taken += [request.sequence for request in found[1]]
    assert taken == sorted(range(len(levels)), key=lambda sequence: (levels[sequence], sequence))


@given(st.lists(st.tuples(st.sampled_from([0, 1, 4, 8]), POLICIES), min_size=2, max_size=2), STEPS)
@settings(deadline=None, max_examples=examples(300))
def test_batches(sizes: list[tuple[int, QueuePolicy]], steps: list[tuple[int, int, object, bool] | int]) -> None:
    """A step is a request, or the time that passes before the worker looks for a batch."""
    models = {
        slot: model_of(max_batch_size=size, slot=slot, queue=policy) for slot, (size, policy) in enumerate(sizes, 1)
    }
    batcher = Batcher()
    for model in models.values():
        batcher.add_model(model)
    waiting: dict[int, list[int]] = {1: [], 2: []}
    now_ns = sequence = 0

    def take_one() -> bool:
        found = batcher.next_batch(now_ns)
        if found is None:
            return False
        queue, batch = found
        check_batch(queue.model, batch)
        slot = queue.model.slot
        taken = [request.sequence for request in batch]
        assert waiting[slot][: len(taken)] == taken
        del waiting[slot][: len(taken)]
        assert queue.rows == sum(request.rows for request in queue.requests)
        return True

    for step in steps:
        if isinstance(step, int):
            now_ns += step
            if not take_one():
                due_ns = batcher.next_due_ns()
                assert due_ns > now_ns if any(waiting.values()) else due_ns == 0
        else:
            slot, rows, signature, isolated = step
            queue = batcher.queue_of(slot)
            assert queue is not None
            sequence += 1
            batcher.enqueue(queue, waiting_request(sequence, rows, signature, isolated, now_ns))
            waiting[slot].append(sequence)
    now_ns += 1000
    while take_one():
        pass
    assert not any(waiting.values())

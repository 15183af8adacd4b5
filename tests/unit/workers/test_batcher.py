"""Which requests run together."""

from nexus_grpc.ipc.segment import TABLE_ENTRIES
from nexus_grpc.worker.batcher import Batcher
from nexus_grpc.worker.model import Model, QueuePolicy
from nexus_grpc.worker.requests import Request
from tests.unit.support import model_of, waiting_request


def batcher_of(*models: Model) -> Batcher:
    made = Batcher()
    for model in models:
        made.add_model(model)
    return made


def enqueue(batcher: Batcher, slot: int, *requests: Request) -> None:
    queue = batcher.queue_of(slot)
    assert queue is not None
    for request in requests:
        batcher.enqueue(queue, request)


def next_sequences(batcher: Batcher, now_ns: int = 0) -> list[int] | None:
    found = batcher.next_batch(now_ns)
    return None if found is None else [request.sequence for request in found[1]]


def test_nothing_waits_for_company() -> None:
    batcher = batcher_of(model_of())
    assert next_sequences(batcher) is None
    enqueue(batcher, 1, waiting_request(1))
    assert next_sequences(batcher) == [1]
    assert next_sequences(batcher) is None
    assert batcher.next_due_ns() == 0


def test_unknown_slots_have_no_queue() -> None:
    assert batcher_of(model_of()).queue_of(7) is None


def test_what_waits_goes_together_up_to_the_limit_in_order() -> None:
    batcher = batcher_of(model_of(max_batch_size=4))
    enqueue(batcher, 1, *[waiting_request(n) for n in range(6)])
    assert next_sequences(batcher) == [0, 1, 2, 3]
    assert next_sequences(batcher) == [4, 5]


def test_rows_count_and_a_request_above_the_limit_runs_alone() -> None:
    batcher = batcher_of(model_of(max_batch_size=4))
    enqueue(batcher, 1, waiting_request(1, rows=9), waiting_request(2, rows=3), waiting_request(3, rows=2))
    assert [next_sequences(batcher) for _ in range(3)] == [[1], [2], [3]]


def test_other_shapes_begin_another_batch_and_order_stays() -> None:
    batcher = batcher_of(model_of())
    other = (("x", (3,)),)
    enqueue(batcher, 1, waiting_request(1), waiting_request(2, signature=other), waiting_request(3))
    assert [next_sequences(batcher) for _ in range(3)] == [[1], [2], [3]]


def test_equal_signatures_need_not_be_one_object() -> None:
    batcher = batcher_of(model_of())
    enqueue(batcher, 1, *[waiting_request(n, signature=(("x", tuple([2])),)) for n in range(2)])
    assert next_sequences(batcher) == [0, 1]


def test_isolated_requests_run_alone() -> None:
    batcher = batcher_of(model_of())
    enqueue(batcher, 1, waiting_request(1), waiting_request(2, isolated=True), waiting_request(3), waiting_request(4))
    assert [next_sequences(batcher) for _ in range(3)] == [[1], [2], [3, 4]]


def test_a_model_without_batches_runs_one_by_one() -> None:
    batcher = batcher_of(model_of(max_batch_size=0))
    enqueue(batcher, 1, waiting_request(1), waiting_request(2))
    assert [next_sequences(batcher) for _ in range(3)] == [[1], [2], None]


def test_models_take_turns() -> None:
    batcher = batcher_of(model_of(max_batch_size=1), model_of(max_batch_size=1, slot=2))
    enqueue(batcher, 1, *[waiting_request(n) for n in (11, 12, 13)])
    enqueue(batcher, 2, waiting_request(21), waiting_request(22))
    assert [next_sequences(batcher) for _ in range(6)] == [[11], [21], [12], [22], [13], None]


def test_a_batch_fits_the_executing_table() -> None:
    batcher = batcher_of(model_of(max_batch_size=1 << 20))
    enqueue(batcher, 1, *[waiting_request(n) for n in range(TABLE_ENTRIES + 1)])
    assert len(next_sequences(batcher) or []) == TABLE_ENTRIES
    assert next_sequences(batcher) == [TABLE_ENTRIES]


def test_a_delay_holds_a_batch_until_it_is_due() -> None:
    batcher = batcher_of(model_of(queue=QueuePolicy(max_queue_delay_ns=100)))
    enqueue(batcher, 1, waiting_request(1, arrived_ns=1000), waiting_request(2, arrived_ns=1050))
    assert next_sequences(batcher, 1099) is None
    assert batcher.next_due_ns() == 1100
    assert next_sequences(batcher, 1100) == [1, 2]


def test_a_full_batch_does_not_wait() -> None:
    batcher = batcher_of(model_of(max_batch_size=2, queue=QueuePolicy(max_queue_delay_ns=100)))
    enqueue(batcher, 1, waiting_request(1, arrived_ns=1000))
    assert next_sequences(batcher, 1000) is None
    enqueue(batcher, 1, waiting_request(2, arrived_ns=1000))
    assert next_sequences(batcher, 1000) == [1, 2]


def test_the_largest_preferred_size_does_not_wait() -> None:
    policy = QueuePolicy(max_queue_delay_ns=100, preferred_batch_sizes=(2, 3))
    batcher = batcher_of(model_of(max_batch_size=8, queue=policy))
    enqueue(batcher, 1, *[waiting_request(n, arrived_ns=1000) for n in (1, 2)])
    assert next_sequences(batcher, 1000) is None
    enqueue(batcher, 1, waiting_request(3, arrived_ns=1000))
    assert next_sequences(batcher, 1000) == [1, 2, 3]


def test_an_isolated_head_does_not_wait() -> None:
    batcher = batcher_of(model_of(queue=QueuePolicy(max_queue_delay_ns=100)))
    enqueue(batcher, 1, waiting_request(1, isolated=True, arrived_ns=1000))
    assert next_sequences(batcher, 1000) == [1]


def test_a_waiting_model_does_not_hold_up_another() -> None:
    patient = model_of(queue=QueuePolicy(max_queue_delay_ns=100))
    batcher = batcher_of(patient, model_of(slot=2))
    enqueue(batcher, 1, waiting_request(1, arrived_ns=1000))
    enqueue(batcher, 2, waiting_request(2))
    assert next_sequences(batcher, 1000) == [2]
    assert next_sequences(batcher, 1000) is None
    assert next_sequences(batcher, 1100) == [1]

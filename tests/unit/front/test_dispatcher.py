"""The dispatcher on real rings; the worker's side is played by the tests through the worker's own link."""

import threading
import time

import pytest
from google.rpc import status_pb2

from nexus_grpc.front.dispatcher import STRIKES_MAX
from nexus_grpc.front.request_ids import RequestIds
from nexus_grpc.ipc.errors import Code, InvalidInput
from nexus_grpc.ipc.record import ISOLATED, OVERSIZE, RESPONSE_HEADER, RESPONSE_HEADER_BYTES
from nexus_grpc.ipc.segment import (
    RESPONSE_PARKED_WORD,
    RESPONSE_PUBLISHED_WORD,
    RESPONSE_RELEASED_WORD,
)
from nexus_grpc.ipc.stats import read_front, read_front_model
from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from tests.unit.front.dispatching import MESSAGE, SECOND_NS, Front
from tests.unit.support import entry

LARGE = pb.ModelInferRequest(model_name="m", raw_input_contents=[bytes(20_000)]).SerializeToString()


@pytest.fixture
def front() -> Front:
    return Front()


def test_a_request_reaches_the_worker_as_it_came(front: Front) -> None:
    pair = front.attach()
    flight = front.submit(deadline_ns=2**62)
    [(fields, content)] = pair.requests()
    _, method, flags, id_length, sequence, deadline_ns, arrived_ns, slot, reserved = fields
    assert (method, flags, deadline_ns, arrived_ns) == (0, 0, 2**62, flight.arrived_ns)
    assert (slot, reserved, sequence) == (1, 0, flight.sequence)
    assert content[:id_length] == b"an-id"
    assert content[id_length:] == MESSAGE


def test_answers_find_their_requests_in_any_order(front: Front) -> None:
    pair = front.attach()
    flights = [front.submit() for _ in range(3)]
    sequences = pair.sequences()
    for index in (2, 0, 1):
        pair.reply(sequences[index], b"answer %d" % index)
    front.turn()
    assert [flight.outcomes for flight in flights] == [[(0, "", b"answer %d" % index)] for index in range(3)]
    assert front.dispatcher.in_flight() == 0
    assert [code for _, code in front.finished] == [0, 0, 0]
    assert read_front_model(front.page, 1).requests[0][0] == 3


def test_an_error_comes_with_its_details(front: Front) -> None:
    pair = front.attach()
    flight = front.submit()
    pair.back.reply_error(pair.sequences()[0], InvalidInput("wrong shape", field="x"))
    pair.back.publish()
    front.turn()
    [(code, message, details)] = flight.outcomes
    assert (code, message) == (int(Code.INVALID_ARGUMENT), "wrong shape")
    assert status_pb2.Status.FromString(details).message == "wrong shape"


def test_large_messages_and_answers_go_by_memfd(front: Front) -> None:
    pair = front.attach()
    flight = front.submit(LARGE)
    [(fields, content)] = pair.requests()
    assert fields[2] == OVERSIZE
    assert content == b"an-id"
    with pair.back.take_oversize(fields[4]) as mapping:
        assert mapping[:] == LARGE
    pair.reply(fields[4], bytes(100_000))
    front.turn()
    assert flight.outcomes == [(0, "", bytes(100_000))]


def test_large_messages_are_limited_together_and_the_room_comes_back(front: Front) -> None:
    pair = front.attach()
    first = [front.submit(LARGE) for _ in range(2)]
    refused = front.submit(LARGE)
    assert refused.code == Code.RESOURCE_EXHAUSTED
    assert "large messages are in flight" in refused.outcomes[0][1]
    for sequence in pair.sequences():
        pair.back.take_oversize(sequence).close()
        pair.reply(sequence, b"")
    front.turn()
    assert [flight.code for flight in first] == [0, 0]
    assert front.submit(LARGE).code is None


def test_late_and_unknown_replies_are_counted(front: Front) -> None:
    pair = front.attach()
    flight = front.submit()
    [sequence] = pair.sequences()
    pair.reply(sequence, b"one")
    pair.reply(sequence, b"two")
    pair.reply(999_999, b"unknown")
    pair.reply(999_998, bytes(100_000))  # by memfd, which must not stay behind
    front.turn()
    assert flight.outcomes == [(0, "", b"one")]
    assert read_front(front.page).late_replies == 3


def test_a_passed_deadline_is_answered_and_the_worker_told(front: Front) -> None:
    pair = front.attach()
    late, early = front.submit(deadline_ns=1), front.submit(deadline_ns=2**62)
    front.dispatcher.sweep(2)
    assert late.code == Code.DEADLINE_EXCEEDED
    assert early.code is None
    assert pair.back.is_cancelled(late.sequence)
    assert not pair.back.is_cancelled(early.sequence)
    pair.reply(late.sequence, b"too late")
    front.turn()
    assert len(late.outcomes) == 1
    assert read_front(front.page).late_replies == 1
    assert read_front(front.page).deadline_passed == 1


def test_old_requests_are_watched_once(front: Front) -> None:
    front.attach()
    flight = front.submit()
    front.dispatcher.sweep(flight.arrived_ns)
    assert flight.watches == 0
    for _ in range(2):
        front.dispatcher.sweep(flight.arrived_ns + SECOND_NS)
    assert flight.watches == 1


def test_a_cancelled_request_is_accounted_and_not_answered(front: Front) -> None:
    pair = front.attach()
    flight = front.submit()
    front.dispatcher.cancel(flight)
    front.dispatcher.cancel(flight)
    assert pair.back.is_cancelled(flight.sequence)
    assert flight.outcomes == []
    front.turn()
    assert front.finished == [(flight, int(Code.CANCELLED))]
    assert front.dispatcher.in_flight() == 0


def test_a_worker_has_so_many_in_flight_and_no_more(front: Front) -> None:
    pair = front.attach()
    accepted = [front.submit() for _ in range(front.in_flight_max)]
    refused = front.submit()
    assert refused.code == Code.RESOURCE_EXHAUSTED
    assert "model 'm' has all the requests in flight" in refused.outcomes[0][1]
    pair.reply(accepted[0].sequence, b"")
    front.turn()
    assert front.submit().code is None


def test_a_full_ring_refuses(front: Front) -> None:
    front.in_flight_max = 10_000
    front.attach()
    message = pb.ModelInferRequest(model_name="m", raw_input_contents=[bytes(4000)]).SerializeToString()
    codes = [front.submit(message).code for _ in range(30)]
    assert codes[0] is None
    assert codes[-1] == Code.RESOURCE_EXHAUSTED
    assert read_front(front.page).ring_full == len([code for code in codes if code])


def test_what_has_no_route_is_refused(front: Front) -> None:
    flight = front.submit(pb.ModelInferRequest(model_name="nobody").SerializeToString())
    assert flight.code == Code.NOT_FOUND
    assert status_pb2.Status.FromString(flight.outcomes[0][2]).code == Code.NOT_FOUND
    front.turn()
    assert read_front_model(front.page, 0).requests[0][int(Code.NOT_FOUND)] == 1


# --- workers come and go ---


def test_requests_wait_for_a_worker_and_go_out_when_it_comes(front: Front) -> None:
    waiting = [front.submit() for _ in range(2)]
    assert [flight.code for flight in waiting] == [None, None]
    assert front.dispatcher.in_flight() == 2
    assert front.submit().code == Code.RESOURCE_EXHAUSTED  # waiting_max
    pair = front.attach()
    for sequence in pair.sequences():
        pair.reply(sequence, b"at last")
    front.turn()
    assert [flight.code for flight in waiting] == [0, 0]


def test_what_waits_goes_out_when_the_table_names_the_worker_later(front: Front) -> None:
    """As it is when a table was made while the worker was away."""
    front.dispatcher.replace_routes([entry("m", workers=())], {})
    flight = front.submit()
    pair = front.attach()
    assert (flight.code, pair.sequences()) == (None, [])
    front.dispatcher.replace_routes([entry("m", workers=(0,))], {})
    assert len(pair.sequences()) == 1


def test_waiting_has_an_end(front: Front) -> None:
    patient, hurried = front.submit(), front.submit(deadline_ns=time.monotonic_ns() + SECOND_NS // 10)
    front.dispatcher.sweep(patient.arrived_ns + SECOND_NS // 2)
    assert hurried.code == Code.DEADLINE_EXCEEDED
    assert (patient.code, patient.watches) == (None, 1)
    front.dispatcher.sweep(patient.arrived_ns + 2 * SECOND_NS)
    assert patient.code == Code.UNAVAILABLE
    assert front.dispatcher.in_flight() == 0


def test_a_waiting_request_can_be_cancelled(front: Front) -> None:
    flight = front.submit()
    front.dispatcher.cancel(flight)
    assert front.dispatcher.in_flight() == 0
    assert front.attach().sequences() == []


def test_a_dead_worker_s_requests_go_to_another_and_its_last_answers_count() -> None:
    front = Front(workers=2)
    first, second = front.attach(0), front.attach(1)
    flights = [front.submit() for _ in range(4)]
    held = first.sequences()
    assert len(held) == 2
    first.reply(held[0], b"published before it died")
    before = len(second.sequences())
    front.dispatcher.worker_down(0, 0)
    assert [flight.code for flight in flights].count(0) == 1
    again = second.requests()
    assert (before, len(again)) == (2, 1)
    assert again[0][0][2] == 0  # it was not being executed: may be batched
    assert read_front(front.page).redispatched == 1
    assert front.dispatcher.in_flight() == 3


def test_what_was_being_executed_comes_back_isolated_and_twice_is_poison(front: Front) -> None:
    poison = innocent = None
    for generation in range(STRIKES_MAX):
        pair = front.attach(generation=generation)
        poison = poison or front.submit()
        innocent = innocent or front.submit()
        flags = [fields[2] for fields, _ in pair.requests()]
        assert flags == ([0, 0] if generation == 0 else [ISOLATED, 0])
        pair.back.mark_executing([poison.sequence])
        front.dispatcher.worker_down(0, generation)
    assert poison is not None
    assert innocent is not None
    assert poison.code == Code.INTERNAL
    assert b"WORKER_CRASHED" in poison.outcomes[0][2]
    assert innocent.code is None
    assert read_front(front.page).poisoned == 1
    pair = front.attach(generation=STRIKES_MAX)
    assert pair.sequences() == [innocent.sequence]


def test_another_generation_s_death_is_nobody_s(front: Front) -> None:
    pair = front.attach(generation=3)
    flight = front.submit()
    front.dispatcher.worker_down(0, 2)
    pair.reply(flight.sequence, b"")
    front.turn()
    assert flight.code == 0


def test_a_broken_ring_costs_the_worker_its_requests_and_nobody_an_answer() -> None:
    front = Front(workers=2)
    first, second = front.attach(0), front.attach(1)
    flights = [front.submit() for _ in range(2)]
    first.words[RESPONSE_PUBLISHED_WORD] = 2**60
    front.turn()
    sequences = second.sequences()
    assert len(sequences) == 2
    for sequence in sequences:
        second.reply(sequence, b"")
    front.turn()
    assert [flight.code for flight in flights] == [0, 0]


def test_an_impossible_status_code_is_not_believed(front: Front) -> None:
    pair = front.attach()
    flight = front.submit()
    [sequence] = pair.sequences()
    ring = pair.back._responses
    position = ring.claim_nowait(RESPONSE_HEADER_BYTES + 3)
    RESPONSE_HEADER.pack_into(ring.payload, position, 3, 200, 0, 60_000, sequence)
    ring.publish()
    front.turn()
    assert flight.code == Code.UNKNOWN


def test_a_model_that_was_unloaded_meanwhile(front: Front) -> None:
    front.attach()
    flight = front.submit()
    front.dispatcher.replace_routes([], {})
    front.dispatcher.worker_down(0, 0)
    assert flight.code == Code.NOT_FOUND


def test_a_version_that_was_replaced_meanwhile_is_answered_by_the_next(front: Front) -> None:
    """Its slot has another owner by now: the request must not go there."""
    front.attach()
    flight = front.submit()
    other = front.attach(1)
    front.dispatcher.replace_routes(
        [entry("m", slot=2, workers=[1]), {**entry("x", slot=1, workers=[1]), "incarnation": 7}], {}
    )
    front.dispatcher.worker_down(0, 0)
    [(_, _, _, _, _, _, _, slot, _)] = [fields for fields, _ in other.back.requests.poll_nowait(8)]
    assert slot == 2
    assert flight.code is None


# --- turns ---


def test_between_turns_the_producers_ring_and_within_they_need_not(front: Front) -> None:
    pair = front.attach()
    front.dispatcher.end()
    assert pair.words[RESPONSE_PARKED_WORD] != 0
    front.dispatcher.begin()
    assert pair.words[RESPONSE_PARKED_WORD] == 0


def test_ending_a_turn_misses_no_answer(front: Front) -> None:
    pair = front.attach()
    flight = front.submit()
    pair.reply(flight.sequence, b"")
    front.dispatcher.end()
    assert flight.code == 0
    assert pair.words[RESPONSE_RELEASED_WORD] == pair.words[RESPONSE_PUBLISHED_WORD]


def test_the_egress_thread_serves_when_no_call_comes(front: Front) -> None:
    pair = front.attach()
    done = threading.Event()
    front.on_finished = done.set
    thread = threading.Thread(target=front.dispatcher.run, daemon=True)
    thread.start()
    with front.dispatcher.turn:
        front.dispatcher.begin()
        flight = front.submit()
        front.dispatcher.end()
    pair.reply(flight.sequence, b"")
    assert done.wait(30)
    front.dispatcher.stop()
    thread.join(30)
    assert not thread.is_alive()
    assert flight.code == 0


def test_request_ids_are_distinct_and_shaped_like_uuids() -> None:
    ids = RequestIds(bytes(range(9)))
    made = [ids.next() for _ in range(3)]
    assert made[0] == b"00010203-0405-8060-a708-000000000001"
    assert len(set(made)) == 3

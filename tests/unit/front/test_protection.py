"""Ceilings, circuits, fallback versions and admission by queueing time, as the dispatcher uses them."""

import time
import zlib

import pytest
from google.rpc import error_details_pb2, status_pb2

from nexus_grpc.access.identity import Identity, Scope
from nexus_grpc.front.callers import caller_of
from nexus_grpc.front.protection import FALLBACK_KEY, PRIORITY_KEY, ProtectionPolicy, priority_of
from nexus_grpc.ipc.errors import Code, NexusError
from nexus_grpc.ipc.record import Blame
from nexus_grpc.ipc.stats import read_front, read_front_model
from nexus_grpc.limits.circuit import CircuitPolicy, State
from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from nexus_grpc.traffic.assignment import encode, initial
from tests.unit.front.dispatching import MESSAGE, SECOND_NS, Front
from tests.unit.support import Pair, RecordedFlight, entry

OPEN_NS = SECOND_NS // 5
CIRCUIT = CircuitPolicy(requests=3, failures=0.6, open_ns=OPEN_NS, probes=2)
VERSION_2 = pb.ModelInferRequest(model_name="m", model_version="2").SerializeToString()


def reason_of(flight: RecordedFlight) -> str:
    info = error_details_pb2.ErrorInfo()
    details = status_pb2.Status.FromString(flight.outcomes[0][2]).details
    assert any(detail.Unpack(info) for detail in details)
    return info.reason


def fail(pair: Pair, sequence: int, code: Code, blame: Blame) -> None:
    error = NexusError("it failed")
    error.code, error.blame = code, blame
    pair.back.reply_error(sequence, error)
    pair.back.publish()


def answer(front: Front, pair: Pair, code: Code = Code.OK, blame: Blame = Blame.MODEL) -> None:
    """The worker answers all that it has got."""
    for sequence in pair.sequences():
        if code is Code.OK:
            pair.reply(sequence, b"answer")
        else:
            fail(pair, sequence, code, blame)
    front.turn()


def use(front: Front, *entries: dict[str, object]) -> None:
    front.dispatcher.replace_routes([*entries], {})


# --- ceilings ---


def test_a_model_has_no_more_in_flight_than_its_ceiling() -> None:
    front = Front(policy=ProtectionPolicy(max_in_flight=2))
    pair = front.attach()
    first, second, third = front.submit(), front.submit(), front.submit()
    assert (first.code, second.code) == (None, None)
    assert third.code == Code.RESOURCE_EXHAUSTED
    assert reason_of(third) == "CONCURRENCY_LIMIT"
    assert "2 requests in flight" in third.outcomes[0][1]
    # One that has ended makes room at once, also within the turn; one that was refused takes none.
    front.dispatcher.begin()
    pair.reply(pair.sequences()[0], b"")
    front.dispatcher.take_answers()
    assert front.submit().code is None
    assert front.submit().code == Code.RESOURCE_EXHAUSTED
    front.dispatcher.end()
    front.dispatcher.cancel(second)
    front.turn()
    assert front.submit().code is None
    assert read_front(front.page).concurrency_limit == 2
    assert read_front_model(front.page, 1).requests[0][Code.RESOURCE_EXHAUSTED] == 2


def test_versions_share_a_ceiling_and_models_do_not() -> None:
    front = Front(policy=ProtectionPolicy(max_in_flight=1))
    front.attach()
    other = entry("n", slot=3)
    use(front, entry("m", "1", slot=1), entry("m", "2", slot=2), {**other, "max_in_flight": 2})
    assert front.submit(VERSION_2).code is None
    assert front.submit().code == Code.RESOURCE_EXHAUSTED
    message = pb.ModelInferRequest(model_name="n").SerializeToString()
    assert [front.submit(message).code for _ in range(3)] == [None, None, Code.RESOURCE_EXHAUSTED]


def test_a_ceiling_counts_on_over_a_new_table() -> None:
    front = Front(policy=ProtectionPolicy(max_in_flight=1))
    pair = front.attach()
    flight = front.submit()
    use(front, entry("m", slot=1))
    assert front.submit().code == Code.RESOURCE_EXHAUSTED
    answer(front, pair)
    assert flight.code == 0
    assert front.submit().code is None


@pytest.mark.parametrize(("configured", "fronts", "expected"), [(0, 1, 7), (0, 2, 4), (3, 2, 2), (1, 4, 1)])
def test_fronts_share_a_ceiling_out(configured: int, fronts: int, expected: int) -> None:
    assert ProtectionPolicy(max_in_flight=7, fronts=fronts).ceiling_of(configured) == expected
    assert ProtectionPolicy(fronts=fronts).ceiling_of(0) == 0


# --- circuits ---


@pytest.fixture
def failing() -> tuple[Front, Pair]:
    """Three requests have failed: the circuit is open."""
    front = Front(policy=ProtectionPolicy(CIRCUIT), in_flight_max=100)
    pair = front.attach()
    for _ in range(3):
        front.submit()
        answer(front, pair, Code.INTERNAL)
    return front, pair


def test_a_version_that_keeps_failing_is_left_alone(failing: tuple[Front, Pair]) -> None:
    front, pair = failing
    refused = front.submit()
    assert refused.code == Code.UNAVAILABLE
    assert reason_of(refused) == "CIRCUIT_OPEN"
    assert not pair.requests()
    counted = read_front_model(front.page, 1)
    assert (counted.circuit, counted.circuit_opened) == (State.OPEN, 1)
    assert read_front(front.page).circuit_open == 1
    # Refusals are no failures.
    for _ in range(5):
        front.submit()
    front.turn()
    assert read_front_model(front.page, 1).circuit_opened == 1


def test_after_a_while_it_is_tried_with_a_few(failing: tuple[Front, Pair]) -> None:
    front, pair = failing
    time.sleep(OPEN_NS / 1e9)
    probes = [front.submit() for _ in range(3)]
    assert [flight.code for flight in probes] == [None, None, Code.UNAVAILABLE]
    answer(front, pair)
    assert read_front_model(front.page, 1).circuit == State.CLOSED
    assert front.submit().code is None


def test_a_probe_that_fails_opens_it_again(failing: tuple[Front, Pair]) -> None:
    front, pair = failing
    time.sleep(OPEN_NS / 1e9)
    front.submit()
    answer(front, pair, Code.INTERNAL)
    assert front.submit().code == Code.UNAVAILABLE
    assert read_front_model(front.page, 1).circuit_opened == 2


def test_probes_whose_client_goes_away_give_their_place_to_others(failing: tuple[Front, Pair]) -> None:
    front, pair = failing
    time.sleep(OPEN_NS / 1e9)
    for flight in [front.submit(), front.submit()]:
        front.dispatcher.cancel(flight)
    front.turn()
    pair.sequences()
    assert [front.submit().code, front.submit().code] == [None, None]


@pytest.mark.parametrize(
    ("code", "blame"),
    [
        (Code.INVALID_ARGUMENT, Blame.CALLER),
        (Code.INVALID_ARGUMENT, Blame.INPUT),
        (Code.RESOURCE_EXHAUSTED, Blame.NOBODY),
        (Code.DEADLINE_EXCEEDED, Blame.NOBODY),
    ],
)
def test_what_is_not_the_models_fault_opens_nothing(code: Code, blame: Blame) -> None:
    front = Front(policy=ProtectionPolicy(CIRCUIT))
    pair = front.attach()
    for number in range(10):
        submit_from(front, f"10.0.0.{number}")
        answer(front, pair, code, blame)
    assert front.submit().code is None


def submit_from(front: Front, address: str, identity: Identity | None = None) -> RecordedFlight:
    flight = RecordedFlight(MESSAGE, 0, time.monotonic_ns())
    flight.address, flight.identity = f"ipv4:{address}:40000", identity
    front.dispatcher.submit(flight)
    return flight


def test_crashes_open_it_for_two_callers_alike() -> None:
    """Nobody knows whose fault they are."""
    front = Front(policy=ProtectionPolicy(CIRCUIT))
    pair = front.attach()
    for _ in range(20):
        submit_from(front, "10.0.0.1")
        answer(front, pair, Code.INTERNAL, Blame.NOBODY)
    submit_from(front, "10.0.0.2")
    answer(front, pair, Code.INTERNAL, Blame.NOBODY)
    assert front.submit().code is None
    answer(front, pair)
    for _ in range(2):
        submit_from(front, "10.0.0.2")
        answer(front, pair, Code.INTERNAL, Blame.NOBODY)
    assert front.submit().code == Code.UNAVAILABLE


@pytest.mark.parametrize(
    ("address", "forwarded", "name", "caller"),
    [
        ("ipv4:10.0.0.1:5000", None, None, "10.0.0.1"),
        ("ipv4:10.0.0.1:5001", None, None, "10.0.0.1"),
        ("ipv6:%5B2001:db8::1%5D:5000", None, None, "2001:db8::/64"),
        ("ipv6:%5B2001:db8::2%5D:5000", None, None, "2001:db8::/64"),
        ("unix-abstract:nexus", "10.9.9.9, 10.0.0.1", None, "10.0.0.1"),
        ("ipv4:10.0.0.9:5000", None, "key:a", "key:a"),
        ("ipv4:10.0.0.1:5000", None, "anonymous:10.0.0.1", "10.0.0.1"),
    ],
)
def test_who_is_one_caller(address: str, forwarded: str | None, name: str | None, caller: str) -> None:
    flight = RecordedFlight(MESSAGE)
    flight.address = address
    flight.metadata = [("x-forwarded-for", forwarded)] if forwarded else []
    flight.identity = Identity(name, Scope.PREDICT) if name else None
    assert caller_of(flight) == zlib.crc32(caller.encode())


def test_a_new_incarnation_begins_anew(failing: tuple[Front, Pair]) -> None:
    front, _ = failing
    use(front, {**entry("m", slot=1), "incarnation": 0})
    assert front.submit().code == Code.UNAVAILABLE
    use(front, {**entry("m", slot=1), "incarnation": 7})
    assert front.submit().code is None
    assert read_front_model(front.page, 1).circuit == State.CLOSED


# --- fallback versions ---


def opened(front: Front, pair: Pair, message: bytes) -> None:
    for _ in range(3):
        front.submit(message)
        answer(front, pair, Code.INTERNAL)


def test_the_fallback_version_answers_and_says_so() -> None:
    front = Front(policy=ProtectionPolicy(CIRCUIT), in_flight_max=100)
    pair = front.attach()
    use(front, {**entry("m", "1", slot=1), "fallback": 1}, {**entry("m", "2", slot=2), "fallback": 1})
    opened(front, pair, MESSAGE)
    flight = front.submit()
    [(fields, _)] = pair.requests()
    assert fields[7] == 1  # the slot of version 1
    pair.reply(flight.sequence, b"")
    front.turn()
    assert flight.headers == ((FALLBACK_KEY, "2"),)
    assert read_front(front.page).fallbacks == 1
    assert read_front_model(front.page, 1).requests[0][0] == 1
    # Who asks for version 2 gets version 2 or nothing.
    assert reason_of(front.submit(VERSION_2)) == "CIRCUIT_OPEN"
    # When the fallback fails, too, there is nothing left.
    opened(front, pair, pb.ModelInferRequest(model_name="m", model_version="1").SerializeToString())
    assert reason_of(front.submit()) == "CIRCUIT_OPEN"


def test_a_candidate_that_fails_leaves_its_share_to_the_first_variant() -> None:
    front = Front(policy=ProtectionPolicy(CIRCUIT), in_flight_max=100)
    pair = front.attach()
    arms = [{**entry("m", v, slot=s), "variant": a} for v, s, a in (("1", 11, "A"), ("2", 12, "B"))]
    split = {"serving": 1, "arms": [11, 12], "assignment": encode(initial([0, 10_000])), "salt": "s", "sticky": None}
    front.dispatcher.replace_routes([entry("m", "1", slot=1), entry("m", "2", slot=2), *arms], {"m": split})
    opened(front, pair, MESSAGE)
    flight = front.submit()
    assert pair.requests()[0][0][7] == 11
    assert flight.headers == ((FALLBACK_KEY, "2"),)


# --- admission ---


def flight_of(priority: str | bytes | None = None, identity: Identity | None = None) -> RecordedFlight:
    flight = RecordedFlight(MESSAGE)
    flight.metadata = [("other", "9")] + ([(PRIORITY_KEY, priority)] if priority is not None else [])
    flight.identity = identity
    return flight


@pytest.mark.parametrize(
    ("said", "expected"), [(None, 5), ("0", 0), ("9", 9), ("10", 5), ("", 5), ("high", 5), (b"3", 5), ("²", 5)]
)
def test_a_call_says_how_urgent_it_is(said: str | bytes | None, expected: int) -> None:
    assert priority_of(flight_of(said)) == expected


@pytest.mark.parametrize(("said", "expected"), [(None, 3), ("0", 3), ("3", 3), ("7", 7), ("x", 5)])
def test_a_caller_cannot_be_more_urgent_than_its_credential_says(said: str | None, expected: int) -> None:
    identity = Identity("key:a", Scope.PREDICT, priority=3)
    assert priority_of(flight_of(said, identity)) == expected


def test_a_deadline_that_the_queue_does_not_leave_is_refused_at_once() -> None:
    front = Front(policy=ProtectionPolicy(target_ns=SECOND_NS), in_flight_max=100)
    pair = front.attach()
    # Three answers, 20 ms apart: the worker's pace.
    flights = [front.submit() for _ in range(3)]
    for sequence in pair.sequences():
        time.sleep(0.02)
        pair.reply(sequence, b"")
        front.turn()
    assert [flight.code for flight in flights] == [0, 0, 0]
    for _ in range(20):
        front.submit()
    now_ns = time.monotonic_ns()
    late = front.submit(deadline_ns=now_ns + SECOND_NS // 20)
    assert late.code == Code.RESOURCE_EXHAUSTED
    assert reason_of(late) == "DEADLINE_TOO_SHORT"
    assert front.submit(deadline_ns=now_ns + 60 * SECOND_NS).code is None
    assert front.submit().code is None
    assert read_front(front.page).deadline_too_short == 1


def submit_earlier(front: Front, count: int) -> None:
    """Requests that came a minute ago."""
    for _ in range(count):
        front.dispatcher.submit(RecordedFlight(MESSAGE, 0, time.monotonic_ns() - 60 * SECOND_NS))


def answer_one_by_one(front: Front, pair: Pair) -> None:
    for sequence in pair.sequences():
        pair.reply(sequence, b"")
        front.turn()


def assert_taken(front: Front, count: int) -> None:
    """So many requests at once are, that allow ten seconds."""
    flights = [front.submit(deadline_ns=time.monotonic_ns() + 10 * SECOND_NS) for _ in range(count)]
    assert [reason_of(flight) for flight in flights if flight.code is not None] == []


def test_what_waited_for_a_dead_worker_says_nothing_of_the_next() -> None:
    front = Front(policy=ProtectionPolicy(target_ns=SECOND_NS), in_flight_max=100)
    front.attach()
    submit_earlier(front, 4)
    front.dispatcher.worker_down(0, 0)
    pair = front.attach(generation=1)
    assert_taken(front, 4)
    answer_one_by_one(front, pair)
    assert_taken(front, 20)
    assert pair.front.admission.level == 0


def test_a_worker_that_had_nothing_to_do_takes_over_for_another() -> None:
    front = Front(workers=2, policy=ProtectionPolicy(target_ns=SECOND_NS), in_flight_max=100)
    front.attach(0)
    other = front.attach(1)
    for _ in range(8):
        front.submit()
    answer_one_by_one(front, other)
    other.front.admission._answered_ns -= 60 * SECOND_NS
    for flight in front.dispatcher._links[0].flights.values():
        flight.arrived_ns -= 60 * SECOND_NS
    front.dispatcher.worker_down(0, 0)
    answer_one_by_one(front, other)
    assert_taken(front, 20)


def test_a_standing_queue_sheds_the_least_urgent() -> None:
    """A worker that answers one request in 10 ms and gets two."""
    front = Front(policy=ProtectionPolicy(target_ns=SECOND_NS // 50), in_flight_max=1000)
    pair = front.attach()
    refused = {2: 0, 8: 0}
    for _ in range(200):
        for priority in (2, 8):
            flight = RecordedFlight(MESSAGE, 0, time.monotonic_ns())
            flight.metadata = ((PRIORITY_KEY, str(priority)),)
            front.dispatcher.submit(flight)
            refused[priority] += flight.code is not None
        time.sleep(0.01)
        pair.sequences()
        pair.reply(min(pair.front.flights), b"")
        front.turn()
    assert refused[8] > 60
    assert refused[2] < refused[8] / 4
    assert read_front(front.page).load_shed == refused[2] + refused[8]


def test_without_a_target_nothing_is_refused() -> None:
    front = Front(in_flight_max=1000)
    front.attach()
    assert all(front.submit(deadline_ns=time.monotonic_ns() + 1000).code is None for _ in range(50))

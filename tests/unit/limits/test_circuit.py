"""The circuit breaker's states, one after the other. (tests/property/test_limits.py has all the ways between them.)"""

from nexus_grpc.limits.buckets import SECOND_NS
from nexus_grpc.limits.circuit import Circuit, CircuitPolicy, State

NOW = 1_000 * SECOND_NS
OPEN_NS = 30 * SECOND_NS


def opened() -> Circuit:
    circuit = Circuit(CircuitPolicy())
    for _ in range(3):
        circuit.ended(True, NOW, NOW)
    assert circuit.state is State.OPEN
    return circuit


def test_it_opens_at_the_share_and_not_below() -> None:
    circuit = Circuit(CircuitPolicy())
    for failed in (True, True):
        circuit.ended(failed, NOW, NOW)
    assert not circuit.open  # only two
    circuit.ended(False, NOW, NOW)
    circuit.ended(False, NOW, NOW)
    assert not circuit.open
    circuit.ended(True, NOW, NOW)
    assert circuit.open  # 3 of 5
    assert circuit.opened_count == 1


def test_what_is_long_ago_does_not_count() -> None:
    circuit = Circuit(CircuitPolicy())
    for _ in range(2):
        circuit.ended(True, NOW, NOW)
    later_ns = NOW + 10 * SECOND_NS
    circuit.ended(True, later_ns, later_ns)
    assert not circuit.open
    for _ in range(5):
        circuit.ended(False, later_ns, later_ns)
    far_ns = later_ns + 3600 * SECOND_NS
    for _ in range(3):
        circuit.ended(True, far_ns, far_ns)
    assert circuit.open


def test_it_stays_open_and_then_lets_probes_through() -> None:
    circuit = opened()
    assert not circuit.allow(NOW + OPEN_NS - 1)
    assert circuit.retry_after_s(NOW + 10 * SECOND_NS) == 20.0
    later_ns = NOW + OPEN_NS
    assert [circuit.allow(later_ns) for _ in range(5)] == [True, True, True, False, False]
    assert circuit.state is State.HALF_OPEN
    for _ in range(3):
        circuit.ended(False, later_ns + 1, later_ns)
    assert circuit.state is State.CLOSED
    assert not circuit.open
    # It has forgotten.
    circuit.ended(True, later_ns + 2, later_ns)
    assert not circuit.open


def test_a_probe_that_fails_opens_it_again() -> None:
    circuit = opened()
    later_ns = NOW + OPEN_NS
    assert circuit.allow(later_ns)
    circuit.ended(True, later_ns + 5, later_ns)
    assert circuit.state is State.OPEN
    assert not circuit.allow(later_ns + OPEN_NS)
    assert circuit.allow(later_ns + 5 + OPEN_NS)
    assert circuit.opened_count == 2


def test_stragglers_from_before_say_nothing() -> None:
    circuit = opened()
    later_ns = NOW + OPEN_NS
    assert circuit.allow(later_ns)
    circuit.ended(True, later_ns + 1, NOW - 1)
    assert circuit.state is State.HALF_OPEN
    circuit.dropped(NOW - 1)
    assert [circuit.allow(later_ns + 1) for _ in range(3)] == [True, True, False]


def test_a_probe_whose_client_left_makes_room_for_another() -> None:
    circuit = opened()
    later_ns = NOW + OPEN_NS
    assert [circuit.allow(later_ns) for _ in range(4)] == [True, True, True, False]
    circuit.dropped(later_ns)
    assert [circuit.allow(later_ns) for _ in range(2)] == [True, False]


def test_probes_that_never_end_do_not_keep_it_half_open() -> None:
    circuit = opened()
    later_ns = NOW + OPEN_NS
    assert [circuit.allow(later_ns) for _ in range(4)] == [True, True, True, False]
    assert circuit.allow(later_ns + OPEN_NS)


def test_doubtful_failures_of_one_caller_open_nothing() -> None:
    circuit = Circuit(CircuitPolicy())
    for _ in range(1000):
        circuit.doubtful(1, NOW, NOW)
    assert not circuit.open
    # Another's first failure makes one of those count, too: two are not enough.
    circuit.doubtful(2, NOW, NOW)
    assert not circuit.open
    circuit.doubtful(3, NOW, NOW)
    assert circuit.open


def test_doubtful_failures_are_weighed_against_what_went_well() -> None:
    circuit = Circuit(CircuitPolicy())
    for _ in range(4):
        circuit.ended(False, NOW, NOW)
    for caller in range(5):
        circuit.doubtful(caller, NOW, NOW)
    assert not circuit.open  # 5 of 9
    circuit.doubtful(5, NOW, NOW)
    assert circuit.open  # 6 of 10


def test_one_callers_failing_probes_do_not_keep_it_open() -> None:
    circuit = opened()
    later_ns = NOW + OPEN_NS
    assert [circuit.allow(later_ns, 1) for _ in range(4)] == [True, True, True, False]
    for _ in range(3):
        circuit.doubtful(1, later_ns, later_ns)
    assert circuit.state is State.HALF_OPEN
    assert not circuit.allow(later_ns, 1)
    assert [circuit.allow(later_ns, 2) for _ in range(3)] == [True, True, True]
    for _ in range(3):
        circuit.ended(False, later_ns, later_ns)
    assert circuit.state is State.CLOSED


def test_two_callers_failing_probes_open_it_again() -> None:
    circuit = opened()
    later_ns = NOW + OPEN_NS
    for caller in (1, 2):
        assert circuit.allow(later_ns, caller)
        circuit.doubtful(caller, later_ns, later_ns)
    assert circuit.state is State.OPEN


def test_no_share_no_circuit() -> None:
    circuit = Circuit(CircuitPolicy(failures=0.0))
    for _ in range(100):
        circuit.ended(True, NOW, NOW)
    assert not circuit.open


def test_changes_are_told() -> None:
    told: list[tuple[State, State]] = []
    circuit = Circuit(CircuitPolicy(requests=1, probes=1), lambda _, old, new: told.append((old, new)))
    circuit.ended(True, NOW, NOW)
    assert circuit.allow(NOW + OPEN_NS)
    circuit.ended(False, NOW + OPEN_NS, NOW + OPEN_NS)
    assert told == [(State.CLOSED, State.OPEN), (State.OPEN, State.HALF_OPEN), (State.HALF_OPEN, State.CLOSED)]

"""Requests that wait for a worker: how many, how long, and in which order they leave."""

from nexus_grpc.front.waiting import WaitingRoom
from nexus_grpc.ipc.errors import Code
from tests.unit.support import RecordedFlight

NOW = 10**12


def test_it_has_so_many_places() -> None:
    room = WaitingRoom(2, 100)
    flights = [RecordedFlight() for _ in range(3)]
    assert [room.admit(flight) for flight in flights] == [True, True, False]
    assert len(room) == 2
    assert room.leave(flights[0])
    assert not room.leave(flights[0])
    assert room.admit(flights[2])
    assert list(room.all_out()) == [flights[1], flights[2]]
    assert not room
    assert not room.all_out()


def test_who_has_waited_for_too_long_leaves() -> None:
    room = WaitingRoom(9, 1000)
    past, soon, impatient, patient = flights = [
        RecordedFlight(deadline_ns=NOW),
        RecordedFlight(deadline_ns=NOW + 1, arrived_ns=1),  # its deadline is its patience
        RecordedFlight(arrived_ns=NOW - 1000),
        RecordedFlight(arrived_ns=NOW - 999),
    ]
    for flight in flights:
        room.admit(flight)
    out = room.overdue(NOW)
    assert [(flight, error.code) for flight, error in out] == [
        (past, Code.DEADLINE_EXCEEDED),
        (impatient, Code.UNAVAILABLE),
    ]
    # The others' clients are watched, once.
    assert room.overdue(NOW) == []
    assert [flight.watches for flight in flights] == [0, 1, 0, 1]
    assert list(room.all_out()) == [soon, patient]

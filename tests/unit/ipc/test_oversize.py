"""Messages by memfd: whole, for the right record, and gone afterwards."""

import os
import socket
from collections.abc import Iterator

import pytest

from nexus_grpc.ipc.oversize import HandOverError, hand_over_nowait, new_side_sockets, take_over
from tests.unit.support import open_descriptors

Sides = tuple[socket.socket, socket.socket]


@pytest.fixture
def sides() -> Iterator[Sides]:
    before = open_descriptors()
    pair = new_side_sockets()
    yield pair
    for side in pair:
        side.close()
    assert open_descriptors() == before


def test_five_mebibytes_travel_whole(sides: Sides) -> None:
    message = os.urandom(1 << 20) * 5
    assert hand_over_nowait(sides[0], 7, (message[:100], message[100:]))
    with take_over(sides[1], 7) as mapping:
        assert mapping[:] == message


def test_it_goes_both_ways_and_in_order(sides: Sides) -> None:
    for sequence in (1, 2):
        assert hand_over_nowait(sides[0], sequence, (b"to the worker %d" % sequence,))
    assert hand_over_nowait(sides[1], 1, (b"to the front",))
    assert take_over(sides[0], 1)[:] == b"to the front"
    assert take_over(sides[1], 1)[:] == b"to the worker 1"
    assert take_over(sides[1], 2)[:] == b"to the worker 2"


def test_nothing_leaks_over_many(sides: Sides) -> None:
    before = open_descriptors()
    for sequence in range(50):
        assert hand_over_nowait(sides[0], sequence, (b"x" * 5000,))
        take_over(sides[1], sequence).close()
    assert open_descriptors() == before


def test_one_that_never_came(sides: Sides) -> None:
    with pytest.raises(HandOverError, match="message 3 was announced and did not come"):
        take_over(sides[1], 3)


def test_another_one_came(sides: Sides) -> None:
    assert hand_over_nowait(sides[0], 4, (b"x",))
    before = open_descriptors()
    with pytest.raises(HandOverError, match="message 5 was announced and did not come"):
        take_over(sides[1], 5)
    assert open_descriptors() == before


def test_ones_that_nobody_took_over_do_not_stand_in_the_way(sides: Sides) -> None:
    for sequence in (1, 2, 3):
        assert hand_over_nowait(sides[0], sequence, (b"%d" % sequence,))
    before = open_descriptors()
    take_over(sides[1], 3).close()
    assert open_descriptors() == before


@pytest.mark.parametrize("head", [b"", b"1234", bytes(8), bytes(9)])
def test_a_datagram_without_memory(sides: Sides, head: bytes) -> None:
    sides[0].send(head)
    with pytest.raises(HandOverError):
        take_over(sides[1], 0)


def test_a_datagram_with_memory_and_a_short_head(sides: Sides) -> None:
    before = open_descriptors()
    memory = os.memfd_create("m")
    os.ftruncate(memory, 10)
    socket.send_fds(sides[0], [b"123"], [memory])
    os.close(memory)
    with pytest.raises(HandOverError, match="came without its memory"):
        take_over(sides[1], 0)
    assert open_descriptors() == before


def test_memory_that_cannot_be_mapped(sides: Sides) -> None:
    before = open_descriptors()
    empty = os.memfd_create("m")
    socket.send_fds(sides[0], [bytes(8)], [empty])
    os.close(empty)
    with pytest.raises(HandOverError, match="cannot be mapped"):
        take_over(sides[1], 0)
    assert open_descriptors() == before


def test_a_closed_peer(sides: Sides) -> None:
    sides[0].close()
    with pytest.raises(HandOverError):
        take_over(sides[1], 0)
    before = open_descriptors()
    assert not hand_over_nowait(sides[1], 0, (b"x",))
    assert open_descriptors() == before


def test_a_full_socket_refuses_and_leaks_nothing(sides: Sides) -> None:
    sent = 0
    while hand_over_nowait(sides[0], sent, (b"x",)):
        sent += 1
    before = open_descriptors()
    assert not hand_over_nowait(sides[0], sent, (b"x",))
    assert open_descriptors() == before
    for sequence in range(sent):
        assert take_over(sides[1], sequence)[:] == b"x"

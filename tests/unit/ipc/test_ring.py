"""The ring, call by call. Its properties are in tests/property/test_ring.py."""

import os
import threading
from collections.abc import Iterator

import pytest

from nexus_grpc.ipc import segment
from nexus_grpc.ipc.record import REQUEST_HEADER, REQUEST_HEADER_BYTES, WRAP
from nexus_grpc.ipc.ring import (
    INLINE_FRACTION,
    RingConsumer,
    RingCorrupted,
    RingProducer,
    Sleeper,
    new_bell,
    ring_by_hand,
)
from tests.unit.support import drain_bell, new_segment, ring_ends

RING_BYTES = 1024


class Ring:
    """Both ends, and the words between them."""

    def __init__(self, ring_bytes: int = RING_BYTES) -> None:
        mapped = new_segment(ring_bytes)
        self.bell = new_bell()
        self.words, self.bytes = mapped.words, mapped.request
        self.producer: RingProducer
        self.consumer: RingConsumer
        self.producer, self.consumer = ring_ends(mapped, self.bell)

    def put(self, payload: bytes, sequence: int = 0) -> int:
        """Claim and fill a record; return its position or -1."""
        position = self.producer.claim_nowait(REQUEST_HEADER_BYTES + len(payload))
        if position >= 0:
            REQUEST_HEADER.pack_into(self.bytes, position, len(payload), 0, 0, 0, sequence, 0, 0, 0, 0)
            start = position + REQUEST_HEADER_BYTES
            self.bytes[start : start + len(payload)] = payload
        return position

    def payloads(self, limit: int = 1000) -> list[bytes]:
        return [payload for _, payload in self.consumer.poll_nowait(limit)]


@pytest.fixture
def ring() -> Iterator[Ring]:
    made = Ring()
    yield made
    os.close(made.bell)


def test_claimed_records_are_invisible_until_published(ring: Ring) -> None:
    ring.put(b"one")
    assert not ring.consumer.has_records()
    assert ring.payloads() == []
    ring.producer.publish()
    assert ring.consumer.has_records()
    assert ring.payloads() == [b"one"]
    assert not ring.consumer.has_records()
    assert ring.payloads() == []


def test_fields_come_back_as_they_were_written(ring: Ring) -> None:
    ring.put(b"", sequence=2**64 - 1)
    ring.producer.publish()
    [(fields, payload)] = ring.consumer.poll_nowait(1)
    assert fields == (0, 0, 0, 0, 2**64 - 1, 0, 0, 0, 0)
    assert payload == b""


def test_poll_takes_at_most_its_limit_and_releases_only_that(ring: Ring) -> None:
    for index in range(5):
        ring.put(b"%d" % index)
    ring.producer.publish()
    assert ring.payloads(2) == [b"0", b"1"]
    assert ring.consumer.occupancy_bytes() == 3 * 48
    assert ring.payloads() == [b"2", b"3", b"4"]
    assert ring.consumer.occupancy_bytes() == ring.producer.occupancy_bytes() == 0


def test_records_start_aligned_whatever_their_length(ring: Ring) -> None:
    positions = [ring.put(b"x" * length) for length in (1, 7, 8, 9, 0)]
    assert positions == [0, 48, 96, 144, 200]


def test_a_full_ring_says_so_and_goes_on_after_a_release(ring: Ring) -> None:
    put = 0
    while ring.put(b"x" * 88) >= 0:
        put += 1
    assert put == RING_BYTES // 128
    ring.producer.publish()
    assert ring.put(b"x" * 88) == -1
    assert len(ring.payloads(1)) == 1
    assert ring.put(b"x" * 88) >= 0


def test_a_record_that_does_not_fit_the_end_goes_to_the_start(ring: Ring) -> None:
    for _ in range(7):
        ring.put(b"x" * 96)  # 136 bytes each: 952 of 1024
    ring.producer.publish()
    assert len(ring.payloads()) == 7
    assert ring.put(b"wrapped" * 10) == 0
    assert ring.bytes[952:956].cast("I")[0] == WRAP
    ring.producer.publish()
    assert ring.payloads() == [b"wrapped" * 10]


def test_an_end_too_short_for_a_header_is_skipped_without_a_mark(ring: Ring) -> None:
    for length in (96, 96, 96, 96, 96, 96, 96, 0):  # 7 * 136 + 40 = 992; 32 are left
        ring.put(b"x" * length)
    ring.producer.publish()
    assert len(ring.payloads()) == 8
    ring.bytes[992:1024] = bytes(32)
    ring.words[segment.REQUEST_RELEASED_WORD] = 992
    assert ring.put(b"next") == 0
    ring.bytes[992:1024] = bytes(32)  # even if the mark is lost
    ring.producer.publish()
    assert ring.payloads() == [b"next"]


def test_a_wrap_needs_room_for_the_skipped_end_too(ring: Ring) -> None:
    for _ in range(7):
        ring.put(b"x" * 96)
    ring.producer.publish()
    assert len(ring.payloads(1)) == 1  # 136 bytes free at the start, 72 at the end
    assert ring.put(b"x" * 96) >= 0
    assert ring.put(b"") == -1


def test_free_bytes_is_what_a_claim_can_count_on(ring: Ring) -> None:
    assert ring.producer.free_bytes() == RING_BYTES
    for _ in range(7):
        ring.put(b"x" * 96)
    assert ring.producer.free_bytes() == 72
    ring.producer.publish()
    ring.payloads(2)
    assert ring.producer.free_bytes() == 272


def test_records_are_a_part_of_the_ring_so_that_a_wrap_can_always_make_room(ring: Ring) -> None:
    assert ring.producer.inline_max == RING_BYTES // INLINE_FRACTION
    for _ in range(50):
        assert ring.put(b"x" * (ring.producer.inline_max - REQUEST_HEADER_BYTES)) >= 0
        ring.producer.publish()
        assert len(ring.payloads()) == 1


def test_the_bell_rings_only_for_a_parked_consumer_and_once_per_ticket(ring: Ring) -> None:
    ring.producer.wake()
    assert drain_bell(ring.bell) == 0
    ring.consumer.park(1)
    ring.producer.wake()
    ring.producer.wake()
    assert drain_bell(ring.bell) == 1
    ring.consumer.park(0)
    ring.producer.wake()
    assert drain_bell(ring.bell) == 0
    ring.consumer.park(2)
    ring.producer.wake()
    assert drain_bell(ring.bell) == 1


@pytest.mark.parametrize(
    ("published", "released"),
    [(0, 8), (RING_BYTES + 8, 0), (2**64 - 8, 0), (0, 2**64 - 8), (8, 2**64 - 8)],
)
def test_impossible_cursors_are_refused_and_nothing_is_released(ring: Ring, published: int, released: int) -> None:
    ring.words[segment.REQUEST_PUBLISHED_WORD] = published
    ring.words[segment.REQUEST_RELEASED_WORD] = released
    with pytest.raises(RingCorrupted, match="published"):
        ring.payloads()
    assert ring.words[segment.REQUEST_RELEASED_WORD] == released


@pytest.mark.parametrize("length", [4, 5, RING_BYTES, 2**31, 2**32 - 2])
def test_a_length_beyond_what_is_published_is_refused(ring: Ring, length: int) -> None:
    ring.put(b"fine")
    ring.put(b"")
    ring.bytes[48:52] = length.to_bytes(4, "little")
    ring.producer.publish()
    with pytest.raises(RingCorrupted):
        ring.payloads()
    assert ring.words[segment.REQUEST_RELEASED_WORD] == 0


def test_a_wrap_mark_beyond_what_is_published_is_refused(ring: Ring) -> None:
    ring.put(b"")
    ring.bytes[0:4] = WRAP.to_bytes(4, "little")
    ring.producer.publish()
    with pytest.raises(RingCorrupted, match="wrap"):
        ring.payloads()


# --- Sleeper ---


def test_sleep_ends_after_its_time(ring: Ring) -> None:
    sleeper = Sleeper(ring.bell)
    assert sleeper.park([ring.consumer])
    assert not sleeper.sleep(1.0)


def test_records_that_slipped_in_before_parking_are_noticed(ring: Ring) -> None:
    ring.put(b"early")
    ring.producer.publish()
    assert not Sleeper(ring.bell).park([ring.consumer])


def test_a_producer_wakes_a_sleeper(ring: Ring) -> None:
    sleeper = Sleeper(ring.bell)
    assert sleeper.park([ring.consumer])

    def produce() -> None:
        ring.put(b"wake")
        ring.producer.publish()
        ring.producer.wake()

    thread = threading.Thread(target=produce)
    thread.start()
    assert sleeper.sleep(60_000.0)
    thread.join()
    sleeper.unpark([ring.consumer])
    assert ring.words[segment.REQUEST_PARKED_WORD] == 0
    assert ring.payloads() == [b"wake"]


def test_every_sleep_has_a_ticket_of_its_own(ring: Ring) -> None:
    sleeper = Sleeper(ring.bell)
    for _ in range(3):
        sleeper.park([ring.consumer])
        ring.producer.wake()
        assert sleeper.sleep(0)
        sleeper.unpark([ring.consumer])


def test_a_sleeper_can_be_rung_by_hand(ring: Ring) -> None:
    sleeper = Sleeper(ring.bell)
    ring_by_hand(ring.bell)
    ring_by_hand(ring.bell)
    assert sleeper.sleep(60_000.0)
    assert not sleeper.sleep(0)

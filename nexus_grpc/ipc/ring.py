"""The single-producer single-consumer byte ring: claim → publish → poll → release.

Cursors are 64-bit byte counts that only grow; a position is cursor modulo capacity. `published` is written by the
producer alone, `released` and `parked` by the consumer alone.

Memory ordering. A cursor is stored through `memoryview.cast("Q")[i] = v`, one aligned 8-byte store (struct.pack_into
zeroes its target first and writes bytewise, so a reader could see a torn cursor). x86-64 keeps stores in order, so a
record's bytes are visible before the cursor that covers them. The handshake of `parked` needs more, a StoreLoad fence
on both sides (publish, then look at parked; set parked, then look at published): `fence()` takes and gives a lock,
whose locked instruction is a full barrier on x86-64. What another CPU needs is in docs/decisions/0002. As CPython
promises none of this, every wait is bounded: a lost wake-up costs milliseconds, never a hang.

Model: Agrona's OneToOneRingBuffer, with bytes in place of its length word's sign as the commit mark.
"""

import os
import platform
import select
import struct
import threading
from collections.abc import Sequence

from nexus_grpc.ipc.record import ALIGNMENT, REQUEST_HEADER, RESPONSE_HEADER, WRAP

SUPPORTED_MACHINES = ("x86_64", "AMD64")
_fence_lock = threading.Lock()
_U32 = struct.Struct("<I")
# A record takes at most this part of a ring, so that a wrap can always make room for one; larger messages go by memfd.
INLINE_FRACTION = 8


def ordering_is_proven() -> bool:
    """Whether the ordering argument above covers this machine."""
    return platform.machine() in SUPPORTED_MACHINES


def fence() -> None:
    """A full memory barrier (a lock taken and given; see the module's text)."""
    _fence_lock.acquire()
    _fence_lock.release()


class RingCorrupted(Exception):
    """The other side wrote a cursor or a length that cannot be: it is broken and must be replaced."""


class RingProducer:
    """The writing end. One thread at a time."""

    __slots__ = (
        "_bell",
        "_capacity",
        "_lengths",
        "_parked_word",
        "_pending",
        "_published_word",
        "_released_word",
        "_rung",
        "_words",
        "inline_max",
        "payload",
    )

    def __init__(
        self, words: memoryview, ring: memoryview, *, published: int, released: int, parked: int, bell: int
    ) -> None:
        self._words = words
        self.payload = ring
        self._lengths = ring.cast("I")
        self._capacity = len(ring)
        self._published_word, self._released_word, self._parked_word = published, released, parked
        self._bell = bell
        self._pending = words[published]
        self._rung = 0
        self.inline_max = self._capacity // INLINE_FRACTION

    def claim_nowait(self, record_bytes: int) -> int:
        """Reserve room for a record of `record_bytes` (header included); return its position, or -1 when full.

        The record becomes visible with the next publish(). `record_bytes` must not exceed `inline_max`.
        """
        need = (record_bytes + 7) & -ALIGNMENT
        pending = self._pending
        capacity = self._capacity
        position = pending % capacity
        free = capacity - (pending - self._words[self._released_word])
        if position + need > capacity:
            rest = capacity - position
            if free < rest + need:
                return -1
            self._lengths[position >> 2] = WRAP
            self._pending = pending + rest + need
            return 0
        if free < need:
            return -1
        self._pending = pending + need
        return position

    def publish(self) -> None:
        """Make every claimed record visible. The caller must pass a fence before wake()."""
        self._words[self._published_word] = self._pending

    def wake(self) -> None:
        """Ring the doorbell if the consumer is asleep and has not been rung for this sleep."""
        ticket = self._words[self._parked_word]
        if ticket != self._rung and ticket:
            self._rung = ticket
            os.eventfd_write(self._bell, 1)

    def publish_and_wake(self) -> None:
        """publish(), fence and wake() in one, for the hot path."""
        words = self._words
        words[self._published_word] = self._pending
        fence()
        ticket = words[self._parked_word]
        if ticket != self._rung and ticket:
            self._rung = ticket
            os.eventfd_write(self._bell, 1)

    def occupancy_bytes(self) -> int:
        return self._pending - int(self._words[self._released_word])

    def free_bytes(self) -> int:
        """Free bytes that a wrap cannot lose: what follows the write position, or what precedes the read position."""
        free = self._capacity - self.occupancy_bytes()
        rest = self._capacity - self._pending % self._capacity
        return free if free <= rest else max(rest, free - rest)


class RingConsumer:
    """The reading end. One thread."""

    __slots__ = ("_capacity", "_header", "_parked_word", "_payload", "_published_word", "_released_word", "_words")

    def __init__(
        self,
        words: memoryview,
        ring: memoryview,
        header: struct.Struct,
        *,
        published: int,
        released: int,
        parked: int,
    ) -> None:
        self._words = words
        self._payload = ring
        self._capacity = len(ring)
        self._header = header
        self._published_word, self._released_word, self._parked_word = published, released, parked

    def has_records(self) -> bool:
        return bool(self._words[self._published_word] != self._words[self._released_word])

    def occupancy_bytes(self) -> int:
        return int(self._words[self._published_word]) - int(self._words[self._released_word])

    def park(self, ticket: int) -> None:
        """Say that the consumer is about to sleep (ticket ≠ 0, a new one each time) or is awake (0)."""
        self._words[self._parked_word] = ticket

    def poll_nowait(self, limit: int) -> list[tuple[tuple[int, ...], bytes]]:
        """Take up to `limit` records: (header fields, bytes after the header), and release them.

        Raises RingCorrupted when a cursor or a length is impossible; nothing is released then.
        """
        released = self._words[self._released_word]
        published = self._words[self._published_word]
        if released == published:
            return []
        capacity, payload, header = self._capacity, self._payload, self._header
        if not 0 < published - released <= capacity:
            raise RingCorrupted(f"published {published}, released {released}, capacity {capacity}")
        unpack_from, header_bytes = header.unpack_from, header.size
        records: list[tuple[tuple[int, ...], bytes]] = []
        while released < published and len(records) < limit:
            position = released % capacity
            if capacity - position < header_bytes or _U32.unpack_from(payload, position)[0] == WRAP:
                released += capacity - position
                continue
            fields = unpack_from(payload, position)
            start = position + header_bytes
            end = start + fields[0]
            released += (header_bytes + fields[0] + 7) & -ALIGNMENT
            if end > capacity or released > published:
                raise RingCorrupted(f"record of {fields[0]} bytes at {position}, published {published}")
            records.append((fields, bytes(payload[start:end])))
        if released > published:
            raise RingCorrupted(f"wrap beyond published {published}")
        self._words[self._released_word] = released
        return records


class Sleeper:
    """A consumer's bed: one eventfd doorbell for all its rings, and the parked handshake with their producers.

    park() before sleeping, sleep() if it says so, unpark() when awake. Parking and sleeping may be done by different
    threads: whoever empties the rings parks them, whoever sleeps is rung.
    """

    def __init__(self, bell: int) -> None:
        self._bell = bell
        self._ticket = 0
        self._poll = select.poll()
        self._poll.register(bell, select.POLLIN)

    def park(self, rings: Sequence[RingConsumer]) -> bool:
        """Tell the producers to ring from now on. False when a record slipped in before they could know."""
        self._ticket += 1
        for ring in rings:
            ring.park(self._ticket)
        fence()
        return not any([ring.has_records() for ring in rings])

    def unpark(self, rings: Sequence[RingConsumer]) -> None:
        """Tell the producers that nobody needs to be woken."""
        for ring in rings:
            ring.park(0)

    def sleep(self, timeout_ms: float) -> bool:
        """Until a producer rings, someone rings the bell by hand (True), or `timeout_ms` passed (False)."""
        if not self._poll.poll(timeout_ms):
            return False
        try:
            os.eventfd_read(self._bell)
        except BlockingIOError:
            return False  # another sleep took the ring
        return True


def new_bell() -> int:
    """An eventfd doorbell. Raises OSError when the process is out of file descriptors."""
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)


def ring_by_hand(bell: int) -> None:
    """Wake a sleeper for a reason other than a record (a control message, shutdown)."""
    os.eventfd_write(bell, 1)


__all__ = [
    "REQUEST_HEADER",
    "RESPONSE_HEADER",
    "RingConsumer",
    "RingCorrupted",
    "RingProducer",
    "Sleeper",
    "fence",
    "new_bell",
    "ordering_is_proven",
    "ring_by_hand",
]

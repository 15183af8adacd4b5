"""The ring between two processes: nothing torn, nothing lost; a producer killed anywhere leaves whole records."""

import os
import random
import select
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator

import pytest

from nexus_grpc.ipc import segment
from nexus_grpc.ipc.record import REQUEST_HEADER
from nexus_grpc.ipc.ring import RingConsumer, Sleeper, new_bell
from tests.unit.support import REQUEST_WORDS, ROOT

RING_BYTES = 16 << 10
RECORDS = 50_000

# argv: segment, bell, number of records (0 = without end), state to be killed in ("" = none), records before that.
# The payload's length and bytes follow from the sequence; the deadline field carries the payload's checksum.
PRODUCER = """
import os, signal, sys, zlib
from nexus_grpc.ipc import segment
from nexus_grpc.ipc.record import REQUEST_HEADER
from nexus_grpc.ipc.ring import RingProducer, fence
from tests.property.test_ring_processes import payload_of
from tests.unit.support import REQUEST_WORDS

descriptor, bell, total = (int(word) for word in sys.argv[1:4])
state, before = sys.argv[4], int(sys.argv[5])
mapped = segment.map_segment(descriptor)
ring = RingProducer(mapped.words, mapped.request, bell=bell, **REQUEST_WORDS)

def die_in(name):
    if state == name and sequence > before:
        os.kill(os.getpid(), signal.SIGKILL)

sequence = 0
while not total or sequence < total:
    sequence += 1
    payload = payload_of(sequence)
    while (position := ring.claim_nowait(40 + len(payload))) < 0:
        ring.publish()
        fence()
        ring.wake()
        os.sched_yield()
    die_in("claimed")
    start = position + 40
    ring.payload[start : start + len(payload)] = payload
    die_in("payload written")
    REQUEST_HEADER.pack_into(ring.payload, position, len(payload), 0, 0, 0, sequence, zlib.crc32(payload), 0, 0, 0)
    die_in("header written")
    if sequence % 7 == 0 or state:
        ring.publish()
        die_in("published")
        fence()
        ring.wake()
ring.publish()
fence()
ring.wake()
"""


def payload_of(sequence: int) -> bytes:
    return sequence.to_bytes(8, "little") * (sequence * 37 % 200)


class Consumer:
    """The consumer's end, and a producer process at the other."""

    def __init__(self, total: int, state: str = "", before: int = 0) -> None:
        descriptor = segment.create_segment(RING_BYTES, 0)
        mapped = segment.map_segment(descriptor)
        # A killed producer must not find a former ring's bytes to look right by chance.
        mapped.request[:] = random.Random(7).randbytes(RING_BYTES)
        bell = new_bell()
        self.ring = RingConsumer(mapped.words, mapped.request, REQUEST_HEADER, **REQUEST_WORDS)
        self.sleeper = Sleeper(bell)
        self.bell = bell
        self.seen = 0
        arguments = [str(descriptor), str(bell), str(total), state, str(before)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", PRODUCER, *arguments], cwd=ROOT, pass_fds=[descriptor, bell]
        )
        os.close(descriptor)
        self.pidfd = os.pidfd_open(self.process.pid)

    def close(self) -> None:
        self.process.kill()
        self.process.wait(30)
        os.close(self.pidfd)
        os.close(self.bell)

    def take(self) -> int:
        """Take what is there; every record must be the next one, and whole."""
        records = self.ring.poll_nowait(1000)
        for fields, payload in records:
            self.seen += 1
            assert fields[4] == self.seen
            assert payload == payload_of(self.seen)
            assert fields[5] == zlib.crc32(payload)
        return len(records)

    def ended(self) -> bool:
        return bool(select.select([self.pidfd], [], [], 0)[0])

    def wait(self) -> None:
        if self.sleeper.park([self.ring]):
            self.sleeper.sleep(20.0)
        self.sleeper.unpark([self.ring])


@pytest.fixture
def consumers() -> Iterator[list[Consumer]]:
    made: list[Consumer] = []
    yield made
    for consumer in made:
        consumer.close()


def test_fifty_thousand_records_arrive_whole_and_in_order(consumers: list[Consumer]) -> None:
    consumer = Consumer(RECORDS)
    consumers.append(consumer)
    while consumer.seen < RECORDS:
        if not consumer.take():
            assert not consumer.ended() or consumer.take(), f"the producer ended after {consumer.seen} records"
            consumer.wait()
    assert consumer.process.wait(30) == 0
    assert consumer.take() == 0


@pytest.mark.parametrize("records", [1, 700, 3000])
def test_a_producer_killed_at_any_time_leaves_whole_records(records: int, consumers: list[Consumer]) -> None:
    consumer = Consumer(0)
    consumers.append(consumer)
    while consumer.seen < records:
        if not consumer.take():
            consumer.wait()
    consumer.process.kill()
    while not consumer.ended():
        consumer.take()
    while consumer.take():
        pass
    assert consumer.process.wait(30) == -signal.SIGKILL
    assert not consumer.ring.has_records()


@pytest.mark.parametrize("before", [0, 10, 500])
@pytest.mark.parametrize("state", ["claimed", "payload written", "header written", "published"])
def test_a_producer_killed_in_each_state(state: str, before: int, consumers: list[Consumer]) -> None:
    consumer = Consumer(0, state, before)
    consumers.append(consumer)
    while not consumer.ended():
        if not consumer.take():
            consumer.wait()
    while consumer.take():
        pass
    assert consumer.process.wait(30) == -signal.SIGKILL
    assert consumer.seen == before + (state == "published")

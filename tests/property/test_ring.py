"""The ring against a model of it: whatever is done in whatever order, records come out whole, in order, once."""

import collections

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from nexus_grpc.ipc.record import ALIGNMENT, REQUEST_HEADER, REQUEST_HEADER_BYTES
from tests.effort import examples
from tests.unit.support import new_segment, ring_ends


class RingMachine(RuleBasedStateMachine):
    """`claimed` are written and not yet visible, `published` are visible and not yet taken."""

    @initialize(ring_bytes=st.sampled_from([1024, 2048, 4096]))
    def start(self, ring_bytes: int) -> None:
        self.mapped = new_segment(ring_bytes)
        self.producer, self.consumer = ring_ends(self.mapped)
        self.ring_bytes = ring_bytes
        self.claimed: list[tuple[int, bytes]] = []
        self.published: collections.deque[tuple[int, bytes]] = collections.deque()
        self.sequence = 0

    @rule(part=st.floats(0, 1), fill=st.integers(0, 255))
    def put(self, part: float, fill: int) -> None:
        """A record of any size up to the largest."""
        length = int(part * (self.producer.inline_max - REQUEST_HEADER_BYTES))
        record_bytes = REQUEST_HEADER_BYTES + length
        sure = self.producer.free_bytes() >= record_bytes + ALIGNMENT
        position = self.producer.claim_nowait(record_bytes)
        assert position >= 0 or not sure, "free_bytes promised room"
        if position < 0:
            return
        assert position % ALIGNMENT == 0
        assert position + record_bytes <= self.ring_bytes
        self.sequence += 1
        payload = bytes([fill]) * length
        REQUEST_HEADER.pack_into(self.mapped.request, position, length, 0, 0, 0, self.sequence, 0, 0, 0, 0)
        start = position + REQUEST_HEADER_BYTES
        self.mapped.request[start : start + length] = payload
        self.claimed.append((self.sequence, payload))

    @rule()
    def publish(self) -> None:
        self.producer.publish()
        self.published.extend(self.claimed)
        self.claimed.clear()

    @rule(limit=st.integers(1, 20))
    def poll(self, limit: int) -> None:
        got = [(fields[4], payload) for fields, payload in self.consumer.poll_nowait(limit)]
        expected = [self.published.popleft() for _ in range(min(limit, len(self.published)))]
        assert got == expected

    @rule()
    def an_empty_ring_takes_the_largest_record(self) -> None:
        self.publish()
        while self.published:
            self.poll(1000)
        self.consumer.poll_nowait(1)  # nothing but a skipped end may be left
        self.put(1.0, 1)
        assert len(self.claimed) == 1

    @invariant()
    def cursors_agree(self) -> None:
        if hasattr(self, "producer"):
            assert 0 <= self.consumer.occupancy_bytes() <= self.producer.occupancy_bytes() <= self.ring_bytes
            assert self.consumer.has_records() or not self.published


TestRing = RingMachine.TestCase
TestRing.settings = settings(deadline=None, max_examples=examples(60), stateful_step_count=60)

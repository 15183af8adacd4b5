"""Whatever the other process wrote: the ring and the control channel refuse it in their own words."""

import contextlib
import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from nexus_grpc.ipc.control import ChannelClosed, FrameReader, encode_frame
from nexus_grpc.ipc.record import REQUEST_HEADER, REQUEST_HEADER_BYTES, RESPONSE_HEADER, WRAP
from nexus_grpc.ipc.ring import RingConsumer, RingCorrupted
from tests.effort import examples

RING_BYTES = 1024
PUBLISHED, RELEASED, PARKED = range(3)
CURSORS = st.integers(0, 2**64 - 1) | st.integers(0, 4 * RING_BYTES).map(lambda n: n & ~7)
LENGTHS = st.integers(0, 200) | st.sampled_from([WRAP, WRAP - 1, RING_BYTES, 2**31])


def consume(header: struct.Struct, content: bytearray, published: int, released: int) -> None:
    words = memoryview(bytearray(24)).cast("Q")
    words[PUBLISHED], words[RELEASED] = published, released
    ring = RingConsumer(words, memoryview(content), header, published=PUBLISHED, released=RELEASED, parked=PARKED)
    taken = 0
    while ring.has_records():
        before = words[RELEASED]
        try:
            records = ring.poll_nowait(7)
        except RingCorrupted:
            assert words[RELEASED] == before, "a refused ring is left as it was"
            return
        assert before < words[RELEASED] <= published
        assert all(len(payload) == fields[0] for fields, payload in records)
        taken += sum(header.size + len(payload) for _, payload in records)
        assert taken <= RING_BYTES


@given(st.binary(min_size=RING_BYTES, max_size=RING_BYTES), CURSORS, CURSORS, st.booleans())
@settings(deadline=None, max_examples=examples(300))
def test_rings_full_of_garbage(content: bytes, published: int, released: int, request: bool) -> None:
    consume(REQUEST_HEADER if request else RESPONSE_HEADER, bytearray(content), published, released)


@given(st.lists(LENGTHS, max_size=20), st.integers(0, 128), st.integers(0, 200), st.integers(-16, 16))
@settings(deadline=None, max_examples=examples(300))
def test_rings_with_some_wrong_lengths(lengths: list[int], start: int, ahead: int, off: int) -> None:
    """Records one after another, as a producer would write them, but with lengths that may be anything."""
    content = bytearray(RING_BYTES)
    position = 8 * start % RING_BYTES
    released = position + ahead * RING_BYTES
    published = released
    for length in lengths:
        if position + REQUEST_HEADER_BYTES > RING_BYTES:
            break
        struct.pack_into("<I", content, position, length)
        size = (REQUEST_HEADER_BYTES + min(length, 200) + 7) & ~7
        published += size
        position += size
    consume(REQUEST_HEADER, content, max(0, published + 8 * off), released)


FRAMES = (
    st.builds(lambda kind, count: encode_frame({"type": kind}, count), st.text(max_size=5), st.integers(0, 3))
    | st.builds(
        lambda text, count: struct.pack("<II", len(text), count) + text, st.binary(max_size=30), st.integers(0, 2)
    )
    | st.binary(max_size=20)
)


@given(st.lists(FRAMES, max_size=5), st.integers(1, 50))
@settings(deadline=None, max_examples=examples(300))
def test_control_frames(frames: list[bytes], step: int) -> None:
    stream = b"".join(frames)
    reader = FrameReader()
    with contextlib.suppress(ChannelClosed):
        for at in range(0, len(stream), step):
            for message, descriptors in reader.feed(stream[at : at + step], []):
                assert isinstance(message["type"], str)
                assert descriptors == []

"""Segments: reserved whole or refused, recognised or refused."""

import os
import subprocess
import sys

import pytest

from nexus_grpc.ipc import segment
from nexus_grpc.ipc.segment import SegmentError, create_segment, map_segment
from tests.unit.support import ROOT, open_descriptors

RING_BYTES = 4096

# A limit on file sizes makes the reservation fail as missing memory would; it must not touch the test's own process.
REFUSED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
from nexus_grpc.ipc.segment import SegmentError, create_segment
import os
before = len(os.listdir("/proc/self/fd"))
try:
    create_segment(1 << 20, 1)
except SegmentError as error:
    assert len(os.listdir("/proc/self/fd")) == before, "a descriptor leaked"
    sys.exit(str(error))
"""


def test_a_segment_carries_its_generation_and_its_rings() -> None:
    descriptor = create_segment(RING_BYTES, 7)
    mapped = map_segment(descriptor)
    os.close(descriptor)
    assert mapped.generation == 7
    assert mapped.ring_bytes == len(mapped.request) == len(mapped.response) == RING_BYTES
    assert len(mapped.words) * segment.WORD_BYTES == segment.HEADER_BYTES


def test_both_mappings_see_the_same_memory_and_the_rings_do_not_overlap() -> None:
    descriptor = create_segment(RING_BYTES, 0)
    one, other = map_segment(descriptor), map_segment(descriptor)
    os.close(descriptor)
    one.words[segment.REQUEST_PUBLISHED_WORD] = 2**63 + 5
    one.request[:] = b"q" * RING_BYTES
    one.response[:] = b"r" * RING_BYTES
    assert other.words[segment.REQUEST_PUBLISHED_WORD] == 2**63 + 5
    assert bytes(other.request) == b"q" * RING_BYTES
    assert bytes(other.response) == b"r" * RING_BYTES
    assert other.words[segment.MAGIC_WORD] == segment.MAGIC


def test_no_two_writers_share_a_cache_line() -> None:
    words = (
        segment.REQUEST_PUBLISHED_WORD,
        segment.REQUEST_RELEASED_WORD,
        segment.REQUEST_PARKED_WORD,
        segment.RESPONSE_PUBLISHED_WORD,
        segment.RESPONSE_RELEASED_WORD,
        segment.RESPONSE_PARKED_WORD,
        segment.EXECUTING_COUNT_WORD,
        segment.EXECUTING_WORD,
        segment.CANCELLED_WORD,
    )
    assert len({word // segment.LINE_WORDS for word in words}) == len(words)


def test_a_machine_without_the_memory_refuses_at_once_and_says_how_much() -> None:
    done = subprocess.run([sys.executable, "-c", REFUSED], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert str(segment.segment_bytes(1 << 20)) in done.stderr
    assert "--ring-bytes" in done.stderr
    assert done.returncode == 1


def test_other_memory_is_refused_by_its_magic() -> None:
    descriptor = os.memfd_create("other")
    os.ftruncate(descriptor, segment.segment_bytes(RING_BYTES))
    with pytest.raises(SegmentError, match="magic 0x0 is not"):
        map_segment(descriptor)
    os.close(descriptor)


@pytest.mark.parametrize("size", [0, 1, segment.HEADER_BYTES, segment.HEADER_BYTES + 1, segment.segment_bytes(64) + 1])
def test_memory_of_another_size_is_refused(size: int) -> None:
    descriptor = os.memfd_create("other")
    os.ftruncate(descriptor, size)
    with pytest.raises(SegmentError, match=f"a segment of {size} bytes"):
        map_segment(descriptor)
    os.close(descriptor)


def test_mapping_keeps_no_descriptor() -> None:
    descriptor = create_segment(RING_BYTES, 0)
    mapped = map_segment(descriptor)
    os.close(descriptor)
    before = open_descriptors()
    del mapped
    # The interpreter's own duplicate goes with the mapping.
    assert len(open_descriptors()) <= len(before)

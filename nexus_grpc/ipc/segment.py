"""The shared memory of one (front, worker) pair: two rings and three tables in one memfd.

    word 0            magic              written once by the supervisor
    word 1            generation         written once by the supervisor; a replaced worker gets a new segment
    line 1            request.published  front     (a line is 64 bytes: no two writers share a cache line)
    line 2            request.released   worker
    line 3            request.parked     worker
    line 4            response.published worker
    line 5            response.released  front
    line 6            response.parked    front
    page 1            executing          worker    count, then the sequences of the batch being run
    page 4            cancelled          front     cancelled[sequence % TABLE_ENTRIES] = sequence
    page 6            request ring       front     `ring_bytes`
    …                 response ring      worker    `ring_bytes`

Every word has the one writer named beside it. Memory ordering: see ring.py and docs/decisions/0002.
A memfd has no name in any file system, is passed by file descriptor only, and goes away with its last holder.
"""

import dataclasses
import mmap
import os

from nexus_grpc.ipc.errors import NexusError

WORD_BYTES = 8
LINE_WORDS = 8
PAGE_BYTES = 4096
PAGE_WORDS = PAGE_BYTES // WORD_BYTES

MAGIC = 0x4E58_5247_0001  # "NXRG", layout 1
MAGIC_WORD = 0
GENERATION_WORD = 1
REQUEST_PUBLISHED_WORD = 1 * LINE_WORDS
REQUEST_RELEASED_WORD = 2 * LINE_WORDS
REQUEST_PARKED_WORD = 3 * LINE_WORDS
RESPONSE_PUBLISHED_WORD = 4 * LINE_WORDS
RESPONSE_RELEASED_WORD = 5 * LINE_WORDS
RESPONSE_PARKED_WORD = 6 * LINE_WORDS

TABLE_ENTRIES = 1024
EXECUTING_COUNT_WORD = PAGE_WORDS
EXECUTING_WORD = EXECUTING_COUNT_WORD + LINE_WORDS
EXECUTING_PAGES = 3
CANCELLED_WORD = EXECUTING_COUNT_WORD + EXECUTING_PAGES * PAGE_WORDS
CANCELLED_PAGES = 2
HEADER_BYTES = (1 + EXECUTING_PAGES + CANCELLED_PAGES) * PAGE_BYTES

assert RESPONSE_PARKED_WORD < PAGE_WORDS
assert (LINE_WORDS + TABLE_ENTRIES) <= EXECUTING_PAGES * PAGE_WORDS
assert TABLE_ENTRIES <= CANCELLED_PAGES * PAGE_WORDS


class SegmentError(NexusError):
    """A segment could not be reserved or is not what it should be."""

    reason = "SHARED_MEMORY"


def segment_bytes(ring_bytes: int) -> int:
    """The size of a pair's segment: header, request ring, response ring."""
    return HEADER_BYTES + 2 * ring_bytes


def create_segment(ring_bytes: int, generation: int) -> int:
    """Reserve a segment and return its file descriptor.

    The memory is reserved at once (fallocate), so that a machine without it refuses here and not in the middle of a
    request with SIGBUS. Raises SegmentError naming the size that was needed.
    """
    size = segment_bytes(ring_bytes)
    descriptor = os.memfd_create("nexus-ring", os.MFD_CLOEXEC)
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        os.close(descriptor)
        raise SegmentError(
            f"cannot reserve {size} bytes of shared memory for a ring segment: {error.strerror}; free memory, raise the"
            " memory or file-size limit, or lower --ring-bytes"
        ) from None
    with mmap.mmap(descriptor, PAGE_BYTES) as header, memoryview(header).cast("Q") as words:
        words[GENERATION_WORD] = generation
        words[MAGIC_WORD] = MAGIC
    return descriptor


@dataclasses.dataclass(frozen=True, slots=True)
class Segment:
    """A mapped segment: `words` is the header as u64, `request` and `response` are the rings' bytes."""

    words: memoryview
    request: memoryview
    response: memoryview
    ring_bytes: int
    generation: int


def map_segment(descriptor: int) -> Segment:
    """Map a segment and check that it is one. The descriptor may be closed afterwards.

    Raises SegmentError when the memory does not look like a segment of this layout.
    """
    size = os.fstat(descriptor).st_size
    ring_bytes = (size - HEADER_BYTES) // 2
    if ring_bytes <= 0 or segment_bytes(ring_bytes) != size:
        raise SegmentError(f"a segment of {size} bytes does not fit the layout")
    view = memoryview(mmap.mmap(descriptor, size))
    words = view[:HEADER_BYTES].cast("Q")
    if words[MAGIC_WORD] != MAGIC:
        raise SegmentError(f"segment magic {words[MAGIC_WORD]:#x} is not {MAGIC:#x}")
    middle = HEADER_BYTES + ring_bytes
    return Segment(words, view[HEADER_BYTES:middle], view[middle:], ring_bytes, words[GENERATION_WORD])

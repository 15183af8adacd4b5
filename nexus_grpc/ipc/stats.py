"""Statistics pages: counters and histograms that one process writes and any process reads, without a lock.

A page is a sparse memfd of u64 words: a header for the process, then MODEL_SLOTS slots for the models.

    worker page   WorkerWord header | slot 0 | ...    slot: 4 latency histograms, batch sizes, counters, predictions,
                                                      whose counts these are
    front page    FrontWord header | slot 0 | ... | HTTP endpoint 0 | ...
                                                      slot: requests[Method][Code], total latency histogram, circuit
    histogram     one word per bound (not cumulative), one for values above all bounds, then the sum of the values

Single writer: one thread of the process whose page it is (a front's words about Redis: its share's thread, which writes
no others). The supervisor makes the page and writes to it only while
that process is dead (`reset_gauges`). A replacement continues its predecessor's page, so counters never fall. A slot's
counts begin anew with its next owner.
Memory order: `words[i] += n` on a memoryview of format "Q" is one aligned 8-byte load and one such store, never torn
on x86-64 and AArch64. No word guards another: a reader may see a bucket before its sum, so a histogram's count is
always derived from its buckets.

A slot that no process touched takes no memory. Slot 0 stands for every model name that is not in the routing table, so
clients can't create series.
"""

import enum
import fcntl
import mmap
import os
import sys
from bisect import bisect_left
from dataclasses import fields
from itertools import accumulate
from time import time_ns
from typing import Any, ClassVar, Generic, TypeVar

from nexus_grpc.ipc.errors import CODE_COUNT
from nexus_grpc.ipc.record import Method
from nexus_grpc.ipc.snapshots import FrontModelSnapshot, FrontSnapshot, Histogram, ModelSnapshot, WorkerSnapshot

MODEL_SLOTS = 256
UNKNOWN_MODEL_SLOT = 0

WORD_BYTES = 8
# Slots start on cache lines of their own.
_LINE_WORDS = 64 // WORD_BYTES

# The client libraries' default buckets (5 ms to 10 s), extended downwards: a tabular model answers in 50 µs.
_BOUNDS_US = (50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000)
_BOUNDS_S = (1, 2.5, 5, 10)
LATENCY_BOUNDS_NS = (*[us * 1_000 for us in _BOUNDS_US], *[int(s * 1e9) for s in _BOUNDS_S])
BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
LATENCY_BUCKETS = len(LATENCY_BOUNDS_NS) + 1
BATCH_BUCKETS = len(BATCH_BOUNDS) + 1
PREDICTION_BUCKETS = 16


class PageKind(enum.IntEnum):
    """Which process writes a page; the value stands in its first word (ASCII name and layout version)."""

    WORKER = int.from_bytes(b"NXWORK\0\2", "big")
    FRONT = int.from_bytes(b"NXFRNT\0\4", "big")


class WorkerWord(enum.IntEnum):
    """Header of a worker's page. LAYOUT is the PageKind; up to SHADOWING are gauges, the rest counters."""

    LAYOUT = 0
    HEARTBEAT_NS = enum.auto()  # CLOCK_MONOTONIC
    BUSY_SINCE_NS = enum.auto()  # CLOCK_MONOTONIC; 0 = idle
    PID = enum.auto()
    GENERATION = enum.auto()
    REQUEST_RING_BYTES = enum.auto()  # occupied bytes, summed over the worker's fronts
    RESPONSE_RING_BYTES = enum.auto()
    SHADOWING = enum.auto()  # the slot of the shadow that runs now; 0 = none
    BATCHES = enum.auto()
    TEMPLATE_HITS = enum.auto()
    TEMPLATE_MISSES = enum.auto()


class FrontWord(enum.IntEnum):
    """Header of a front's page. LAYOUT is the PageKind; up to REDIS are gauges, the rest counters."""

    LAYOUT = 0
    PID = enum.auto()
    IN_FLIGHT = enum.auto()
    STREAMS_OPEN = enum.auto()
    REDIS = enum.auto()  # which shares the rate limits: REDIS_UP, REDIS_AWAY; 0 = there is none
    LATE_REPLIES = enum.auto()
    REDISPATCHED = enum.auto()
    POISONED = enum.auto()
    RING_FULL = enum.auto()
    CANCELLED = enum.auto()
    DEADLINE_PASSED = enum.auto()
    OVERSIZE = enum.auto()
    LOAD_SHED = enum.auto()
    DEADLINE_TOO_SHORT = enum.auto()
    CONCURRENCY_LIMIT = enum.auto()
    CIRCUIT_OPEN = enum.auto()
    RATE_LIMITED = enum.auto()
    FALLBACKS = enum.auto()
    REDIS_OUTAGES = enum.auto()
    LOCAL_DECISIONS = enum.auto()


# FrontWord.REDIS, where there is one.
REDIS_AWAY, REDIS_UP = 1, 2

HeaderWord = TypeVar("HeaderWord", WorkerWord, FrontWord)


def _line_aligned(words: int) -> int:
    return -(-words // _LINE_WORDS) * _LINE_WORDS


# Words of a histogram: its buckets, then the sum.
_LATENCY_WORDS = LATENCY_BUCKETS + 1
_BATCH_WORDS = BATCH_BUCKETS + 1

# Worker slot, relative to its start: four latency histograms, the batch sizes, then the counters.
_PARTS = (*(_LATENCY_WORDS,) * 4, _BATCH_WORDS)
_QUEUE, _ASSEMBLY, _INFERENCE, _SERIALISATION, _BATCH_SIZE, _COUNTERS = accumulate(_PARTS, initial=0)
_COUNTER_NAMES = tuple(field.name for field in fields(ModelSnapshot) if field.type is int)
WORKER_HEADER_WORDS = _line_aligned(len(WorkerWord))
_PREDICTIONS = _COUNTERS + len(_COUNTER_NAMES)
_OWNER = _PREDICTIONS + PREDICTION_BUCKETS
_SHADOW = _OWNER + 1
WORKER_SLOT_WORDS = _line_aligned(_SHADOW + 1)

# Front slot, relative to its start: requests by method and code, the total latency, then the circuit's state and how
# often it has opened.
_TOTAL = len(Method) * CODE_COUNT
_CIRCUIT = _TOTAL + _LATENCY_WORDS
_CIRCUIT_OPENED = _CIRCUIT + 1
FRONT_HEADER_WORDS = _line_aligned(len(FrontWord))
FRONT_SLOT_WORDS = _line_aligned(_CIRCUIT_OPENED + 1)
_SIZES: dict[int, tuple[int, int]] = {
    PageKind.WORKER: (WORKER_HEADER_WORDS, WORKER_SLOT_WORDS),
    PageKind.FRONT: (FRONT_HEADER_WORDS, FRONT_SLOT_WORDS),
}
# HTTP endpoints, behind a front's slots (http_stats.py): answers by status, then latency; hot methods first.
HTTP_STATUSES = (200, 201, 400, 401, 403, 404, 409, 413, 415, 422, 429, 499, 500, 501, 503, 504)
HTTP_ENDPOINTS_MAX = 64
HTTP_START = FRONT_HEADER_WORDS + MODEL_SLOTS * FRONT_SLOT_WORDS
HTTP_WORDS = len(HTTP_STATUSES) + _LATENCY_WORDS
_HTTP_HOT = HTTP_START + len(HTTP_STATUSES) - Method.HTTP_PREDICT * HTTP_WORDS
_PAGE_WORDS = {kind: header + MODEL_SLOTS * slot for kind, (header, slot) in _SIZES.items()}
_PAGE_WORDS[PageKind.FRONT] += HTTP_ENDPOINTS_MAX * HTTP_WORDS
# The sums of the layout, checked once: a changed enum or bound shows here and needs a new layout version in PageKind.
assert _SIZES == {PageKind.WORKER: (16, 128), PageKind.FRONT: (24, 192)}

_QUEUE_SUM, _ASSEMBLY_SUM, _INFERENCE_SUM, _SERIALISATION_SUM, _TOTAL_SUM = [
    start + LATENCY_BUCKETS for start in (_QUEUE, _ASSEMBLY, _INFERENCE, _SERIALISATION, _TOTAL)
]
_BATCH_SIZE_SUM = _BATCH_SIZE + BATCH_BUCKETS
_COMPUTE_COUNT, _INPUT_NS, _INFER_NS, _OUTPUT_NS, _LAST_NS, *_ENDINGS = range(
    _COUNTERS, _COUNTERS + len(_COUNTER_NAMES)
)
_SUCCESS_COUNT, _SUCCESS_NS, _FAIL_COUNT, _FAIL_NS, _EXPIRED, _CANCELLED, *_SHADOWS = _ENDINGS
_COMPARED, _DISAGREED, _SHADOW_ERRORS, _DROPPED, _PRIMARY_NS, _CANDIDATE_NS = _SHADOWS
# As plain integers: an enum member costs two attribute look-ups.
_HEARTBEAT_NS, _BUSY_SINCE_NS, _BATCHES, _HTTP_PREDICT = map(
    int, (WorkerWord.HEARTBEAT_NS, WorkerWord.BUSY_SINCE_NS, WorkerWord.BATCHES, Method.HTTP_PREDICT)
)


def create_page(kind: PageKind) -> int:
    """Makes an empty page and returns its memfd (close-on-exec), which the caller owns. Raises OSError."""
    fd = os.memfd_create(f"nexus-stats-{kind.name.lower()}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, _PAGE_WORDS[kind] * WORD_BYTES)
        # A page that can't shrink can't SIGBUS its readers.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        os.pwrite(fd, kind.to_bytes(WORD_BYTES, sys.byteorder), 0)
    except OSError:
        os.close(fd)
        raise
    return fd


def open_page(fd: int) -> memoryview:
    """Maps a page and returns its u64 words, which outlive `fd`.

    Raises ValueError if `fd` is no statistics page of this layout version, OSError if it can't be mapped.
    """
    size_bytes = os.fstat(fd).st_size
    if size_bytes not in [words * WORD_BYTES for words in _PAGE_WORDS.values()]:
        raise ValueError(f"not a statistics page: {size_bytes} bytes")
    words = memoryview(mmap.mmap(fd, size_bytes)).cast("Q")
    return expect(words, PageKind(words[0]))


def reset_gauges(words: memoryview) -> None:
    """Zeroes the gauges that a dead process left; its counters stay. Only while no process writes to the page."""
    end = WorkerWord.BATCHES if words[0] == PageKind.WORKER else FrontWord.LATE_REPLIES
    for index in range(WorkerWord.LAYOUT + 1, end):
        words[index] = 0


def expect(words: memoryview, kind: PageKind) -> memoryview:
    """The words, of this kind of page. Raises ValueError."""
    if words[0] != kind or len(words) != _PAGE_WORDS[kind]:
        raise ValueError(f"not a {kind.name} statistics page of this layout version")
    return words


def _slot(words: memoryview, slot: int) -> memoryview:
    if not 0 <= slot < MODEL_SLOTS:
        raise IndexError(f"slot {slot} is not in 0..{MODEL_SLOTS - 1}")
    header_words, slot_words = _SIZES[words[0]]
    start = header_words + slot * slot_words
    return words[start : start + slot_words]


class _Writer(Generic[HeaderWord]):
    """Writes a page's header, and holds a view of each slot: small constant indices are the cheapest in CPython."""

    __slots__ = ("_slots", "_words")
    _kind: ClassVar[PageKind]

    def __init__(self, words: memoryview) -> None:
        self._words = expect(words, self._kind)
        self._slots = tuple(_slot(words, slot) for slot in range(MODEL_SLOTS))

    def count(self, word: HeaderWord, n: int = 1) -> None:
        """Adds to a counter of the header."""
        self._words[word] += n

    def gauge(self, word: HeaderWord, value: int) -> None:
        """Sets a gauge of the header."""
        self._words[word] = value

    def reset(self, slot: int) -> None:
        """Another model version gets the slot: its counts begin anew."""
        words = self._slots[slot]
        for index in range(len(words)):
            words[index] = 0


class WorkerStats(_Writer[WorkerWord]):
    """The writer of a worker's page; one thread only. Slots are 0..MODEL_SLOTS-1; times are nanoseconds, not negative.

    Nothing is checked here: the caller's slot comes from the routing table and its times from one monotonic clock.
    """

    __slots__ = ()
    _kind = PageKind.WORKER

    def busy(self, now_ns: int) -> None:
        """A batch begins; also a heartbeat."""
        words = self._words
        words[_HEARTBEAT_NS] = now_ns
        words[_BUSY_SINCE_NS] = now_ns

    def idle(self, now_ns: int) -> None:
        """The worker waits for requests; also a heartbeat."""
        words = self._words
        words[_HEARTBEAT_NS] = now_ns
        words[_BUSY_SINCE_NS] = 0

    def queued(self, slot: int, waits_ns: list[int]) -> None:
        """A batch's requests left the queue after so long."""
        words = self._slots[slot]
        for ns in waits_ns:
            words[bisect_left(LATENCY_BOUNDS_NS, ns)] += 1
        words[_QUEUE_SUM] += sum(waits_ns)

    def batch(self, slot: int, rows: int, requests: int, assembly_ns: int, infer_ns: int, output_ns: int) -> None:
        """One execution of the model ended, with the times of its parts for the batch as a whole."""
        words = self._slots[slot]
        words[_ASSEMBLY + bisect_left(LATENCY_BOUNDS_NS, assembly_ns)] += 1
        words[_ASSEMBLY_SUM] += assembly_ns
        words[_INFERENCE + bisect_left(LATENCY_BOUNDS_NS, infer_ns)] += 1
        words[_INFERENCE_SUM] += infer_ns
        words[_SERIALISATION + bisect_left(LATENCY_BOUNDS_NS, output_ns)] += 1
        words[_SERIALISATION_SUM] += output_ns
        words[_BATCH_SIZE + bisect_left(BATCH_BOUNDS, rows)] += 1
        words[_BATCH_SIZE_SUM] += rows
        words[_COMPUTE_COUNT] += requests
        words[_INPUT_NS] += assembly_ns * requests
        words[_INFER_NS] += infer_ns * requests
        words[_OUTPUT_NS] += output_ns * requests
        words[_LAST_NS] = time_ns()
        self._words[_BATCHES] += 1

    def succeeded(self, slot: int, ns: int, requests: int = 1) -> None:
        """`requests` were answered; `ns` is the sum of their times in the worker, queue included."""
        words = self._slots[slot]
        words[_SUCCESS_COUNT] += requests
        words[_SUCCESS_NS] += ns

    def failed(self, slot: int, ns: int, requests: int = 1) -> None:
        """`requests` were answered with an error; `ns` as for `succeeded`."""
        words = self._slots[slot]
        words[_FAIL_COUNT] += requests
        words[_FAIL_NS] += ns

    def own(self, slot: int, incarnation: int) -> None:
        """A model version is loaded under a slot: another one's counts go, its own, of before a crash, stay.

        Args:
            incarnation: one owner's number in the supervisor's catalogue, never used again; 0: always another one.
        """
        if not incarnation or self._slots[slot][_OWNER] != incarnation:
            self.reset(slot)
            self._slots[slot][_OWNER] = incarnation

    def shadowed_by(self, slot: int, candidate: int) -> None:
        """From now on the slot's shadow is `candidate`, a slot, too; 0 = nobody. Its counts begin with it."""
        words = self._slots[slot]
        if candidate and words[_SHADOW] != candidate:
            for index in _SHADOWS:
                words[index] = 0
        words[_SHADOW] = candidate

    def predicted(self, slot: int, counts: list[int]) -> None:
        """Answers by prediction bucket."""
        words = self._slots[slot]
        for bucket, count in enumerate(counts):
            if count:
                words[_PREDICTIONS + bucket] += count

    def shadowed(self, slot: int, rows: int, disagreed: int, primary_ns: int, candidate_ns: int) -> None:
        """A shadow ran a copy of a batch; the times count once for each of its rows."""
        words = self._slots[slot]
        words[_COMPARED] += rows
        words[_DISAGREED] += disagreed
        words[_PRIMARY_NS] += primary_ns * rows
        words[_CANDIDATE_NS] += candidate_ns * rows

    def shadow_failed(self, slot: int) -> None:
        """A shadow failed on a batch."""
        self._slots[slot][_SHADOW_ERRORS] += 1

    def shadow_dropped(self, slot: int) -> None:
        """A batch was not copied to the shadow."""
        self._slots[slot][_DROPPED] += 1

    def expired(self, slot: int) -> None:
        """One request's deadline had passed when the worker took it."""
        self._slots[slot][_EXPIRED] += 1

    def cancelled(self, slot: int) -> None:
        """One request's client was gone when the worker took it."""
        self._slots[slot][_CANCELLED] += 1


class FrontStats(_Writer[FrontWord]):
    """The writer of a front's page; one thread only. Slots and times as for WorkerStats."""

    __slots__ = ()
    _kind = PageKind.FRONT

    def completed(self, slot: int, method: int, code: int, total_ns: int) -> None:
        """One RPC ended with `code`, `total_ns` after it arrived."""
        words = self._slots[slot]
        words[method * CODE_COUNT + code] += 1
        bucket = bisect_left(LATENCY_BOUNDS_NS, total_ns)
        words[_TOTAL + bucket] += 1
        words[_TOTAL_SUM] += total_ns
        if method >= _HTTP_PREDICT:
            page, start = self._words, _HTTP_HOT + method * HTTP_WORDS
            page[start + bucket] += 1
            page[start + LATENCY_BUCKETS] += total_ns

    def circuit(self, slot: int, state: int, opened: bool) -> None:
        """A circuit changed (limits/circuit.py): its state, and whether that is one more time that it opened."""
        words = self._slots[slot]
        words[_CIRCUIT] = state
        words[_CIRCUIT_OPENED] += opened


def read_worker(words: memoryview) -> WorkerSnapshot:
    """Reads a worker page's header. Raises ValueError for another page."""
    return WorkerSnapshot(*expect(words, PageKind.WORKER)[1 : len(WorkerWord)].tolist())


def read_front(words: memoryview) -> FrontSnapshot:
    """Reads a front page's header. Raises ValueError for another page."""
    return FrontSnapshot(*expect(words, PageKind.FRONT)[1 : len(FrontWord)].tolist())


def read_model(words: memoryview, slot: int) -> ModelSnapshot:
    """Reads one slot of a worker's page. Raises ValueError for another page, IndexError for no such slot."""
    slot_words = _slot(expect(words, PageKind.WORKER), slot).tolist()
    starts = (_QUEUE, _ASSEMBLY, _INFERENCE, _SERIALISATION)
    queue, assembly, inference, serialisation = [histogram_at(slot_words, at, LATENCY_BUCKETS) for at in starts]
    batch_size = histogram_at(slot_words, _BATCH_SIZE, BATCH_BUCKETS)
    counters: list[Any] = slot_words[_COUNTERS : _COUNTERS + len(_COUNTER_NAMES)]
    counters.append(tuple(slot_words[_PREDICTIONS : _PREDICTIONS + PREDICTION_BUCKETS]))
    return ModelSnapshot(queue, assembly, inference, serialisation, batch_size, *counters)


def read_front_model(words: memoryview, slot: int) -> FrontModelSnapshot:
    """Reads one slot of a front's page. Raises ValueError for another page, IndexError for no such slot."""
    slot_words = _slot(expect(words, PageKind.FRONT), slot).tolist()
    requests = tuple(tuple(slot_words[at : at + CODE_COUNT]) for at in range(0, _TOTAL, CODE_COUNT))
    total = histogram_at(slot_words, _TOTAL, LATENCY_BUCKETS)
    return FrontModelSnapshot(requests, total, slot_words[_CIRCUIT], slot_words[_CIRCUIT_OPENED])


def histogram_at(slot_words: list[int], at: int, buckets: int) -> Histogram:
    return Histogram(tuple(slot_words[at : at + buckets]), slot_words[at + buckets])

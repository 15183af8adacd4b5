"""Statistics pages: layout, exact values, bucket edges, and readers beside live writers."""

import bisect
import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus_grpc.ipc import stats
from nexus_grpc.ipc.errors import CODE_COUNT, Code
from nexus_grpc.ipc.http_stats import count_http, read_http
from nexus_grpc.ipc.record import Method
from nexus_grpc.ipc.snapshots import Histogram
from nexus_grpc.ipc.stats import (
    BATCH_BOUNDS,
    LATENCY_BOUNDS_NS,
    MODEL_SLOTS,
    FrontStats,
    FrontWord,
    PageKind,
    WorkerStats,
    WorkerWord,
    create_page,
    open_page,
    read_front,
    read_front_model,
    read_model,
    read_worker,
    reset_gauges,
)

ROOT = Path(__file__).resolve().parents[2]
LAST_SLOT = MODEL_SLOTS - 1


def make_page(kind: PageKind) -> memoryview:
    fd = create_page(kind)
    try:
        return open_page(fd)
    finally:
        os.close(fd)


@pytest.fixture
def worker_page() -> memoryview:
    return make_page(PageKind.WORKER)


@pytest.fixture
def front_page() -> memoryview:
    return make_page(PageKind.FRONT)


def reference(values: list[int], bounds: tuple[int, ...]) -> Histogram:
    """The definition: a value belongs to the first bound that is not below it."""
    buckets = [0] * (len(bounds) + 1)
    for value in values:
        buckets[next((i for i, bound in enumerate(bounds) if value <= bound), len(bounds))] += 1
    return Histogram(tuple(buckets), sum(values))


def test_layout_sizes() -> None:
    assert stats.WORKER_SLOT_WORDS * stats.WORD_BYTES == 1024
    assert stats.FRONT_SLOT_WORDS * stats.WORD_BYTES == 1536
    assert stats.WORKER_SLOT_WORDS * stats.WORD_BYTES % 64 == 0
    assert stats.WORKER_HEADER_WORDS * stats.WORD_BYTES % 64 == 0
    assert len(Method) * CODE_COUNT == 170
    assert LATENCY_BOUNDS_NS[0] == 50_000
    assert LATENCY_BOUNDS_NS[-1] == 10_000_000_000
    assert len(LATENCY_BOUNDS_NS) == 17
    assert sorted(set(LATENCY_BOUNDS_NS)) == list(LATENCY_BOUNDS_NS)
    assert sorted(set(BATCH_BOUNDS)) == list(BATCH_BOUNDS)


@pytest.mark.parametrize(("snapshot", "words"), [(stats.WorkerSnapshot, WorkerWord), (stats.FrontSnapshot, FrontWord)])
def test_header_snapshots_have_the_words_of_their_enum(snapshot: type, words: type[WorkerWord]) -> None:
    assert [field.name for field in dataclasses.fields(snapshot)] == [word.name.lower() for word in words][1:]
    assert [int(word) for word in words] == list(range(len(words)))


def test_untouched_slots_take_no_memory() -> None:
    fd = create_page(PageKind.WORKER)
    try:
        words = open_page(fd)
        WorkerStats(words).queued(LAST_SLOT, [1])
        assert os.fstat(fd).st_size == len(words) * stats.WORD_BYTES
        assert os.fstat(fd).st_blocks * 512 <= 2 * os.sysconf("SC_PAGESIZE")
    finally:
        os.close(fd)


def test_page_can_not_shrink() -> None:
    fd = create_page(PageKind.FRONT)
    try:
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def test_words_outlive_the_fd(front_page: memoryview) -> None:
    FrontStats(front_page).count(FrontWord.POISONED)
    assert read_front(front_page).poisoned == 1


def test_other_files_are_refused() -> None:
    fd = os.memfd_create("other")
    try:
        with pytest.raises(ValueError, match="0 bytes"):
            open_page(fd)
        os.ftruncate(fd, len(make_page(PageKind.FRONT)) * stats.WORD_BYTES)
        with pytest.raises(ValueError, match="PageKind"):
            open_page(fd)
    finally:
        os.close(fd)


def test_the_other_kind_of_page_is_refused(worker_page: memoryview, front_page: memoryview) -> None:
    for use in (FrontStats, read_front, lambda words: read_front_model(words, 0)):
        with pytest.raises(ValueError, match="not a FRONT"):
            use(worker_page)
    for use_worker in (WorkerStats, read_worker, lambda words: read_model(words, 0)):
        with pytest.raises(ValueError, match="not a WORKER"):
            use_worker(front_page)


@pytest.mark.parametrize("slot", [-1, MODEL_SLOTS])
def test_readers_refuse_other_slots(slot: int, worker_page: memoryview, front_page: memoryview) -> None:
    with pytest.raises(IndexError, match=str(slot)):
        read_model(worker_page, slot)
    with pytest.raises(IndexError, match=str(slot)):
        read_front_model(front_page, slot)


@pytest.mark.parametrize("slot", [0, 1, LAST_SLOT])
def test_worker_slot_exact_values(slot: int, worker_page: memoryview) -> None:
    writer = WorkerStats(worker_page)
    before_ns = time.time_ns()
    writer.queued(slot, [70_000])
    writer.queued(slot, [20_000])
    writer.batch(slot, 8, 2, 30_000, 6_000, 60_000)
    writer.batch(slot, 2000, 1, 1_000, 20_000_000_000, 2_000)
    writer.succeeded(slot, 200_000, 2)
    writer.succeeded(slot, 5_000)
    writer.failed(slot, 7_000)
    writer.expired(slot)
    writer.cancelled(slot)
    writer.cancelled(slot)
    model = read_model(worker_page, slot)
    assert model.queue == reference([70_000, 20_000], LATENCY_BOUNDS_NS)
    assert model.assembly == reference([30_000, 1_000], LATENCY_BOUNDS_NS)
    assert model.inference == reference([6_000, 20_000_000_000], LATENCY_BOUNDS_NS)
    assert model.serialisation == reference([60_000, 2_000], LATENCY_BOUNDS_NS)
    assert model.batch_size == reference([8, 2000], BATCH_BOUNDS)
    assert (model.batch_size.sum, model.batch_size.count) == (2008, 2)
    assert model.compute_count == 3
    assert model.compute_input_ns == 2 * 30_000 + 1_000
    assert model.compute_infer_ns == 2 * 6_000 + 20_000_000_000
    assert model.compute_output_ns == 2 * 60_000 + 2_000
    assert before_ns <= model.last_inference_ns <= time.time_ns()
    assert (model.success_count, model.success_ns) == (3, 205_000)
    assert (model.fail_count, model.fail_ns) == (1, 7_000)
    assert (model.expired, model.cancelled) == (1, 2)
    assert read_worker(worker_page).batches == 2
    # Nothing leaked into a neighbour.
    written = sum(1 for word in worker_page if word)
    assert written == sum(1 for word in worker_page[: stats.WORKER_HEADER_WORDS] if word) + sum(
        1 for word in stats._slot(worker_page, slot) if word
    )


def test_every_method_and_code_has_a_word_of_its_own(front_page: memoryview) -> None:
    writer = FrontStats(front_page)
    expected = [[0] * CODE_COUNT for _ in Method]
    times = []
    for method in Method:
        for code in Code:
            for _ in range(1 + method + code):
                writer.completed(LAST_SLOT, method, code, 1_000 * code)
                times.append(1_000 * code)
            expected[method][code] = 1 + method + code
    model = read_front_model(front_page, LAST_SLOT)
    assert model.requests == tuple(map(tuple, expected))
    assert model.total == reference(times, LATENCY_BOUNDS_NS)
    assert read_front_model(front_page, LAST_SLOT - 1).total.count == 0


@pytest.mark.parametrize("index", range(len(LATENCY_BOUNDS_NS)))
def test_a_bound_belongs_to_its_own_bucket(index: int, front_page: memoryview) -> None:
    bound = LATENCY_BOUNDS_NS[index]
    writer = FrontStats(front_page)
    for ns in (bound - 1, bound, bound + 1):
        writer.completed(1, Method.PREDICT, Code.OK, ns)
    buckets = read_front_model(front_page, 1).total.buckets
    assert (buckets[index], buckets[index + 1], sum(buckets)) == (2, 1, 3)


def test_cumulative() -> None:
    histogram = Histogram((1, 0, 2, 5), 99)
    assert histogram.cumulative() == (1, 1, 3, 8)
    assert histogram.count == 8


def test_headers(worker_page: memoryview, front_page: memoryview) -> None:
    worker, front = WorkerStats(worker_page), FrontStats(front_page)
    for word in list(WorkerWord)[1:]:
        worker.gauge(word, 100 + word)
    for front_word in list(FrontWord)[1:]:
        front.gauge(front_word, 200 + front_word)
    worker.count(WorkerWord.TEMPLATE_HITS)
    front.count(FrontWord.RING_FULL, 5)
    assert dataclasses.astuple(read_worker(worker_page)) == (101, 102, 103, 104, 105, 106, 107, 108, 110, 110)
    read = [200 + front_word + 5 * (front_word is FrontWord.RING_FULL) for front_word in list(FrontWord)[1:]]
    assert list(dataclasses.astuple(read_front(front_page))) == read
    worker.busy(5_000)
    assert (read_worker(worker_page).heartbeat_ns, read_worker(worker_page).busy_since_ns) == (5_000, 5_000)
    worker.idle(6_000)
    assert (read_worker(worker_page).heartbeat_ns, read_worker(worker_page).busy_since_ns) == (6_000, 0)


def test_a_successor_keeps_the_counters_and_not_the_gauges(worker_page: memoryview, front_page: memoryview) -> None:
    worker, front = WorkerStats(worker_page), FrontStats(front_page)
    worker.batch(3, 4, 1, 1, 1, 1)
    front.completed(3, Method.MODEL_INFER, Code.OK, 10)
    for word in list(WorkerWord)[1:]:
        worker.gauge(word, 9)
    for front_word in list(FrontWord)[1:]:
        front.gauge(front_word, 9)
    reset_gauges(worker_page)
    reset_gauges(front_page)
    assert dataclasses.astuple(read_worker(worker_page)) == (0, 0, 0, 0, 0, 0, 0, 9, 9, 9)
    counters = len(FrontWord) - FrontWord.LATE_REPLIES
    assert dataclasses.astuple(read_front(front_page)) == (0, 0, 0, 0, *(9,) * counters)
    WorkerStats(worker_page).batch(3, 4, 1, 1, 1, 1)
    FrontStats(front_page).completed(3, Method.MODEL_INFER, Code.OK, 10)
    assert read_model(worker_page, 3).batch_size.sum == 8
    assert read_front_model(front_page, 3).requests[Method.MODEL_INFER][Code.OK] == 2


def test_snapshots_add_up() -> None:
    pages = [make_page(PageKind.WORKER) for _ in range(2)]
    for n, page in enumerate(pages, start=1):
        writer = WorkerStats(page)
        writer.queued(1, [n * 60_000])
        writer.batch(1, n, n, n, n, n)
        writer.succeeded(1, n, n)
    first, second = (read_model(page, 1) for page in pages)
    both = first + second
    assert both.queue == reference([60_000, 120_000], LATENCY_BOUNDS_NS)
    assert both.batch_size == reference([1, 2], BATCH_BOUNDS)
    assert (both.success_count, both.success_ns, both.compute_infer_ns) == (3, 3, 5)
    # A point in time is not a sum.
    assert both.last_inference_ns == second.last_inference_ns >= first.last_inference_ns > 0

    fronts = [make_page(PageKind.FRONT) for _ in range(2)]
    for page in fronts:
        FrontStats(page).completed(1, Method.PREDICT, Code.OK, 60_000)
    total = read_front_model(fronts[0], 1) + read_front_model(fronts[1], 1)
    assert total.requests[Method.PREDICT][Code.OK] == 2
    assert total.total == reference([60_000, 60_000], LATENCY_BOUNDS_NS)


LATENCIES = st.lists(
    st.one_of(st.integers(0, 20_000_000_000), st.sampled_from(LATENCY_BOUNDS_NS)), min_size=0, max_size=50
)


@settings(max_examples=60, deadline=None)
@given(latencies=LATENCIES, rows=st.lists(st.integers(1, 3000), max_size=50), slot=st.integers(0, LAST_SLOT))
def test_histograms_equal_the_reference(latencies: list[int], rows: list[int], slot: int) -> None:
    worker_page, front_page = make_page(PageKind.WORKER), make_page(PageKind.FRONT)
    worker, front = WorkerStats(worker_page), FrontStats(front_page)
    for ns in latencies:
        worker.queued(slot, [ns])
        front.completed(slot, Method.BATCH_PREDICT, Code.INTERNAL, ns)
    for row_count in rows:
        worker.batch(slot, row_count, 1, 0, 0, 0)
    model, total = read_model(worker_page, slot), read_front_model(front_page, slot).total
    expected = reference(latencies, LATENCY_BOUNDS_NS)
    assert model.queue == total == expected
    assert model.batch_size == reference(rows, BATCH_BOUNDS)
    ordered = sorted(latencies)
    assert total.cumulative() == (*(bisect.bisect_right(ordered, b) for b in LATENCY_BOUNDS_NS), len(latencies))


WRITES = 20_000
PREAMBLE = "import sys; from nexus_grpc.ipc.stats import *; words = open_page(int(sys.argv[1])); "
WRITE_WORKER = f"""{PREAMBLE}
writer = WorkerStats(words)
for _ in range({WRITES}):
    writer.queued(2, [60_000])
    writer.batch(2, 3, 1, 10, 20, 30)
"""
WRITE_FRONT = f"""{PREAMBLE}
writer = FrontStats(words)
for _ in range({WRITES}):
    writer.completed(2, 0, 0, 60_000)
"""


def start_writer(program: str, kind: PageKind) -> tuple[subprocess.Popen[bytes], memoryview]:
    fd = create_page(kind)
    try:
        process = subprocess.Popen([sys.executable, "-c", program, str(fd)], cwd=ROOT, pass_fds=(fd,))
        return process, open_page(fd)
    finally:
        os.close(fd)


def test_a_third_process_reads_monotonic_values_beside_two_writers() -> None:
    worker, worker_page = start_writer(WRITE_WORKER, PageKind.WORKER)
    front, front_page = start_writer(WRITE_FRONT, PageKind.FRONT)
    seen = (0, 0, 0, 0)
    while worker.poll() is None or front.poll() is None:
        model, total = read_model(worker_page, 2), read_front_model(front_page, 2).total
        now = (model.queue.count, model.batch_size.sum, model.queue.sum, total.count)
        assert all(a <= b for a, b in zip(seen, now, strict=True))
        # Never torn: every sum is a whole number of recorded values.
        assert model.queue.sum % 60_000 == total.sum % 60_000 == model.batch_size.sum % 3 == 0
        seen = now
    assert (worker.returncode, front.returncode) == (0, 0)
    assert read_model(worker_page, 2).batch_size == reference([3] * WRITES, BATCH_BOUNDS)
    assert read_worker(worker_page).batches == WRITES
    assert read_front_model(front_page, 2).total == reference([60_000] * WRITES, LATENCY_BOUNDS_NS)


def test_imports_neither_grpc_nor_numpy() -> None:
    program = "import sys, nexus_grpc.ipc.stats; print(sorted({'grpc', 'numpy', 'onnxruntime'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_http_endpoints(front_page: memoryview) -> None:
    writer = FrontStats(front_page)
    writer.completed(LAST_SLOT, Method.HTTP_PREDICT, Code.OK, 60_000)
    writer.completed(LAST_SLOT, Method.HTTP_V2_INFER, Code.NOT_FOUND, 10)
    writer.completed(LAST_SLOT, Method.PREDICT, Code.OK, 10)
    last = stats.HTTP_ENDPOINTS_MAX - 1
    for status in (200, 201, 404, 404, 418):
        count_http(front_page, last, status, 10**12)
    latencies = {number: read_http(front_page, number)[1] for number in range(last + 1)}
    assert {number: each.count for number, each in latencies.items() if each.count} == {0: 1, 4: 1, last: 5}
    assert (latencies[0].sum, latencies[4].sum, latencies[last].buckets[-1]) == (60_000, 10, 5)
    assert read_http(front_page, last)[0] == {200: 1, 201: 1, 404: 2, 500: 1}
    assert read_http(front_page, 0)[0] == {}, "by code, in the slot"
    assert read_front_model(front_page, LAST_SLOT).total.count == 3

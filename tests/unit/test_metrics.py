"""The metrics endpoint: exact series from known pages, names from the slot table only, and a text that parses."""

import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from nexus_grpc.ipc.errors import Code
from nexus_grpc.ipc.record import Method
from nexus_grpc.ipc.stats import (
    REDIS_AWAY,
    REDIS_UP,
    FrontStats,
    FrontWord,
    PageKind,
    WorkerStats,
    WorkerWord,
    create_page,
    open_page,
)
from nexus_grpc.supervisor.metrics import (
    MetricsCollector,
    MetricsSources,
    ModelVersion,
    ProcessSource,
    Role,
)
from nexus_grpc.supervisor.metrics_server import serve
from nexus_grpc.supervisor.metrics_summary import summary_of

IRIS_1, IRIS_2, DIGITS = 1, 2, 3
MODELS = {
    IRIS_1: ModelVersion("iris", "1"),
    IRIS_2: ModelVersion("iris", "2"),
    DIGITS: ModelVersion("digits", "1"),
}
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def make_page(kind: PageKind) -> memoryview:
    fd = create_page(kind)
    try:
        return open_page(fd)
    finally:
        os.close(fd)


class Fleet:
    """Two fronts and two workers, all with this process's pid."""

    def __init__(self) -> None:
        self.front_pages = [make_page(PageKind.FRONT) for _ in range(2)]
        self.worker_pages = [make_page(PageKind.WORKER) for _ in range(2)]
        self.fronts = [FrontStats(page) for page in self.front_pages]
        self.workers = [WorkerStats(page) for page in self.worker_pages]

    def sources(self, **changes: Any) -> MetricsSources:
        processes = [ProcessSource(Role.SUPERVISOR, 0, os.getpid())]
        processes += [ProcessSource(Role.FRONT, i, os.getpid(), page) for i, page in enumerate(self.front_pages)]
        processes += [ProcessSource(Role.WORKER, i, os.getpid(), page) for i, page in enumerate(self.worker_pages)]
        values: dict[str, Any] = {
            "processes": tuple(processes),
            "models": MODELS,
            "models_ready_count": 3,
            "worker_restarts": {0: 0, 1: 4},
            "started_at_s": 1_700_000_000.5,
        }
        return MetricsSources(**(values | changes))


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


def exposition(sources: MetricsSources) -> str:
    registry = CollectorRegistry()
    registry.register(MetricsCollector(lambda: sources))
    return generate_latest(registry).decode()


def scrape(sources: MetricsSources) -> Series:
    series: Series = {}
    for family in text_string_to_metric_families(exposition(sources)):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in series, f"{key} appears twice"
            series[key] = sample.value
    return series


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


def named(series: Series, name: str) -> Series:
    return {k: v for k, v in series.items() if k[0] == name}


def test_requests_sum_over_fronts_and_leave_zero_codes_out(fleet: Fleet) -> None:
    for front in fleet.fronts:
        front.completed(IRIS_1, Method.MODEL_INFER, Code.OK, 60_000)
    fleet.fronts[1].completed(IRIS_1, Method.PREDICT_STREAM, Code.DEADLINE_EXCEEDED, 10_000)
    fleet.fronts[0].completed(0, Method.BATCH_PREDICT, Code.NOT_FOUND, 10_000)
    series = scrape(fleet.sources())
    total = "nexus_requests_total"
    assert named(series, total) == {
        key(total, method="ModelInfer", model="iris", version="1", code="OK"): 2,
        key(total, method="PredictStream", model="iris", version="1", code="DEADLINE_EXCEEDED"): 1,
        key(total, method="BatchPredict", model="(unknown)", version="", code="NOT_FOUND"): 1,
    }
    assert named(series, "model_predictions_total") == {
        key("model_predictions_total", model_id="iris", status="success"): 2,
        key("model_predictions_total", model_id="iris", status="error"): 1,
        key("model_predictions_total", model_id="digits", status="success"): 0,
        key("model_predictions_total", model_id="digits", status="error"): 0,
        key("model_predictions_total", model_id="(unknown)", status="success"): 0,
        key("model_predictions_total", model_id="(unknown)", status="error"): 1,
    }


def test_request_duration_is_cumulative_in_seconds(fleet: Fleet) -> None:
    for ns in (50_000, 60_000, 900_000_000, 11_000_000_000):
        fleet.fronts[ns % 2].completed(IRIS_1, Method.PREDICT, Code.OK, ns)
    series = scrape(fleet.sources())
    name, labels = "nexus_request_duration_seconds", {"model": "iris", "version": "1"}
    buckets = {
        float(dict(k[1])["le"]): value
        for k, value in named(series, name + "_bucket").items()
        if ("model", "iris") in k[1] and ("version", "1") in k[1]
    }
    assert len(buckets) == 18
    assert [buckets[le] for le in (0.00005, 0.0001, 0.5, 1.0, 10.0, float("inf"))] == [1, 2, 2, 3, 3, 4]
    assert list(buckets.values()) == sorted(buckets.values())
    assert series[key(name + "_count", **labels)] == 4
    assert series[key(name + "_sum", **labels)] == pytest.approx(11.90011)


def test_stages_batches_and_predecessors_names_sum_over_workers(fleet: Fleet) -> None:
    for worker in fleet.workers:
        worker.queued(IRIS_1, [60_000])
        worker.batch(IRIS_1, 8, 2, 1_000_000, 2_000_000, 3_000_000)
    fleet.workers[0].batch(IRIS_2, 1, 1, 0, 5_000_000, 0)
    fleet.workers[1].expired(DIGITS)
    series = scrape(fleet.sources())
    stage = "nexus_stage_duration_seconds"
    for name, count, seconds in (
        ("queue", 2, 0.00012),
        ("batch_assembly", 2, 0.002),
        ("inference", 2, 0.004),
        ("serialisation", 2, 0.006),
    ):
        assert series[key(stage + "_count", stage=name, model="iris", version="1")] == count
        assert series[key(stage + "_sum", stage=name, model="iris", version="1")] == pytest.approx(seconds)
    assert series[key("nexus_batch_size_bucket", model="iris", version="1", le="4.0")] == 0
    assert series[key("nexus_batch_size_bucket", model="iris", version="1", le="8.0")] == 2
    assert series[key("nexus_batch_size_sum", model="iris", version="1")] == 16
    assert series[key("model_inference_duration_seconds_count", model_id="iris")] == 3
    assert series[key("model_inference_duration_seconds_sum", model_id="iris")] == pytest.approx(0.009)
    assert series[key("model_inference_duration_seconds_count", model_id="digits")] == 0
    assert series[key("nexus_expired_total", model="digits", version="1")] == 1
    assert series[key("nexus_batches_total", worker="0")] == 2
    assert series[key("nexus_batches_total", worker="1")] == 1


FRONT_SERIES = {
    FrontWord.IN_FLIGHT: "nexus_in_flight",
    FrontWord.STREAMS_OPEN: "nexus_streams_open",
    FrontWord.LATE_REPLIES: "nexus_late_replies_total",
    FrontWord.REDISPATCHED: "nexus_redispatched_total",
    FrontWord.POISONED: "nexus_poisoned_total",
    FrontWord.RING_FULL: "nexus_ring_full_total",
    FrontWord.CANCELLED: "nexus_cancelled_total",
    FrontWord.DEADLINE_PASSED: "nexus_deadline_passed_total",
    FrontWord.OVERSIZE: "nexus_oversize_total",
}


def test_front_headers(fleet: Fleet) -> None:
    for word in FRONT_SERIES:
        fleet.fronts[0].gauge(word, 10 + word)
    series = scrape(fleet.sources())
    for word, name in FRONT_SERIES.items():
        assert named(series, name) == {key(name, front="0"): 10 + word, key(name, front="1"): 0}


def test_redis_is_told_of_where_there_is_one(fleet: Fleet) -> None:
    assert not [name for name, _ in scrape(fleet.sources()) if "redis_" in name or "local_decisions" in name]
    for front, state in zip(fleet.fronts, (REDIS_UP, REDIS_AWAY), strict=True):
        front.gauge(FrontWord.REDIS, state)
    fleet.fronts[1].count(FrontWord.REDIS_OUTAGES)
    fleet.fronts[1].count(FrontWord.LOCAL_DECISIONS, 7)
    series = scrape(fleet.sources())
    for name, values in (
        ("nexus_rate_limit_redis_up", (1, 0)),
        ("nexus_rate_limit_redis_outages_total", (0, 1)),
        ("nexus_rate_limit_local_decisions_total", (0, 7)),
    ):
        assert named(series, name) == {key(name, front=str(index)): value for index, value in enumerate(values)}


def test_worker_headers(fleet: Fleet) -> None:
    fleet.workers[1].gauge(WorkerWord.REQUEST_RING_BYTES, 4096)
    fleet.workers[1].gauge(WorkerWord.RESPONSE_RING_BYTES, 64)
    fleet.workers[1].count(WorkerWord.TEMPLATE_HITS, 7)
    fleet.workers[1].count(WorkerWord.TEMPLATE_MISSES)
    series = scrape(fleet.sources())
    assert named(series, "nexus_ring_occupancy_bytes") == {
        key("nexus_ring_occupancy_bytes", direction="request", worker="0"): 0,
        key("nexus_ring_occupancy_bytes", direction="response", worker="0"): 0,
        key("nexus_ring_occupancy_bytes", direction="request", worker="1"): 4096,
        key("nexus_ring_occupancy_bytes", direction="response", worker="1"): 64,
    }
    assert series[key("nexus_template_lookups_total", worker="1", result="hit")] == 7
    assert series[key("nexus_template_lookups_total", worker="1", result="miss")] == 1


def test_supervisors_own_numbers(fleet: Fleet) -> None:
    series = scrape(fleet.sources())
    assert series[key("nexus_models_loaded")] == series[key("models_loaded")] == 3
    assert series[key("nexus_start_time_seconds")] == 1_700_000_000.5
    assert named(series, "nexus_worker_restarts_total") == {
        key("nexus_worker_restarts_total", worker="0"): 0,
        key("nexus_worker_restarts_total", worker="1"): 4,
    }


def test_processes_are_measured_and_dead_ones_skipped(fleet: Fleet) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    processes = (ProcessSource(Role.SUPERVISOR, 0, os.getpid()), ProcessSource(Role.WORKER, 7, gone.pid))
    series = scrape(fleet.sources(processes=processes))
    assert named(series, "nexus_process_info") == {
        key("nexus_process_info", role="supervisor", index="0", pid=str(os.getpid())): 1
    }
    assert list(named(series, "nexus_process_resident_memory_bytes")) == [
        key("nexus_process_resident_memory_bytes", role="supervisor", index="0")
    ]
    assert series[key("nexus_process_resident_memory_bytes", role="supervisor", index="0")] > 1_000_000
    assert series[key("nexus_process_cpu_seconds_total", role="supervisor", index="0")] > 0


def test_pages_of_one_index_and_slots_of_one_name_are_summed(fleet: Fleet) -> None:
    for worker in fleet.workers:
        worker.batch(IRIS_1, 4, 1, 0, 0, 0)
        worker.batch(DIGITS, 4, 1, 0, 0, 0)
    pids = (os.getpid(), os.getppid())
    processes = tuple(
        ProcessSource(Role.WORKER, 0, pid, page) for pid, page in zip(pids, fleet.worker_pages, strict=True)
    )
    models = {IRIS_1: ModelVersion("iris", "1"), DIGITS: ModelVersion("iris", "1")}
    series = scrape(fleet.sources(processes=processes, models=models))
    assert series[key("nexus_batches_total", worker="0")] == 4
    assert series[key("nexus_batch_size_sum", model="iris", version="1")] == 16


def test_no_sources_is_a_scrape_too() -> None:
    assert scrape(MetricsSources())[key("nexus_models_loaded")] == 0


def test_every_family_teaches_and_the_text_parses_in_both_formats(fleet: Fleet) -> None:
    fleet.fronts[0].completed(IRIS_1, Method.PREDICT, Code.OK, 1)
    sources = fleet.sources()
    families = list(text_string_to_metric_families(exposition(sources)))
    assert all(family.documentation.endswith(".") and len(family.documentation) > 15 for family in families)
    assert len({family.name for family in families}) == len(families)
    assert not any(family.name.startswith(("python_", "process_")) for family in families)
    registry = CollectorRegistry()
    registry.register(MetricsCollector(lambda: sources))
    text = generate_openmetrics(registry).decode()  # type: ignore[no-untyped-call]
    assert len(list(parse_openmetrics(text))) == len(families)  # type: ignore[no-untyped-call]


def test_names_with_quotes_and_newlines_survive(fleet: Fleet) -> None:
    name = 'a"b\\c\nd'
    fleet.fronts[0].completed(IRIS_1, Method.PREDICT, Code.OK, 1)
    series = scrape(fleet.sources(models={IRIS_1: ModelVersion(name, "1")}))
    assert series[key("model_predictions_total", model_id=name, status="success")] == 1


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_serve_answers_with_the_sources_of_the_moment_and_closes(fleet: Fleet) -> None:
    current = [fleet.sources()]
    server = serve(lambda: current[0], "127.0.0.1", 0)
    try:
        for ready in (3, 5):
            current[0] = fleet.sources(models_ready_count=ready)
            with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as response:
                assert f"\nnexus_models_loaded {ready}.0\n" in response.read().decode()
    finally:
        server.close()
    with socket.create_server(("127.0.0.1", server.port)):
        pass


def test_serve_says_when_the_port_is_taken(fleet: Fleet, taken_port: int) -> None:
    with pytest.raises(OSError, match="Address already in use"):
        serve(fleet.sources, "127.0.0.1", taken_port)


def test_percentiles_of_the_summary_are_estimates(fleet: Fleet) -> None:
    """Interpolated within a bucket (here 1 to 2.5 ms), not its bound; nothing is said without requests."""
    for _ in range(100):
        fleet.fronts[0].completed(IRIS_1, Method.PREDICT, Code.OK, 2_000_000)
    models = summary_of(fleet.sources(), 1_700_000_001.5)["models"]
    shown = {(each["model"], each["version"]): each for each in models}
    assert shown.pop(("iris", "1"))["latency_ms"] == {"mean": 2.0, "p50": 1.75, "p95": 2.425, "p99": 2.485}
    assert shown
    assert not any({"latency_ms", "mean_batch_size"} & each.keys() for each in shown.values())

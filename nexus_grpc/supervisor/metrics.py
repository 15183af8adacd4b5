"""Prometheus metrics, read without locks from the processes' statistics pages at each scrape.

    pages (ipc/stats.py) -> MetricsSources (who is who, made by the supervisor) -> MetricsCollector -> GET /metrics

Label values come from the slot table and from enums alone, so no client can create a series. Several slots or pages of
one name are summed. Only our registry is exposed: no default process, platform or GC collectors.
"""

import enum
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from nexus_grpc.ipc.errors import Code
from nexus_grpc.ipc.record import Method
from nexus_grpc.ipc.snapshots import FrontModelSnapshot, FrontSnapshot, Histogram, ModelSnapshot, WorkerSnapshot
from nexus_grpc.ipc.stats import (
    BATCH_BOUNDS,
    REDIS_UP,
    UNKNOWN_MODEL_SLOT,
    read_front,
    read_front_model,
    read_model,
    read_worker,
)
from nexus_grpc.supervisor.circuit_metrics import circuit_families
from nexus_grpc.supervisor.predecessors_metrics import http_families, inference_families
from nexus_grpc.supervisor.variant_metrics import Variant, add_latency, shadow_families, variant_families


class Role(enum.StrEnum):
    SUPERVISOR = "supervisor"
    FRONT = "front"
    WORKER = "worker"
    ENVOY = "envoy"


@dataclass(frozen=True, slots=True)
class ProcessSource:
    """A process and its statistics page; the supervisor itself and Envoy have none."""

    role: Role
    index: int
    pid: int
    page: memoryview | None = None


@dataclass(frozen=True, slots=True)
class ModelVersion:
    name: str
    version: str


# Parentheses keep it apart from a model whose name is "unknown".
UNKNOWN = ModelVersion("(unknown)", "")


@dataclass(frozen=True, slots=True)
class MetricsSources:
    """What a scrape reads. The supervisor replaces it as a whole, so that a scrape never sees half an update."""

    processes: tuple[ProcessSource, ...] = ()
    models: Mapping[int, ModelVersion] = field(default_factory=dict)  # slot -> name
    variants: Mapping[int, Variant] = field(default_factory=dict)  # slots of experiments' arms; they are in models, too
    # Of slots that these versions had before; see past_counts.py.
    past_fronts: Mapping[ModelVersion, FrontModelSnapshot] = field(default_factory=dict)
    past_workers: Mapping[ModelVersion, ModelSnapshot] = field(default_factory=dict)
    models_ready_count: int = 0
    worker_restarts: Mapping[int, int] = field(default_factory=dict)  # worker index -> replacements so far
    envoy_restarts: int | None = None  # None: there is no sidecar
    started_at_s: float = 0.0  # since the epoch

    def pages(self, role: Role) -> list[tuple[int, memoryview]]:
        """The (process index, page) of every process of this role that has a page."""
        return [(p.index, p.page) for p in self.processes if p.role is role and p.page is not None]


_FRONT_COUNTERS: tuple[tuple[str, str, Callable[[FrontSnapshot], int]], ...] = (
    ("nexus_late_replies", "Replies that came after their request had ended; dropped.", attrgetter("late_replies")),
    ("nexus_redispatched", "Requests sent to another worker after theirs died.", attrgetter("redispatched")),
    ("nexus_poisoned", "Requests given up with INTERNAL because they ended two workers.", attrgetter("poisoned")),
    ("nexus_ring_full", "Requests refused with RESOURCE_EXHAUSTED: no room in any ring.", attrgetter("ring_full")),
    (
        "nexus_fallbacks",
        "Requests that a fallback version answered, as the one that should have keeps failing.",
        attrgetter("fallbacks"),
    ),
    ("nexus_cancelled", "Requests whose client went away before the answer.", attrgetter("cancelled")),
    ("nexus_deadline_passed", "Requests whose deadline passed before the answer.", attrgetter("deadline_passed")),
    (
        "nexus_oversize",
        "Messages larger than a ring record may be, passed in a segment of their own.",
        attrgetter("oversize"),
    ),
)
_REDIS_COUNTERS: tuple[tuple[str, str, Callable[[FrontSnapshot], int]], ...] = (
    (
        "nexus_rate_limit_redis_outages",
        "Times that the Redis which shares rate limits was lost, or was not there when the front started.",
        attrgetter("redis_outages"),
    ),
    (
        "nexus_rate_limit_local_decisions",
        "Requests whose rate this server decided by itself, as Redis was away or slow.",
        attrgetter("local_decisions"),
    ),
)
# Fields of a FrontSnapshot.
_REFUSALS = ("load_shed", "deadline_too_short", "concurrency_limit", "circuit_open", "rate_limited")
_FRONT_GAUGES: tuple[tuple[str, str, Callable[[FrontSnapshot], int]], ...] = (
    ("nexus_in_flight", "Requests accepted and not yet answered.", attrgetter("in_flight")),
    ("nexus_streams_open", "Bidirectional streams open now.", attrgetter("streams_open")),
)
_WORKER_GAUGES: tuple[tuple[str, Callable[[WorkerSnapshot], int]], ...] = (
    ("request", attrgetter("request_ring_bytes")),
    ("response", attrgetter("response_ring_bytes")),
)
_STAGES: tuple[tuple[str, Callable[[ModelSnapshot], Histogram]], ...] = (
    ("queue", attrgetter("queue")),
    ("batch_assembly", attrgetter("assembly")),
    ("inference", attrgetter("inference")),
    ("serialisation", attrgetter("serialisation")),
)
_MODEL_LABELS = ("model", "version")
_METHOD_NAMES = {method: method.name.title().replace("_", "") for method in Method}
_BATCH_LE = (*(str(float(bound)) for bound in BATCH_BOUNDS), "+Inf")


class MetricsCollector(Collector):
    """Turns the sources of the moment into metric families; stateless, so scrapes may overlap.

    Args:
        current: returns the sources; called once per scrape, from the metrics thread.
    """

    def __init__(self, current: Callable[[], MetricsSources]) -> None:
        self._current = current

    def collect(self) -> Iterator[Metric]:
        sources = self._current()
        yield from _process_families(sources)
        yield from _front_families(sources)
        yield from _worker_families(sources)
        fronts = front_models(sources)
        yield from _request_families(fronts)
        yield from http_families(fronts.values(), [page for _, page in sources.pages(Role.FRONT)])
        yield from inference_families(fronts)
        yield from circuit_families(fronts)
        yield from _stage_families(worker_models(sources))
        yield from variant_families(sources.variants, [page for _, page in sources.pages(Role.FRONT)])
        yield from shadow_families(worker_models(sources))
        yield from _model_count_families(sources)


def _named_slots(sources: MetricsSources) -> list[tuple[int, ModelVersion]]:
    return [*({UNKNOWN_MODEL_SLOT: UNKNOWN} | dict(sources.models)).items()]


def front_models(sources: MetricsSources) -> dict[ModelVersion, FrontModelSnapshot]:
    """Requests by model version, over all fronts; UNKNOWN when there were any."""
    models = dict(sources.past_fronts)
    for _, page in sources.pages(Role.FRONT):
        for slot, name in _named_slots(sources):
            snapshot = read_front_model(page, slot)
            models[name] = models[name] + snapshot if name in models else snapshot
    return {name: model for name, model in models.items() if name != UNKNOWN or model.total.count}


def worker_models(sources: MetricsSources) -> dict[ModelVersion, ModelSnapshot]:
    """Batches and stages by model version, over all workers."""
    models = dict(sources.past_workers)
    for _, page in sources.pages(Role.WORKER):
        for slot, name in sources.models.items():
            snapshot = read_model(page, slot)
            models[name] = models[name] + snapshot if name in models else snapshot
    return models


def _request_families(models: Mapping[ModelVersion, FrontModelSnapshot]) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "nexus_requests",
        "RPCs (or messages of a stream) that ended, by gRPC status code; codes that never occurred are left out.",
        labels=("method", *_MODEL_LABELS, "code"),
    )
    duration = HistogramMetricFamily(
        "nexus_request_duration_seconds",
        "Seconds from a request's arrival at the front to its answer, errors included.",
        labels=_MODEL_LABELS,
    )
    predictions: Counter[tuple[str, ...]] = Counter()
    for model, snapshot in models.items():
        add_latency(duration, (model.name, model.version), snapshot.total)
        for method, by_code in zip(Method, snapshot.requests, strict=True):
            for code, count in zip(Code, by_code, strict=True):
                predictions[model.name, "success" if code is Code.OK else "error"] += count
                if count:
                    requests.add_metric((_METHOD_NAMES[method], model.name, model.version, code.name), count)
    yield requests
    yield duration
    yield _family(
        CounterMetricFamily(
            "model_predictions",
            "Requests that ended, by outcome, over all versions of a model: status=success is code OK.",
            labels=("model_id", "status"),
        ),
        predictions,
    )


def _stage_families(models: Mapping[ModelVersion, ModelSnapshot]) -> Iterator[Metric]:
    stages = HistogramMetricFamily(
        "nexus_stage_duration_seconds",
        "Seconds spent in a stage of a worker: queue is per request (from the front's ring to the batch); "
        "batch_assembly, inference and serialisation are per batch.",
        labels=("stage", *_MODEL_LABELS),
    )
    rows = HistogramMetricFamily(
        "nexus_batch_size", "Rows per executed batch; the sum is the rows, the count the batches.", labels=_MODEL_LABELS
    )
    expired = CounterMetricFamily(
        "nexus_expired", "Requests that a worker dropped: deadline passed while queued.", labels=_MODEL_LABELS
    )
    inference: dict[str, Histogram] = {}
    for model, snapshot in models.items():
        labels = (model.name, model.version)
        for stage, read in _STAGES:
            add_latency(stages, (stage, *labels), read(snapshot))
        buckets = [*zip(_BATCH_LE, map(float, snapshot.batch_size.cumulative()), strict=True)]
        rows.add_metric(labels, buckets, snapshot.batch_size.sum)
        expired.add_metric(labels, snapshot.expired)
        known = inference.get(model.name)
        inference[model.name] = known + snapshot.inference if known else snapshot.inference
    by_model = HistogramMetricFamily(
        "model_inference_duration_seconds",
        "Seconds in ONNX Runtime per batch, over all versions of a model.",
        labels=("model_id",),
    )
    for name, histogram in inference.items():
        add_latency(by_model, (name,), histogram)
    yield from (stages, rows, expired, by_model)


def _front_families(sources: MetricsSources) -> Iterator[Metric]:
    fronts = [(str(index), read_front(page)) for index, page in sources.pages(Role.FRONT)]
    for name, text, read in _FRONT_COUNTERS:
        yield _family(CounterMetricFamily(name, text, labels=("front",)), _sum(((i,), read(s)) for i, s in fronts))
    refused = (((i, reason), getattr(s, reason)) for i, s in fronts for reason in _REFUSALS)
    yield _family(
        CounterMetricFamily(
            "nexus_refused",
            "Requests refused at once: load_shed and deadline_too_short by queueing time, concurrency_limit by the "
            "model's ceiling, circuit_open while its version keeps failing, rate_limited by a caller's or a model's "
            "rate.",
            labels=("front", "reason"),
        ),
        _sum(refused),
    )
    for name, text, read in _FRONT_GAUGES:
        yield _family(GaugeMetricFamily(name, text, labels=("front",)), _sum(((i,), read(s)) for i, s in fronts))
    yield from _redis_families([(index, snapshot) for index, snapshot in fronts if snapshot.redis])


def _redis_families(fronts: list[tuple[str, FrontSnapshot]]) -> Iterator[Metric]:
    """Of the fronts that share their rate limits; nothing where none does."""
    if not fronts:
        return
    up: dict[tuple[str, ...], float] = {(i,): float(s.redis == REDIS_UP) for i, s in fronts}
    text = "1 while Redis shares the rate limits, 0 while it is away and each server counts by itself."
    yield _family(GaugeMetricFamily("nexus_rate_limit_redis_up", text, labels=("front",)), up)
    for name, text, read in _REDIS_COUNTERS:
        yield _family(CounterMetricFamily(name, text, labels=("front",)), _sum(((i,), read(s)) for i, s in fronts))


def _worker_families(sources: MetricsSources) -> Iterator[Metric]:
    workers = [(str(index), read_worker(page)) for index, page in sources.pages(Role.WORKER)]
    yield _family(
        GaugeMetricFamily(
            "nexus_ring_occupancy_bytes",
            "Bytes that wait in a worker's rings, over all fronts: request = to the worker, response = from it.",
            labels=("direction", "worker"),
        ),
        _sum(((direction, i), read(s)) for direction, read in _WORKER_GAUGES for i, s in workers),
    )
    yield _family(
        CounterMetricFamily("nexus_batches", "Batches executed.", labels=("worker",)),
        _sum(((i,), s.batches) for i, s in workers),
    )
    lookups = [((i, "hit"), s.template_hits) for i, s in workers]
    lookups += [((i, "miss"), s.template_misses) for i, s in workers]
    yield _family(
        CounterMetricFamily(
            "nexus_template_lookups",
            "Requests by whether their bytes before the tensor were those of an earlier one (hit: no parsing).",
            labels=("worker", "result"),
        ),
        _sum(lookups),
    )
    yield _family(
        CounterMetricFamily("nexus_worker_restarts", "Times that a worker was replaced.", labels=("worker",)),
        {(str(index),): count for index, count in sources.worker_restarts.items()},
    )


def _process_families(sources: MetricsSources) -> Iterator[Metric]:
    labels = ("role", "index")
    resident: Counter[tuple[str, ...]] = Counter()
    cpu: dict[tuple[str, ...], float] = {}
    info = GaugeMetricFamily("nexus_process_info", "1 for each process of this server.", labels=(*labels, "pid"))
    for process in sources.processes:
        key = (process.role.value, str(process.index))
        try:
            seen = psutil.Process(process.pid)
            with seen.oneshot():
                resident_bytes, times = seen.memory_info().rss, seen.cpu_times()
        except (psutil.Error, ValueError):
            # It died since the supervisor made the list; the next scrape has its successor.
            continue
        resident[key] += resident_bytes
        cpu[key] = cpu.get(key, 0.0) + times.user + times.system
        info.add_metric((*key, str(process.pid)), 1)
    yield info
    text = "Resident memory in bytes; pages shared between processes (rings) count in each of them."
    yield _family(GaugeMetricFamily("nexus_process_resident_memory_bytes", text, labels=labels), resident)
    text = "User and system CPU time in seconds since the process started."
    yield _family(CounterMetricFamily("nexus_process_cpu_seconds", text, labels=labels), cpu)


def _model_count_families(sources: MetricsSources) -> Iterator[Metric]:
    text = "Model versions that are ready to serve."
    yield GaugeMetricFamily("nexus_models_loaded", text, sources.models_ready_count)
    yield GaugeMetricFamily("models_loaded", text, sources.models_ready_count)
    if sources.envoy_restarts is not None:
        yield CounterMetricFamily("nexus_envoy_restarts", "Times that Envoy was replaced.", sources.envoy_restarts)
    started = "When the server started, in seconds since the epoch."
    yield GaugeMetricFamily("nexus_start_time_seconds", started, sources.started_at_s)


def _sum(values: Iterable[tuple[tuple[str, ...], int]]) -> Counter[tuple[str, ...]]:
    # While a process is replaced, two pages may share an index; a series must not appear twice.
    totals: Counter[tuple[str, ...]] = Counter()
    for labels, value in values:
        totals[labels] += value
    return totals


def _family(
    family: CounterMetricFamily | GaugeMetricFamily, values: Mapping[tuple[str, ...], float]
) -> CounterMetricFamily | GaugeMetricFamily:
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family

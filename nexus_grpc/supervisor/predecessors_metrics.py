"""Prometheus metrics that the systems which this server replaces have, by their names: requests by HTTP, inference."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

from nexus_grpc.ipc.errors import Code
from nexus_grpc.ipc.http_stats import HOT_ENDPOINTS, read_http
from nexus_grpc.ipc.record import Method, is_http
from nexus_grpc.ipc.snapshots import FrontModelSnapshot, Histogram
from nexus_grpc.rest.errors import http_status
from nexus_grpc.rest.http_rules import http_methods
from nexus_grpc.supervisor.variant_metrics import ModelNameT, add_latency

# Method → the route's template, for labels.
HTTP_ENDPOINTS = {
    Method.HTTP_PREDICT: "/predict",
    Method.HTTP_API_PREDICT: "/api/v1/predict",
    Method.HTTP_API_BATCH_PREDICT: "/api/v1/batch_predict",
    Method.HTTP_V1_INFER: "/v1/infer",
    Method.HTTP_V2_INFER: "/v2/models/{model_name}/infer",
}
_LABELS = ("method", "endpoint")


def http_families(models: Iterable[FrontModelSnapshot], pages: Sequence[memoryview]) -> Iterator[Metric]:
    """By verb, route and status. A method with several routes counts under its first one.

    Args:
        models: what fronts counted of the hot methods, by model.
        pages: the fronts', for all else.
    """
    requests: Counter[tuple[str, ...]] = Counter()
    durations: dict[tuple[str, ...], Histogram] = {}
    for snapshot in models:
        for method, by_code in zip(Method, snapshot.requests, strict=True):
            if is_http(method):
                for code, count in zip(Code, by_code, strict=True):
                    requests["POST", HTTP_ENDPOINTS[method], str(http_status(code))] += count
    for endpoint, labels in _endpoints():
        for page in pages:
            by_status, latency = read_http(page, endpoint)
            for status, count in by_status.items():
                requests[(*labels, str(status))] += count
            if latency.count:
                durations[labels] = durations[labels] + latency if labels in durations else latency
    yield _requests(requests)
    duration = HistogramMetricFamily(
        "http_request_duration_seconds",
        "Seconds from a REST request's arrival at a front to its answer, errors included.",
        labels=_LABELS,
    )
    for route, histogram in durations.items():
        add_latency(duration, route, histogram)
    yield duration


def _endpoints() -> Iterator[tuple[int, tuple[str, str]]]:
    """(number in a front's page, verb and route)."""
    for method, template in HTTP_ENDPOINTS.items():
        yield method - Method.HTTP_PREDICT, ("POST", template)
    for number, each in enumerate(http_methods()):
        yield HOT_ENDPOINTS + number, (each.bindings[0].verb, each.bindings[0].template)


def _requests(counts: Mapping[tuple[str, ...], int]) -> Metric:
    family = CounterMetricFamily(
        "http_requests",
        "REST requests that reached a front and ended, by the HTTP status of their answer.",
        labels=(*_LABELS, "status"),
    )
    for labels, count in counts.items():
        if count:
            family.add_metric(labels, count)
    return family


def inference_families(models: Mapping[ModelNameT, FrontModelSnapshot]) -> Iterator[Metric]:
    """By model and version."""
    labels = ("model", "version")
    requests = CounterMetricFamily("inference_requests", "Requests for predictions that ended.", labels=labels)
    errors = CounterMetricFamily("inference_errors", "Of these, those that ended with an error.", labels=labels)
    duration = HistogramMetricFamily(
        "inference_request_duration_seconds",
        "Seconds from a request's arrival at the front to its answer, errors included.",
        labels=labels,
    )
    for model, snapshot in models.items():
        total = sum(map(sum, snapshot.requests))
        fine = sum(by_code[Code.OK] for by_code in snapshot.requests)
        requests.add_metric((model.name, model.version), total)
        errors.add_metric((model.name, model.version), total - fine)
        add_latency(duration, (model.name, model.version), snapshot.total)
    yield from (requests, errors, duration)

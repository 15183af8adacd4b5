"""Prometheus metrics of what was refused, and of circuits."""

from collections.abc import Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from nexus_grpc.ipc.snapshots import FrontModelSnapshot, FrontSnapshot
from nexus_grpc.supervisor.variant_metrics import ModelNameT

_REASONS = ("load_shed", "deadline_too_short", "concurrency_limit", "circuit_open", "rate_limited")


def refusal_families(fronts: Sequence[tuple[str, FrontSnapshot]]) -> Iterator[Metric]:
    """By (front's index, what it counted). Two may share an index while a front is replaced."""
    refused = CounterMetricFamily(
        "nexus_refused",
        "Requests refused at once: load_shed and deadline_too_short by queueing time, concurrency_limit by the model's "
        "ceiling, circuit_open while its version keeps failing, rate_limited by a caller's or a model's rate.",
        labels=("front", "reason"),
    )
    fallbacks = CounterMetricFamily(
        "nexus_fallbacks",
        "Requests that a fallback version answered, as the one that should have keeps failing.",
        labels=("front",),
    )
    for index in sorted({index for index, _ in fronts}):
        counted = [snapshot for each, snapshot in fronts if each == index]
        for reason in _REASONS:
            refused.add_metric((index, reason), sum(getattr(snapshot, reason) for snapshot in counted))
        fallbacks.add_metric((index,), sum(snapshot.fallbacks for snapshot in counted))
    yield from (refused, fallbacks)


def circuit_families(models: Mapping[ModelNameT, FrontModelSnapshot]) -> Iterator[Metric]:
    """By model version."""
    state = GaugeMetricFamily(
        "nexus_circuit_state",
        "A model version's circuit, the worst of all fronts': 0 closed, 1 half-open (tried with a few), 2 open.",
        labels=("model", "version"),
    )
    opened = CounterMetricFamily(
        "nexus_circuit_opened", "Times that a model version's circuit opened.", labels=("model", "version")
    )
    for model, snapshot in models.items():
        if model.version:  # requests for unknown models have none
            state.add_metric((model.name, model.version), snapshot.circuit)
            opened.add_metric((model.name, model.version), snapshot.circuit_opened)
    yield from (state, opened)

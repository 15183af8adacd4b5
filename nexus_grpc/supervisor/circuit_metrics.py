"""Prometheus metrics of circuits."""

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from nexus_grpc.ipc.snapshots import FrontModelSnapshot
from nexus_grpc.supervisor.variant_metrics import ModelNameT


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

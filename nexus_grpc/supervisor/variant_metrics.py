"""Prometheus metrics of experiments' variants and of shadows."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

from nexus_grpc.ipc.errors import Code
from nexus_grpc.ipc.snapshots import FrontModelSnapshot, Histogram, ModelSnapshot
from nexus_grpc.ipc.stats import LATENCY_BOUNDS_NS, read_front_model

_NS_PER_SECOND = 1_000_000_000
_LATENCY_LE = (*(str(bound / _NS_PER_SECOND) for bound in LATENCY_BOUNDS_NS), "+Inf")
_VARIANT_LABELS = ("model", "variant", "version")
_SHADOW_COUNTERS = (
    ("nexus_shadow_compared", "Rows that a shadow ran as well.", "shadow_compared"),
    ("nexus_shadow_disagreed", "Rows that a shadow answered otherwise.", "shadow_disagreed"),
    ("nexus_shadow_errors", "Batches that a shadow failed on.", "shadow_errors"),
    ("nexus_shadow_dropped", "Batches that were not copied to the shadow: too many waited.", "shadow_dropped"),
)


@dataclass(frozen=True, slots=True)
class Variant:
    """An experiment's arm."""

    model: str
    variant: str
    version: str


class ModelName(Protocol):
    """A model version, as metrics.py names it."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...


ModelNameT = TypeVar("ModelNameT", bound=ModelName)


def add_latency(family: HistogramMetricFamily, labels: Iterable[str], histogram: Histogram) -> None:
    """One series of a histogram of nanoseconds, in seconds."""
    buckets = [*zip(_LATENCY_LE, map(float, histogram.cumulative()), strict=True)]
    family.add_metric([*labels], buckets, histogram.sum / _NS_PER_SECOND)


def variant_families(variants: Mapping[int, Variant], pages: Sequence[memoryview]) -> Iterator[Metric]:
    """Requests and latency by variant, over all fronts, since the experiment began.

    Args:
        variants: by slot.
        pages: the fronts'.
    """
    requests = CounterMetricFamily(
        "nexus_variant_requests",
        "Requests of an experiment's variant, by gRPC code.",
        labels=(*_VARIANT_LABELS, "code"),
    )
    duration = HistogramMetricFamily(
        "nexus_variant_duration_seconds",
        "Seconds from arrival at the front to the answer, by an experiment's variant.",
        labels=_VARIANT_LABELS,
    )
    for variant, snapshot in _snapshots(variants, pages).items():
        labels = (variant.model, variant.variant, variant.version)
        for number, code in enumerate(Code):
            count = sum(by_code[number] for by_code in snapshot.requests)
            if count:
                requests.add_metric((*labels, code.name), count)
        add_latency(duration, labels, snapshot.total)
    yield from (requests, duration)


def _snapshots(variants: Mapping[int, Variant], pages: Sequence[memoryview]) -> dict[Variant, FrontModelSnapshot]:
    """By variant: one has two slots for a moment when its version is loaded anew."""
    found: dict[Variant, FrontModelSnapshot] = {}
    for slot, variant in variants.items():
        for page in pages:
            snapshot = read_front_model(page, slot)
            found[variant] = found[variant] + snapshot if variant in found else snapshot
    return found


def shadow_families(models: Mapping[ModelNameT, ModelSnapshot]) -> Iterator[Metric]:
    """What shadows of each version did; versions without a shadow are left out."""
    for name, text, attribute in _SHADOW_COUNTERS:
        family = CounterMetricFamily(name, text, labels=("model", "version"))
        for model, snapshot in models.items():
            if snapshot.shadow_compared or snapshot.shadow_errors or snapshot.shadow_dropped:
                family.add_metric((model.name, model.version), getattr(snapshot, attribute))
        yield family

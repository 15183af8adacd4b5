"""What a variant, or a shadow, has done: counts that add and subtract."""

import dataclasses
import operator
from typing import Any

from nexus_grpc.ipc.errors import Code
from nexus_grpc.ipc.snapshots import FrontModelSnapshot, Histogram, ModelSnapshot
from nexus_grpc.ipc.stats import LATENCY_BOUNDS_NS, LATENCY_BUCKETS

PREDICTION_BUCKETS = 16
# What the server is to blame for. Mistakes of clients, and clients that went away, say nothing about a model.
ERROR_CODES = frozenset(
    {
        Code.UNKNOWN,
        Code.DEADLINE_EXCEEDED,
        Code.RESOURCE_EXHAUSTED,
        Code.INTERNAL,
        Code.UNAVAILABLE,
        Code.DATA_LOSS,
    }
)
_NOTHING = Histogram((0,) * LATENCY_BUCKETS, 0)


@dataclasses.dataclass(frozen=True, slots=True)
class VariantStats:
    """Since the experiment (or a step of its ramp) began.

    Attributes:
        requests: ended, errors included.
        errors: those that the server is to blame for.
        latency: from arrival to the end, nanoseconds.
        predictions: answers by bucket (class, or range of values).
    """

    requests: int = 0
    errors: int = 0
    latency: Histogram = _NOTHING
    predictions: tuple[int, ...] = (0,) * PREDICTION_BUCKETS

    def __add__(self, other: "VariantStats") -> "VariantStats":
        return VariantStats(
            self.requests + other.requests,
            self.errors + other.errors,
            self.latency + other.latency,
            tuple(map(operator.add, self.predictions, other.predictions)),
        )

    def __sub__(self, other: "VariantStats") -> "VariantStats":
        """What came since `other`. Never below zero: a process that died may have taken its latest counts along."""
        latency = Histogram(
            tuple(max(0, a - b) for a, b in zip(self.latency.buckets, other.latency.buckets, strict=True)),
            max(0, self.latency.sum - other.latency.sum),
        )
        predictions = tuple(max(0, a - b) for a, b in zip(self.predictions, other.predictions, strict=True))
        requests, errors = max(0, self.requests - other.requests), max(0, self.errors - other.errors)
        return VariantStats(requests, errors, latency, predictions)

    @property
    def error_rate(self) -> float:
        return self.errors / self.requests if self.requests else 0.0

    @property
    def mean_ns(self) -> float:
        return self.latency.sum / self.latency.count if self.latency.count else 0.0

    def percentile(self, quantile: float) -> float:
        """Nanoseconds that a share `quantile` of the requests did not exceed, interpolated within its bucket; 0 without
        requests. Above the last bound: that bound."""
        wanted = quantile * self.latency.count
        passed = 0
        for index, count in enumerate(self.latency.buckets):
            if count and passed + count >= wanted:
                low = LATENCY_BOUNDS_NS[index - 1] if index else 0
                high = LATENCY_BOUNDS_NS[index] if index < len(LATENCY_BOUNDS_NS) else low
                return low + (high - low) * max(0.0, wanted - passed) / count
            passed += count
        return 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "errors": self.errors,
            "latency": [*self.latency.buckets, self.latency.sum],
            "predictions": list(self.predictions),
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "VariantStats":
        """Raises KeyError or ValueError for what to_json() did not write; nothing for one of other buckets."""
        *buckets, total = content["latency"]
        if len(buckets) != LATENCY_BUCKETS or len(content["predictions"]) != PREDICTION_BUCKETS:
            return cls()
        latency = Histogram(tuple(buckets), total)
        return cls(content["requests"], content["errors"], latency, tuple(content["predictions"]))

    @classmethod
    def from_snapshots(cls, front: FrontModelSnapshot | None, worker: ModelSnapshot | None) -> "VariantStats":
        """Out of a slot's words in a front's or a worker's page."""
        predictions = worker.predictions if worker is not None else (0,) * PREDICTION_BUCKETS
        if front is None:
            return cls(predictions=predictions)
        by_code = [sum(counts) for counts in zip(*front.requests, strict=True)]
        errors = sum(count for code, count in zip(Code, by_code, strict=True) if code in ERROR_CODES)
        return cls(sum(by_code), errors, front.total, predictions)


@dataclasses.dataclass(frozen=True, slots=True)
class ShadowCounts:
    """Copies of a version's batches that a candidate ran: rows compared and disagreeing, and both sides' time."""

    compared: int = 0
    disagreed: int = 0
    errors: int = 0
    dropped: int = 0
    primary_ns: int = 0
    candidate_ns: int = 0

"""What readers get out of statistics pages (stats.py): values that add up."""

import operator
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts per bucket (not cumulative; the last one is above all bounds) and the sum of the values."""

    buckets: tuple[int, ...]
    sum: int

    @property
    def count(self) -> int:
        return sum(self.buckets)

    def cumulative(self) -> tuple[int, ...]:
        """How many values are at most each bound; the last is the count (Prometheus' `le` buckets)."""
        return tuple(accumulate(self.buckets))

    def __add__(self, other: "Histogram") -> "Histogram":
        return Histogram(tuple(map(operator.add, self.buckets, other.buckets)), self.sum + other.sum)


@dataclass(frozen=True, slots=True)
class WorkerSnapshot:
    """A worker page's header, field for word (see WorkerWord)."""

    heartbeat_ns: int
    busy_since_ns: int
    pid: int
    generation: int
    request_ring_bytes: int
    response_ring_bytes: int
    shadowing: int
    batches: int
    template_hits: int
    template_misses: int


@dataclass(frozen=True, slots=True)
class FrontSnapshot:
    """A front page's header; field for word, see FrontWord."""

    pid: int
    in_flight: int
    streams_open: int
    redis: int
    late_replies: int
    redispatched: int
    poisoned: int
    ring_full: int
    cancelled: int
    deadline_passed: int
    oversize: int
    load_shed: int
    deadline_too_short: int
    concurrency_limit: int
    circuit_open: int
    rate_limited: int
    fallbacks: int
    redis_outages: int
    local_decisions: int


@dataclass(frozen=True, slots=True)
class ModelSnapshot:
    """A model as workers saw it, field for word. `a + b` joins workers (or versions of a model).

    Rows are batch_size.sum and executions batch_size.count; every request has a queue time. As in Triton's statistics,
    compute_*_ns count a batch's time once for each of the batch's requests; the histograms count it once.
    """

    queue: Histogram
    assembly: Histogram
    inference: Histogram
    serialisation: Histogram
    batch_size: Histogram
    compute_count: int  # requests in executed batches
    compute_input_ns: int
    compute_infer_ns: int
    compute_output_ns: int
    last_inference_ns: int  # since the epoch; 0 = never
    success_count: int
    success_ns: int
    fail_count: int
    fail_ns: int
    expired: int
    cancelled: int
    shadow_compared: int  # rows that a shadow ran, too
    shadow_disagreed: int
    shadow_errors: int  # batches that the shadow failed on
    shadow_dropped: int  # batches that were not copied: too many waited
    shadow_primary_ns: int  # of the rows compared, in ONNX Runtime: this model's, and the shadow's
    shadow_candidate_ns: int
    predictions: tuple[int, ...]  # answers by bucket (workers/predictions.py); of experiments' arms alone

    def __add__(self, other: "ModelSnapshot") -> "ModelSnapshot":
        joined = {name: getattr(self, name) + getattr(other, name) for name in self.__slots__ if name != "predictions"}
        joined["predictions"] = tuple(map(operator.add, self.predictions, other.predictions))
        joined["last_inference_ns"] = max(self.last_inference_ns, other.last_inference_ns)
        return ModelSnapshot(**joined)


@dataclass(frozen=True, slots=True)
class FrontModelSnapshot:
    """A model as fronts saw it: requests[method][code], the time from arrival to the end, and its circuit's state (the
    worst of them; limits/circuit.py) with how often it opened. `a + b` joins fronts."""

    requests: tuple[tuple[int, ...], ...]
    total: Histogram
    circuit: int = 0
    circuit_opened: int = 0

    def __add__(self, other: "FrontModelSnapshot") -> "FrontModelSnapshot":
        requests = tuple(tuple(map(operator.add, *rows)) for rows in zip(self.requests, other.requests, strict=True))
        circuit, opened = max(self.circuit, other.circuit), self.circuit_opened + other.circuit_opened
        return FrontModelSnapshot(requests, self.total + other.total, circuit, opened)

"""GET /metrics/json: the metrics a person asks for first, per model, as JSON."""

import math
from typing import Any

from nexus_grpc.ipc.errors import Code
from nexus_grpc.ipc.snapshots import FrontModelSnapshot, Histogram
from nexus_grpc.ipc.stats import LATENCY_BOUNDS_NS
from nexus_grpc.limits.circuit import State
from nexus_grpc.supervisor.metrics import UNKNOWN, MetricsSources, front_models, worker_models

_NS_PER_MS = 1e6


def summary_of(sources: MetricsSources, now_s: float) -> dict[str, Any]:
    """Counts since the start; latencies in milliseconds, percentiles estimated from the histograms (upper bounds)."""
    models = front_models(sources)
    batches = worker_models(sources)
    shown = []
    for model, snapshot in models.items():
        if model == UNKNOWN:
            continue
        done = batches.get(model)
        rows, runs = (done.batch_size.sum, done.batch_size.count) if done else (0, 0)
        shown.append(
            {
                "model": model.name,
                "version": model.version,
                "circuit": State(snapshot.circuit).name.lower(),
                **_requests(snapshot),
                "latency_ms": _latency(snapshot.total),
                "rows_total": rows,
                "batches_total": runs,
                "mean_batch_size": round(rows / runs, 3) if runs else 0.0,
            }
        )
    everything = [_requests(snapshot) for snapshot in models.values()]
    return {
        "uptime_seconds": round(max(0.0, now_s - sources.started_at_s), 3),
        "requests_total": sum(each["requests_total"] for each in everything),
        "errors_total": sum(each["errors_total"] for each in everything),
        "models_loaded": sources.models_ready_count,
        "models": shown,
    }


def _requests(snapshot: FrontModelSnapshot) -> dict[str, int]:
    total = sum(sum(by_code) for by_code in snapshot.requests)
    fine = sum(by_code[Code.OK] for by_code in snapshot.requests)
    return {"requests_total": total, "errors_total": total - fine}


def _latency(histogram: Histogram) -> dict[str, float]:
    mean = histogram.sum / histogram.count / _NS_PER_MS if histogram.count else 0.0
    shown = {"mean": round(mean, 3)}
    for percent in (50, 95, 99):
        shown[f"p{percent}"] = _percentile_ms(histogram, percent)
    return shown


def _percentile_ms(histogram: Histogram, percent: int) -> float:
    """The upper bound of the bucket in which it lies; the last bound for what is beyond. 0 without requests."""
    wanted = math.ceil(histogram.count * percent / 100)
    if not wanted:
        return 0.0
    bounds = (*LATENCY_BOUNDS_NS, LATENCY_BOUNDS_NS[-1])
    for bound, count in zip(bounds, histogram.cumulative(), strict=True):
        if count >= wanted:
            return bound / _NS_PER_MS
    return bounds[-1] / _NS_PER_MS

"""GET /metrics/json: the metrics a person asks for first, per model, as JSON."""

from typing import Any

from nexus_grpc.ipc.errors import Code
from nexus_grpc.ipc.snapshots import FrontModelSnapshot, Histogram
from nexus_grpc.limits.circuit import State
from nexus_grpc.supervisor.metrics import UNKNOWN, MetricsSources, front_models, worker_models
from nexus_grpc.traffic.statistics import VariantStats

_NS_PER_MS = 1e6


def summary_of(sources: MetricsSources, now_s: float) -> dict[str, Any]:
    """Counts since the start; latencies in milliseconds, percentiles estimated from histograms, by interpolation."""
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
                **({"latency_ms": latency} if (latency := _latency(snapshot.total)) else {}),
                "rows_total": rows,
                "batches_total": runs,
                **({"mean_batch_size": round(rows / runs, 3)} if runs else {}),
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
    """Nothing without requests."""
    if not histogram.count:
        return {}
    stats = VariantStats(latency=histogram)
    shown = {f"p{percent}": stats.percentile(percent / 100) for percent in (50, 95, 99)}
    return {name: round(ns / _NS_PER_MS, 3) for name, ns in {"mean": stats.mean_ns, **shown}.items()}

"""nexus.v1.ExperimentStatus as JSON: shares, statistics and what they mean. Pure; scipy does the tests."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from nexus_grpc.traffic import significance
from nexus_grpc.traffic.policy import Arm, ModelTraffic, RampPlan
from nexus_grpc.traffic.statistics import ShadowCounts, VariantStats


def status(
    model: str,
    traffic: ModelTraffic,
    serving: int | None,
    stats: Mapping[str, VariantStats],
    labels: Sequence[str],
    shadow: ShadowCounts | None,
    now_s: float,
) -> dict[str, Any]:
    """All fields of the message.

    Args:
        serving: the version that answers requests which name none.
        stats: by variant.
        labels: of the buckets of predictions.
        now_s: seconds since the epoch.
    """
    experiment = traffic.experiment
    arms = experiment.arms if experiment is not None else ()
    content: dict[str, Any] = {
        "model": model,
        "current_version": str(serving or ""),
        "candidate_version": str(arms[1].version) if arms else "",
        "percent": arms[1].basis_points / 100 if arms else 0.0,
        "active": experiment is not None,
        "started_at": _time_text(experiment.started_at_s) if experiment is not None else "",
        "variants": [_variant(arm, stats.get(arm.variant, VariantStats()), labels) for arm in arms],
        "comparisons": [
            _comparison(arm, stats.get("A", VariantStats()), stats.get(arm.variant, VariantStats())) for arm in arms[1:]
        ],
        "balance": traffic.balance,
        "last_outcome": traffic.last_outcome,
    }
    if experiment is not None and experiment.sticky is not None:
        content["sticky"] = {experiment.sticky.kind: experiment.sticky.name}
    if traffic.shadow is not None:
        content["shadow"] = _shadow(traffic.shadow.version, traffic.shadow.basis_points, shadow or ShadowCounts())
    if experiment is not None and experiment.ramp is not None:
        content["ramp"] = _ramp(experiment.ramp, stats.get("B", VariantStats()), now_s)
    return content


def _variant(arm: Arm, stats: VariantStats, labels: Sequence[str]) -> dict[str, Any]:
    low, high = significance.wilson(stats.errors, stats.requests)
    p50, p95, p99 = (stats.percentile(quantile) / 1e6 for quantile in (0.5, 0.95, 0.99))
    return {
        "variant": arm.variant,
        "version": str(arm.version),
        "percent": arm.basis_points / 100,
        "requests": stats.requests,
        "errors": stats.errors,
        "error_rate": stats.error_rate,
        "error_rate_interval": {"low": low, "high": high},
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "mean_ms": stats.mean_ns / 1e6,
        "predictions": _predictions(stats.predictions, labels),
    }


def _predictions(counts: Sequence[int], labels: Sequence[str]) -> list[dict[str, Any]]:
    total = sum(counts)
    named = [(labels[index] if index < len(labels) else str(index), count) for index, count in enumerate(counts)]
    return [{"label": label, "share": count / total} for label, count in named if count]


def _comparison(arm: Arm, baseline: VariantStats, candidate: VariantStats) -> dict[str, Any]:
    errors = significance.error_rate_p_value(candidate, baseline)
    latency = significance.homogeneity_p_value(candidate.latency.buckets, baseline.latency.buckets)
    predictions = significance.homogeneity_p_value(candidate.predictions, baseline.predictions)
    low, high = significance.newcombe(candidate.errors, candidate.requests, baseline.errors, baseline.requests)
    return {
        "variant": arm.variant,
        "error_rate_difference": candidate.error_rate - baseline.error_rate,
        "error_rate_difference_interval": {"low": low, "high": high},
        "error_rate_p_value": errors,
        "latency_p_value": latency,
        "prediction_p_value": predictions,
        "verdict": significance.verdict(baseline, candidate, errors, latency, predictions),
    }


def _shadow(version: int, basis_points: int, counts: ShadowCounts) -> dict[str, Any]:
    compared = counts.compared
    return {
        "version": str(version),
        "percent": basis_points / 100,
        "compared": compared,
        "disagreed": counts.disagreed,
        "disagreement_rate": counts.disagreed / compared if compared else 0.0,
        "errors": counts.errors,
        "dropped": counts.dropped,
        "latency_delta_ms": (counts.candidate_ns - counts.primary_ns) / compared / 1e6 if compared else 0.0,
    }


def _ramp(plan: RampPlan, candidate: VariantStats, now_s: float) -> dict[str, Any]:
    left_s = plan.step_started_at_s + plan.every_seconds - now_s
    return {
        "steps": [step / 100 for step in plan.steps],
        "step": plan.step,
        "every_seconds": plan.every_seconds,
        "guards": list(plan.guards),
        "seconds_to_next_step": max(0.0, left_s),
        "state": "running" if left_s > 0 else "waiting",
        "reason": plan.reason,
    }


def _time_text(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")

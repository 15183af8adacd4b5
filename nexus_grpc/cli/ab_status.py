"""An experiment's status as tables for people."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from nexus_grpc.cli.arguments import duration_text
from nexus_grpc.cli.output import one_line, print_json, print_table
from nexus_grpc.cli.remote import json_of

if TYPE_CHECKING:
    from nexus_grpc.pb.nexus.v1.traffic_pb2 import ExperimentStatus, Interval, RampStatus, ShadowStatus, VariantStatus

_COLUMNS = ("variant", "version", "share", "requests", "errors", "error rate (95 %)", "p50", "p95", "p99", "mean")


def print_status(status: "ExperimentStatus", as_json: bool) -> None:
    """All that there is to say about a model's traffic."""
    if as_json:
        print_json(json_of(status))
        return
    if status.active:
        print_table(_COLUMNS, [_variant_row(each) for each in status.variants], title=_title(status))
        _print_predictions(status)
    else:
        typer.echo(one_line(f"{status.model}: no experiment; version {status.current_version or 'none'} answers"))
    for line in _lines(status):
        typer.echo(one_line(line))


def _title(status: "ExperimentStatus") -> str:
    title = f"{status.model}: experiment since {status.started_at}"
    if status.sticky.header:
        title += f", sticky by header {status.sticky.header}"
    if status.sticky.parameter:
        title += f", sticky by parameter {status.sticky.parameter}"
    return title


def _variant_row(variant: "VariantStatus") -> tuple[object, ...]:
    row = (
        variant.variant,
        variant.version,
        f"{variant.percent:g} %",
        f"{variant.requests:.0f}",
        f"{variant.errors:.0f}",
    )
    if not variant.requests:
        return (*row, *[""] * 5)
    times = (variant.p50_ms, variant.p95_ms, variant.p99_ms, variant.mean_ms)
    rate = f"{_percent(variant.error_rate)} ({_interval(variant.error_rate_interval)})"
    return (*row, rate, *(f"{ms:.3g} ms" if ms < 1000 else f"{ms / 1000:.3g} s" for ms in times))


def _print_predictions(status: "ExperimentStatus") -> None:
    labels = list(dict.fromkeys(each.label for variant in status.variants for each in variant.predictions))
    if not labels:
        return
    rows = []
    for variant in status.variants:
        shares = {each.label: each.share for each in variant.predictions}
        rows.append((variant.variant, *(_percent(shares[label]) if label in shares else "" for label in labels)))
    print_table(("predictions", *labels), rows)


def _lines(status: "ExperimentStatus") -> Iterator[str]:
    first = status.variants[0].variant if status.variants else ""
    for each in status.comparisons:
        yield f"{each.variant} against {first}: {each.verdict}"
    if status.HasField("ramp") and status.ramp.steps:
        yield _ramp_line(status.ramp)
    if status.HasField("shadow") and status.shadow.version:
        yield _shadow_line(status.shadow)
    if status.balance:
        yield f"balance: {status.balance}"
    if status.last_outcome:
        yield f"the last experiment: {status.last_outcome}"


def _ramp_line(ramp: "RampStatus") -> str:
    steps = ", ".join(
        f"[{share:g}]" if number == ramp.step else f"{share:g}" for number, share in enumerate(ramp.steps)
    )
    line = f"ramp {steps} % every {duration_text(ramp.every_seconds)}: {ramp.state}"
    if ramp.state in ("running", "waiting"):
        line += f", the next step in {duration_text(ramp.seconds_to_next_step)} at the earliest"
    if ramp.guards:
        line += f", while {' and '.join(ramp.guards)}"
    return f"{line}; {ramp.reason}" if ramp.reason else line


def _shadow_line(shadow: "ShadowStatus") -> str:
    return (
        f"shadow: version {shadow.version} gets copies of {shadow.percent:g} %: {shadow.compared:.0f} compared, "
        f"{shadow.disagreed:.0f} disagreed ({_percent(shadow.disagreement_rate)}), {shadow.errors:.0f} failed, "
        f"{shadow.dropped:.0f} not run for lack of time; {shadow.latency_delta_ms:+.3g} ms in ONNX Runtime"
    )


def _percent(share: float) -> str:
    return f"{share * 100:.3g} %"


def _interval(interval: "Interval") -> str:
    return f"{interval.low * 100:.3g} to {interval.high * 100:.3g}"

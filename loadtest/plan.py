"""What is measured: the rows of the table, in the order in which they are measured, and the targets they must meet."""

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

from loadtest import payloads
from loadtest.clients import Call
from loadtest.overload import DEADLINE_MS, Figures
from loadtest.payloads import BATCH_ROWS, STREAM_MESSAGES, Expected, WrongAnswerError

Kind = Literal[
    "echo", "nexus", "sources", "guarded", "rest", "envoy", "ort", "quiet", "loading", "overload", "unprotected", "idle"
]


@dataclass(frozen=True)
class Row:
    name: str
    title: str
    kind: Kind
    method: str = ""
    in_flight: int = 0
    rows_per_request: int = 1
    # Requests, with an answer each, in one HTTP/2 stream.
    requests_per_stream: int = 1
    # The row that this one is divided by.
    reference: str = ""
    # Requests are sent at a steady rate, this share of what a closed loop reaches; 0: as fast as answers come.
    offered: float = 0.0

    @property
    def is_overload(self) -> bool:
        """Measured by open_loop.py on the slow model, and shown in a table of its own."""
        return self.kind in ("overload", "unprotected")


# Each reference stands right before the row it is compared with: a drift of the machine then hits both.
ROWS = (
    Row("echo-1", "echo, 1 in flight", "echo", "infer", 1),
    Row("infer-1", "ModelInfer, 1 in flight", "nexus", "infer", 1, reference="echo-1"),
    Row("echo-32", "echo, 32 in flight", "echo", "infer", 32),
    Row("infer-32", "ModelInfer, 32 in flight", "nexus", "infer", 32, reference="echo-32"),
    Row("sources-32", "… with --no-compiled", "sources", "infer", 32, reference="echo-32"),
    Row("guarded-32", "… with an API key, --auth required", "guarded", "infer", 32, reference="infer-32"),
    Row("echo-256", "echo, 256 in flight", "echo", "infer", 256),
    Row("infer-256", "ModelInfer, 256 in flight", "nexus", "infer", 256, reference="echo-256"),
    Row("envoy-256", "Envoy answering by itself, 256 connections ²", "envoy", "rest", 256),
    Row("rest-256", "POST /predict, 256 connections ²", "rest", "rest", 256, reference="infer-256"),
    Row("rest-32", "POST /predict, 32 connections ²", "rest", "rest", 32, reference="infer-32"),
    Row("infer-1b", "ModelInfer, 1 in flight, again", "nexus", "infer", 1),
    Row("rest-1", "POST /predict, 1 connection ²", "rest", "rest", 1, reference="infer-1b"),
    Row("predict-32", "nexus.v1 Predict, 32 in flight", "nexus", "predict", 32, reference="echo-32"),
    Row("batch-32", "ModelInfer of 32 rows, 32 in flight", "nexus", "batch", 32, BATCH_ROWS, reference="echo-32"),
    Row("ort", "onnxruntime alone, 32 rows, no server", "ort", rows_per_request=BATCH_ROWS),
    Row("echo-stream", "echo stream, 32 × 32 messages ¹", "echo", "stream", 32, 1, STREAM_MESSAGES),
    Row("stream", "PredictStream, 32 × 32 messages ¹", "nexus", "stream", 32, 1, STREAM_MESSAGES, "echo-stream"),
    Row("quiet-25", "ModelInfer at 25 % of capacity ³", "quiet", "infer", 32, offered=0.25),
    Row("loading-25", "… while a 200 MB model loads ³", "loading", "infer", 32, reference="quiet-25", offered=0.25),
    Row("quiet-50", "ModelInfer at 50 % of capacity ³", "quiet", "infer", 32, offered=0.5),
    Row("loading-50", "… while a 200 MB model loads ³", "loading", "infer", 32, reference="quiet-50", offered=0.5),
    Row("overload-capacity", "closed loop, 8 in flight", "unprotected", in_flight=8),
    Row("overload-0.9", "0.9 × capacity", "overload", offered=0.9),
    Row("overload-1.2", "1.2 × capacity", "overload", offered=1.2),
    Row("overload-2", "2 × capacity", "overload", offered=2.0),
    Row("overload-3", "3 × capacity", "overload", offered=3.0),
    Row("overload-3-bare", "3 × capacity, no admission", "unprotected", offered=3.0),
    Row("idle", "idle after the load", "idle"),
)


def select(patterns: str) -> list[Row]:
    """The rows that match one of the comma-separated shell patterns; an unknown one is an error."""
    wanted = [pattern.strip() for pattern in patterns.split(",") if pattern.strip()]
    for pattern in wanted:
        if not any(fnmatchcase(row.name, pattern) for row in ROWS):
            raise ValueError(f"no row is called {pattern!r}; there are {', '.join(row.name for row in ROWS)}")
    return [row for row in ROWS if any(fnmatchcase(row.name, pattern) for pattern in wanted)]


def call_of(row: Row, expected: dict[int, Expected]) -> Call:
    """`expected` by number of rows. The echo gets the same bytes and must send them back."""
    one = expected[1]
    if row.kind in ("rest", "envoy"):
        return Call(payloads.REST_PREDICT, (payloads.rest_predict(),), lambda a: payloads.check_rest_predict(a, one))
    calls = {
        "infer": Call(payloads.MODEL_INFER, (payloads.model_infer(1),), lambda a: payloads.check_model_infer(a, one)),
        "predict": Call(payloads.PREDICT, (payloads.predict(),), lambda a: payloads.check_predict(a, one)),
        "batch": Call(
            payloads.MODEL_INFER,
            (payloads.model_infer(BATCH_ROWS),),
            lambda a: payloads.check_model_infer(a, expected[BATCH_ROWS]),
        ),
        "stream": Call(
            payloads.PREDICT_STREAM,
            (payloads.predict(),) * STREAM_MESSAGES,
            lambda a: payloads.check_predict_stream(a, one),
        ),
    }
    call = calls[row.method]
    if row.kind != "echo":
        return call
    return Call(call.path, call.messages, lambda answer: _same(answer, call.messages[0]))


def _same(answer: bytes, message: bytes) -> None:
    if answer != message:
        raise WrongAnswerError("the echo is not what was sent")


@dataclass
class Result:
    """One row, measured once; or the medians of several such. Of overload rows, requests are those answered in time,
    and the ratio is to the best of these rows in the same repeat."""

    requests_per_second: float = 0.0
    rows_per_second: float = 0.0
    p50_us: float = 0.0
    p99_us: float = 0.0
    cpu_us_per_request: float = 0.0
    # By role: front, worker, supervisor.
    rss_mib: dict[str, float] = field(default_factory=dict)
    # The parts of cpu_us_per_request, by role.
    cpu_us_by_role: dict[str, float] = field(default_factory=dict)
    ratio: float | None = None
    # (largest - smallest) / median of requests/s over the repeats, in percent.
    spread_percent: float = 0.0
    idle_cpu_percent: float | None = None
    overload: Figures | None = None
    problem: str = ""


@dataclass(frozen=True)
class Target:
    text: str
    # "info" is shown and never fails; "-" was not measured in this run.
    verdict: Literal["pass", "FAIL", "info", "-"]
    measured: str


RSS_LIMITS_MIB = {"front": 90.0, "worker": 110.0}


def targets(results: dict[str, Result]) -> list[Target]:
    good = {name: result for name, result in results.items() if not result.problem}
    return [
        _unary(good, 32),
        _unary(good, 256),
        _guarded(good),
        _holds_at_256(good),
        _latency(good),
        _rest_rate(good),
        _rest_latency(good),
        _batch(good),
        _beside_a_load(good, 25),
        _beside_a_load(good, 50),
        _goodput(good),
        _in_time(good),
        _urgent(good),
        _without_admission(good),
        *(_memory(good, role, limit) for role, limit in RSS_LIMITS_MIB.items()),
        _idle(good),
    ]


def _verdict(text: str, holds: bool | None, measured: str) -> Target:
    return Target(text, "-" if holds is None else "pass" if holds else "FAIL", measured)


def _unary(good: dict[str, Result], in_flight: int) -> Target:
    text = f"ModelInfer at {in_flight} in flight: at least 4 × the echo"
    result = good.get(f"infer-{in_flight}")
    if result is None or result.ratio is None:
        return _verdict(text, None, "not measured")
    return _verdict(text, result.ratio >= 4.0, f"{result.ratio:.2f} ×")


def _guarded(good: dict[str, Result]) -> Target:
    text = "ModelInfer at 32 in flight with an API key: at least 0.9 of the rate without"
    result = good.get("guarded-32")
    if result is None or result.ratio is None:
        return _verdict(text, None, "not measured")
    return _verdict(text, result.ratio >= 0.9, f"{result.ratio:.2f}")


def _holds_at_256(good: dict[str, Result]) -> Target:
    text = "ModelInfer at 256 in flight: at least 0.95 of the rate at 32"
    if not {"infer-32", "infer-256"} <= good.keys():
        return _verdict(text, None, "not measured")
    share = good["infer-256"].requests_per_second / good["infer-32"].requests_per_second
    return Target(text, "info", f"{share:.2f}")


def _latency(good: dict[str, Result]) -> Target:
    text = "p50 at 1 in flight: no more than the echo's"
    if not {"echo-1", "infer-1"} <= good.keys():
        return _verdict(text, None, "not measured")
    nexus, echo = good["infer-1"].p50_us, good["echo-1"].p50_us
    return _verdict(text, nexus <= echo, f"{nexus:.0f} µs, echo {echo:.0f} µs")


def _rest_rate(good: dict[str, Result]) -> Target:
    text = "POST /predict at 256 connections: at least 0.4 × ModelInfer at 256"
    result = good.get("rest-256")
    if result is None or result.ratio is None:
        return _verdict(text, None, "not measured")
    return _verdict(text, result.ratio >= 0.4, f"{result.ratio:.2f} ×")


def _rest_latency(good: dict[str, Result]) -> Target:
    text = "p50 of POST /predict at 1 connection: at most 2.5 × ModelInfer's"
    if not {"rest-1", "infer-1b"} <= good.keys():
        return _verdict(text, None, "not measured")
    rest, unary = good["rest-1"].p50_us, good["infer-1b"].p50_us
    return _verdict(text, rest <= 2.5 * unary, f"{rest:.0f} µs, {rest / unary:.2f} ×")


def _batch(good: dict[str, Result]) -> Target:
    text = "32 rows per request: at least 500,000 rows/s or 0.7 of onnxruntime's own"
    if "batch-32" not in good:
        return _verdict(text, None, "not measured")
    rate = good["batch-32"].rows_per_second
    measured, share = f"{rate:,.0f} rows/s", 0.0
    if "ort" in good:
        share = rate / good["ort"].rows_per_second
        measured += f", {share:.2f} of onnxruntime's"
    return _verdict(text, rate >= 500_000 or share >= 0.7, measured)


def _beside_a_load(good: dict[str, Result], percent: int) -> Target:
    text = f"p99 at {percent} % of capacity while a 200 MB model loads: at most 2 × at rest"
    quiet, loading = good.get(f"quiet-{percent}"), good.get(f"loading-{percent}")
    if quiet is None or loading is None:
        return _verdict(text, None, "not measured")
    measured = f"{loading.p99_us:.0f} µs, {loading.p99_us / quiet.p99_us:.2f} ×"
    return _verdict(text, loading.p99_us <= 2.0 * quiet.p99_us, measured)


def _goodput(good: dict[str, Result]) -> Target:
    text = "3 × capacity offered: goodput at least 0.85 of its peak"
    result = good.get("overload-3")
    if result is None or result.ratio is None or "overload-capacity" not in good:
        return _verdict(text, None, "not measured")
    return _verdict(text, result.ratio >= 0.85, f"{result.ratio:.2f}, {result.requests_per_second:.0f}/s")


def _in_time(good: dict[str, Result]) -> Target:
    text = f"3 × capacity offered: p99 of what is accepted within its deadline of {DEADLINE_MS} ms"
    if "overload-3" not in good:
        return _verdict(text, None, "not measured")
    p99_ms = good["overload-3"].p99_us / 1000
    return _verdict(text, p99_ms <= DEADLINE_MS, f"{p99_ms:.0f} ms")


def _urgent(good: dict[str, Result]) -> Target:
    text = "3 × capacity offered: the urgent fifth is answered in time"
    figures = good["overload-3"].overload if "overload-3" in good else None
    if figures is None:
        return _verdict(text, None, "not measured")
    return Target(text, "info", f"{figures.urgent_percent:.1f} %")


def _without_admission(good: dict[str, Result]) -> Target:
    text = "3 × capacity offered without admission, for comparison: goodput of the peak"
    result = good.get("overload-3-bare")
    if result is None or result.ratio is None or "overload-capacity" not in good:
        return _verdict(text, None, "not measured")
    return Target(text, "info", f"{result.ratio:.2f}, {result.requests_per_second:.0f}/s")


def _memory(good: dict[str, Result], role: str, limit: float) -> Target:
    text = f"RSS of a {role}: at most {limit:.0f} MiB"
    nexus = {row.name for row in ROWS if row.kind in ("nexus", "rest", "idle")}
    seen = [result.rss_mib[role] for name, result in good.items() if name in nexus and role in result.rss_mib]
    return _verdict(text, max(seen) <= limit if seen else None, f"{max(seen):.0f} MiB" if seen else "not measured")


def _idle(good: dict[str, Result]) -> Target:
    text = "idle: less than 1 % of one core, all processes together"
    percent = good["idle"].idle_cpu_percent if "idle" in good else None
    return _verdict(
        text, None if percent is None else percent < 1.0, "not measured" if percent is None else f"{percent:.2f} %"
    )

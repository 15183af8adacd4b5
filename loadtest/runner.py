"""Measures rows: repeats them, checks the answers around each, and takes medians."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from loadtest import big_model, h2load, overload, payloads, processes, wrk
from loadtest.clients import VerificationError, verify, verify_rest
from loadtest.h2load import H2loadError
from loadtest.overload import OverloadError
from loadtest.payloads import BATCH_ROWS, Expected
from loadtest.plan import Result, Row, call_of
from loadtest.processes import Server
from loadtest.wrk import WrkError
from nexus_grpc.worker.onnx_runtime import ort

IDLE_REST_S, IDLE_S = 3.0, 10.0
# How much the answers of a row may fall short of the verified one in size: latency_ms and the timestamp vary in length.
SIZE_SLACK = {"infer": 0.02, "batch": 0.02, "predict": 0.15, "stream": 0.15}

# Kinds of rows that share a server.
SERVER_OF = {"quiet": "loading"}

Say = Callable[[str], None]


class RowError(Exception):
    """The row's figures cannot be trusted."""


class Reference:
    """onnxruntime in this process: what the answers must be, and how fast it is without a server."""

    def __init__(self, model: Path) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    def expected(self, row_count: int) -> Expected:
        labels, probabilities = self._session.run(["label", "probabilities"], {"X": payloads.rows_of(row_count)})
        return Expected(labels, probabilities)

    def rows_per_second(self, seconds: float) -> float:
        names, feed = ["label", "probabilities"], {"X": payloads.rows_of(BATCH_ROWS)}
        run, clock = self._session.run, time.perf_counter
        began, count = clock(), 0
        while clock() - began < seconds:
            for _ in range(100):  # looking at the clock must not be part of the figure
                run(names, feed)
            count += 100
        return count * BATCH_ROWS / (clock() - began)


@dataclass
class Runner:
    servers: dict[str, Server]
    reference: Reference
    folder: Path
    seconds: float
    say: Say
    _expected: dict[int, Expected] = field(default_factory=dict)
    # Requests per second by Row.offered.
    _offered: dict[float, float] = field(default_factory=dict)
    # What the slow model's worker can do, per second; 0: not measured yet.
    _capacity: float = 0.0

    def __post_init__(self) -> None:
        self._expected = {count: self.reference.expected(count) for count in (1, BATCH_ROWS)}

    def run(self, rows: list[Row], repeat: int) -> dict[str, Result]:
        """All rows, then all rows again: what is compared is measured close together in time."""
        measured: dict[str, list[Result]] = {row.name: [] for row in rows}
        loads = [row for row in rows if row.kind != "idle"]
        for number in range(repeat):
            for index, row in enumerate(loads):
                self._measure_and_say(row, f"{number * len(loads) + index + 1}/{repeat * len(loads)}", measured)
        for row in rows:
            if row.kind == "idle":  # once, and last: after load, where a server that spins would still be spinning
                self._measure_and_say(row, "last", measured)
        return combine(rows, measured)

    def _measure_and_say(self, row: Row, position: str, measured: dict[str, list[Result]]) -> None:
        result = self._measure(row)
        measured[row.name].append(result)
        if result.problem:
            self.say(f"[{position}] {row.name}: FAILED: {result.problem}")
        elif row.kind == "idle":
            self.say(f"[{position}] {row.name}: {result.idle_cpu_percent:.2f} % of a core")
        elif row.kind == "ort":
            self.say(f"[{position}] {row.name}: {result.rows_per_second:,.0f} rows/s")
        elif (figures := result.overload) is not None:
            self.say(
                f"[{position}] {row.name}: {result.requests_per_second:.0f} of {figures.offered_per_s:.0f}/s in time, "
                f"p99 {result.p99_us / 1000:.0f} ms; steal {figures.steal_percent:.0f} %"
            )
        else:
            self.say(
                f"[{position}] {row.name}: {result.requests_per_second:,.0f} requests/s, p50 {result.p50_us:.0f} µs"
            )

    def _measure(self, row: Row) -> Result:
        try:
            if row.kind == "ort":
                rate = self.reference.rows_per_second(max(1.0, self.seconds / 3))
                return Result(requests_per_second=rate / BATCH_ROWS, rows_per_second=rate)
            if row.kind in ("rest", "envoy"):
                return self._rest_load(row)
            if row.is_overload:
                return self._overload(row)
            if row.kind == "loading":
                with big_model.loaded_again_and_again(self.servers["loading"]) as loads:
                    result = self._load(row)
                if not loads:
                    raise RowError("the big model was not loaded once while the row was measured")
                return result
            return self._idle() if row.kind == "idle" else self._load(row)
        except (RowError, VerificationError, H2loadError, WrkError, OverloadError, OSError) as error:
            return Result(problem=str(error))

    def _idle(self) -> Result:
        server = self.servers["nexus"]
        time.sleep(IDLE_REST_S)
        before, began = processes.cpu_seconds(server), time.perf_counter()
        time.sleep(IDLE_S)
        used = sum(processes.cpu_seconds_since(server, before).values())
        percent = 100 * used / (time.perf_counter() - began)
        if not server.is_alive():
            raise RowError("the server has ended")
        return Result(idle_cpu_percent=percent, rss_mib=processes.rss_mib(server))

    def _load(self, row: Row) -> Result:
        server, call = self.servers[SERVER_OF.get(row.kind, row.kind)], call_of(row, self._expected)
        answer_bytes = verify(server.target, call, server.key)
        url, body = f"http://{server.target}{call.path}", self.folder / f"{row.name}.bin"
        body.write_bytes(call.body)
        rate = h2load.calibrate(url, body, row.in_flight, server.key)  # warms up, too
        if row.offered:
            # The row that it is compared with has set the rate.
            rate = self._offered.setdefault(row.offered, rate * row.offered)
        stream_count = max(row.in_flight * 4, int(rate * self.seconds))

        codes = processes.request_counts(server) if server.metrics_port else {}
        cpu = processes.cpu_seconds(server)
        log = self.folder / "h2load.log"
        limit_s, offered = self.seconds * 4 + 30, rate if row.offered else 0.0
        load = h2load.measure(url, body, row.in_flight, stream_count, log, limit_s, offered, server.key)
        cpu_by_role = processes.cpu_seconds_since(server, cpu)
        rss_mib = processes.rss_mib(server)

        if server.metrics_port:  # first, because it can name the error
            self._check_codes(server, codes, stream_count)
        check_size(load.summary.data_bytes, stream_count, answer_bytes, SIZE_SLACK[row.method])
        verify(server.target, call, server.key)
        return _result(row, load, cpu_by_role, stream_count, rss_mib)

    def _rest_load(self, row: Row) -> Result:
        server, call = self.servers["nexus" if row.kind == "rest" else "envoy"], call_of(row, self._expected)
        verify_rest(server.origin, call)
        script, url = self.folder / f"{row.name}.lua", server.origin + call.path
        wrk.write_script(script, call.messages[0])
        wrk.measure(url, script, row.in_flight, 1.0)  # warms up

        codes = processes.request_counts(server) if server.metrics_port else {}
        cpu = processes.cpu_seconds(server)
        load = wrk.measure(url, script, row.in_flight, self.seconds)
        cpu_by_role = processes.cpu_seconds_since(server, cpu)
        rss_mib = processes.rss_mib(server)
        if server.metrics_port:
            self._check_codes(server, codes, load.summary.total_count, dropped_max=row.in_flight)
        verify_rest(server.origin, call)
        return _result(row, load, cpu_by_role, load.summary.total_count, rss_mib)

    def _overload(self, row: Row) -> Result:
        server, seconds = self.servers[row.kind], max(self.seconds, overload.SECONDS_MIN)
        if not row.offered:
            result = overload.measure(server, seconds, in_flight=row.in_flight)
            self._capacity = result.good_per_s  # anew in each repeat: the machine drifts
        else:
            if not self._capacity:  # that row was left out
                self._capacity = overload.measure(server, 2.0, in_flight=overload.IN_FLIGHT).good_per_s
            result = overload.measure(server, seconds, rate=self._capacity * row.offered)
        return Result(
            requests_per_second=result.good_per_s,
            p50_us=result.p50_us,
            p99_us=result.p99_us,
            overload=result.figures,
        )

    def _check_codes(self, server: Server, before: dict[str, float], stream_count: int, dropped_max: int = 0) -> None:
        """`dropped_max`: how many the client may have dropped at the end: cancelled, or a call without its message.
        (wrk looks at the status of every answer itself.)"""
        deadline = time.monotonic() + 2.0  # the server may publish its counters a moment later
        while True:
            now = processes.request_counts(server)
            grown = {
                code: count - before.get(code, 0.0) for code, count in now.items() if count > before.get(code, 0.0)
            }
            counted = grown.pop("OK", 0.0)
            if sum(grown.values()) <= dropped_max:
                grown.clear()
            if grown:
                raise RowError(f"answers that are not OK, by nexus_requests_total: {grown}")
            if counted >= stream_count:
                return
            if time.monotonic() > deadline:
                raise RowError(f"nexus_requests_total grew by {counted:.0f} OK; h2load sent {stream_count}")
            time.sleep(0.1)


def _result(
    row: Row, load: h2load.Load, cpu_s_by_role: dict[str, float], stream_count: int, rss_mib: dict[str, float]
) -> Result:
    request_count = stream_count * row.requests_per_stream
    requests_per_second = load.summary.requests_per_second * row.requests_per_stream
    cpu_us_by_role = {role: used * 1e6 / request_count for role, used in cpu_s_by_role.items()}
    return Result(
        requests_per_second=requests_per_second,
        rows_per_second=requests_per_second * row.rows_per_request,
        p50_us=load.p50_us,
        p99_us=load.p99_us,
        cpu_us_per_request=sum(cpu_us_by_role.values()),
        cpu_us_by_role=cpu_us_by_role,
        rss_mib=rss_mib,
    )


def check_size(data_bytes: int, stream_count: int, answer_bytes: int, slack: float) -> None:
    """An error is trailers without a message, so a row with errors has fewer bytes than its answers should."""
    each = data_bytes / stream_count
    if each < answer_bytes * (1 - slack):
        raise RowError(f"{each:.1f} bytes per answer, {answer_bytes} in the verified one: some answers were errors")


def combine(rows: list[Row], measured: dict[str, list[Result]]) -> dict[str, Result]:
    """Medians over the repeats. The ratio is the median of each repeat's own, so that drift cancels out; an overload
    row's is to the best of them."""
    combined = {}
    for row in rows:
        result = _median(measured[row.name])
        ratios = [
            nexus.requests_per_second / reference.requests_per_second
            for nexus, reference in zip(measured[row.name], _references(row, rows, measured), strict=False)
            if not nexus.problem and not reference.problem and reference.requests_per_second
        ]
        result.ratio = statistics.median(ratios) if ratios else None
        combined[row.name] = result
    return combined


def _references(row: Row, rows: list[Row], measured: dict[str, list[Result]]) -> list[Result]:
    """What a row is divided by, in each repeat."""
    if not row.is_overload:
        return measured.get(row.reference, [])
    repeats = zip(*(measured[other.name] for other in rows if other.is_overload), strict=True)
    return [max(repeat, key=lambda result: result.requests_per_second) for repeat in repeats]


def _median(results: list[Result]) -> Result:
    problems = [result.problem for result in results if result.problem]
    if problems:  # one wrong repeat spoils the row: a median would hide it
        return Result(problem=problems[0])

    def middle(name: str) -> float:
        return float(statistics.median(getattr(result, name) for result in results))

    rates = [result.requests_per_second for result in results]
    rss: dict[str, float] = {}
    for result in results:
        for role, size in result.rss_mib.items():
            rss[role] = max(size, rss.get(role, 0.0))
    return Result(
        requests_per_second=middle("requests_per_second"),
        rows_per_second=middle("rows_per_second"),
        p50_us=middle("p50_us"),
        p99_us=middle("p99_us"),
        cpu_us_per_request=middle("cpu_us_per_request"),
        cpu_us_by_role={
            role: float(statistics.median(result.cpu_us_by_role.get(role, 0.0) for result in results))
            for role in results[0].cpu_us_by_role
        },
        rss_mib=rss,
        spread_percent=100 * (max(rates) - min(rates)) / statistics.median(rates) if any(rates) else 0.0,
        idle_cpu_percent=results[-1].idle_cpu_percent,
        overload=overload.median([result.overload for result in results if result.overload is not None]),
    )

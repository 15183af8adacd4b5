"""The table on the terminal, and the same figures with their circumstances in RESULTS.md."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loadtest import h2load
from loadtest.open_loop import PATIENT, URGENT, URGENT_SHARE
from loadtest.overload import DEADLINE_MS, STEAL_MAX_PERCENT, TARGET_MS, TRIES
from loadtest.payloads import STREAM_MESSAGES
from loadtest.plan import Result, Row, Target
from loadtest.processes import ROLES
from loadtest.slow_model import SERVICE_S

COLUMNS = (
    "row",
    "requests/s",
    "± %",
    "rows/s",
    "p50 µs",
    "p99 µs",
    "CPU µs per request",
    "RSS MiB front / worker / supervisor / Envoy",
    "×",
)
OVERLOAD_COLUMNS = (
    "row",
    "offered",
    "goodput",
    "± %",
    "of the peak",
    "per worker CPU s",
    "shed %",
    "late %",
    "p50 ms",
    "p99 ms",
    "urgent in time %",
    "CPU %: worker / front / client",
    "sent late ms",
    "steal %",
)
LIBRARIES = ("nexus-grpc", "grpcio", "onnxruntime", "numpy", "protobuf", "uvloop")
VERDICT_STYLES = {"pass": "green", "FAIL": "bold red", "info": "cyan", "-": "dim"}

STREAM_NOTE = (
    f"¹ h2load sends a stream's {STREAM_MESSAGES} messages at once and takes {STREAM_MESSAGES} answers. requests/s, "
    "CPU and × count messages; p50 and p99 are for a whole stream. × is against the echo's own stream."
)
REST_NOTE = (
    "² wrk by HTTP/1.1, one request at a time on each connection. CPU: Envoy + front + worker. Envoy answering by "
    "itself is the least that REST through it can cost."
)
LOADING_NOTE = (
    "³ A server of its own, for iris and a model with 200 MB of weights, whose file is made new, tried in a process of "
    "its own, loaded and unloaded again and again. Requests come at a steady rate, the same in both rows: 25 or 50 % "
    "of what a closed loop of 32 reached. The target is about p99, by the client's clock."
)
OVERLOAD_NOTE = (
    f"A server of its own: one worker, a model that takes about {SERVICE_S * 1000:.0f} ms and does not batch, "
    f"`--queue-target-ms {TARGET_MS}`; 0, that is no admission, in the first row and the last. Each request has a "
    f"deadline of {DEADLINE_MS} ms; {URGENT_SHARE:.0%} have priority {URGENT}, the others {PATIENT}. Open loop: sent "
    "at random moments by a timetable, whatever becomes of them; times and deadlines count from when a request was due "
    "(no coordinated omission). Goodput: right answers in time, per second; the peak: the best row of the same repeat; "
    "per second of the worker's CPU: what neighbours on the machine hardly change. Shed: RESOURCE_EXHAUSTED. p50 and "
    "p99: of all that were not shed, those that missed the deadline included. The client is Python and shares the "
    "cores; what it sent late itself (p99) counts against the server. What was measured while the hypervisor took more "
    f"than {STEAL_MAX_PERCENT:.0f} % of the cores' time was measured again, at most {TRIES - 1} times; the calmest "
    "counts."
)
NOTES = (
    "The load generator (h2load) runs on the same cores as the servers: every figure includes its share.",
    "Closed loop: a slow answer delays the next request, so p99 is kinder than an open-loop client would see it "
    "(coordinated omission).",
    "The ratio to the echo, measured in the same run, says more about another machine than requests/s do.",
    "CPU per request is user + system time of all the server's processes, over the row; h2load's is not in it.",
    "× is against the echo; of a REST row, against ModelInfer at as many in flight.",
    "RSS counts shared pages (libraries, rings) in every process that maps them; the largest of each role, over all "
    "repeats.",
    "Before and after each row a grpc client sent the same bytes and compared the answers with onnxruntime's; the size "
    "of all answers was compared with a verified one's; nexus_requests_total had to grow by OK alone.",
    "± is (largest − smallest) / median of requests/s over the repeats. Other columns are medians; × is the median of "
    "the ratios of each repeat.",
)


@dataclass(frozen=True)
class Circumstances:
    """What a reader needs to judge the figures."""

    command: str
    seconds: float
    repeat: int
    workers: str
    load_before: float
    steal_percent: float


def _cells(row: Row, result: Result) -> list[str]:
    if row.is_overload:
        return _overload_cells(row, result)
    if result.problem:
        return [row.title, "FAILED", *[""] * (len(COLUMNS) - 2)]
    if result.idle_cpu_percent is not None:
        return [row.title, "", "", "", "", "", f"{result.idle_cpu_percent:.2f} % of a core", _memory(result), ""]
    requests, spread, rows = (
        f"{result.requests_per_second:,.0f}",
        f"{result.spread_percent:.0f}",
        result.rows_per_second,
    )
    if row.kind == "ort":
        return [row.title, requests, spread, f"{rows:,.0f}", *[""] * 5]
    latencies = [f"{result.p50_us:,.0f}", f"{result.p99_us:,.0f}", _cpu(row, result)]
    ratio = "" if result.ratio is None else f"{result.ratio:.2f}"
    return [row.title, requests, spread, f"{rows:,.0f}", *latencies, _memory(result), ratio]


def _overload_cells(row: Row, result: Result) -> list[str]:
    figures = result.overload
    if result.problem or figures is None:
        return [row.title, "FAILED", *[""] * (len(OVERLOAD_COLUMNS) - 2)]
    return [
        row.title,
        f"{figures.offered_per_s:.0f}",
        f"{result.requests_per_second:.0f}",
        f"{result.spread_percent:.0f}",
        "" if result.ratio is None else f"{result.ratio:.2f}",
        f"{figures.good_per_cpu_s:.0f}",
        f"{figures.shed_percent:.1f}",
        f"{figures.late_percent:.1f}",
        f"{result.p50_us / 1000:.0f}",
        f"{result.p99_us / 1000:.0f}",
        f"{figures.urgent_percent:.1f}",
        f"{figures.worker_percent:.0f} / {figures.front_percent:.0f} / {figures.client_percent:.0f}",
        f"{figures.lag_p99_us / 1000:.0f}",
        f"{figures.steal_percent:.0f}",
    ]


def _cpu(row: Row, result: Result) -> str:
    total, parts = f"{result.cpu_us_per_request:.1f}", result.cpu_us_by_role
    if row.kind != "rest":
        return total
    return f"{total} = " + " + ".join(f"{parts[role]:.0f}" for role in ("envoy", "front", "worker") if role in parts)


def _memory(result: Result) -> str:
    sizes = result.rss_mib
    if set(sizes) == {"front"}:  # the echo: one process
        return f"{sizes['front']:.0f}"
    return " / ".join(f"{sizes[role]:.0f}" if role in sizes else "–" for role in ROLES)


def print_table(console: Console, rows: list[Row], results: dict[str, Result], targets: list[Target]) -> None:
    capacity, overload = _apart(rows)
    if capacity:
        _print_rows(console, "Nexus gRPC against a grpc.aio echo, measured together", COLUMNS, capacity, results)
    if overload:
        _print_rows(console, "Overload: open loop, requests per second", OVERLOAD_COLUMNS, overload, results)
    for row in rows:
        if results[row.name].problem:
            console.print(f"[bold red]{row.name} failed:[/] {escape(results[row.name].problem)}")
    notes = (STREAM_NOTE, REST_NOTE, LOADING_NOTE) if capacity else ()
    for note in (*notes, *((OVERLOAD_NOTE,) if overload else ())):
        console.print(note, style="dim")
    checks = Table(title="Targets", show_header=False, box=None)
    for target in targets:
        checks.add_row(f"[{VERDICT_STYLES[target.verdict]}]{target.verdict}[/]", target.text, target.measured)
    console.print(checks)


def _apart(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """The rows of the first table, and of the one about overload."""
    return [row for row in rows if not row.is_overload], [row for row in rows if row.is_overload]


def _print_rows(
    console: Console, title: str, columns: tuple[str, ...], rows: list[Row], results: dict[str, Result]
) -> None:
    table = Table(title=title)
    for index, column in enumerate(columns):
        # The narrowest that breaks no word.
        width = max(map(len, column.split()))
        table.add_column(column, justify="right" if index else "left", no_wrap=index == 0, min_width=width)
    for row in rows:
        dim = row.kind in ("echo", "ort", "envoy", "unprotected")
        style = "bold red" if results[row.name].problem else "dim" if dim else ""
        table.add_row(*_cells(row, results[row.name]), style=style)
    console.print(table)


def markdown(rows: list[Row], results: dict[str, Result], targets: list[Target], facts: Circumstances) -> str:
    capacity, overload = _apart(rows)
    failed = [f"- **{row.name} failed**: {results[row.name].problem}" for row in rows if results[row.name].problem]
    sections = [
        "# Measured",
        "Written by `make bench`; how to read it: [README.md](README.md).",
        "\n".join(f"- {line}" for line in _machine(facts)),
        f"    {facts.command}",
        _table(COLUMNS, (_cells(row, results[row.name]) for row in capacity)),
        *(["\n".join(failed)] if failed else []),
        STREAM_NOTE,
        REST_NOTE,
        LOADING_NOTE,
        "## Overload",
        _table(OVERLOAD_COLUMNS, (_cells(row, results[row.name]) for row in overload)),
        OVERLOAD_NOTE,
        "## Targets",
        _table(("", "target", "measured"), ((target.verdict, target.text, target.measured) for target in targets)),
        "## Notes",
        "\n".join(f"- {note}" for note in (*_warnings(facts), *NOTES)),
    ]
    return "\n\n".join(sections) + "\n"


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(columns)
    lines = [names, ["---", *["---:"] * (len(names) - 1)] if names[0] else ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _warnings(facts: Circumstances) -> list[str]:
    warnings = []
    if facts.load_before > 0.5:
        warnings.append(
            f"**The machine was busy before the run** (load average {facts.load_before:.2f}): measure again when idle."
        )
    if facts.steal_percent > 1:
        warnings.append(f"**The hypervisor took {facts.steal_percent:.1f} % of the CPU time** away during the run.")
    if facts.repeat < 3 or facts.seconds < 5:
        warnings.append("**A short run**: three repeats of five seconds are the least for figures to quote.")
    return warnings


def _machine(facts: Circumstances) -> list[str]:
    cores = len(os.sched_getaffinity(0))
    memory = psutil.virtual_memory().total / 2**30
    versions = ", ".join(f"{name} {_version(name)}" for name in LIBRARIES)
    return [
        f"Date: {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC, commit {_commit()}",
        f"CPU: {_cpu_model()}, {cores} cores usable; {memory:.0f} GiB memory; Linux {platform.release()}",
        f"Python {platform.python_version()}, {versions}, {h2load.version()}",
        f"{facts.repeat} repeats of {facts.seconds:g} s per row, echo and server in turn; workers: {facts.workers}; "
        f"load average before {facts.load_before:.2f}, steal {facts.steal_percent:.1f} %",
    ]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "(none)"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    root = Path(__file__).resolve().parent.parent
    try:
        arguments = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=10"]
        return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"

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
from loadtest.payloads import STREAM_MESSAGES
from loadtest.plan import Result, Row, Target
from loadtest.processes import ROLES

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
    table = Table(title="Nexus gRPC against a grpc.aio echo, measured together")
    for index, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if index else "left", no_wrap=index == 0)
    for row in rows:
        style = "bold red" if results[row.name].problem else "dim" if row.kind in ("echo", "ort", "envoy") else ""
        table.add_row(*_cells(row, results[row.name]), style=style)
    console.print(table)
    for row in rows:
        if results[row.name].problem:
            console.print(f"[bold red]{row.name} failed:[/] {escape(results[row.name].problem)}")
    console.print(STREAM_NOTE, style="dim")
    console.print(REST_NOTE, style="dim")
    console.print(LOADING_NOTE, style="dim")
    checks = Table(title="Targets", show_header=False, box=None)
    for target in targets:
        checks.add_row(f"[{VERDICT_STYLES[target.verdict]}]{target.verdict}[/]", target.text, target.measured)
    console.print(checks)


def markdown(rows: list[Row], results: dict[str, Result], targets: list[Target], facts: Circumstances) -> str:
    failed = [f"- **{row.name} failed**: {results[row.name].problem}" for row in rows if results[row.name].problem]
    sections = [
        "# Measured",
        "Written by `make bench`; how to read it: [README.md](README.md).",
        "\n".join(f"- {line}" for line in _machine(facts)),
        f"    {facts.command}",
        _table(COLUMNS, (_cells(row, results[row.name]) for row in rows)),
        *(["\n".join(failed)] if failed else []),
        STREAM_NOTE,
        REST_NOTE,
        LOADING_NOTE,
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

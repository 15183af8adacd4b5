"""The command line of the benchmark: checks what is needed, starts the servers, runs, reports."""

import argparse
import contextlib
import os
import shlex
import signal
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

import psutil
from rich.console import Console
from rich.markup import escape

from loadtest import big_model, h2load, overload, payloads, plan, processes, report, slow_model, wrk
from loadtest.plan import ROWS, Row
from loadtest.processes import Server, steal_percent
from loadtest.runner import Reference, Runner, Say

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).with_name("RESULTS.md")

DESCRIPTION = """\
Measures Nexus gRPC beside a grpc.aio echo server that does nothing, on this machine, in one run.
What counts is the ratio (× echo): requests per second depend on the machine, the ratio much less.

It starts `nexus serve` and the echo on free ports, puts load on them with h2load, checks with a real gRPC client
that the answers are right, prints one table, writes loadtest/RESULTS.md and stops everything again.
"""
EPILOG = """\
rows:
{rows}

examples:
  make bench                                      everything: about twelve minutes on two cores
  loadtest/bench.py --seconds 2 --repeat 1 --no-write            a first look, three minutes
  loadtest/bench.py --rows '*-32' --repeat 5      one level, with its reference
  loadtest/bench.py --rows echo-1,infer-1         one comparison; a row without its reference has no ratio
  loadtest/bench.py --rows 'overload*'            what becomes of goodput under more load than can be served

exit code: 0 measured (targets may have failed, unless --strict); 1 a row failed or a server did not start;
2 usage, or something needed is missing. Quiet the machine first: the load average before the run is in the report.
"""


class _UsageError(Exception):
    """Something needed is missing; the message says how to get it."""


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    listing = "\n".join(f"  {row.name:<17} {row.title}" for row in ROWS)
    parser = argparse.ArgumentParser(
        prog="loadtest/bench.py",
        description=DESCRIPTION,
        epilog=EPILOG.format(rows=listing),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=_positive, default=6.0, help="load per row and repeat (default 6)")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="repeats; medians are reported (default 3)")
    parser.add_argument("--rows", default="*", help="comma-separated names or shell patterns (default all)")
    parser.add_argument("--workers", type=int, help="nexus serve --workers (default: the server's own choice)")
    parser.add_argument("--model-repository", type=Path, default=ROOT / "models", help="holds iris (default models/)")
    parser.add_argument("--nexus", type=Path, default=Path(sys.executable).with_name("nexus"), help="nexus to start")
    parser.add_argument("--no-write", action="store_true", help="do not write RESULTS.md (--rows does not either)")
    parser.add_argument("--strict", action="store_true", help="exit 1 when a target is missed")
    arguments = parser.parse_args(argv)
    try:
        arguments.selected = plan.select(arguments.rows)
    except ValueError as error:
        parser.error(str(error))
    if arguments.repeat < 1 or not arguments.selected:
        parser.error("at least one repeat and one row")
    return arguments


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value <= 600:
        raise argparse.ArgumentTypeError("more than 0, at most 600")
    return value


def main(argv: list[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else argv
    arguments = parse_arguments(given)
    progress = Console(stderr=True, highlight=False)
    signal.signal(signal.SIGTERM, _interrupt)  # so that `finally` runs
    try:
        return _bench(arguments, given, progress)
    except _UsageError as error:
        progress.print(str(error), style="bold red", markup=False)
        return 2
    except processes.StartError as error:
        progress.print(str(error), style="bold red", markup=False)
        return 1
    except KeyboardInterrupt:
        progress.print("interrupted; the servers are stopped", style="yellow")
        return 130


def _interrupt(_number: int, _stack: object) -> NoReturn:
    raise KeyboardInterrupt


def _model(arguments: argparse.Namespace) -> Path:
    model: Path = arguments.model_repository / "iris" / "1" / "model.onnx"
    if not h2load.is_installed():
        raise _UsageError(h2load.INSTALL_HINT)
    if {row.kind for row in arguments.selected} & {"rest", "envoy"} and not wrk.is_installed():
        raise _UsageError(wrk.INSTALL_HINT)
    if not model.is_file():
        raise _UsageError(f"There is no {model}: build the demo models, or name their folder with --model-repository.")
    if not arguments.nexus.is_file():
        raise _UsageError(f"There is no {arguments.nexus}: run `make setup`, or name it with --nexus.")
    return model


def _started(
    stack: contextlib.ExitStack,
    folder: Path,
    arguments: argparse.Namespace,
    model: Path,
    reference: Reference,
    say: Say,
) -> dict[str, Server]:
    """The servers that the rows need, by the rows' kind."""
    kinds, servers = {row.kind for row in arguments.selected}, dict[str, Server]()
    nexus, repository, workers = arguments.nexus, arguments.model_repository, arguments.workers

    def start(name: str, server: contextlib.AbstractContextManager[Server]) -> None:
        servers[name] = stack.enter_context(server)

    if "echo" in kinds:
        start("echo", processes.echo_server(folder))
    if "envoy" in kinds:
        start("envoy", processes.envoy_server(folder, payloads.rest_answer(reference.expected(1))))
    if kinds & {"nexus", "rest", "idle"}:
        say("starting nexus serve …")
        start("nexus", processes.nexus_server(folder, nexus, repository, workers, rest="rest" in kinds))
    if "guarded" in kinds:
        start("guarded", processes.guarded_server(folder, nexus, repository, workers))
    if "sources" in kinds:
        sources = processes.nexus_server(folder, nexus, repository, workers, False, "--no-compiled", name="sources")
        start("sources", sources)
    if kinds & {"quiet", "loading"}:
        say("starting nexus serve with a 200 MB model beside iris …")
        big, options = big_model.repository(folder, model), big_model.OPTIONS
        start("loading", processes.nexus_server(folder, nexus, big, workers, False, *options, name="loading"))
    if kinds & {"overload", "unprotected"}:
        say("starting nexus serve with a slow model, with and without admission …")
        slow = slow_model.repository(folder)
        for name in ("overload", "unprotected"):
            start(name, overload.server(folder, nexus, slow, name))
    return servers


def _bench(arguments: argparse.Namespace, given: list[str], progress: Console) -> int:
    model, rows = _model(arguments), arguments.selected
    load_before, cpu_before = os.getloadavg()[0], psutil.cpu_times()
    reference = Reference(model)

    def say(line: str) -> None:
        progress.print(escape(line), soft_wrap=True)

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nexus-bench-")))
        servers = _started(stack, folder, arguments, model, reference, say)
        runner = Runner(servers, reference, folder, arguments.seconds, say)
        results = runner.run(rows, arguments.repeat)
    targets = plan.targets(results)
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=150)
    report.print_table(console, rows, results, targets)
    facts = report.Circumstances(
        command=shlex.join([".venv/bin/python", "loadtest/bench.py", *given]),
        seconds=arguments.seconds,
        repeat=arguments.repeat,
        workers=str(arguments.workers or "the server's default"),
        load_before=load_before,
        steal_percent=steal_percent(cpu_before),
    )
    _write(arguments, rows, progress, report.markdown(rows, results, targets, facts))
    failed = any(result.problem for result in results.values())
    missed = any(target.verdict == "FAIL" for target in targets)
    return 1 if failed or (arguments.strict and missed) else 0


def _write(arguments: argparse.Namespace, rows: list[Row], progress: Console, text: str) -> None:
    if arguments.no_write:
        return
    if len(rows) < len(ROWS):
        progress.print("Not all rows were measured: RESULTS.md stays as it is.")
        return
    RESULTS.write_text(text)
    progress.print(f"written: {RESULTS.relative_to(ROOT)}")

"""What becomes of goodput when more is asked than can be done: servers, the client's calls, what is shown of them."""

import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from loadtest import processes, slow_model
from loadtest.open_loop import URGENT
from loadtest.processes import Server

ROOT = Path(__file__).resolve().parent.parent
TARGET_MS, DEADLINE_MS = 100, 500
COUNTED = ("offered", "good", "late", "shed")
WARM_UP_S = 2.0
# p99 is of what was accepted, some 200 a second: with fewer seconds a dozen answers would decide it.
SECONDS_MIN = 8.0
IN_FLIGHT = 8
# Rows are compared, so a machine that is taken away during one of them would count as goodput lost: then it is
# measured again, and the time with the least taken away counts, whatever it says.
STEAL_MAX_PERCENT, TRIES = 5.0, 3


class OverloadError(Exception):
    """The client failed, or what it saw can not be trusted."""


@dataclass(frozen=True)
class Figures:
    """Beside goodput and latency (plan.Result), of one row, measured once; or medians. Percent of what was offered."""

    offered_per_s: float
    # Answers in time per second of the worker's CPU: work wasted shows here, other users of the machine hardly do.
    good_per_cpu_s: float
    shed_percent: float
    late_percent: float
    # Of the urgent alone: answered in time.
    urgent_percent: float
    # Of a core.
    worker_percent: float
    front_percent: float
    client_percent: float
    # How late the client sent.
    lag_p99_us: float
    steal_percent: float


@dataclass(frozen=True)
class Measured:
    good_per_s: float
    p50_us: float
    p99_us: float
    figures: Figures


def median(several: list[Figures]) -> Figures | None:
    if not several:
        return None
    return Figures(*(statistics.median(getattr(one, field.name) for one in several) for field in fields(Figures)))


@contextlib.contextmanager
def server(folder: Path, nexus: Path, repository: Path, name: str) -> Iterator[Server]:
    """One worker, with the slow model's repository; called "unprotected", without admission."""
    options = ("--queue-target-ms", str(0 if name == "unprotected" else TARGET_MS))
    with processes.nexus_server(folder, nexus, repository, 1, False, *options, name=name) as started:
        yield started


def measure(server: Server, seconds: float, rate: float = 0.0, in_flight: int = 0) -> Measured:
    """The calmest of a few runs, of one where that was calm enough. Raises OverloadError."""
    calmest = None
    for _ in range(TRIES):
        tried = _measure_once(server, seconds, rate, in_flight)
        if calmest is None or tried.figures.steal_percent < calmest.figures.steal_percent:
            calmest = tried
        if calmest.figures.steal_percent <= STEAL_MAX_PERCENT:
            break
    assert calmest
    return calmest


def _measure_once(server: Server, seconds: float, rate: float, in_flight: int) -> Measured:
    """One run of the client: open loop at this rate, or closed loop with so many in flight. Raises OverloadError."""
    command = [sys.executable, "-m", "loadtest.open_loop", server.target, "--seconds", str(seconds)]
    command += ["--rounds", str(slow_model.rounds_of(server.repository))]
    command += ["--rate", f"{rate:.3f}"] if rate else ["--in-flight", str(in_flight)]
    command += ["--warm-up", str(WARM_UP_S), "--deadline-ms", str(DEADLINE_MS)]
    before = processes.cpu_seconds(server)
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=2 * seconds + 60)
    except subprocess.TimeoutExpired as error:
        raise OverloadError(f"the client was not done after {error.timeout:.0f} s") from error
    cpu_s = processes.cpu_seconds_since(server, before)
    if done.returncode:
        raise OverloadError(f"the client ended with {done.returncode}: {done.stderr[-400:]}")
    return read(json.loads(done.stdout), cpu_s)


def read(summary: dict[str, Any], cpu_s: dict[str, float]) -> Measured:
    """`summary`: open_loop.Summary as JSON; `cpu_s`: the server's, by role, all through the run.
    Raises OverloadError when it says nothing about overload."""
    if summary["errors"]:
        raise OverloadError(f"answers that are neither right nor refusals: {summary['errors']}")
    if summary["lag_p99_us"] >= DEADLINE_MS * 1000:  # less was offered than it says
        raise OverloadError("the client could not keep up: 1 % of its requests were sent after their deadline")
    counts, seconds, run_s = summary["counts"], summary["seconds"], summary["run_seconds"]
    offered, good, late, shed = (sum(each[name] for each in counts.values()) for name in COUNTED)
    urgent = counts[str(URGENT)]
    if not good + late or not urgent["offered"]:
        raise OverloadError(f"nothing was answered: {counts}")
    worker_s = cpu_s.get("worker", 0.0) * seconds / run_s
    figures = Figures(
        offered_per_s=offered / seconds,
        good_per_cpu_s=good / worker_s if worker_s else 0.0,
        shed_percent=100 * shed / offered,
        late_percent=100 * late / offered,
        urgent_percent=100 * urgent["good"] / urgent["offered"],
        worker_percent=100 * cpu_s.get("worker", 0.0) / run_s,
        front_percent=100 * cpu_s.get("front", 0.0) / run_s,
        client_percent=100 * summary["client_cpu_seconds"] / run_s,
        lag_p99_us=summary["lag_p99_us"],
        steal_percent=summary["steal_percent"],
    )
    return Measured(good / seconds, summary["p50_us"], summary["p99_us"], figures)

"""h2load (nghttp2's load generator) driven and read: a client so cheap that two cores can hold server and client.

It knows nothing of gRPC. In particular a call that fails with a grpc-status in the trailers is a success to it, so
whoever reads these figures must check the answers elsewhere (see clients.py and runner.py).
"""

import math
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

INSTALL_HINT = "h2load is missing. It is nghttp2's load generator; on Debian and Ubuntu: apt-get install nghttp2-client"

# In flight -> (connections, streams on each). One connection alone would measure one transport's lock.
CONNECTIONS = {1: (1, 1), 32: (4, 8), 256: (8, 32)}

_FINISHED = re.compile(r"^finished in ([\d.]+)(us|ms|s), ([\d.]+) req/s", re.MULTILINE)
_REQUESTS = re.compile(r"^requests: (\d+) total,.* (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", re.M)
_TRAFFIC = re.compile(r"^traffic: .*\((\d+)\) data", re.MULTILINE)
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


class H2loadError(Exception):
    pass


@dataclass(frozen=True)
class Summary:
    """h2load's own closing lines."""

    seconds: float
    requests_per_second: float
    total_count: int
    succeeded_count: int
    data_bytes: int


@dataclass(frozen=True)
class Load:
    summary: Summary
    p50_us: int
    p99_us: int


def is_installed() -> bool:
    return shutil.which("h2load") is not None


def version() -> str:
    return subprocess.run(["h2load", "--version"], capture_output=True, text=True, check=True).stdout.strip()


def parse_summary(output: str) -> Summary:
    finished, requests, traffic = _FINISHED.search(output), _REQUESTS.search(output), _TRAFFIC.search(output)
    if not (finished and requests and traffic):
        raise H2loadError(f"h2load's output is not understood:\n{output[-800:]}")
    return Summary(
        seconds=float(finished[1]) * _SECONDS[finished[2]],
        requests_per_second=float(finished[3]),
        total_count=int(requests[1]),
        succeeded_count=int(requests[2]),
        data_bytes=int(traffic[1]),
    )


def parse_log(text: str) -> tuple[list[int], int]:
    """(durations in microseconds of the requests answered with 200, count of the others)."""
    durations: list[int] = []
    failed_count = 0
    for line in text.splitlines():
        # start in microseconds since the epoch, HTTP status or -1, microseconds; "more columns may be added later".
        _, status, duration_us, *_ = line.split("\t")
        if status == "200":
            durations.append(int(duration_us))
        else:
            failed_count += 1
    return durations, failed_count


def percentile(ordered: Sequence[int], percent: float) -> int:
    """Nearest rank: the smallest value that at least `percent` of the values do not exceed. Needs them sorted."""
    if not ordered:
        raise ValueError("no values")
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def command(
    url: str, body: Path, in_flight: int, request_count: int, log: Path | None, rate: float = 0.0, key: str = ""
) -> list[str]:
    """`rate`: requests sent per second, as long as no more than `in_flight` are out; 0: as fast as answers come.
    `key`: an API key to send."""
    connections, streams = CONNECTIONS[in_flight]
    # Counted, not timed (-D): a timed run ends by cancelling what is in flight, which the server would count as
    # CANCELLED, and answers that are not OK are just what the runner looks for.
    arguments = ["h2load", "-n", str(request_count), "-c", str(connections), "-m", str(streams), "-d", str(body)]
    arguments += ["-H", "te: trailers", "-H", "content-type: application/grpc"]
    arguments += ["-H", f"x-api-key: {key}"] if key else []
    arguments += ["--rps", f"{rate / connections:.0f}"] if rate else []
    return [*arguments, *(["--log-file", str(log)] if log else []), url]


def run(
    url: str,
    body: Path,
    in_flight: int,
    request_count: int,
    log: Path | None,
    limit_s: float,
    rate: float = 0.0,
    key: str = "",
) -> Summary:
    if log:
        log.unlink(missing_ok=True)  # h2load appends
    arguments = command(url, body, in_flight, request_count, log, rate, key)
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired as error:
        raise H2loadError(f"h2load sent {request_count} requests and was not done after {limit_s:.0f} s") from error
    if done.returncode != 0:
        raise H2loadError(f"h2load ended with {done.returncode}: {(done.stderr or done.stdout)[-400:]}")
    summary = parse_summary(done.stdout)
    if summary.succeeded_count != request_count:
        raise H2loadError(f"{summary.succeeded_count} of {request_count} requests succeeded")
    return summary


def measure(
    url: str,
    body: Path,
    in_flight: int,
    request_count: int,
    log: Path,
    limit_s: float,
    rate: float = 0.0,
    key: str = "",
) -> Load:
    summary = run(url, body, in_flight, request_count, log, limit_s, rate, key)
    durations, failed_count = parse_log(log.read_text())
    if failed_count or len(durations) != request_count:
        raise H2loadError(
            f"the log has {len(durations)} of {request_count} requests with 200 and {failed_count} others"
        )
    durations.sort()
    return Load(summary, percentile(durations, 50), percentile(durations, 99))


def calibrate(url: str, body: Path, in_flight: int, key: str = "") -> float:
    """Warms the server's path up and returns its rate, with more and more requests until they take 0.4 s."""
    request_count = in_flight * 4
    while True:
        summary = run(url, body, in_flight, request_count, None, limit_s=30.0, key=key)
        if summary.seconds >= 0.4:
            return summary.requests_per_second
        request_count *= 4

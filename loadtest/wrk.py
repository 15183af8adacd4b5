"""wrk (https://github.com/wg/wrk) driven and read: the client of the REST rows.

It keeps each connection busy with one request at a time for a given time, and ends by dropping what is in flight: the
server then may count as many requests more as there were connections, answered or cancelled.
"""

import re
import shutil
import subprocess
from pathlib import Path

from loadtest.h2load import Load, Summary

INSTALL_HINT = "wrk is missing. It is an HTTP load generator; on Debian and Ubuntu: apt-get install wrk"
CONTENT_TYPE = "application/json"

_DONE = re.compile(r"^\s*(\d+) requests in ([\d.]+)(us|ms|s|m), ", re.MULTILINE)
_RATE = re.compile(r"^Requests/sec:\s*([\d.]+)", re.MULTILINE)
_PERCENTILE = re.compile(r"^\s*(50|99)%\s+([\d.]+)(us|ms|s|m)\s*$", re.MULTILINE)
_PROBLEM = re.compile(r"^\s*(Non-2xx or 3xx responses:.*|Socket errors:.*)$", re.MULTILINE)
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


class WrkError(Exception):
    pass


def is_installed() -> bool:
    return shutil.which("wrk") is not None


def parse(output: str) -> Load:
    """Reads wrk's report (made with --latency). Raises WrkError: not understood, or an answer was not 2xx or 3xx."""
    problem = _PROBLEM.search(output)
    if problem:
        raise WrkError(problem[1])
    done, rate = _DONE.search(output), _RATE.search(output)
    percentiles = {found[1]: float(found[2]) * _SECONDS[found[3]] * 1e6 for found in _PERCENTILE.finditer(output)}
    if not (done and rate and percentiles.keys() == {"50", "99"}):
        raise WrkError(f"wrk's output is not understood:\n{output[-800:]}")
    count = int(done[1])
    summary = Summary(float(done[2]) * _SECONDS[done[3]], float(rate[1]), count, count, data_bytes=0)
    return Load(summary, round(percentiles["50"]), round(percentiles["99"]))


def write_script(path: Path, body: bytes) -> None:
    """The Lua with which wrk sends `body` (JSON text without a closing long bracket) by POST."""
    lines = (
        'wrk.method = "POST"',
        f'wrk.headers["Content-Type"] = "{CONTENT_TYPE}"',
        f"wrk.body = [==[{body.decode()}]==]",
    )
    path.write_text("\n".join(lines) + "\n")


def measure(url: str, script: Path, connections: int, seconds: float) -> Load:
    """Load for about `seconds` (wrk takes whole ones)."""
    whole = max(1, round(seconds))
    arguments = ["wrk", "-t1", f"-c{connections}", f"-d{whole}s", "--latency", "-s", str(script), url]
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=whole + 30)
    except subprocess.TimeoutExpired as error:
        raise WrkError(f"wrk was not done {whole + 30} s after it began") from error
    if done.returncode != 0:
        raise WrkError(f"wrk ended with {done.returncode}: {(done.stderr or done.stdout)[-400:]}")
    return parse(done.stdout)

"""Look for known vulnerabilities in what the server is shipped with: pip-audit on requirements.lock.

    python tools/audit.py [LOCK] [--service NAME …] [--osv-url URL]

Exit 0 when there is none, 1 when there is one (or pip-audit cannot read the lock), and 0 with a warning when nobody
could be asked: `make check` must also work without a network. PyPI is asked first, then OSV; either is enough.
"""

import argparse
import json
import pathlib
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
SERVICES = ("pypi", "osv")
# Of pip-audit for one answer, and of ours for all.
ANSWER_SECONDS, SERVICE_SECONDS = 5, 90
REASON_CHARACTERS_MAX = 200
# What requests' exceptions and pip-audit's own are called when nobody answers.
_UNREACHABLE = ("ConnectionError", "ServiceError", "Timeout", "SSLError", "ProxyError", "HTTPError", "JSONDecodeError")


@dataclass(frozen=True)
class Answer:
    """What one service said: vulnerabilities as lines, how many packages it knew, and why it did not know the rest."""

    found: list[str] = field(default_factory=list)
    asked: int = 0
    known: int = 0
    reason: str = ""

    @property
    def is_complete(self) -> bool:
        return 0 < self.asked == self.known


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("lock", nargs="?", type=pathlib.Path, default=ROOT / "requirements.lock")
    parser.add_argument("--service", choices=SERVICES, action="append", help="whom to ask (default: each in turn)")
    parser.add_argument("--osv-url", default="", help="an OSV service other than the public one")
    options = parser.parse_args(arguments)
    answers = {}
    for service in options.service or SERVICES:
        answer = answers[service] = ask(options.lock, service, options.osv_url)
        if answer.found:
            print("\n".join([f"audit: known vulnerabilities ({service}):", *answer.found]), file=sys.stderr)
            return 1
        if answer.is_complete:
            print(f"audit: {service} knows of no vulnerability in the {answer.known} packages of {options.lock.name}")
            return 0
    print("audit: NOT DONE, for nobody could be asked about all packages:", file=sys.stderr)
    for service, answer in answers.items():
        print(f"  {service}: {answer.known} of {answer.asked or '?'} packages; {answer.reason}", file=sys.stderr)
    return 0


def ask(lock: pathlib.Path, service: str, osv_url: str) -> Answer:
    """Ask a service about every package of the lock. Exits when pip-audit fails by itself."""
    command = [sys.executable, "-m", "pip_audit", "--require-hashes", "--requirement", str(lock), "--disable-pip"]
    command += ["--vulnerability-service", service, "--format", "json", "--desc", "off", "--progress-spinner", "off"]
    command += ["--timeout", str(ANSWER_SECONDS), *(["--osv-url", osv_url] if osv_url else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SERVICE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Answer(reason=f"no answer within {SERVICE_SECONDS} s")
    try:
        dependencies = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        if not any(name in reason for name in _UNREACHABLE):
            raise SystemExit(f"audit: pip-audit failed: {reason}") from None
        # What was at the bottom of it comes last.
        return Answer(reason=reason[-REASON_CHARACTERS_MAX:])
    return _answer(dependencies)


def _answer(dependencies: list[dict[str, Any]]) -> Answer:
    skipped = [each["skip_reason"] for each in dependencies if "skip_reason" in each]
    found = [
        f"  {each['name']} {each['version']}: {problem['id']}"
        f" ({', '.join(problem['aliases']) or 'no other name'}), repaired in"
        f" {', '.join(problem['fix_versions']) or 'no release yet'}"
        for each in dependencies
        for problem in each.get("vulns", ())
    ]
    return Answer(found, len(dependencies), len(dependencies) - len(skipped), skipped[0] if skipped else "")


if __name__ == "__main__":
    sys.exit(main())

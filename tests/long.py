"""Runs the long tests: `make test-long` all of them, `make test-long PART=today` the part that is due by the date.

Parts of at most ten minutes each, one a day, in turn: soaks, fuzzing with many times the examples, rare
set-ups, and the fault tests again and again. `PART=3` runs the third.
"""

import dataclasses
import datetime
import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
PART_SECONDS = 600.0
# Tests of one kind that go on until this is over are not begun anew afterwards.
AGAIN_SECONDS = 240.0


@dataclasses.dataclass(frozen=True)
class Part:
    """Attributes:
    name: for people.
    options: of pytest.
    effort: how many times the usual number of examples hypothesis tries (tests/effort.py).
    again: run them again until AGAIN_SECONDS are over.
    """

    name: str
    options: tuple[str, ...]
    effort: int = 1
    again: bool = False


SOAK = "tests/chaos/test_soak.py"
SERVER_FUZZ = "tests/fuzz/test_metadata_server.py"
ROW_PROOF = ("tests/property/test_rowproof.py", "tests/property/test_rowproof_claims.py")
PARTS = (
    Part("models that change for a minute, floods", ("-m", "long", "tests/chaos", "tests/unit", f"--ignore={SOAK}")),
    Part("a soak: mixed traffic, kills and swaps for minutes", (SOAK,)),
    Part(
        "example clients that take long to build, grpcio's public API, long series", ("-m", "long", "tests/integration")
    ),
    Part("fuzzing of what a running server is sent", (SERVER_FUZZ,), effort=10),
    Part("fuzzing of decoders", ("tests/fuzz", f"--ignore={SERVER_FUZZ}"), effort=20),
    Part(
        "properties of rings, batches, limits and traffic",
        ("tests/property", *(f"--ignore={path}" for path in ROW_PROOF)),
        effort=20,
    ),
    Part("10,000 random graphs: rows in company and alone", ROW_PROOF, effort=2),
    Part(
        "processes that die, again and again", ("-m", "not long", "-k", "death or shutdown", "tests/chaos"), again=True
    ),
)


def due() -> int:
    """The number of today's part, from 0."""
    return datetime.date.today().toordinal() % len(PARTS)


def run(part: Part) -> int:
    """pytest's exit status, or 1 when the part took too long."""
    environment = {**os.environ, "TEST_EFFORT": str(part.effort)}
    # No test's own limit holds for many times its examples.
    command = [sys.executable, "-m", "pytest", "-q", *part.options, *(["--timeout=0"] if part.effort > 1 else [])]
    begun_s = time.monotonic()
    while True:
        left_s = PART_SECONDS - (time.monotonic() - begun_s)
        try:
            code = subprocess.run(command, cwd=ROOT, env=environment, timeout=left_s, check=False).returncode
        except subprocess.TimeoutExpired:
            print(f"took longer than {PART_SECONDS:g} s")
            return 1
        if code != 0 or not part.again or time.monotonic() - begun_s > AGAIN_SECONDS:
            return code


def main(which: str) -> int:
    numbers = {"all": range(len(PARTS)), "today": [due()]}.get(which)
    if numbers is None:
        if not which.isdigit() or not 1 <= int(which) <= len(PARTS):
            sys.exit(f"no such part: {which!r}; expected all, today, or 1 to {len(PARTS)}")
        numbers = [int(which) - 1]
    codes = []
    for number in numbers:
        part = PARTS[number]
        print(f"--- part {number + 1} of {len(PARTS)}: {part.name}", flush=True)
        begun_s = time.monotonic()
        codes.append(run(part))
        print(
            f"--- part {number + 1}: {'failed' if codes[-1] else 'passed'}, {time.monotonic() - begun_s:.0f} s",
            flush=True,
        )
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "all"))

"""Runs the tests: `make test`. With arguments, those are pytest's, and that is all.

Without, all but the long ones: first what may run side by side, more processes than cores since most tests wait for
servers, then one for each core what measures seconds (marked `timed`), then one after the other what measures loads
(marked `alone`). Coverage is measured in all, over the servers and commands that tests start too; it may not fall below
what pyproject.toml says (tool.coverage.report). What runs compiled cannot be measured: unit tests run the sources.
"""

import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Most of a test's time is waiting: for a server's start, for a limit's end.
PROCESSES = 2 * (os.cpu_count() or 1)
PHASES = {
    # In the order of the folders: the slow files first, so that no process is left with one at the end.
    f"side by side, {PROCESSES} at once": [
        *("-m", "not alone and not timed and not long"),
        *("-n", str(PROCESSES), "--dist", "loadfile", "--no-loadscope-reorder"),
    ],
    "timed, one for each core": ["-m", "timed and not long", "-n", str(os.cpu_count() or 1), "--dist", "loadfile"],
    "alone": ["-m", "alone and not long"],
}
PYTEST = [sys.executable, "-m", "pytest"]
COVERAGE = [sys.executable, "-m", "coverage"]


def main(arguments: list[str]) -> int:
    os.chdir(ROOT)
    if arguments:
        return subprocess.call([*PYTEST, *arguments])
    subprocess.run([*COVERAGE, "erase"], check=True)
    codes = {}
    for title, options in PHASES.items():
        print(f"--- {title}", flush=True)
        begun_s = time.monotonic()
        codes[title] = subprocess.call([*COVERAGE, "run", "-m", "pytest", "-q", *options])
        print(f"--- {title}: {time.monotonic() - begun_s:.0f} s", flush=True)
    subprocess.run([*COVERAGE, "combine", "--quiet"], check=True)
    codes["coverage"] = subprocess.call([*COVERAGE, "report"])
    failed = [title for title, code in codes.items() if code != 0]
    print("FAILED: " + "; ".join(failed) if failed else "all passed")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

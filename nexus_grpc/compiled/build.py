"""Builds lib/: `python -m nexus_grpc.compiled.build`. Takes a minute; does nothing when lib/ is up to date.

Needs mypy, setuptools (the extra `compile`), a C compiler and Python's headers. Compiling is optional: whatever goes
wrong is one line on standard error, and the server runs its sources. With CI=true or --require that is an error.

The work is done in a process of its own, on a copy of the package (where it is installed, its neighbours would be taken
for its own), and its output goes to a file: mypyc and compilers talk a lot, and end their process when something is
wrong. What came out is imported once before it takes the place of what was there.
"""

import argparse
import contextlib
import ctypes
import importlib.util
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from nexus_grpc.compiled import LIBRARY, MANIFEST, MODULES, ROOT, SHARED, library_sizes, manifest, source_of, why_not

SPEED = "the server runs its sources all the same, with a fifth more CPU per request"
STAGES = {"translate": "1 of 2: Python to C", "compile": "2 of 2: C to machine code"}
COMPILERS = ("mypy", "setuptools", "types-grpcio", "types-protobuf")
IMPORT_ALL = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"
PR_SET_PDEATHSIG = 1
SAID_MAX = 300
# Types are checked by `make check`; here they only guide what is made of them.
MYPY_OPTIONS = ["--config-file=", "--ignore-missing-imports"]


class Failed(Exception):
    """Compiling went wrong; the text says how, in a line."""


def missing() -> str:
    """What is missing on this machine to build; empty when nothing is."""
    words = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "").split() or ["cc"]
    if shutil.which(words[0]) is None:
        return f"a C compiler ({words[0]}; on Debian: apt-get install gcc libc6-dev)"
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not headers.exists():
        return "Python's headers (on Debian: apt-get install python3-dev)"
    for module in ("mypyc", "setuptools"):
        if importlib.util.find_spec(module) is None:
            return f"{module} (pip install {' '.join(COMPILERS)})"
    return ""


def build(work: Path, modules: list[str]) -> None:
    """Compile modules into `work`/lib, telling the stages on standard output. Raises what setuptools does; may exit."""
    # Here, as neither is there where there is nothing to build with.
    from mypyc.build import mypycify
    from setuptools import Distribution  # type: ignore[import-untyped]

    # Whoever waits for this process may be killed.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    package = work / "source" / "nexus_grpc"
    shutil.copytree(ROOT / "nexus_grpc", package, ignore=shutil.ignore_patterns("__pycache__", "lib", "build-*", "www"))
    os.chdir(package.parent)
    print("translate", flush=True)
    with contextlib.redirect_stdout(sys.stderr):
        extensions = mypycify(
            [*MYPY_OPTIONS, *(str(source_of(module).relative_to(ROOT)) for module in modules)],
            opt_level="2",
            debug_level="0",
            group_name="nexus_compiled",
            target_dir=str(work / "c"),
        )
    print("compile", flush=True)
    command = Distribution({"ext_modules": extensions}).get_command_obj("build_ext")
    command.build_lib, command.build_temp = str(work / "lib"), str(work / "temp")
    command.ensure_finalized()
    logging.disable(logging.INFO)  # the compiler's command lines
    with contextlib.redirect_stdout(sys.stderr):
        command.run()
    told = {**manifest(), "sizes": library_sizes(work / "lib")}
    (work / "lib" / MANIFEST).write_text(json.dumps(told, indent=1) + "\n")


def build_apart(work: Path, log: Path) -> None:
    """`build` in a process of its own, with its stages shown; its words go to `log`. Raises Failed, OSError."""
    with open(log, "w", encoding="utf-8") as output:
        command = [sys.executable, "-m", __spec__.name, "--into", str(work), *MODULES]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=output, text=True)
        with process:
            try:
                assert process.stdout is not None
                show(stage.strip() for stage in process.stdout)
            except BaseException:
                process.kill()
                raise
        code = process.returncode or try_out(work / "lib", output)
    if code != 0:
        raise Failed(what_was_said(log.read_text(encoding="utf-8", errors="replace")))


def try_out(folder: Path, output: TextIO) -> int:
    """Import what was built, in a process of its own: it may be for another machine. Returns the exit status."""
    names = [SHARED, *MODULES]
    program = (
        f"import pathlib; from nexus_grpc import compiled; assert compiled.use(pathlib.Path({str(folder)!r})), "
        f"'what was built cannot be imported'; {IMPORT_ALL}"
    )
    command = [sys.executable, "-c", program, *names]
    return subprocess.run(command, cwd=ROOT, stdout=output, stderr=output, check=False).returncode


def show(stages: Iterator[str]) -> None:
    """Tell each stage: on a terminal with a clock that runs, else a line as it begins."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        for stage in stages:
            title = f"compiling {len(MODULES)} modules, {STAGES.get(stage, stage)}"
            for task in progress.task_ids:
                progress.stop_task(task)
            progress.add_task(title, total=None)
            if not console.is_terminal:
                print(title, file=sys.stderr, flush=True)


def what_was_said(log: str) -> str:
    """The line of a failed build's output that says most: the first that a tool marks as an error, else the last."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\berror: ", line)]
    said = (errors or lines[-1:] or ["it said nothing"])[0]
    # A command's beginning, and how it ended.
    return said if len(said) <= SAID_MAX else f"{said[: SAID_MAX // 2]} … {said[-SAID_MAX // 2 :]}"


def give_up(reason: str, *, required: bool) -> int:
    print(f"not compiled: {reason}; {SPEED}", file=sys.stderr)
    return int(required)


def main(options: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description="Compile the hot path.")
    parser.add_argument("--require", action="store_true", help="fail when it cannot be done (as CI=true does)")
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("modules", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args(options)
    if arguments.into:
        build(arguments.into, arguments.modules)
        return 0
    required = arguments.require or os.environ.get("CI") == "true"
    if not why_not():
        return 0
    if lacking := missing():
        return give_up(f"it takes {lacking}", required=required)
    return compile_all(required=required)


def compile_all(*, required: bool) -> int:
    begun_s = time.monotonic()
    descriptor, name = tempfile.mkstemp(prefix="nexus-compile-", suffix=".log")
    os.close(descriptor)
    log = Path(name)
    try:
        # Beside lib/, so that it can be renamed into place.
        with tempfile.TemporaryDirectory(dir=LIBRARY.parent, prefix="build-") as work:
            build_apart(Path(work), log)
            shutil.rmtree(LIBRARY, ignore_errors=True)
            (Path(work) / "lib").rename(LIBRARY)
    except Failed as error:
        return give_up(f"{error} (all of it: {log})", required=required)
    except OSError as error:
        log.unlink()
        # Another one may have been faster.
        return give_up(str(error), required=required) if why_not() else 0
    except KeyboardInterrupt:
        log.unlink()
        print("compiling was interrupted; the next `make serve` or `make setup` tries again", file=sys.stderr)
        return 130
    log.unlink()
    print(f"compiled in {time.monotonic() - begun_s:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    # So that what is under way is ended and swept, too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main())

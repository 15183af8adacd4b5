"""Builds lib/: `python -m nexus_grpc.compiled.build`. Takes a minute; does nothing when lib/ is up to date.

Needs mypy, setuptools (the extra `compile`), a C compiler and Python's headers. Compiling is optional: whatever goes
wrong is one line on standard error, and the server runs its sources. With CI=true or --require that is an error.

The work is done in a process of its own, whose output goes to a file: mypyc and compilers talk a lot, and end their
process when something is wrong.
"""

import argparse
import contextlib
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from nexus_grpc.compiled import LIBRARY, MANIFEST, MODULES, ROOT, manifest, source_of, why_not

SPEED = "the server runs its sources all the same, with a fifth more CPU per request"
STAGES = {"translate": "1 of 2: Python to C", "compile": "2 of 2: C to machine code"}
LOG = LIBRARY.parent / "build.log"
# Types are checked by `make check`; here they only guide what is made of them.
MYPY_OPTIONS = ["--config-file=", "--ignore-missing-imports"]
POLL_SECONDS = 0.1


class Failed(Exception):
    """Compiling went wrong; the text says how, in a line."""


def missing() -> str:
    """What is missing on this machine to build; empty when nothing is."""
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        return f"a C compiler ({compiler}; on Debian: apt-get install gcc libc6-dev)"
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not headers.exists():
        return "Python's headers (on Debian: apt-get install python3-dev)"
    for module in ("mypyc", "setuptools"):
        if importlib.util.find_spec(module) is None:
            return f"{module} (pip install 'nexus-grpc[compile]')"
    return ""


def build(work: Path, modules: list[str]) -> None:
    """Compile modules into `work`/lib, telling the stages on standard output. Raises what setuptools does; may exit."""
    # Here, as neither is there where there is nothing to build with.
    from mypyc.build import mypycify
    from setuptools import Distribution  # type: ignore[import-untyped]

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
    (work / "lib" / MANIFEST).write_text(json.dumps(manifest(), indent=1) + "\n")


def build_apart(work: Path) -> None:
    """`build` in a process of its own, with its stages shown. Raises Failed, OSError."""
    with open(LOG, "w", encoding="utf-8") as log:
        command = [sys.executable, "-m", __spec__.name, "--into", str(work), *MODULES]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
        with process:
            try:
                assert process.stdout is not None
                show(stage.strip() for stage in process.stdout)
            except BaseException:
                process.kill()
                raise
    if process.returncode != 0:
        raise Failed(what_was_said(LOG.read_text(encoding="utf-8", errors="replace")))
    LOG.unlink()


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
    """The line of a failed build's output that says most: the first that names an error, else the last."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines[-1:] or ["it said nothing"])[0][:300]


def give_up(reason: str, *, required: bool) -> int:
    print(f"not compiled: {reason}; {SPEED}", file=sys.stderr)
    return int(required)


def main(options: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m nexus_grpc.compiled.build", description=__doc__.splitlines()[0])
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
    begun_s = time.monotonic()
    try:
        # Beside lib/, so that it can be renamed into place.
        with tempfile.TemporaryDirectory(dir=LIBRARY.parent, prefix="build-") as name:
            build_apart(Path(name))
            shutil.rmtree(LIBRARY, ignore_errors=True)
            (Path(name) / "lib").rename(LIBRARY)
    except Failed as error:
        return give_up(f"{error} (all of it: {LOG})", required=required)
    except OSError as error:
        return give_up(str(error), required=required)
    except KeyboardInterrupt:
        return give_up("interrupted; `make setup` tries again", required=True)
    print(f"compiled in {time.monotonic() - begun_s:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Builds lib/: `python -m nexus_grpc.compiled.build`. Takes a minute; does nothing when lib/ is up to date.

Needs mypy, setuptools, a C compiler and Python's headers. Without a compiler it says so and ends well: the server runs
its sources then. With CI=true that is an error.
"""

import json
import logging
import os
import shutil
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from nexus_grpc.compiled import LIBRARY, MANIFEST, MODULES, ROOT, manifest, source_of, why_not

SPEED = "a fifth more CPU per request"


def missing() -> str:
    """What is missing on this machine to build; empty when nothing is."""
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        return f"a C compiler ({compiler}; on Debian: apt-get install gcc)"
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not headers.exists():
        return "Python's headers (on Debian: apt-get install python3-dev)"
    return ""


def build(work: Path) -> None:
    """Compile into `work`/lib. Raises what setuptools raises when the compiler fails."""
    # Here, as neither is there where there is nothing to build with.
    from mypyc.build import mypycify
    from setuptools import Distribution  # type: ignore[import-untyped]

    sources = [str(source_of(module).relative_to(ROOT)) for module in MODULES]
    extensions = mypycify(
        ["--config-file", "pyproject.toml", *sources],
        opt_level="2",
        debug_level="0",
        group_name="nexus_compiled",
        target_dir=str(work / "c"),
    )
    command = Distribution({"ext_modules": extensions}).get_command_obj("build_ext")
    command.build_lib, command.build_temp = str(work / "lib"), str(work / "temp")
    command.ensure_finalized()
    logging.disable(logging.INFO)  # the compiler's command lines
    command.run()
    (work / "lib" / MANIFEST).write_text(json.dumps(manifest(), indent=1) + "\n")


def main() -> int:
    if not why_not():
        return 0
    lacking = missing()
    if lacking:
        print(f"not compiled, for lack of {lacking}: the server works all the same, with {SPEED}", file=sys.stderr)
        return int(os.environ.get("CI") == "true")
    print(f"compiling {len(MODULES)} modules, which takes a minute", flush=True)
    begun_s = time.monotonic()
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory(dir=LIBRARY.parent) as name:
        build(Path(name))
        shutil.rmtree(LIBRARY, ignore_errors=True)
        (Path(name) / "lib").rename(LIBRARY)
    print(f"compiled in {time.monotonic() - begun_s:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())

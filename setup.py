"""What pyproject.toml cannot say: a wheel has protobuf code generated as it is built, and perhaps compiled modules.

`pip install .` makes a pure wheel. With NEXUS_COMPILE=1 and --no-build-isolation, as by `make wheel`, it carries the
hot path as machine code, too (nexus_grpc/compiled), for this Python and processor.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
COMPILE = os.environ.get("NEXUS_COMPILE") == "1"
COMPILED = Path("nexus_grpc") / "compiled" / "lib"


class BuildWhole(build_py):
    """Sources as they are, nexus_grpc/pb from proto/, and what was compiled."""

    def run(self) -> None:
        target = ROOT if self.editable_mode else Path(self.build_lib)
        if not self.editable_mode:
            # What an earlier build left there would be packed, too.
            shutil.rmtree(target, ignore_errors=True)
        super().run()
        generate = [sys.executable, str(ROOT / "proto" / "build.py"), "--out", str(target / "nexus_grpc" / "pb")]
        subprocess.run(generate, check=True)
        if COMPILE and not self.editable_mode:
            subprocess.run([sys.executable, "-m", "nexus_grpc.compiled.build", "--require"], cwd=ROOT, check=True)
            shutil.copytree(ROOT / COMPILED, target / COMPILED, dirs_exist_ok=True)


class Platform(Distribution):
    """One whose wheel says for which Python and processor it is."""

    def has_ext_modules(self) -> bool:
        return COMPILE or super().has_ext_modules()


setup(cmdclass={"build_py": BuildWhole}, distclass=Platform)

"""What a front brings into memory."""

import subprocess
import sys

from tests.unit.support import ROOT

PROGRAM = (
    "import sys, nexus_grpc.front.main, nexus_grpc.front.front; print([n for n in sys.argv[1:] if n in sys.modules])"
)


def test_a_front_imports_nothing_that_it_does_not_need() -> None:
    """13 MiB for declaring settings, 20 for credentials and Redis, and onnxruntime is the workers'."""
    heavy = (
        "pydantic",
        "cryptography",
        "redis",
        "onnxruntime",
        "numpy",
        "nexus_grpc.settings",
        "nexus_grpc.supervisor",
    )
    command = [sys.executable, "-c", PROGRAM, *heavy]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[]\n"

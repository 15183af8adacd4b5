"""The programs of examples/clients are built with their own toolchains and run against a real server."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from tests.harness import ROOT, Server, copy_models, free_port, require_tool, running_server
from tests.integration.client import IRIS_ROW
from tests.integration.graphs import reference

# The first build downloads what it needs; toolchains keep that in caches of their own.
BUILD_SECONDS, RUN_SECONDS = 900, 120
pytestmark = pytest.mark.timeout(BUILD_SECONDS + 3 * RUN_SECONDS)
CLIENTS = ROOT / "examples" / "clients"


@pytest.fixture(scope="module")
def iris(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("examples")
    with running_server(folder, "--workers=1", repository=copy_models(folder / "models", "iris")) as server:
        yield server


def copied(tmp_path: pathlib.Path, language: str) -> pathlib.Path:
    """The program and proto/, laid out as in the repository, so that builds leave nothing there."""
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    place = tmp_path / "examples" / "clients" / language
    # What was built by hand is left behind.
    built = shutil.ignore_patterns("node_modules", "target", "pb", "bin", "client")
    shutil.copytree(CLIENTS / language, place, ignore=built)
    return place


def build(place: pathlib.Path, *command: str, **environment: str) -> None:
    done = subprocess.run(
        command,
        cwd=place,
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}\n{done.stderr}"


def run(place: pathlib.Path, *command: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=RUN_SECONDS, check=False)
    # Maven resets the terminal's colours whether it has changed them or not.
    done.stdout, done.stderr = (re.sub(r"\x1b\[\d*m", "", text) for text in (done.stdout, done.stderr))
    return done


def expected() -> list[str]:
    """What every program prints, from onnxruntime itself."""
    outputs = reference("iris", {"X": np.array([IRIS_ROW], np.float32)})
    label = int(outputs["label"][0])
    probabilities = " ".join(f"{value:.4f}" for value in outputs["probabilities"][0])
    return [
        f"Predict: prediction {label}, probabilities {probabilities}",
        f"ModelInfer: label {label}, probabilities {probabilities}",
    ]


def check(server: Server, place: pathlib.Path, *command: str, joined: str = "") -> None:
    """Runs `command` with the address as its last argument (or appended to `joined`): with a server, and without."""

    def with_address(address: str) -> tuple[str, ...]:
        return (*command, joined + address)

    good = run(place, *with_address(server.address))
    assert (good.returncode, good.stdout.strip().splitlines()) == (0, expected()), good.stderr
    nowhere = f"127.0.0.1:{free_port()}"
    bad = run(place, *with_address(nowhere))
    assert bad.returncode == 1, bad.stdout
    assert bad.stdout.strip() == ""
    complaint = bad.stderr.lower()
    assert f"client: {nowhere} answered unavailable: " in complaint
    assert "refused" in complaint


def test_python(iris: Server) -> None:
    check(iris, CLIENTS / "python", sys.executable, "client.py")


@pytest.mark.long
def test_go(iris: Server, tmp_path: pathlib.Path) -> None:
    require_tool("go")
    place = copied(tmp_path, "go")
    build(place, require_tool("make"), f"PYTHON={sys.executable}", GOFLAGS="-mod=readonly -buildvcs=false")
    check(iris, place, "./client")


def test_node(iris: Server, tmp_path: pathlib.Path) -> None:
    node, npm = require_tool("node"), require_tool("npm")
    place = copied(tmp_path, "node")
    build(place, npm, "ci", "--prefer-offline", "--no-audit", "--no-fund")
    check(iris, place, node, "client.js")


@pytest.mark.long
def test_java(iris: Server, tmp_path: pathlib.Path) -> None:
    require_tool("javac")
    maven = (require_tool("mvn"), "-q", "-B")
    place = copied(tmp_path, "java")
    build(place, *maven, "compile")
    check(iris, place, *maven, "exec:java", joined="-Dexec.args=")

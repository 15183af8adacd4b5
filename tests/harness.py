"""Starts real servers for tests, on free ports, and leaves nothing behind."""

import contextlib
import dataclasses
import fcntl
import http.client
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator

import grpc
import psutil

from nexus_grpc.pb.inference import grpc_service_pb2 as pb

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"
NEXUS = [sys.executable, "-m", "nexus_grpc.cli.main"]
START_SECONDS = 40.0
CI = os.environ.get("CI") == "true"


def _candidates() -> Iterator[int]:
    """Ports for this process alone, over and over: test processes that run side by side, of other runs too, have a
    range each, below those that the kernel gives to outgoing connections.
    """
    for first in range(PORTS.start, PORTS.stop, PORTS_PER_PROCESS):
        claim = open(pathlib.Path(tempfile.gettempdir()) / f"nexus-test-ports-{first}", "w")  # noqa: SIM115
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            claim.close()
            continue
        while True:  # and keeps the claim open
            yield from range(first, first + PORTS_PER_PROCESS)
    raise AssertionError(f"more than {len(PORTS) // PORTS_PER_PROCESS} test processes at once")


PORTS = range(10_000, 32_000)
PORTS_PER_PROCESS = 1_000
_ports = _candidates()


def free_port() -> int:
    """A port that nobody listens on, and that no other test is told of for a while."""
    for port in _ports:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("unreachable")


def copy_models(target: pathlib.Path, *names: str) -> pathlib.Path:
    """A repository with some of the demo models."""
    for name in names:
        shutil.copytree(MODELS / name, target / name)
    return target


@dataclasses.dataclass
class Server:
    """A running server."""

    process: subprocess.Popen[str]
    port: int
    metrics_port: int
    log: pathlib.Path
    rest_port: int = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def children(self, role: str) -> list[psutil.Process]:
        """The fronts or workers, by their process names, ordered by index."""
        found = []
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                command = " ".join(child.cmdline())
                if command.startswith(f"nexus: {role} "):
                    found.append((int(command.split()[2]), child))
        return [child for _, child in sorted(found, key=lambda item: item[0])]

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as response:
            return str(response.read().decode())

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry these labels."""
        from prometheus_client.parser import text_string_to_metric_families

        total = 0.0
        for family in text_string_to_metric_families(self.metrics()):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    total += sample.value
        return total

    def log_text(self) -> str:
        return self.log.read_text()

    def stop(self, seconds: float = 40.0) -> int:
        """SIGTERM, wait, return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


def wait_ready(address: str, process: subprocess.Popen[str], log: pathlib.Path, seconds: float = START_SECONDS) -> None:
    """Until ServerReady says so. Raises AssertionError with the log when the process ends or time is up."""
    deadline = time.monotonic() + seconds
    with grpc.insecure_channel(address) as channel:
        ready = channel.unary_unary(
            "/inference.GRPCInferenceService/ServerReady",
            request_serializer=pb.ServerReadyRequest.SerializeToString,
            response_deserializer=pb.ServerReadyResponse.FromString,
        )
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise AssertionError(f"the server ended with {process.returncode}:\n{log.read_text()}")
            with contextlib.suppress(grpc.RpcError):
                if ready(pb.ServerReadyRequest(), timeout=1, wait_for_ready=True).ready:
                    return
    raise AssertionError(f"not ready after {seconds} s:\n{log.read_text()}")


def wait_rest(port: int, process: subprocess.Popen[str], log: pathlib.Path, seconds: float = START_SECONDS) -> None:
    """Until the REST port answers anything. Raises AssertionError with the log when the process ends or time is up."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"the server ended with {process.returncode}:\n{log.read_text()}")
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
            with contextlib.closing(connection):
                connection.request("GET", "/health")
                connection.getresponse().read()
                return
        time.sleep(0.05)
    raise AssertionError(f"REST does not answer after {seconds} s:\n{log.read_text()}")


@contextlib.contextmanager
def running_server(
    tmp_path: pathlib.Path,
    *options: str,
    repository: pathlib.Path = MODELS,
    environment: dict[str, str] | None = None,
    wait: bool = True,
    prefix: tuple[str, ...] = (),
    rest: bool = False,
) -> Iterator[Server]:
    """`nexus serve` on free ports; killed, with its children, at the end if it still runs.

    `prefix` goes before the command (such as `unshare -m …`); `options` after it. `rest`: with Envoy, on
    `Server.rest_port`; without TLS unless `wait` is false.
    """
    port, metrics_port, rest_port = free_port(), free_port(), free_port() if rest else 0
    log = tmp_path / f"server-{port}.log"
    ports = [f"--grpc-port={port}", f"--rest-port={rest_port}", f"--metrics-port={metrics_port}"]
    command = [*prefix, *NEXUS, "serve", f"--model-repository={repository}", *ports, *options]
    variables = {key: value for key, value in os.environ.items() if not key.startswith("NEXUS_")}
    with open(log, "w") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tmp_path,
            env={**variables, **(environment or {})},
        )
    server = Server(process, port, metrics_port, log, rest_port)
    family = [psutil.Process(process.pid)]
    try:
        if wait:
            wait_ready(server.address, process, log)
            if rest:
                wait_rest(rest_port, process, log)
        yield server
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            family += psutil.Process(process.pid).children(recursive=True)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait(10)


def certificate(folder: pathlib.Path, name: str) -> tuple[pathlib.Path, pathlib.Path]:
    """A certificate for localhost, signed by itself, and its key, as PEM files."""
    chain, key = folder / f"{name}.pem", folder / f"{name}.key"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    files = ["-keyout", str(key), "-out", str(chain)]
    subprocess.run([*command, *subject, *files], check=True, capture_output=True, timeout=30)
    return chain, key


def require_tool(name: str) -> str:
    """The path of an external program. With CI=true a missing one fails the test; otherwise it is skipped."""
    import pytest

    for folder in (ROOT / ".tools" / "bin", None):
        found = shutil.which(name, path=str(folder)) if folder else shutil.which(name)
        if found:
            return found
    if CI:
        pytest.fail(f"{name} is missing; with CI=true that is a failure (make tools, or install its Debian package)")
    pytest.skip(f"{name} is not installed")

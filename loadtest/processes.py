"""The processes of a run: started, watched from outside (CPU, memory, metrics), and stopped whatever happens."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import grpc
import psutil
from prometheus_client.parser import text_string_to_metric_families

from loadtest import clients, envoy_floor
from nexus_grpc.pb.inference import grpc_service_pb2 as oip
from nexus_grpc.pb.inference import grpc_service_pb2_grpc as oip_grpc

ROLES = ("front", "worker", "supervisor", "envoy")
STOP_AFTER_S = 10.0
READY_WITHIN_S = 60.0


class StartError(Exception):
    pass


@dataclass
class Server:
    """A started server and all its processes."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path
    port: int = 0
    metrics_port: int = 0
    rest_port: int = 0
    # An API key for it; empty where it asks for none.
    key: str = ""
    # Its model repository.
    repository: Path = Path()
    # Every process ever seen below the leader, so that none is forgotten when the leader dies first.
    seen: dict[int, psutil.Process] = field(default_factory=dict)

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def origin(self) -> str:
        """Where REST is served."""
        return f"http://127.0.0.1:{self.rest_port}"

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def tree(self) -> list[psutil.Process]:
        try:
            leader = psutil.Process(self.process.pid)
            children = leader.children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        self.seen.update((child.pid, child) for child in children)
        return [leader, *children]

    def log_tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cpu_seconds(server: Server) -> dict[tuple[int, float], float]:
    """User and system time so far of each process; the key survives the reuse of a pid."""
    used = {}
    for process in server.tree():
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            used[process.pid, process.create_time()] = times.user + times.system
    return used


def cpu_seconds_since(server: Server, before: dict[tuple[int, float], float]) -> dict[str, float]:
    """By role; one that is not known (the reference's own) is 'front'."""
    roles, used_by = roles_of(server), dict[str, float]()
    for key, used in cpu_seconds(server).items():
        role = roles.get(key[0], "front")
        used_by[role] = used_by.get(role, 0.0) + used - before.get(key, 0.0)
    return used_by


def roles_of(server: Server) -> dict[int, str]:
    """Role by pid; a server without metrics (the reference) is all 'front'."""
    if not server.metrics_port:
        return {server.process.pid: "front"}
    processes = (labels for name, labels, value in metrics(server) if name == "nexus_process_info" and value)
    return {int(labels["pid"]): labels["role"] for labels in processes}


def metrics(server: Server) -> list[tuple[str, dict[str, str], float]]:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=5) as page:
        text = page.read().decode()
    return [
        (sample.name, dict(sample.labels), float(sample.value))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]


def request_counts(server: Server) -> dict[str, float]:
    """nexus_requests_total by code; nobody but the bench talks to this server, so the other labels may be summed."""
    counts: dict[str, float] = {}
    for name, labels, value in metrics(server):
        if name == "nexus_requests_total":
            counts[labels["code"]] = counts.get(labels["code"], 0.0) + value
    return counts


def rss_mib(server: Server) -> dict[str, float]:
    """The largest resident set of each role."""
    largest: dict[str, float] = {}
    for pid, role in roles_of(server).items():
        with contextlib.suppress(psutil.NoSuchProcess):
            largest[role] = max(largest.get(role, 0.0), psutil.Process(pid).memory_info().rss / 2**20)
    return largest


def steal_percent(before: Any) -> float:
    """Share of all cores' time that the hypervisor gave to others since `before` (psutil.cpu_times())."""
    now = psutil.cpu_times()
    elapsed = sum(now) - sum(before)
    return float(100 * (now.steal - before.steal) / elapsed) if elapsed else 0.0


def _spawn(arguments: list[str], log: IO[bytes], stdout: "IO[bytes] | int") -> "subprocess.Popen[bytes]":
    # Its own session: a Ctrl-C reaches the bench alone, which then stops the servers in order.
    return subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=stdout, stderr=log, start_new_session=True)


@contextlib.contextmanager
def echo_server(folder: Path) -> Iterator[Server]:
    log = folder / "echo.log"
    script = Path(__file__).with_name("echo_server.py")
    with log.open("wb") as errors:
        process = _spawn([sys.executable, str(script)], errors, subprocess.PIPE)
    server = Server("echo", process, log)
    with _stopped_at_the_end(server):
        assert process.stdout
        line = process.stdout.readline()  # ends with the process, if that fails
        if not line.strip().isdigit():
            raise StartError(f"the echo server did not start:\n{server.log_tail()}")
        server.port = int(line)
        yield server


@contextlib.contextmanager
def envoy_server(folder: Path, answer: bytes) -> Iterator[Server]:
    """Envoy with nothing behind it (envoy_floor.py)."""
    log, port = folder / "envoy.log", free_port()
    with log.open("wb") as output:
        process = _spawn(envoy_floor.command(folder, port, answer), output, output)
    server = Server("envoy", process, log, rest_port=port)
    with _stopped_at_the_end(server):
        _wait_for_port(server)
        yield server


def _wait_for_port(server: Server) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline and server.is_alive():
        try:
            socket.create_connection(("127.0.0.1", server.rest_port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise StartError(f"{server.name} did not listen on port {server.rest_port}:\n{server.log_tail()}")


@contextlib.contextmanager
def nexus_server(
    folder: Path, nexus: Path, repository: Path, workers: int | None, rest: bool, *options: str, name: str = "nexus"
) -> Iterator[Server]:
    """`rest`: with Envoy beside it; `options`: more of `nexus serve`'s; `name`: of its log and data folder."""
    log, data = folder / f"{name}.log", folder / f"{name}-data"
    port, metrics_port, rest_port = free_port(), free_port(), free_port() if rest else 0
    arguments = [str(nexus), "serve", "--model-repository", str(repository), "--grpc-port", str(port)]
    arguments += ["--rest-port", str(rest_port), "--metrics-port", str(metrics_port)]
    arguments += ["--data-dir", str(data), *options, *(["--workers", str(workers)] if workers else [])]
    with log.open("wb") as output:
        process = _spawn(arguments, output, output)
    server = Server("nexus", process, log, port, metrics_port, rest_port, repository=repository)
    with _stopped_at_the_end(server):
        try:
            clients.wait_for(server.target, _is_server_ready, server.is_alive, READY_WITHIN_S)
        except clients.NotReadyError as error:
            raise StartError(f"nexus serve: {error}\n{server.log_tail()}") from error
        if rest:
            _wait_for_port(server)
        yield server


@contextlib.contextmanager
def guarded_server(folder: Path, nexus: Path, repository: Path, workers: int | None) -> Iterator[Server]:
    """One that asks for API keys, and a key."""
    made = subprocess.run(
        [str(nexus), "keys", "create", "bench", "--scopes", "predict,read"],
        env={**os.environ, "NEXUS_DATA_DIR": str(folder / "guarded-data")},
        capture_output=True,
        text=True,
    )
    if made.returncode:
        raise StartError(f"nexus keys create: {made.stderr}")
    with nexus_server(folder, nexus, repository, workers, False, "--auth", "required", name="guarded") as server:
        server.key = made.stdout.strip()
        yield server


def _is_server_ready(channel: grpc.Channel) -> bool:
    stub = oip_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
    return bool(stub.ServerReady(oip.ServerReadyRequest(), timeout=2.0).ready)


@contextlib.contextmanager
def _stopped_at_the_end(server: Server) -> Iterator[None]:
    try:
        yield
    finally:
        stop(server)


def stop(server: Server) -> None:
    """SIGTERM, ten seconds, SIGKILL; then whatever the leader left behind. Only processes seen below the leader."""
    with _no_interrupts():
        server.tree()
        if server.is_alive():
            server.process.terminate()
            try:
                server.process.wait(STOP_AFTER_S)
            except subprocess.TimeoutExpired:
                server.tree()
                server.process.kill()
                server.process.wait()
                print(f"{server.name} did not stop within {STOP_AFTER_S:.0f} s of SIGTERM: killed", file=sys.stderr)
        if server.process.stdout:
            server.process.stdout.close()
        _, left = psutil.wait_procs(list(server.seen.values()), timeout=1.0)
        left = [process for process in left if not _is_zombie(process)]
        if left:
            print(f"{server.name} left {len(left)} processes behind: killed", file=sys.stderr)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()  # psutil refuses where the pid now belongs to another process


def _is_zombie(process: psutil.Process) -> bool:
    """Ended, and only not reaped: where pid 1 is no init, as in many containers, orphans stay like that."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@contextlib.contextmanager
def _no_interrupts() -> Iterator[None]:
    """A second Ctrl-C while the first is being tidied up must not leave a server behind."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, action in zip(numbers, before, strict=True):
            signal.signal(number, action)

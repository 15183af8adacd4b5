"""Overload and failing models on a running server: circuits, the fallback version, ceilings, priorities, deadlines."""

import collections
import json
import pathlib
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2

from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from tests.conftest import TRANSPORTS
from tests.harness import NEXUS, Server, copy_models, running_server
from tests.integration import graphs
from tests.integration.client import OIP, Client, raw_request
from tests.integration.rest import get, post

pytestmark = pytest.mark.timed
OPEN_SECONDS = 4.0
ROW = [[4.0, 0.0]]


@pytest.fixture(params=TRANSPORTS)
def server(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[Server]:
    repository = copy_models(tmp_path / "models", "iris")
    graphs.fragile(repository)
    graphs.slow(repository)
    options = (f"--circuit-open-seconds={OPEN_SECONDS}", f"--front-api={request.param}", "--workers=1")
    with running_server(tmp_path, *options, repository=repository, rest=True) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    made = Client(server.address)
    yield made
    made.close()


def fragile(rows: list[list[float]], version: str = "") -> pb.ModelInferRequest:
    return raw_request("fragile", {"x": np.array(rows, np.float32)}, model_version=version)


def infer(client: Client, request: pb.ModelInferRequest) -> tuple[str, dict[str, Any]]:
    """The version that answered, and the answer's headers."""
    path, serialise = OIP + "ModelInfer", pb.ModelInferRequest.SerializeToString
    method = client.channel.unary_unary(path, serialise, pb.ModelInferResponse.FromString)
    answer, call = method.with_call(request, timeout=20)
    return answer.model_version, dict(call.initial_metadata())


def reason_of(error: grpc.RpcError) -> tuple[str, float]:
    """ErrorInfo's reason and RetryInfo's seconds (0 without one)."""
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details:
        detail.Unpack(info) or detail.Unpack(retry)
    return info.reason, retry.retry_delay.ToNanoseconds() / 1e9


def fail(client: Client, times: int) -> None:
    for _ in range(times):
        with pytest.raises(grpc.RpcError) as raised:
            client.infer(fragile(ROW))
        assert raised.value.code() is grpc.StatusCode.INTERNAL


def circuit_shown(server: Server) -> str:
    """By the command line and by REST alike."""
    command = [*NEXUS, "models", "list", f"--address={server.address}", "--json"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    rows = json.loads(shown)["models"]
    (listed,) = [row["circuit"] for row in rows if (row["name"], row["version"]) == ("fragile", "2")]
    versions = get(server.rest_port, "/models/fragile").json["versions"]
    assert [each["circuit"] for each in versions if each["version"] == "2"] == [listed]
    return str(listed)


def test_a_failing_version_is_left_alone_and_another_answers(server: Server, client: Client) -> None:
    assert client.infer(fragile(ROW)).model_version == "2"
    assert circuit_shown(server) == "closed"
    fail(client, 2)  # of three
    version, headers = infer(client, fragile(ROW))
    assert (version, headers["x-nexus-fallback-for"]) == ("1", "2")
    body = {"model_id": "fragile", "inputs": {"x": {"shape": [1, 2], "data": [4, 0]}}}
    by_rest = post(server.rest_port, "/predict", body)
    assert (by_rest.status, by_rest.headers["x-nexus-fallback-for"]) == (200, "2")
    with pytest.raises(grpc.RpcError) as raised:
        client.infer(fragile(ROW, "2"))
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    reason, seconds = reason_of(raised.value)
    assert reason == "CIRCUIT_OPEN"
    assert 0 < seconds <= OPEN_SECONDS
    # It stays open until somebody asks again.
    assert circuit_shown(server) == "open"
    labels = {"model": "fragile", "version": "2"}
    assert server.metric("nexus_circuit_state", **labels) == 2
    assert server.metric("nexus_circuit_opened_total", **labels) == 1
    assert server.metric("nexus_circuit_state", model="fragile", version="1") == 0
    assert server.metric("nexus_fallbacks_total") == 2
    assert server.metric("nexus_refused_total", reason="circuit_open") == 1
    # Other models do not notice.
    assert post(server.rest_port, "/predict", {"model_id": "iris", "features": [5.1, 3.5, 1.4, 0.2]}).status == 200


def test_it_answers_again_once_it_is_well(server: Server, client: Client) -> None:
    client.infer(fragile(ROW))
    fail(client, 2)  # of three
    time.sleep(OPEN_SECONDS)
    answers = [infer(client, fragile(ROW)) for _ in range(4)]
    assert [version for version, _ in answers] == ["2"] * 4
    assert not any("x-nexus-fallback-for" in headers for _, headers in answers)
    assert circuit_shown(server) == "closed"
    events = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
    told = [each["event"].partition(":")[0] for each in events if each["event"].startswith("circuit")]
    assert told == ["circuit open", "circuit half-open", "circuit closed"]


def test_a_rest_client_sets_a_deadline(server: Server) -> None:
    """By the header of gRPC: it reaches the front, which stops waiting."""
    body: dict[str, Any] = {"model_id": "slow", "inputs": {"turns": {"shape": [], "data": [3 * graphs.SLOW_SECOND]}}}
    began_s = time.monotonic()
    late = post(server.rest_port, "/predict", body, grpc_timeout="200m")
    assert late.status == 504, late.body
    assert time.monotonic() - began_s < 1
    body["inputs"]["turns"]["data"] = [1]
    assert post(server.rest_port, "/predict", body, grpc_timeout="10S").status == 200


# --- load ---


class Load:
    """Clients that keep so many requests in flight; what became of them, by priority."""

    def __init__(self, address: str, turns: int) -> None:
        self.request = raw_request("slow", {"turns": np.array(turns, np.int64)})
        self.codes: dict[str, collections.Counter[Any]] = collections.defaultdict(collections.Counter)
        self._client = Client(address)
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []

    def add(self, priority: str, clients: int) -> None:
        self._threads += [threading.Thread(target=self._run, args=(priority,), daemon=True) for _ in range(clients)]

    def run(self, seconds: float) -> None:
        for thread in self._threads:
            thread.start()
        time.sleep(seconds)
        self._ending.set()
        for thread in self._threads:
            thread.join(30)
        self._client.close()

    def _run(self, priority: str) -> None:
        while not self._ending.is_set():
            try:
                self._client.infer(self.request, metadata=(("x-nexus-priority", priority),), timeout=30)
                self.codes[priority]["OK"] += 1
            except grpc.RpcError as error:
                self.codes[priority][reason_of(error)[0]] += 1
                time.sleep(0.02)


@pytest.fixture
def slow(tmp_path: pathlib.Path) -> pathlib.Path:
    repository = tmp_path / "models"
    graphs.slow(repository)
    return repository


def test_the_least_urgent_are_refused_when_the_queue_stands(tmp_path: pathlib.Path, slow: pathlib.Path) -> None:
    with running_server(tmp_path, "--workers=1", "--queue-target-ms=100", repository=slow) as server:
        load = Load(server.address, graphs.SLOW_SECOND // 50)
        # Two at once never make a queue that stands (admission.SERVICES_MIN), however slow the machine is just now.
        load.add("1", 2)
        load.add("8", 60)
        load.run(8.0)
        urgent, other = load.codes["1"], load.codes["8"]
        assert other["LOAD_SHED"] > 100
        assert urgent["OK"] > 20
        assert urgent["LOAD_SHED"] < 0.2 * urgent["OK"]
        assert urgent.keys() | other.keys() == {"OK", "LOAD_SHED"}
        assert server.metric("nexus_refused_total", reason="load_shed") == urgent["LOAD_SHED"] + other["LOAD_SHED"]


def test_a_models_ceiling(tmp_path: pathlib.Path, slow: pathlib.Path) -> None:
    (slow / "slow" / "config.pbtxt").write_text('parameters { key: "max_in_flight" value { string_value: "2" } }')
    with running_server(tmp_path, "--workers=1", repository=slow) as server:
        load = Load(server.address, graphs.SLOW_SECOND // 20)
        load.add("5", 6)
        load.run(3.0)
        assert load.codes["5"].keys() == {"OK", "CONCURRENCY_LIMIT"}
        client = Client(server.address)
        assert client.infer(load.request, timeout=30).model_version == "1"
        client.close()

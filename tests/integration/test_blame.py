"""Whose fault a failure is: one client's bad requests cost others nothing, and a version that fails is found out."""

import pathlib
import threading
from collections.abc import Callable, Iterator

import grpc
import numpy as np
import pytest

from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from tests.conftest import TRANSPORTS
from tests.harness import Server, running_server
from tests.integration import graphs
from tests.integration.client import Client, raw_request
from tests.integration.rest import post
from tests.integration.test_protection import reason_of

GOOD, BAD = ([1.0, 2.0], [1.0, 2.0]), ([1.0, 2.0, 3.0], [1.0, 2.0])


def add_request(lengths: tuple[list[float], list[float]], name: str = "addlens") -> pb.ModelInferRequest:
    a, b = (np.array([row], np.float32) for row in lengths)
    return raw_request(name, {"a": a, "b": b})


@pytest.fixture(params=TRANSPORTS)
def server(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[Server]:
    repository = tmp_path / "models"
    graphs.addlens(repository)
    options = (f"--front-api={request.param}", "--workers=1")
    with running_server(tmp_path, *options, repository=repository, rest=True) as running:
        yield running


def by_grpc(server: Server, client: Client) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        client.infer(add_request(BAD))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason_of(raised.value)[0] == "MODEL_REJECTED_INPUT"


def by_rest(server: Server, client: Client) -> None:
    inputs = {name: {"shape": [1, len(row)], "data": row} for name, row in zip("ab", BAD, strict=True)}
    answer = post(server.rest_port, "/predict", {"model_id": "addlens", "inputs": inputs})
    assert answer.status == 400
    assert "does not run on this input" in answer.message


def by_stream(server: Server, client: Client) -> None:
    (answer,) = client.infer_stream(iter([add_request(BAD)]))
    assert "Add" in answer.error_message


@pytest.mark.parametrize("ask", [by_grpc, by_rest, by_stream])
def test_a_clients_bad_requests_cost_another_client_nothing(
    server: Server, ask: Callable[[Server, Client], None]
) -> None:
    good, bad = Client(server.address), Client(server.address)
    ending = threading.Event()

    def hammer() -> None:
        while not ending.is_set():
            ask(server, bad)

    ask(server, bad)
    thread = threading.Thread(target=hammer)
    thread.start()
    try:
        answers = [good.infer(add_request(GOOD), timeout=10) for _ in range(40)]
    finally:
        ending.set()
        thread.join()
    assert len(answers) == 40
    assert server.metric("nexus_circuit_opened_total", model="addlens", version="1") == 0
    good.close()
    bad.close()

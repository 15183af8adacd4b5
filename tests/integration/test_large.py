"""Messages larger than a ring: whole, bounded, and their memory given back."""

import concurrent.futures
import pathlib
import time
from collections.abc import Iterator

import grpc
import numpy as np
import psutil
import pytest

from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from tests.harness import Server, copy_models, running_server
from tests.integration.client import Client, assert_serves, raw_request, refusal, typed_request
from tests.integration.graphs import identity, tile

MIB = 1 << 20
WIDTH = 1024
SPARE_BYTES = 40 * MIB
SETTLE_S = 12.0
RETURN_S = 25.0


@pytest.fixture(
    scope="module",
    params=[("auto", 65_536), ("auto", 4 * MIB), pytest.param(("public", 65_536), marks=pytest.mark.long)],
    ids=["auto, small rings", "auto, default rings", "public, small rings"],
)
def large_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    front_api, ring_bytes = request.param
    folder = tmp_path_factory.mktemp("large")
    repository = copy_models(folder / "models", "iris", "text_echo")
    identity(repository)
    tile(repository)
    options = (f"--ring-bytes={ring_bytes}", f"--front-api={front_api}")
    with running_server(folder, *options, repository=repository) as server:
        yield server


@pytest.fixture(scope="module")
def large_client(large_server: Server) -> Iterator[Client]:
    client = Client(large_server.address)
    yield client
    client.close()


def matrix(size_bytes: int, seed: int = 0) -> np.ndarray:
    """Every row differs, so that a lost or doubled part shows."""
    rows = size_bytes // 4 // WIDTH
    values = np.arange(rows * WIDTH, dtype=np.float32) + np.float32(seed)
    return values.reshape(rows, WIDTH)


def round_trip(client: Client, size_bytes: int, seed: int = 0) -> None:
    values = matrix(size_bytes, seed)
    response: pb.ModelInferResponse = client.infer(raw_request("identity", {"x": values}, id=str(seed)), timeout=40)
    assert response.id == str(seed)
    assert list(response.outputs[0].shape) == list(values.shape)
    assert response.raw_output_contents[0] == values.tobytes()


def memory(server: Server) -> dict[str, int]:
    children = [*server.children("front"), *server.children("worker")]
    return {child.cmdline()[0]: psutil.Process(child.pid).memory_info().rss for child in children}


@pytest.mark.parametrize("size_mib", [1, 5, 33, 63])
def test_round_trip(large_client: Client, size_mib: int) -> None:
    round_trip(large_client, size_mib * MIB)
    assert_serves(large_client)


@pytest.mark.parametrize("size_bytes", [16_384, 32_768, 65_536, 131_072, 1 << 20, 2 << 20, 4 << 20])
def test_around_the_rings_size(large_client: Client, size_bytes: int) -> None:
    for near in (size_bytes - 4 * WIDTH, size_bytes, size_bytes + 4 * WIDTH):
        round_trip(large_client, near)


def test_large_and_small_at_once(large_client: Client) -> None:
    def ask(number: int) -> None:
        if number % 4 == 0:
            round_trip(large_client, (1 + number % 9) * MIB, number)
        else:
            assert_serves(large_client)

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        list(pool.map(ask, range(48)))


def test_large_in_a_stream(large_client: Client) -> None:
    sizes = [3 * MIB, 4096, 9 * MIB, 4096, MIB]
    requests = [
        raw_request("identity", {"x": matrix(size, number)}, id=str(number)) for number, size in enumerate(sizes)
    ]
    answers = list(large_client.infer_stream(iter(requests), timeout=40))
    assert [answer.infer_response.id for answer in answers] == [str(number) for number in range(len(sizes))]
    for answer, request in zip(answers, requests, strict=True):
        assert answer.infer_response.raw_output_contents == request.raw_input_contents


def test_large_text(large_client: Client) -> None:
    text = np.array([["äx" * MIB], ["y"]], object)
    response = large_client.infer(raw_request("text_echo", {"text": text}))
    assert len(response.raw_output_contents[0]) == 4 + 3 * MIB + 4 + 1


def test_a_large_refused_request_is_given_back(large_client: Client) -> None:
    request = raw_request("identity", {"x": matrix(8 * MIB)})
    request.inputs[0].datatype = "FP64"
    for _ in range(5):
        assert refusal(lambda: large_client.infer(request)).code == grpc.StatusCode.INVALID_ARGUMENT
    round_trip(large_client, 8 * MIB)


def test_over_the_limit(large_client: Client) -> None:
    request = raw_request("identity", {"x": matrix(65 * MIB)})
    for _ in range(2):
        refused = refusal(lambda: large_client.infer(request))
        assert refused.code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert_serves(large_client)
    with pytest.raises(grpc.RpcError) as caught:
        list(large_client.infer_stream(iter([request])))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
    assert_serves(large_client)


def test_memory_is_given_back(large_client: Client, large_server: Server) -> None:
    round_trip(large_client, MIB)
    before = memory(large_server)
    for number in range(4):
        round_trip(large_client, 48 * MIB, number)
    deadline = time.monotonic() + SETTLE_S
    while True:
        # ONNX Runtime keeps the last outputs' memory until the model's next run.
        round_trip(large_client, 4 * WIDTH)
        grown = {name: now - before[name] for name, now in memory(large_server).items()}
        if max(grown.values()) < SPARE_BYTES:
            return
        assert time.monotonic() < deadline, {name: f"{size / MIB:.0f} MiB" for name, size in grown.items()}
        time.sleep(0.2)


@pytest.mark.parametrize("typed", [False, True], ids=["raw", "typed"])
def test_memory_of_a_large_answer_is_given_back_though_nobody_asks_again(
    large_client: Client, large_server: Server, typed: bool
) -> None:
    assert_serves(large_client)
    before = memory(large_server)
    inputs = {"x": np.ones(MIB // 4, np.float32), "times": np.array([128], np.int64)}
    response = large_client.infer(typed_request("tile", inputs) if typed else raw_request("tile", inputs), timeout=60)
    assert list(response.outputs[0].shape) == [32 * MIB]
    deadline = time.monotonic() + RETURN_S
    while True:
        grown = {name: now - before[name] for name, now in memory(large_server).items()}
        if max(grown.values()) < SPARE_BYTES:
            return
        assert time.monotonic() < deadline, {name: f"{size / MIB:.0f} MiB" for name, size in grown.items()}
        time.sleep(0.2)


def test_segments_are_gone_afterwards(tmp_path: pathlib.Path, large_client: Client, large_server: Server) -> None:
    """No memfd of a message outlives it, on either side."""
    round_trip(large_client, 5 * MIB)
    time.sleep(0.3)
    for child in (*large_server.children("front"), *large_server.children("worker")):
        links = [str(path.readlink()) for path in pathlib.Path(f"/proc/{child.pid}/fd").iterdir() if path.is_symlink()]
        assert not [link for link in links if "nexus-message" in link]

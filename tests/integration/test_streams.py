"""Both streaming methods: order, errors inside the stream, half-close, backpressure, cancelling."""

import concurrent.futures
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import psutil
import pytest

from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from nexus_grpc.pb.nexus.v1 import inference_pb2 as nexus_pb
from tests.harness import Server
from tests.integration.client import Client, assert_serves, outputs_of, raw_request
from tests.integration.graphs import SLOW_SECOND

MIB = 1 << 20


class Infer:
    """ModelStreamInfer. A number goes in, twice the number comes out; a negative one is refused."""

    @staticmethod
    def call(client: Client, requests: Iterator[Any], timeout: float = 50) -> Any:
        return client.infer_stream(requests, timeout=timeout)

    @staticmethod
    def request(number: int) -> pb.ModelInferRequest:
        values = np.array([[number, -number]], np.float32)
        return raw_request("scale", {"x": values if number >= 0 else values[:, :1]}, id=str(number))

    @staticmethod
    def answer(message: pb.ModelStreamInferResponse) -> float | str:
        if message.error_message:
            assert not message.infer_response.outputs
            assert int(message.infer_response.id) < 0  # the refused request's own
            return message.error_message
        first = float(outputs_of(message.infer_response)["y"][0, 0])
        assert message.infer_response.id == str(int(first / 2))
        return first


class Predict:
    """PredictStream, likewise."""

    @staticmethod
    def call(client: Client, requests: Iterator[Any], timeout: float = 50) -> Any:
        return client.predict_stream(requests, timeout=timeout)

    @staticmethod
    def request(number: int) -> nexus_pb.PredictRequest:
        features = [number, -number] if number >= 0 else [number]
        return nexus_pb.PredictRequest(model_id="scale", features=features, request_id=str(number))

    @staticmethod
    def answer(message: nexus_pb.PredictStreamResponse) -> float | str:
        if message.WhichOneof("outcome") == "error":
            assert message.error.code == "INVALID_ARGUMENT"
            assert int(message.error.request_id) < 0  # the refused request's own
            return message.error.message
        assert message.response.request_id == str(int(message.response.prediction[0] / 2))
        return message.response.prediction[0]


@pytest.fixture(params=[Infer, Predict])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_order_is_kept_and_half_close_ends_with_ok(client: Client, kind: Any) -> None:
    call = kind.call(client, map(kind.request, range(500)))
    assert [kind.answer(message) for message in call] == [2.0 * number for number in range(500)]
    assert call.code() == grpc.StatusCode.OK
    assert dict(call.initial_metadata())["x-request-id"]


def test_an_empty_stream_is_fine(client: Client, kind: Any) -> None:
    call = kind.call(client, iter(()))
    assert list(call) == []
    assert call.code() == grpc.StatusCode.OK


def test_one_at_a_time(client: Client, kind: Any) -> None:
    """Each answer comes before the next question is asked."""
    answered = threading.Semaphore(1)

    def requests() -> Iterator[Any]:
        for number in range(50):
            assert answered.acquire(timeout=10)
            yield kind.request(number)

    for number, message in enumerate(kind.call(client, requests())):
        assert kind.answer(message) == 2.0 * number
        answered.release()
    assert number == 49


def test_errors_stay_in_the_stream(client: Client, kind: Any) -> None:
    numbers = [1, -1, 2, -2, -3, 3, *range(10, 40)]
    call = kind.call(client, map(kind.request, numbers))
    for number, message in zip(numbers, call, strict=True):
        answer = kind.answer(message)
        if number < 0:
            assert "expected" in str(answer)
        else:
            assert answer == 2.0 * number
    assert call.code() == grpc.StatusCode.OK


def test_unknown_models_and_garbage_stay_in_the_stream(client: Client, kind: Any) -> None:
    messages = [b"\x0a\x01x", kind.request(1), b"\xff\xff", b"", kind.request(2)]
    call = kind.call(client, iter(messages))
    answers = list(call)
    assert "unknown model" in str(answers[0])
    assert kind.answer(answers[1]) == 2.0
    assert "protobuf" in str(answers[2])
    assert "names no model" in str(answers[3])
    assert kind.answer(answers[4]) == 4.0
    assert call.code() == grpc.StatusCode.OK


def test_several_models_in_one_stream_keep_their_order(client: Client) -> None:
    requests = []
    for number in range(100):
        if number % 10 == 0:
            requests.append(raw_request("slow", {"turns": np.array(SLOW_SECOND // 100)}, id=str(number)))
        else:
            requests.append(Infer.request(number))
    answers = list(client.infer_stream(iter(requests), timeout=30))
    assert [answer.infer_response.id for answer in answers] == [str(number) for number in range(100)]


def test_backpressure_bounds_memory(client: Client, server: Server, transport: str, kind: Any) -> None:
    """10,000 messages, none read at first: the server stops reading, it does not hoard; then all are answered."""
    # The public API answers a stream's messages one by one; fewer fill its window just as well.
    count, taken = 10_000 if transport == "auto" else 2_500, itertools.count()
    sent = 0

    def requests() -> Iterator[Any]:
        nonlocal sent
        for number in taken:
            if number == count:
                return
            sent = number
            yield kind.request(number)

    processes = [psutil.Process(server.process.pid), *server.children("front"), *server.children("worker")]
    before = sum(process.memory_info().rss for process in processes)
    call = kind.call(client, requests())
    last = -1
    while last != sent:  # until nothing moves any more
        last = sent
        time.sleep(0.2)
    grown = sum(process.memory_info().rss for process in processes) - before
    assert grown < 40 * MIB, f"{grown / MIB:.0f} MiB more"
    assert [kind.answer(message) for message in call] == [2.0 * number for number in range(count)]
    assert call.code() == grpc.StatusCode.OK


def test_client_cancels_in_the_middle(client: Client, server: Server, kind: Any) -> None:
    stop = threading.Event()

    def requests() -> Iterator[Any]:
        for number in itertools.count():
            if stop.is_set():
                return
            yield kind.request(number)
            if number > 100:
                stop.wait(0.01)

    call = kind.call(client, requests())
    for number, message in zip(range(50), call, strict=False):
        assert kind.answer(message) == 2.0 * number
    call.cancel()
    stop.set()
    with pytest.raises(grpc.RpcError):
        list(call)
    assert call.code() == grpc.StatusCode.CANCELLED
    assert_serves(client)
    assert wait_until(lambda: server.metric("nexus_in_flight") == 0)
    assert wait_until(lambda: server.metric("nexus_streams_open") == 0)


def test_cancelling_skips_what_is_queued(client: Client, server: Server) -> None:
    """A client that goes away with long work queued does not hold the worker."""
    requests = [raw_request("slow", {"turns": np.array(SLOW_SECOND // 2)}) for _ in range(40)]
    call = client.infer_stream(iter(requests), timeout=60)
    next(call)
    call.cancel()
    started = time.monotonic()
    assert_serves(client)
    assert time.monotonic() - started < 8


def test_deadline_ends_a_stream(client: Client, kind: Any) -> None:
    never = threading.Event()

    def requests() -> Iterator[Any]:
        yield kind.request(1)
        never.wait(10)

    call = kind.call(client, requests(), timeout=0.7)
    with pytest.raises(grpc.RpcError):
        list(call)
    never.set()
    assert call.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert_serves(client)


def test_many_streams_at_once(server: Server, kind: Any) -> None:
    def converse(_: int) -> None:
        own = Client(server.address)
        try:
            answers = [kind.answer(message) for message in kind.call(own, map(kind.request, range(60)))]
            assert answers == [2.0 * number for number in range(60)]
        finally:
            own.close()

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        list(pool.map(converse, range(24)))

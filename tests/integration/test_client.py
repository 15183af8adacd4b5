"""The Python client against a real server: every datatype, error, deadline, stream; workers and fronts that die."""

import asyncio
import concurrent.futures
import os
import pathlib
import queue
import selectors
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest

from nexus_grpc.client import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    InvalidInput,
    NexusClientError,
    NotFound,
    Retry,
    Unavailable,
)
from tests.harness import Server, running_server
from tests.integration.client import IRIS_ROW
from tests.integration.graphs import SLOW_SECOND, reference
from tests.integration.test_infer import all_types, assert_same

pytestmark = pytest.mark.timeout(120)
IRIS = np.array([IRIS_ROW, [6.3, 3.3, 6.0, 2.5]], np.float32)


class Facade:
    """The asyncio client, driven from outside its loop with the blocking client's methods; streams as lists."""

    def __init__(self, address: str, **settings: Any) -> None:
        self._loop = asyncio.Runner()
        self._client = AsyncClient(address, **settings)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        async def run(*arguments: Any, **named: Any) -> Any:
            answer = method(*arguments, **named)
            return await collected(answer) if name.endswith("_stream") else await answer

        return lambda *arguments, **named: self._loop.run(run(*arguments, **named))

    def close(self) -> None:
        self._loop.run(self._client.close())
        self._loop.close()


class Blocking(Client):
    """The blocking client; streams as lists."""

    def infer_stream(self, *arguments: Any, **named: Any) -> Any:
        return gathered(super().infer_stream(*arguments, **named))

    def predict_stream(self, *arguments: Any, **named: Any) -> Any:
        return gathered(super().predict_stream(*arguments, **named))


def gathered(answers: Any) -> list[Any]:
    """All answers, errors in their places."""
    found: list[Any] = []
    while True:
        try:
            found.append(next(answers))
        except StopIteration:
            return found
        except NexusClientError as error:
            found.append(error)


async def collected(answers: Any) -> list[Any]:
    found: list[Any] = []
    while True:
        try:
            found.append(await anext(answers))
        except StopAsyncIteration:
            return found
        except NexusClientError as error:
            found.append(error)


@pytest.fixture(scope="module", params=[Blocking, Facade], ids=["blocking", "asyncio"])
def nexus(request: pytest.FixtureRequest, server: Server) -> Iterator[Any]:
    client = request.param(server.address, timeout_s=20.0)
    yield client
    client.close()


def test_every_datatype_is_bit_exact(nexus: Any) -> None:
    for rows in (1, 2, 5):
        inputs = all_types(rows)
        result = nexus.infer("all_types", inputs)
        assert {array.dtype for array in result.values()} == {array.dtype for array in inputs.values()}
        for name, array in result.items():
            assert array.tobytes() == inputs["in_" + name.removeprefix("out_")].tobytes(), name


def test_other_byte_orders_and_memory_layouts(nexus: Any) -> None:
    swapped = np.asfortranarray(IRIS).astype(">f4")
    assert_same(dict(nexus.infer("iris", {"X": swapped[::-1]})), reference("iris", {"X": IRIS[::-1]}))


@pytest.mark.parametrize("dtype", [object, "U"])
def test_text(nexus: Any, dtype: Any) -> None:
    texts = np.array([["seven"], ["größer"], [""]], dtype)
    result = nexus.infer("text_echo", {"text": texts})
    assert result["echo"].tolist() == [[text.encode()] for text in ("seven", "größer", "")]
    assert result.text("echo").tolist() == [["seven"], ["größer"], [""]]
    assert result["code"].tolist() == [[7], [-1], [-1]]


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        ("iris", {"X": IRIS}),
        ("scalar", {"x": np.array(2.5, np.float32)}),
        ("two_inputs", {"b": IRIS[:, :3], "a": IRIS[:, 1:]}),
    ],
)
def test_shapes_and_inputs(nexus: Any, model: str, inputs: dict[str, np.ndarray]) -> None:
    result = nexus.infer(model, inputs)
    assert_same(dict(result), reference(model, inputs))
    assert (result.model, result.model_version) == (model, "1")


def test_what_can_be_asked_for(nexus: Any) -> None:
    result = nexus.infer(
        "iris", {"X": IRIS}, outputs=["probabilities"], version="1", request_id="of-this-call", timing=True
    )
    assert list(result) == ["probabilities"]
    assert result.request_id == "of-this-call"
    assert 0 < result.timing.infer_us <= result.timing.total_us
    assert result.timing.batch_size >= 2
    assert nexus.infer("iris", {"X": IRIS}).timing is None
    assert nexus.infer("iris", {"X": IRIS}).request_id
    classes = nexus.infer("iris", {"X": IRIS}, outputs={"probabilities": {"classification": 1}})
    assert [text.split(":")[1] for text in classes.text("probabilities").ravel()] == ["0", "2"]
    for version, factor in (("1", 1.0), ("2", 2.0), ("", 2.0)):
        scaled = nexus.infer("scale", {"x": np.ones((1, 2), np.float32)}, version=version)
        assert scaled["y"].tolist() == [[factor, factor]]
        assert scaled.model_version == (version or "2")


def test_predict(nexus: Any) -> None:
    expected = reference("iris", {"X": IRIS})
    for features in (IRIS_ROW, tuple(IRIS_ROW), IRIS[0], IRIS[:1]):
        answer = nexus.predict("iris", features, request_id="mine", timing=True)
        assert answer.prediction.tolist() == [0.0]
        np.testing.assert_allclose(answer.probabilities, expected["probabilities"][0], rtol=1e-5)
        assert answer.confidence == answer.probabilities.max()
        assert (answer.model, answer.model_version, answer.request_id) == ("iris", "1", "mine")
        assert answer.latency_ms > 0
        assert answer.timing.total_us > 0
    assert nexus.predict("text_echo", ["three"]).labels == ("three",)
    batch = nexus.predict_batch("iris", IRIS)
    assert [row.prediction.tolist() for row in batch] == [[0.0], [2.0]]
    np.testing.assert_allclose([row.probabilities for row in batch], expected["probabilities"], rtol=1e-5)
    assert [row.labels for row in nexus.predict_batch("text_echo", [["one"], ["two"]])] == [("one",), ("two",)]


def test_what_is_served(nexus: Any) -> None:
    assert nexus.live() is True
    assert nexus.ready() is True
    assert nexus.ready("iris") is True
    assert nexus.ready("iris", version="9") is False
    assert nexus.ready("no_such_model") is False
    assert {(item.name, item.version) for item in nexus.models() if item.state == "READY"} >= {
        ("iris", "1"),
        ("scale", "1"),
        ("scale", "2"),
    }
    info = nexus.model("iris")
    assert (info.name, info.versions) == ("iris", ("1",))
    assert [(item.name, item.datatype, item.shape) for item in info.inputs] == [("X", "FP32", (-1, 4))]
    assert [item.name for item in info.outputs] == ["label", "probabilities"]


def test_numpys_defaults_are_cast_where_that_loses_nothing(nexus: Any) -> None:
    expected = nexus.infer("iris", {"X": IRIS})["probabilities"]
    wide = IRIS.astype(np.float64)
    for inputs in ({"X": wide}, wide, {"X": wide}, IRIS):  # asked for, then known
        assert np.array_equal(nexus.infer("iris", inputs)["probabilities"], expected)
    whole = nexus.infer("iris", np.array([[5, 3, 1, 0]]))["probabilities"]
    assert np.array_equal(whole, nexus.infer("iris", np.array([[5, 3, 1, 0]], np.float32))["probabilities"])
    with pytest.raises(InvalidInput, match=r"not exact in it; if that is fine, send X\.astype\(np\.float32\)"):
        nexus.infer("iris", {"X": [[5.1, 3.5, 1.4, 0.2]]})
    with pytest.raises(InvalidInput, match="one array is given, and the model's inputs are 'in_"):
        nexus.infer("all_types", IRIS)
    with pytest.raises(NotFound):
        nexus.infer("none", IRIS)


def test_errors(nexus: Any) -> None:
    with pytest.raises(NotFound, match="Request for unknown model: 'none' is not found") as missing:
        nexus.infer("none", {}, request_id="lost")
    assert (missing.value.code, missing.value.reason, missing.value.request_id) == (
        "NOT_FOUND",
        "UNKNOWN_MODEL",
        "lost",
    )
    with pytest.raises(NotFound):
        nexus.model("none")
    with pytest.raises(InvalidInput, match="expected datatype FP32, got INT32") as invalid:
        nexus.infer("iris", {"X": IRIS.astype(np.int32)})
    fields = [item["field_violations"][0]["field"] for item in invalid.value.details if "field_violations" in item]
    assert fields == ["X"]
    with pytest.raises(InvalidInput, match="expected 4 features, got 3"):
        nexus.predict("iris", [1, 2, 3])
    with pytest.raises(InvalidInput, match="no datatype"):
        nexus.infer("iris", {"X": np.zeros(4, complex)})
    with pytest.raises(InvalidInput, match=r"at most 67108864 .*: send fewer rows"):
        nexus.infer("identity", {"x": np.zeros((1, (64 << 20) // 4), np.float32)})


def test_a_deadline(nexus: Any) -> None:
    begun_s = time.monotonic()
    with pytest.raises(DeadlineExceeded) as caught:
        nexus.infer("slow", {"turns": np.array(3 * SLOW_SECOND)}, timeout_s=0.3)
    assert time.monotonic() - begun_s < 1.5
    assert caught.value.code == "DEADLINE_EXCEEDED"


def test_streams(nexus: Any) -> None:
    rows = [IRIS[index % 2] for index in range(200)]
    answers = nexus.predict_stream("iris", iter(rows), request_id="stream")
    assert [int(answer.prediction[0]) for answer in answers] == [0, 2] * 100
    assert {answer.request_id for answer in answers} == {"stream"}
    inputs = ({"x": np.full((1, 2), index, np.float32)} for index in range(200))
    results = nexus.infer_stream("scale", inputs, version="2")
    assert [int(result["y"][0, 0]) for result in results] == [2 * index for index in range(200)]
    assert nexus.predict_stream("iris", []) == []


def test_streams_take_inputs_as_infer_does(nexus: Any) -> None:
    wide = IRIS[:1].astype(np.float64)
    first, second, third, refused = nexus.infer_stream(
        "iris", [wide, {"X": wide}, IRIS[:1], [[5.1, 3.5, 1.4, 0.2]], wide]
    )
    assert [each["label"].tolist() for each in (first, second, third)] == [[0]] * 3
    assert "send X.astype(np.float32)" in refused.message
    (refused,) = nexus.infer_stream("all_types", [IRIS])
    assert "one array is given, and the model's inputs are 'in_" in refused.message
    (missing,) = nexus.infer_stream("none", [IRIS])
    assert isinstance(missing, NotFound)


def test_an_error_in_a_stream_ends_only_its_request(nexus: Any) -> None:
    good, bad = {"X": IRIS[:1]}, {"X": IRIS[:1, :2]}
    first, error, last = nexus.infer_stream("iris", [good, bad, good])
    assert first["label"].tolist() == last["label"].tolist() == [0]
    assert isinstance(error, NexusClientError)
    assert "expected shape [-1,4], got [1,2]" in error.message
    first, error, last = nexus.predict_stream("iris", [IRIS_ROW, [1], IRIS_ROW])
    assert isinstance(error, InvalidInput)
    assert first.prediction.tolist() == last.prediction.tolist() == [0.0]


def test_a_request_that_cannot_be_sent_ends_the_stream(nexus: Any) -> None:
    first, error = nexus.predict_stream("iris", [IRIS_ROW, [1j], IRIS_ROW])
    assert first.prediction.tolist() == [0.0]
    assert isinstance(error, InvalidInput)
    assert "complex" in error.message

    def source() -> Iterator[list[float]]:
        yield IRIS_ROW
        raise KeyError("the source broke")

    with pytest.raises(KeyError, match="the source broke"):
        nexus.predict_stream("iris", source())


def test_a_stream_has_a_deadline_when_given_one(nexus: Any) -> None:
    """The server says so in the stream's answer, or grpc for the stream as a whole: whichever is first."""
    first, *errors = nexus.predict_stream("slow", [[0], [3 * SLOW_SECOND]], timeout_s=0.5)
    assert first.prediction.tolist() == [0.0]
    assert errors
    assert {type(error) for error in errors} == {DeadlineExceeded}


def test_a_stream_as_a_conversation(server: Server) -> None:
    """Each request is sent when the answer to the last is here; closing ends a stream that waits."""
    asked: queue.Queue[Any] = queue.Queue()
    with Client(server.address) as client:
        with client.predict_stream("iris", iter(asked.get, None)) as answers:
            for row, label in zip(IRIS.tolist(), (0, 2), strict=True):
                asked.put(row)
                assert int(next(answers).prediction[0]) == label
            closing = threading.Timer(0.3, answers.close)
            closing.start()
            assert next(answers, "the end") == "the end"
            assert next(answers, "the end") == "the end"
        asked.put(None)


def test_an_asyncio_stream_as_a_conversation(server: Server) -> None:
    async def run() -> None:
        asked: asyncio.Queue[Any] = asyncio.Queue()

        async def source() -> AsyncIterator[Any]:
            while True:
                yield await asked.get()

        async with AsyncClient(server.address) as client, client.predict_stream("iris", source()) as answers:
            for row, label in zip(IRIS.tolist(), (0, 2), strict=True):
                asked.put_nowait(row)
                assert int((await anext(answers)).prediction[0]) == label
            waiting = asyncio.create_task(anext(answers, "the end"))
            await asyncio.sleep(0.2)
            await answers.close()
            assert await waiting == "the end"

    asyncio.run(run())


def test_many_threads_share_a_client(server: Server) -> None:
    def ask(index: int) -> float:
        row = np.full((1, 2), index, np.float32)
        return float(client.infer("scale", {"x": row}, version="2")["y"][0, 0])

    with Client(server.address, channels=3) as client, concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(300))) == [2.0 * index for index in range(300)]


def test_many_tasks_share_a_client(server: Server) -> None:
    async def run() -> list[float]:
        async with AsyncClient(server.address) as client:

            async def ask(index: int) -> float:
                row = np.full((1, 2), index, np.float32)
                return float((await client.infer("scale", {"x": row}, version="2"))["y"][0, 0])

            return await asyncio.gather(*map(ask, range(300)))

    assert asyncio.run(run()) == [2.0 * index for index in range(300)]


def wait_replaced(server: Server, role: str, pid: int) -> None:
    deadline_s = time.monotonic() + 20
    while not [child for child in server.children(role) if child.pid != pid]:
        assert time.monotonic() < deadline_s, f"no new {role}"
        time.sleep(0.02)


@pytest.mark.parametrize("kind", [Blocking, Facade], ids=["blocking", "asyncio"])
@pytest.mark.parametrize("role", ["worker", "front"])
def test_no_call_fails_while_a_process_is_replaced(
    tmp_path: pathlib.Path, repository: pathlib.Path, role: str, kind: Any
) -> None:
    """The server itself runs again what a dead worker had; the client's retries bridge a front's restart."""
    stop = threading.Event()
    answered: list[int] = []

    def ask_on() -> int:
        client = kind(server.address, retry=Retry(attempts=10), timeout_s=60.0)
        count = 0
        try:
            while not stop.is_set():
                assert client.infer("iris", {"X": IRIS})["label"].tolist() == [0, 2]
                count += 1
                answered.append(count)
        finally:
            client.close()
        return count

    with (
        running_server(tmp_path, "--workers=1", repository=repository) as server,
        concurrent.futures.ThreadPoolExecutor(4) as pool,
    ):
        asking = [pool.submit(ask_on) for _ in range(4)]
        try:
            wait_for(lambda: len(answered) > 20)
            (child,) = server.children(role)
            os.kill(child.pid, signal.SIGKILL)
            wait_replaced(server, role, child.pid)
            before = len(answered)
            wait_for(lambda: len(answered) > before + 20)
        finally:
            stop.set()
        assert all(future.result(60) > 0 for future in asking)


def wait_for(condition: Any, seconds: float = 30.0) -> None:
    deadline_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def relay_after(seconds: float, listener: socket.socket, address: str) -> None:
    """Takes one connection, leaves it alone for so long, and is a wire to `address` from then on."""
    near, _ = listener.accept()
    time.sleep(seconds)
    host, port = address.rsplit(":", 1)
    far = socket.create_connection((host, int(port)))
    ends = {near: far, far: near}
    with near, far, selectors.DefaultSelector() as selector:
        for end in ends:
            selector.register(end, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                assert isinstance(key.fileobj, socket.socket)
                content = key.fileobj.recv(1 << 16)
                if not content:
                    return
                ends[key.fileobj].sendall(content)


def test_a_server_that_takes_its_time_to_greet(server: Server) -> None:
    """A busy machine: the connection stands, the first frame comes a second later. One attempt is enough."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=relay_after, args=(1.0, listener, server.address), daemon=True).start()
        with Client(f"127.0.0.1:{listener.getsockname()[1]}", retry=Retry(attempts=1)) as client:
            assert client.predict("iris", IRIS_ROW).model == "iris"


def test_a_server_that_goes_away(tmp_path: pathlib.Path, repository: pathlib.Path) -> None:
    with running_server(tmp_path, "--workers=1", repository=repository) as server:
        asked: queue.Queue[Any] = queue.Queue()
        with Client(server.address, retry=Retry(attempts=2)) as client:
            answers = client.predict_stream("iris", iter(asked.get, None))
            asked.put(IRIS_ROW)
            assert next(answers).model == "iris"
            server.process.kill()
            server.process.wait(10)
            # Streams are not tried again; after the error there is nothing more.
            with pytest.raises(Unavailable):
                next(answers)
            assert next(answers, "the end") == "the end"
            asked.put(None)
            with pytest.raises(Unavailable):
                client.infer("iris", {"X": IRIS})
            assert client.ready() is False
            assert client.live() is False

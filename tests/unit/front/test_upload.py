"""nexus_grpc/front/upload.py behind a real gRPC server: what reaches the supervisor, and that nothing stays behind."""

import contextlib
import dataclasses
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.api import httpbody_pb2

from nexus_grpc.front.request_ids import RequestIds
from nexus_grpc.front.upload import CHUNK_BYTES_MAX, upload_handlers
from nexus_grpc.ipc.errors import AlreadyExists, Code, DeadlinePassed, ModelUnavailable, NexusError
from nexus_grpc.ipc.rich_errors import DETAILS_KEY
from nexus_grpc.pb.nexus.v1.models_pb2 import UploadHeader, UploadRequest, UploadResponse
from nexus_grpc.rest.twin import path_of
from nexus_grpc.settings import Settings
from nexus_grpc.staging import FOLDER

MIB = 1 << 20
SIZE_MAX = 8 * MIB
WAIT_S = 10.0
ANSWER = {"model": {"id": "iris", "version": "3", "size_bytes": 4.0}, "state": "READY", "active": True}
BOUNDARY = "xxBOUNDARYxx"
FORM = f"multipart/form-data; boundary={BOUNDARY}"


class Recorder:
    """A supervisor that keeps what it is given, and answers as it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any], str, float]] = []
        self.content = b""
        self.error: NexusError | None = None

    def __call__(self, operation: str, arguments: dict[str, Any], actor: str, timeout_s: float) -> dict[str, Any]:
        self.calls.append((operation, arguments, actor, timeout_s))
        self.content = Path(arguments["staged"]).read_bytes()
        if self.error is not None:
            raise self.error
        os.unlink(arguments["staged"])
        return ANSWER


@dataclasses.dataclass
class Site:
    address: str
    repository: Path
    supervisor: Recorder
    channel: grpc.Channel

    def upload(self, messages: Iterator[UploadRequest], **more: Any) -> UploadResponse:
        call = self.channel.stream_unary(
            "/nexus.v1.Models/Upload", UploadRequest.SerializeToString, UploadResponse.FromString
        )
        return call(messages, timeout=more.pop("timeout", WAIT_S), **more)

    def form(self, pieces: Iterator[bytes], content_type: str = FORM) -> tuple[int, dict[str, Any]]:
        """(HTTP status, JSON), as Envoy would make an answer of it."""
        bodies = (
            httpbody_pb2.HttpBody(content_type="" if number else content_type, data=piece)
            for number, piece in enumerate(pieces)
        )
        call = self.channel.stream_unary(
            path_of("ModelsUpload"), httpbody_pb2.HttpBody.SerializeToString, httpbody_pb2.HttpBody.FromString
        )
        answer, done = call.with_call(bodies, timeout=WAIT_S, metadata=(("x-request-id", "mine"),))
        metadata = dict(done.initial_metadata())
        assert metadata["x-request-id"] == "mine"
        return int(metadata["x-nexus-http-status"]), json.loads(answer.data)

    def staged(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return os.listdir(self.repository / FOLDER)
        return []


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Starts a server with these settings."""
    with contextlib.ExitStack() as stack:

        def run(**settings: Any) -> Site:
            repository = tmp_path / "models"
            repository.mkdir()
            supervisor = Recorder()
            values = {"model_repository": str(repository), "upload_max_bytes": SIZE_MAX, **settings}
            handlers = upload_handlers(Settings.restore(json.dumps(values)), supervisor, RequestIds(b"123456789"))
            pool = stack.enter_context(futures.ThreadPoolExecutor(8))
            server = grpc.server(pool, options=[("grpc.max_receive_message_length", -1)])
            server.add_generic_rpc_handlers(handlers)
            address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
            server.start()
            stack.callback(lambda: server.stop(0).wait())
            channel = stack.enter_context(grpc.insecure_channel(address))
            return Site(address, repository, supervisor, channel)

        yield run


@pytest.fixture
def site(start: Callable[..., Site]) -> Site:
    return start()


def messages(content: bytes, chunk: int = MIB, **header: Any) -> Iterator[UploadRequest]:
    yield UploadRequest(header=UploadHeader(**{"id": "iris", **header}))
    for offset in range(0, len(content), chunk):
        yield UploadRequest(chunk=content[offset : offset + chunk])


def form(content: bytes, **fields: str) -> Iterator[bytes]:
    """In pieces of 100,000 bytes."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in {"id": "iris", **fields}.items()
    ]
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="m"\r\n\r\n'.encode()
    body = b"".join(parts) + head + content + f"\r\n--{BOUNDARY}--\r\n".encode()
    return (body[offset : offset + 100_000] for offset in range(0, len(body), 100_000))


def held_back(beginning: Iterator[Any], end: threading.Event) -> Iterator[Any]:
    """What has begun goes on only when it may."""
    yield from beginning
    end.wait(WAIT_S)


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)


def assert_nothing_left(site: Site) -> None:
    wait_for(lambda: not site.staged())
    assert os.listdir(site.repository) in ([], [FOLDER])


def test_an_upload_arrives(site: Site) -> None:
    content = os.urandom(3 * MIB + 5)
    sha256 = hashlib.sha256(content).hexdigest()
    header = {"name": "Iris", "version": "v3", "labels": {"a": "b"}, "size_bytes": len(content)}
    answer = site.upload(messages(content, sha256=sha256.upper(), **header))
    assert (answer.model.version, answer.state, answer.active) == ("3", "READY", True)
    ((operation, arguments, actor, timeout_s),) = site.supervisor.calls
    assert (operation, actor.split(":")[0]) == ("Models.Upload", "grpc 127.0.0.1")
    assert 0 < timeout_s <= WAIT_S
    assert site.supervisor.content == content
    assert (arguments["sha256"], arguments["size_bytes"]) == (sha256, len(content))
    assert arguments["header"] == {"id": "iris", "sha256": sha256.upper(), "store_only": False, **header}
    assert Path(arguments["staged"]).is_absolute()
    assert_nothing_left(site)


def test_a_form_arrives(site: Site) -> None:
    content = os.urandom(2 * MIB + 5)
    status, answer = site.form(form(content, name="Iris", version="3"))
    assert (status, answer["model"]["version"], answer["state"]) == (201, "3", "READY")
    ((_, arguments, actor, _),) = site.supervisor.calls
    assert actor.startswith("rest ")
    assert (site.supervisor.content, arguments["header"]["name"]) == (content, "Iris")
    assert arguments["sha256"] == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("header", "field"),
    [
        ({"id": ""}, "id"),
        ({"id": "../evil"}, "id"),
        ({"id": "a" * 10_000}, "id"),
        ({"id": "upload"}, "id"),
        ({"id": "lost+found"}, "id"),
        ({"name": "x" * 201}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"version": "x" * 65}, "version"),
        ({"version": "\x00"}, "version"),
        ({"sha256": "ab"}, "sha256"),
        ({"sha256": "g" * 64}, "sha256"),
        ({"size_bytes": -1}, "size_bytes"),
        ({"size_bytes": 0.5}, "size_bytes"),
        ({"size_bytes": float("nan")}, "size_bytes"),
        ({"size_bytes": float("inf")}, "size_bytes"),
        ({"labels": {"": "x"}}, "labels"),
        ({"labels": {"x": "y" * 1025}}, "labels"),
        ({"labels": {str(number): "" for number in range(65)}}, "labels"),
    ],
)
def test_a_wrong_header_is_refused_before_a_byte_is_stored(site: Site, header: dict[str, Any], field: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        site.upload(held_back(messages(b"", **header), threading.Event()), timeout=5)
    error: Any = caught.value
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
    assert field.encode() in dict(error.trailing_metadata())[DETAILS_KEY]
    assert not site.supervisor.calls
    assert not os.listdir(site.repository)


@pytest.mark.parametrize(
    ("header", "status", "reason"),
    [
        ({"sha256": "0" * 64}, grpc.StatusCode.INVALID_ARGUMENT, b"SHA256_MISMATCH"),
        ({"size_bytes": 5}, grpc.StatusCode.INVALID_ARGUMENT, b"SIZE_MISMATCH"),
        ({"size_bytes": SIZE_MAX + 1}, grpc.StatusCode.RESOURCE_EXHAUSTED, b"TOO_LARGE"),
    ],
)
def test_what_is_not_as_announced(site: Site, header: dict[str, Any], status: grpc.StatusCode, reason: bytes) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        site.upload(messages(b"onnx", **header))
    error: Any = caught.value
    assert (error.code(), reason in dict(error.trailing_metadata())[DETAILS_KEY]) == (status, True), error
    assert not site.supervisor.calls
    assert_nothing_left(site)


def test_streams_that_are_no_upload(site: Site) -> None:
    header, chunk = UploadRequest(header=UploadHeader(id="iris")), UploadRequest(chunk=b"x")
    large = UploadRequest(chunk=b"x" * (CHUNK_BYTES_MAX + 1))
    for stream in (
        [],
        [chunk],
        [header],
        [header, header],
        [UploadRequest()],
        [header, chunk, header],
        [header, large],
    ):
        with pytest.raises(grpc.RpcError) as caught:
            site.upload(iter(stream))
        error: Any = caught.value
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, stream
    assert not site.supervisor.calls
    assert_nothing_left(site)


def test_forms_that_are_wrong(site: Site) -> None:
    body = b"".join(form(b"onnx"))
    for pieces, content_type, words in (
        ([body], "multipart/form-data", "boundary"),
        ([body], "multipart/form-data; boundary=other", "boundary"),
        ([body[:-10]], FORM, "ends before"),
        ([b"".join(form(b"onnx", id="../x"))], FORM, "the id must be"),
        ([b"".join(form(b"onnx", colour="red"))], FORM, "unknown field"),
        ([b"".join(form(b""))], FORM, "the file is empty"),
        ([], FORM, "boundary"),
    ):
        status, answer = site.form(iter(pieces), content_type)
        assert (status, answer["error"]["code"]) == (400, "INVALID_ARGUMENT"), answer
        assert words in answer["error"]["message"]
        assert answer["request_id"] == "mine"
    assert not site.supervisor.calls
    assert_nothing_left(site)


def test_too_large(site: Site) -> None:
    status, answer = site.form(form(b"x" * (SIZE_MAX + 1)))
    assert (status, answer["error"]["code"]) == (413, "RESOURCE_EXHAUSTED")
    # All of it was read: a client that sends first and listens later gets the answer.
    status, answer = site.form(form(b"x" * (6 * SIZE_MAX)))
    assert status == 413
    with pytest.raises(grpc.RpcError) as caught:
        site.upload(messages(b"x" * (SIZE_MAX + 1)))
    error: Any = caught.value
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert not site.supervisor.calls
    assert_nothing_left(site)
    assert site.upload(messages(b"x" * SIZE_MAX)).active


def test_an_epilogue_without_end_is_too_large(site: Site) -> None:
    """What stands behind a form is nothing; even so it has a limit."""
    endless = (b"\n" * MIB for _ in range(64))
    status, _ = site.form(iter([*form(b"onnx"), *endless]))
    assert status == 413
    assert_nothing_left(site)


def test_a_client_that_goes_away(site: Site) -> None:
    """Half of a file is never taken for a whole one: the end of a cancelled call looks like any other at first."""
    method = site.channel.stream_unary(
        "/nexus.v1.Models/Upload", UploadRequest.SerializeToString, UploadResponse.FromString
    )
    for _ in range(25):
        end = threading.Event()
        call = method.future(held_back(messages(b"x" * MIB), end))
        wait_for(site.staged)
        call.cancel()
        assert_nothing_left(site)
        end.set()
    assert not site.supervisor.calls
    assert site.upload(messages(b"onnx")).active


def test_only_so_many_at_once(start: Callable[..., Site]) -> None:
    site = start(uploads_max=2)
    end = threading.Event()
    call = site.channel.stream_unary(
        "/nexus.v1.Models/Upload", UploadRequest.SerializeToString, UploadResponse.FromString
    )
    under_way = [call.future(held_back(messages(b"onnx"), end)) for _ in range(2)]
    wait_for(lambda: len(site.staged()) == 2)
    with pytest.raises(grpc.RpcError) as caught:
        site.upload(messages(b"onnx"))
    error: Any = caught.value
    assert (error.code(), "uploads_max" in error.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
    assert site.form(form(b"onnx"))[0] == 429
    end.set()
    assert all(one.result(WAIT_S).active for one in under_way)
    # The slots are free again, each time.
    for _ in range(5):
        assert site.upload(messages(b"onnx")).active


def test_an_upload_that_never_ends(start: Callable[..., Site]) -> None:
    site = start(upload_seconds=0.5, uploads_max=1)
    end = threading.Event()
    for _ in range(3):
        with pytest.raises(grpc.RpcError) as caught:
            site.upload(held_back(messages(b"onnx"), end))
        error: Any = caught.value
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert "upload_seconds" in error.details()
        assert_nothing_left(site)
    end.set()
    assert site.upload(messages(b"onnx")).active


@pytest.mark.parametrize(
    ("error", "status", "stays"),
    [
        (AlreadyExists("is there"), 409, False),
        (ModelUnavailable("the server is stopping"), 503, False),
        # The supervisor goes on with the file.
        (DeadlinePassed("not done"), 504, True),
    ],
)
def test_what_the_supervisor_refuses(site: Site, error: NexusError, status: int, stays: bool) -> None:
    site.supervisor.error = error
    answered, answer = site.form(form(b"onnx"))
    assert (answered, answer["error"]["message"]) == (status, error.message)
    assert bool(site.staged()) is stays
    with pytest.raises(grpc.RpcError) as caught:
        site.upload(messages(b"onnx"))
    failed: Any = caught.value
    assert (failed.code().value[0], failed.details()) == (int(error.code), error.message)


def test_a_bug_is_told_to_the_log_alone(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.supervisor.error = RuntimeError("the inner workings")  # type: ignore[assignment]
    status, answer = site.form(form(b"onnx"))
    assert (status, answer["error"]["code"]) == (500, Code.INTERNAL.name)
    assert "inner workings" not in json.dumps(answer)
    with pytest.raises(grpc.RpcError, match="see the server's log"):
        site.upload(messages(b"onnx"))
    assert_nothing_left(site)


def test_a_disk_that_takes_nothing(site: Site) -> None:
    site.repository.rmdir()
    status, answer = site.form(form(b"onnx"))
    assert (status, answer["error"]["code"]) == (503, "UNAVAILABLE")
    assert str(site.repository) not in json.dumps(answer)

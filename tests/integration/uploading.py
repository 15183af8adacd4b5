"""For tests of uploads: a client for both ways, and what must be as before when one was refused."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import threading
from collections.abc import Iterator
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from nexus_grpc.ipc.rich_errors import DETAILS_KEY
from nexus_grpc.pb.nexus.v1.models_pb2 import UploadHeader, UploadRequest, UploadResponse
from nexus_grpc.staging import FOLDER
from tests.chaos.ledger import channel_to
from tests.harness import Server, running_server
from tests.integration.rest import TIMEOUT_S, Answer, assert_error, post
from tests.lifecycle import NAME, Admin, put, wait_for

PATH = "/models/upload"
BOUNDARY = "0123456789abcdef"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
CHUNK_BYTES = 1 << 20
REQUEST_ID = "upload-test-1"


def part(name: str, content: bytes | str, extra: str = "") -> bytes:
    content = content.encode() if isinstance(content, str) else content
    return f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode() + content + b"\r\n"


def file_part(content: bytes, name: str = "file") -> bytes:
    return part(name, content, '; filename="../../../etc/passwd.onnx"\r\nContent-Type: application/octet-stream')


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def form_of(content: bytes, **header: Any) -> bytes:
    fields = {key: json.dumps(value) if isinstance(value, dict) else str(value) for key, value in header.items()}
    return form(*(part(name, text) for name, text in fields.items()), file_part(content))


def messages(content: bytes, **header: Any) -> Iterator[UploadRequest]:
    yield UploadRequest(header=UploadHeader(**header))
    for offset in range(0, len(content), CHUNK_BYTES):
        yield UploadRequest(chunk=content[offset : offset + CHUNK_BYTES])


def send(admin: Admin, content: bytes, **header: Any) -> UploadResponse:
    """One upload."""
    with contextlib.closing(channel_to(admin.address)) as channel:
        call = channel.stream_unary(
            "/nexus.v1.Models/Upload", UploadRequest.SerializeToString, UploadResponse.FromString
        )
        return call(messages(content, **header), timeout=60)


def held_back(beginning: Iterator[UploadRequest], end: threading.Event) -> Iterator[UploadRequest]:
    """What has begun goes on only when it may."""
    yield from beginning
    end.wait(60)


@dataclasses.dataclass(frozen=True)
class Refused:
    """How an upload ended that was refused, by either way."""

    status: str | int
    message: str
    reason: str
    request_id: str


class Site:
    """A server with a repository, and both ways into it."""

    def __init__(self, server: Server, repository: pathlib.Path) -> None:
        self.server = server
        self.repository = repository
        self.admin = Admin(server.address)
        self._channel = channel_to(server.address)
        self.call = self._channel.stream_unary(
            "/nexus.v1.Models/Upload", UploadRequest.SerializeToString, UploadResponse.FromString
        )

    def close(self) -> None:
        self._channel.close()
        self.admin.client.close()

    @property
    def port(self) -> int:
        return self.server.rest_port

    def by_grpc(self, content: bytes, **header: Any) -> UploadResponse:
        return self.call(messages(content, **header), timeout=60)

    def by_rest(self, content: bytes, **header: Any) -> Answer:
        return post(self.port, PATH, form_of(content, **header), Content_Type=FORM)

    def refused_by_grpc(self, stream: Iterator[UploadRequest]) -> Refused:
        return refusal_of(self.call.future(stream, timeout=60, metadata=(("x-request-id", REQUEST_ID),)))

    def refused_by_rest(self, body: bytes, content_type: str = FORM) -> Refused:
        answer = post(self.port, PATH, body, Content_Type=content_type, X_Request_Id=REQUEST_ID)
        return refusal_in(answer)

    def predict(self, model: str, version: str = "") -> tuple[str, float]:
        """(version, factor) by REST's /predict."""
        answer = post(self.port, "/predict", {"model_id": model, "features": [1, 2], "model_version": version})
        assert answer.status == 200, answer
        one, two = answer.json["prediction"]
        assert two == 2 * one
        return answer.json["model_version"], one

    def staged(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return os.listdir(self.repository / FOLDER)
        return []

    def seen(self) -> tuple[Any, ...]:
        """All that an upload could leave: files, records, history."""
        tree = {
            str(path.relative_to(self.repository)): content_of(path)
            for path in sorted(self.repository.rglob("*"))
            if FOLDER not in path.parts
        }
        return tree, self.admin.models("ListRecords"), self.admin.models("History", limit=10_000)

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """What is done inside leaves no trace, and the server serves on."""
        before = self.seen()
        yield
        wait_for(lambda: not self.staged())
        assert self.seen() == before
        assert self.predict(NAME) == ("1", 1.0)
        assert self.admin.ask().by_values == "1"


@contextlib.contextmanager
def running_site(folder: pathlib.Path, *options: str) -> Iterator[Site]:
    """A server with one model, `times`, that answers by REST, too."""
    repository = folder / "models"
    put(repository, 1)
    with (
        running_server(folder, *options, repository=repository, rest=True) as server,
        contextlib.closing(Site(server, repository)) as site,
    ):
        # What it found is recorded a little after it is ready.
        wait_for(lambda: site.admin.models("History").entries)
        yield site
        assert "Traceback" not in server.log_text()


def content_of(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"


def refusal_of(call: Any) -> Refused:
    """Of a call by gRPC, which must fail, with the rich error."""
    error = call.exception(TIMEOUT_S * 3)
    assert isinstance(error, grpc.RpcError), call.result()
    trailers = dict(call.trailing_metadata())
    status = status_pb2.Status.FromString(trailers[DETAILS_KEY])
    assert status.message == call.details()
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return Refused(call.code().name, call.details(), info.reason, dict(call.initial_metadata())["x-request-id"])


def refusal_in(answer: Answer) -> Refused:
    """In an answer by REST, which must have the common shape."""
    assert_error(answer, answer.status)
    details = answer.json["error"]["details"]
    reason = details[0].get("reason", "") if details else ""
    return Refused(answer.status, answer.message, reason, answer.json["request_id"])

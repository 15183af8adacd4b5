"""A small HTTP client for the tests: one connection per call, and nothing normalised on the way."""

import dataclasses
import http.client
import json
import socket
import time
from typing import Any

import grpc

from nexus_grpc.ipc.wire import fields, json_body, length_prefix
from nexus_grpc.rest.twin import path_of

TIMEOUT_S = 20.0
JSON = {"Content-Type": "application/json"}
IRIS = {"model_id": "iris", "features": [5.1, 3.5, 1.4, 0.2]}


@dataclasses.dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    path: str = ""

    @property
    def is_v2(self) -> bool:
        """Whether the Open Inference Protocol's shapes hold."""
        return self.path.split("?")[0].split("/")[1:2] == ["v2"]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        return str(self.json["error"] if self.is_v2 else self.json["error"]["message"])


def call(port: int, method: str, path: str, body: bytes | Any = None, **headers: str) -> Answer:
    """`body`: bytes as they are, anything else as JSON. Header names are written with _ for -."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    if body is not None and "Content-Type" not in sent:
        sent |= JSON
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, body, sent)
        response = connection.getresponse()
        names = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, names, response.read(), path)
    finally:
        connection.close()


def post(port: int, path: str, body: bytes | Any, **headers: str) -> Answer:
    return call(port, "POST", path, body, **headers)


def get(port: int, path: str, **headers: str) -> Answer:
    return call(port, "GET", path, **headers)


def assert_error(answer: Answer, status: int) -> None:
    """It has this status and the one error shape, with the request id that its header has; under /v2 the protocol's."""
    assert answer.status == status, answer
    assert answer.headers["content-type"].startswith("application/json"), answer
    body = answer.json
    if answer.is_v2:
        assert list(body) == ["error"], body
        assert isinstance(body["error"], str), body
        assert body["error"], body
        assert answer.headers["x-request-id"], answer
        return
    assert body.keys() == {"error", "request_id"}, body
    assert body["error"].keys() == {"code", "message", "details"}, body
    assert body["error"]["message"], body
    assert isinstance(body["error"]["details"], list)
    assert body["request_id"] == answer.headers["x-request-id"], answer


def assert_serves(port: int) -> None:
    answer = post(port, "/predict", IRIS)
    assert answer.status == 200, answer
    assert answer.json["model_id"] == "iris"


def call_twin(address: str, name: str, body: bytes, **metadata: str) -> tuple[dict[str, str], Any]:
    """A twin's method without Envoy: (initial metadata, JSON)."""
    wrapped = json_body(body)
    message = b"z\0" + length_prefix(15, len(wrapped)) + wrapped
    with grpc.insecure_channel(address) as channel:
        answer, done = channel.unary_unary(path_of(name)).with_call(
            message, timeout=20, metadata=tuple(metadata.items())
        )
    data = next(answer[start:end] for number, _, start, end in fields(answer) if number == 2)
    return dict(done.initial_metadata()), json.loads(data)


class Raw:
    """A bare connection, for what no HTTP library would send."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, content: bytes) -> None:
        self.socket.sendall(content)

    def answers(self, limit_s: float = TIMEOUT_S) -> bytes:
        """All that comes until the other side closes, or `limit_s` has passed."""
        received = b""
        deadline = time.monotonic() + limit_s
        while (left_s := deadline - time.monotonic()) > 0:
            self.socket.settimeout(left_s)
            try:
                piece = self.socket.recv(1 << 16)
            except TimeoutError:
                break
            except ConnectionResetError:
                break
            if not piece:
                break
            received += piece
        return received

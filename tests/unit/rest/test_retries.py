"""What Envoy sends a second time, and what it does not: real upstreams that are away, refuse, cut or say no."""

import concurrent.futures
import contextlib
import dataclasses
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from nexus_grpc.rest.bootstrap import EnvoyOptions
from nexus_grpc.rest.http_rules import http_methods
from nexus_grpc.rest.routes import RETRIES
from tests.harness import free_port
from tests.integration.rest import call, get, post
from tests.unit.rest.live import running_backend, running_envoy, statistics

COUNTERS = "upstream_rq_retry|upstream_rq_retry_overflow|upstream_rq_total|upstream_cx_connect_fail"
# Longer than Envoy would take by itself to act on what it knows (a second).
AWAY_SECONDS = 3
FORM = "multipart/form-data; boundary=x"
# (method, path, body, content type) of what may change the server.
CHANGES = [
    (
        binding.verb,
        re.sub("{[^}]*}", "x", binding.template),
        (b"--x--" if method.client_streaming else b"{}") if method.has_body else None,
        FORM if method.client_streaming else "application/json",
    )
    for method in http_methods()
    if method.is_change
    for binding in method.bindings
]
# HTTP/2 (RFC 9113): the bytes before a client's first frame; kinds of frames; a reason.
PREFACE_BYTES, HEAD_BYTES = 24, 9
HEADERS, RST_STREAM, SETTINGS, REFUSED_STREAM = 1, 3, 4, 7


@dataclasses.dataclass
class Proxied:
    """An Envoy with its counters."""

    port: int
    admin: Path

    def counters(self) -> dict[str, int]:
        return statistics(self.admin, COUNTERS)

    def predict(self, **wish: Any) -> int:
        return post(self.port, "/predict", wish).status


@contextlib.contextmanager
def proxied(folder: Path, *upstreams: str) -> Iterator[Proxied]:
    options = EnvoyOptions(port=free_port(), upstreams=upstreams, admin_socket=str(folder / "a"), timeout_s=10.0)
    with running_envoy(options, folder):
        yield Proxied(options.port, folder / "a")


class Refusing:
    """An HTTP/2 server that refuses each request, or cuts the connection once it has one. `requests`: how many came."""

    def __init__(self, *, cut: bool) -> None:
        self.requests = 0
        self._cut = cut
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        # Without it the thread would keep the socket, which accepts.
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as received, contextlib.suppress(OSError):
            received.read(PREFACE_BYTES)
            connection.sendall(_frame(SETTINGS, 0))
            while len(head := received.read(HEAD_BYTES)) == HEAD_BYTES:
                received.read(int.from_bytes(head[:3], "big"))
                if head[3] != HEADERS:
                    continue
                self.requests += 1
                if self._cut:
                    return
                stream = int.from_bytes(head[5:], "big")
                connection.sendall(_frame(RST_STREAM, stream, REFUSED_STREAM.to_bytes(4, "big")))


def _frame(kind: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, 0)) + stream.to_bytes(4, "big") + payload


@contextlib.contextmanager
def refusing(*, cut: bool = False) -> Iterator[Refusing]:
    server = Refusing(cut=cut)
    try:
        yield server
    finally:
        server.close()


def test_a_front_that_is_away_costs_no_request(tmp_path: Path) -> None:
    """Not even of many at a time; and it is asked now and then only, although it would be the least busy one."""
    backend, clients = free_port(), 12
    with running_backend(backend), proxied(tmp_path, f"127.0.0.1:{backend}", "unix:@nexus-nobody") as envoy:
        end_s = time.monotonic() + AWAY_SECONDS

        def ask(_: int) -> list[int]:
            found = []
            while time.monotonic() < end_s:
                found.append(envoy.predict())
            return found

        with concurrent.futures.ThreadPoolExecutor(clients) as pool:
            statuses = [status for found in pool.map(ask, range(clients)) for status in found]
        counters = envoy.counters()
    print(len(statuses), counters)
    assert set(statuses) == {200}
    assert counters["upstream_rq_retry_overflow"] == 0
    # Every half second; whoever comes just then is sent on.
    assert 2 <= counters["upstream_cx_connect_fail"] <= 10 * AWAY_SECONDS
    assert counters["upstream_rq_retry"] < len(statuses) // 4


def test_a_stream_that_is_refused_is_sent_again_unless_it_changes_something(tmp_path: Path) -> None:
    """gRPC's core resets streams so that it had begun, too."""
    with refusing() as front, proxied(tmp_path, front.address) as envoy:
        assert envoy.predict() == 503
        assert front.requests == 1 + RETRIES
        assert get(envoy.port, "/models").status == 503
        assert front.requests == 2 * (1 + RETRIES)
        before = front.requests
        assert {"/models/upload", "/admin/reload"} <= {path for _, path, _, _ in CHANGES}
        for method, path, body, kind in CHANGES:
            headers = {"Content_Type": kind} if body is not None else {}
            assert call(envoy.port, method, path, body, **headers).status == 503, path
        with grpc.insecure_channel(f"127.0.0.1:{envoy.port}", [("grpc.enable_retries", 0)]) as channel:
            unload = channel.unary_unary("/nexus.v1.Models/Unload")
            with pytest.raises(grpc.RpcError):
                unload(b"", timeout=10)
        assert front.requests == before + len(CHANGES) + 1


def test_one_that_refuses_beside_one_that_answers(tmp_path: Path) -> None:
    backend = free_port()
    with (
        running_backend(backend),
        refusing() as front,
        proxied(tmp_path, f"127.0.0.1:{backend}", front.address) as envoy,
    ):
        assert [envoy.predict() for _ in range(40)] == [200] * 40
        assert front.requests > 0


def test_what_may_have_been_begun_is_not_sent_again(tmp_path: Path) -> None:
    """The front had the request when it went away: whether it did it, nobody knows."""
    with refusing(cut=True) as front, proxied(tmp_path, front.address) as envoy:
        assert envoy.predict() in (502, 503)
        assert front.requests == 1
        assert get(envoy.port, "/models").status in (502, 503)
        assert front.requests == 2


@pytest.mark.parametrize(
    ("wish", "status"),
    [
        ({"status": 429}, 429),
        ({"status": 503}, 503),
        ({"refuse": "too much", "code": grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]}, 429),
        ({"refuse": "gone", "code": grpc.StatusCode.UNAVAILABLE.value[0]}, 503),
    ],
)
def test_no_answer_is_a_reason(tmp_path: Path, wish: dict[str, Any], status: int) -> None:
    """Least of all one that says: less, please."""
    backends = [free_port(), free_port()]
    with (
        running_backend(backends[0]),
        running_backend(backends[1]),
        proxied(tmp_path, *(f"127.0.0.1:{port}" for port in backends)) as envoy,
    ):
        before = envoy.counters()["upstream_rq_total"]
        assert [envoy.predict(**wish) for _ in range(10)] == [status] * 10
        counters = envoy.counters()
    assert counters["upstream_rq_total"] == before + 10
    assert counters["upstream_rq_retry"] == 0


def test_attempts_stay_within_their_budget(tmp_path: Path) -> None:
    """Everybody is away: 100 at a time may not become 300 attempts at a time."""
    clients, each = 100, 5
    gate = threading.Barrier(clients)
    with proxied(tmp_path, f"127.0.0.1:{free_port()}") as envoy:

        def ask(_: int) -> list[int]:
            gate.wait()
            return [envoy.predict() for _ in range(each)]

        with concurrent.futures.ThreadPoolExecutor(clients) as pool:
            statuses = [status for found in pool.map(ask, range(clients)) for status in found]
        counters = envoy.counters()
    print(counters)
    assert set(statuses) == {503}
    # All would be RETRIES × requests.
    assert counters["upstream_rq_retry"] < len(statuses)
    assert counters["upstream_rq_retry_overflow"] > 0
    assert counters["upstream_rq_retry"] + counters["upstream_rq_retry_overflow"] >= len(statuses) // 2


def test_one_front_alone_is_asked_again_as_soon_as_it_is_back(tmp_path: Path) -> None:
    """However often it was away: with nobody else left, nobody is passed over."""
    port = free_port()
    with proxied(tmp_path, f"127.0.0.1:{port}") as envoy:
        assert {envoy.predict() for _ in range(5)} == {503}
        with running_backend(port):
            assert [envoy.predict() for _ in range(5)] == [200] * 5

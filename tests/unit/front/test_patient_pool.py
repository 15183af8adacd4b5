"""The cold methods' threads on a real stock server: whoever says nothing has none, or not for ever."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from nexus_grpc.front import patient_pool, upload
from nexus_grpc.front.grpcio_contract import server as grpc_server
from nexus_grpc.front.hot_methods import METADATA_MAX_BYTES
from nexus_grpc.front.patient_pool import COLD_THREADS, SPARE_UPLOAD_THREADS, STREAM_THREADS, PatientPool
from tests import http2
from tests.http2 import Connection, grpc_fields, message, request

ONE, STREAM, UPLOAD = "/test.Test/One", "/test.Test/Stream", "/nexus.v1.Models/Upload"
UPLOADS_MAX = 2
SECONDS = 20.0
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Handlers(grpc.GenericRpcHandler):
    """One method of each kind; `open` is how many streams and uploads have a thread."""

    def __init__(self) -> None:
        self.open = 0
        self._lock = threading.Lock()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        if handler_call_details.method == STREAM:
            return grpc.stream_stream_rpc_method_handler(self._stream)
        if handler_call_details.method in upload.PATHS:
            return grpc.stream_unary_rpc_method_handler(lambda messages, _: b"".join(self._stream(messages, _)))
        return grpc.unary_unary_rpc_method_handler(lambda content, _: content, request_deserializer=_readable)

    def _stream(self, messages: Iterator[bytes], _: grpc.ServicerContext) -> Iterator[bytes]:
        self._count(1)
        try:
            yield from messages
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        with self._lock:
            self.open += change


def _readable(content: bytes) -> bytes:
    if content == b"unreadable":
        raise ValueError
    return content


class Site:
    def __init__(self) -> None:
        self.handlers = Handlers()
        self.pool = PatientPool(UPLOADS_MAX)
        self.server = grpc_server._Server(self.pool, (self.handlers,), (), (), None, None, False)
        self.health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.port}")

    def one(self, content: bytes = b"a") -> bytes:
        return bytes(self.channel.unary_unary(ONE)(content, timeout=SECONDS))

    def upload(self, path: str = UPLOAD) -> bytes:
        return bytes(self.channel.stream_unary(path)(iter((b"a", b"b")), timeout=SECONDS))

    def streamed(self) -> list[bytes]:
        return list(self.channel.stream_stream(STREAM)(iter((b"a", b"b")), timeout=SECONDS))


@pytest.fixture
def site() -> Iterator[Site]:
    before = set(threading.enumerate())  # whatever earlier tests left
    site = Site()
    site.server.start()
    yield site
    site.channel.close()
    site.server.stop(None).wait(SECONDS)
    site.pool.shutdown()
    ours = ("cold", "upload_", "stream_")
    wait_until(lambda: not any(each.name.startswith(ours) for each in threading.enumerate() if each not in before))


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextlib.contextmanager
def idle(site: Site, path: str, count: int) -> Iterator[Connection]:
    """Calls that say nothing but what they are."""
    with Connection(site.port) as connection:
        connection.settle()
        for _ in range(count):
            connection.send(request(connection.new_stream(), grpc_fields(path.encode())))
        yield connection


def outcomes(connection: Connection, count: int) -> list[str]:
    """The statuses of the next calls that end, "reset" for those that have none."""
    found: dict[int, str] = {}
    for each in connection.frames(SECONDS):
        if each.kind == http2.HEADERS and each.flags & http2.END_STREAM:
            found[each.stream] = http2.literals(each.payload)[b"grpc-status"].decode()
        elif each.kind == http2.RST_STREAM:
            found.setdefault(each.stream, "reset")
        if len(found) == count:
            break
    return list(found.values())


def refused(call: Callable[[], Any]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    code: grpc.StatusCode = raised.value.code()
    return code


def test_who_says_nothing_has_no_thread(site: Site) -> None:
    with idle(site, ONE, 3 * COLD_THREADS), idle(site, "/grpc.health.v1.Health/Watch", 3 * COLD_THREADS):
        assert site.one() == b"a"
        assert site.streamed() == [b"a", b"b"]


def test_who_watches_has_none_either(site: Site) -> None:
    stub = health_pb2_grpc.HealthStub(site.channel)
    watches = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(3 * COLD_THREADS)]
    assert {next(watch).status for watch in watches} == {SERVING}
    assert site.one() == b"a"
    site.health.set("", NOT_SERVING)
    assert {next(watch).status for watch in watches} == {NOT_SERVING}
    for watch in watches:
        watch.cancel()


def test_who_watches_and_takes_nothing_stops_nobody(site: Site) -> None:
    """Nor does the lock of health's own wait for him. When he takes something it is the last status."""
    stub = health_pb2_grpc.HealthStub(site.channel)
    with Connection(site.port) as connection:
        connection.settle()
        connection.send(http2.settings((http2.INITIAL_WINDOW_SIZE, 0)))
        for stream in range(1, 2 * COLD_THREADS, 2):
            headers = request(connection.new_stream(), grpc_fields(b"/grpc.health.v1.Health/Watch"))
            connection.send(headers + message(stream, b""))
        wait_until(lambda: len(site.health._send_response_callbacks.get("", ())) == COLD_THREADS)
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS).status == SERVING
        for status in (NOT_SERVING, SERVING, NOT_SERVING):
            site.health.set("", status)
        assert site.one() == b"a"
        connection.send(http2.settings((http2.INITIAL_WINDOW_SIZE, 1000)))
        data = [each.payload for each in connection.frames(0.5) if each.kind == http2.DATA and each.stream == 1]
        assert b"".join(data) == b"".join(
            b"\0\0\0\0\2" + health_pb2.HealthCheckResponse(status=status).SerializeToString()
            for status in (SERVING, NOT_SERVING)
        )
    wait_until(lambda: not site.health._send_response_callbacks[""])


def test_a_message_that_comes_later(site: Site) -> None:
    with idle(site, ONE, 1) as connection:
        time.sleep(0.1)
        connection.send(message(1, b"late"))
        assert any(b"late" in each.payload for each in connection.frames(1.0) if each.kind == http2.DATA)


def test_no_message_one_that_nobody_can_read_and_a_client_that_leaves(site: Site) -> None:
    with idle(site, ONE, 3) as connection:
        connection.send(http2.frame(http2.DATA, http2.END_STREAM, 1) + message(3, b"unreadable") + http2.reset(5))
        assert sorted(outcomes(connection, 2)) == ["12", "13"]
    assert refused(lambda: site.one(b"unreadable")) == grpc.StatusCode.INTERNAL
    assert site.one() == b"a"
    wait_until(lambda: len(site.server._state.rpc_states) == 0)


def test_idle_streams_keep_others_waiting_for_a_while_only(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with idle(site, STREAM, STREAM_THREADS) as connection:
        wait_until(lambda: site.handlers.open == STREAM_THREADS)
        assert refused(site.streamed) == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (site.one(), site.upload()) == (b"a", b"ab")
        monkeypatch.setattr(patient_pool, "STREAM_SECONDS", 0.0)
        assert site.streamed() == [b"a", b"b"]
        assert outcomes(connection, 1) == ["1"]
        wait_until(lambda: site.handlers.open == STREAM_THREADS - 1)
        assert site.streamed() == [b"a", b"b"]
        assert site.handlers.open == STREAM_THREADS - 1


def test_a_stream_whose_client_reads_nothing_is_ended_too(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patient_pool, "STREAM_SECONDS", 0.0)
    calls = [site.channel.stream_stream(STREAM)(iter([b"a" * (1 << 22)] * 8)) for _ in range(STREAM_THREADS)]
    wait_until(lambda: site.handlers.open == STREAM_THREADS)
    assert site.streamed() == [b"a", b"b"]
    for call in calls:
        call.cancel()
    wait_until(lambda: site.handlers.open == 0)


def test_uploads_and_streams_do_not_wait_for_each_other(site: Site) -> None:
    with idle(site, UPLOAD, UPLOADS_MAX + SPARE_UPLOAD_THREADS):
        wait_until(lambda: site.handlers.open == UPLOADS_MAX + SPARE_UPLOAD_THREADS)
        assert (site.one(), site.streamed()) == (b"a", [b"a", b"b"])
    for path in upload.PATHS:
        assert site.upload(path) == b"ab"


@pytest.mark.parametrize("path", [ONE, STREAM, UPLOAD])
def test_metadata_over_the_limit_before_the_client_knows_it(site: Site, path: str) -> None:
    """The core takes 16 MiB until its settings are acknowledged."""
    with Connection(site.port, acknowledges=False) as connection:
        large = (b"x-large", b"a" * (METADATA_MAX_BYTES + 1))
        connection.send(request(connection.new_stream(), grpc_fields(path.encode(), large)))
        assert outcomes(connection, 1) == ["8"]
    assert site.handlers.open == 0


def test_a_server_that_stops_waits_for_nobody_who_is_idle(site: Site) -> None:
    with idle(site, ONE, 10), idle(site, STREAM, 3), idle(site, UPLOAD, 3):
        wait_until(lambda: len(site.server._state.rpc_states) == 16)
        assert site.server.stop(0.2).wait(SECONDS)
        wait_until(lambda: site.handlers.open == 0)

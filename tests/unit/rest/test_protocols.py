"""HTTP/2 in the clear, TLS, gRPC and gRPC-web: all on the REST port of a real Envoy."""

import json
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.api import httpbody_pb2

from nexus_grpc.ipc.wire import length_prefix
from nexus_grpc.rest.bootstrap import EnvoyOptions
from tests.harness import certificate, free_port
from tests.integration.rest import Raw, assert_error, get, post
from tests.unit.rest.conftest import TIMEOUT_S
from tests.unit.rest.live import running_envoy
from tests.unit.rest.test_bootstrap import validate

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"  # and empty SETTINGS
MAX_CONCURRENT_STREAMS = 3  # RFC 9113, 6.5.2


def unary(port: int, method: str, message: bytes = b"") -> bytes:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: Any = channel.unary_unary(method)
        return bytes(call(message, timeout=8))


def test_http2_in_the_clear_says_how_many_streams(rest_port: int) -> None:
    """More than these a client may not open: a thousand wait on its side."""
    with Raw(rest_port) as raw:
        raw.send(PREFACE)
        head = raw.socket.recv(9, socket.MSG_WAITALL)
        length, kind = int.from_bytes(head[:3]), head[3]
        content = raw.socket.recv(length, socket.MSG_WAITALL)
    assert kind == 4
    assert dict(struct.iter_unpack("!HI", content))[MAX_CONCURRENT_STREAMS] == 100


def test_grpc_passes(rest_port: int) -> None:
    for method in ("/nexus.v1.Inference/Predict", "/inference.GRPCInferenceService/ServerLive", "/grpc.x.Y/Z"):
        assert method.encode() in unary(rest_port, method)


def test_the_twin_and_the_unknown_do_not(rest_port: int) -> None:
    for method in ("/nexus.http.v1.Http/ModelsList", "/other.Service/Method"):
        with pytest.raises(grpc.RpcError) as raised:
            unary(rest_port, method)
        assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_grpc_may_last_longer_than_a_rest_request(rest_port: int) -> None:
    wish = httpbody_pb2.HttpBody(data=json.dumps({"sleep": TIMEOUT_S + 1}).encode()).SerializeToString()
    assert unary(rest_port, "/nexus.v1.Inference/Predict", length_prefix(15, len(wish)) + wish)


def test_a_stream_may_say_nothing_at_first_for_longer(rest_port: int) -> None:
    def late() -> Iterator[bytes]:
        time.sleep(TIMEOUT_S + 1)
        yield b""

    with grpc.insecure_channel(f"127.0.0.1:{rest_port}") as channel:
        call: Any = channel.stream_unary("/nexus.v1.Inference/PredictStream")
        assert call(late(), timeout=8)


def test_grpc_web_passes(rest_port: int) -> None:
    answer = post(rest_port, "/nexus.v1.Models/List", b"\0\0\0\0\0", Content_Type="application/grpc-web+proto")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/grpc-web+proto")
    assert b"/nexus.v1.Models/List" in answer.body
    assert b"grpc-status:0" in answer.body.replace(b" ", b"")


def test_fronts_that_are_away_are_503(tmp_path: Path) -> None:
    options = EnvoyOptions(port=free_port(), upstreams=(f"127.0.0.1:{free_port()}", f"unix:{tmp_path}/none"))
    with running_envoy(options, tmp_path):
        for answer in (get(options.port, "/models"), post(options.port, "/predict", b"{}")):
            assert_error(answer, 503)
            assert answer.json["error"]["code"] == "UNAVAILABLE"
        with pytest.raises(grpc.RpcError) as raised:
            unary(options.port, "/nexus.v1.Models/List")
        assert raised.value.code() == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("offered", ["h2", "http/1.1"])
def test_tls(tmp_path: Path, offered: str) -> None:
    chain, key = certificate(tmp_path, "nexus")
    options = EnvoyOptions(port=free_port(), tls_certificate=str(chain), tls_key=str(key))
    validate(options, tmp_path)
    context = ssl.create_default_context(cafile=str(chain))
    context.set_alpn_protocols([offered])
    with (
        running_envoy(options, tmp_path),
        Raw(options.port) as raw,
        context.wrap_socket(raw.socket, server_hostname="localhost") as secured,
    ):
        assert secured.selected_alpn_protocol() == offered
        assert secured.version() in ("TLSv1.2", "TLSv1.3")
        if offered == "http/1.1":
            secured.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert secured.recv(12) == b"HTTP/1.1 200"

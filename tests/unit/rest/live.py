"""A real Envoy with the rendered bootstrap, before a small real gRPC server that says what arrived."""

import contextlib
import hashlib
import http.client
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
from google.api import httpbody_pb2

from nexus_grpc.ipc.wire import fields
from nexus_grpc.rest.bootstrap import EnvoyOptions, render_bootstrap
from nexus_grpc.rest.twin import path_of
from nexus_grpc.supervisor.envoy_setup import find_binary
from tests.integration.rest import Raw

START_TIMEOUT_S = 20.0
UPLOAD = path_of("ModelsUpload")
# Envoy's header limit must be what stops long headers, as with a front.
_OPTIONS = [("grpc.max_metadata_size", 32 << 10), ("grpc.max_receive_message_length", -1)]
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class Echo(grpc.GenericRpcHandler):
    """Answers a twin's method with an HttpBody: the method, the fields of the message, the metadata, all as JSON.

    The body may ask for something else: {"status": 404}, {"refuse": "text"} (with {"code": 8} in place of UNAVAILABLE),
    {"bytes": 1000}, {"sleep": 1}.
    """

    def service(self, details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any]":
        def answer(message: bytes, context: grpc.ServicerContext) -> bytes:
            found = [(number, message[start:end]) for number, _, start, end in fields(message)]
            metadata = {key: str(value) for key, value in context.invocation_metadata() or ()}
            wish = _wish(found)
            if "refuse" in wish:
                context.abort(_CODES[wish.get("code", 14)], wish["refuse"])
            time.sleep(wish.get("sleep", 0))
            extra = [("x-nexus-http-status", str(wish["status"]))] if "status" in wish else []
            context.send_initial_metadata((("x-request-id", metadata.get("x-request-id", "")), *extra))
            said = {"method": details.method, "fields": [(n, v.decode("latin-1")) for n, v in found], "sent": metadata}
            content = b"x" * wish["bytes"] if "bytes" in wish else json.dumps(said).encode()
            return bytes(httpbody_pb2.HttpBody(content_type="application/json", data=content).SerializeToString())

        if details.method == UPLOAD:
            return grpc.stream_unary_rpc_method_handler(_count)
        return grpc.unary_unary_rpc_method_handler(answer)


def _count(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
    """Says what kinds and how many bytes came, the largest piece, and takes x-pause seconds before it answers."""
    pieces = [httpbody_pb2.HttpBody.FromString(message) for message in messages]
    metadata = {key: str(value) for key, value in context.invocation_metadata() or ()}
    time.sleep(float(metadata.get("x-pause", 0)))
    context.send_initial_metadata((("x-request-id", metadata.get("x-request-id", "")), ("x-nexus-http-status", "201")))
    said = {
        "types": [piece.content_type for piece in pieces if piece.content_type],
        "bytes": sum(len(piece.data) for piece in pieces),
        "largest": max((len(piece.data) for piece in pieces), default=0),
        "sha256": hashlib.sha256(b"".join(piece.data for piece in pieces)).hexdigest(),
    }
    content = json.dumps(said).encode()
    return bytes(httpbody_pb2.HttpBody(content_type="application/json", data=content).SerializeToString())


def _wish(found: list[tuple[int, bytes]]) -> dict[str, Any]:
    bodies = [httpbody_pb2.HttpBody.FromString(value) for number, value in found if number == 15 and value]
    with contextlib.suppress(ValueError):
        content = json.loads(bodies[-1].data) if bodies else {}
        return content if isinstance(content, dict) else {}
    return {}


@contextlib.contextmanager
def running_backend(port: int) -> Iterator[None]:
    server = grpc.server(futures.ThreadPoolExecutor(4), options=_OPTIONS)
    server.add_generic_rpc_handlers((Echo(),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield
    finally:
        server.stop(0).wait()


@contextlib.contextmanager
def running_envoy(options: EnvoyOptions, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """An Envoy that answers at options.port; what it says goes to folder/envoy.log."""
    bootstrap = folder / "bootstrap.json"
    bootstrap.write_text(json.dumps(render_bootstrap(options)))
    command = [find_binary(), "-c", str(bootstrap), "--concurrency", "1", "--disable-hot-restart", "-l", "warning"]
    with (folder / "envoy.log").open("wb") as log:
        process = subprocess.Popen([*command, "--file-flush-interval-msec", "50"], stdout=log, stderr=log)
        try:
            _wait(options.port, process, folder / "envoy.log")
            yield process
        finally:
            process.kill()
            process.wait()


def statistics(socket_path: Path, names: str) -> dict[str, int]:
    """Envoy's counters of the fronts' cluster, of its admin socket. `names`: a regular expression for their ends."""
    connection = http.client.HTTPConnection("envoy")
    connection.sock = socket.socket(socket.AF_UNIX)
    with contextlib.closing(connection):
        connection.sock.connect(str(socket_path))
        connection.request("GET", f"/stats?filter=^cluster.fronts.({names})$")
        lines = connection.getresponse().read().decode().splitlines()
    return {name.rpartition(".")[2]: int(value) for name, _, value in (line.partition(": ") for line in lines)}


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), Raw(port):
            return
        time.sleep(0.05)
    raise AssertionError(log.read_text())

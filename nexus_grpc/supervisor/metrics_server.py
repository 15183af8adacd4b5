"""The supervisor's HTTP server: GET /metrics for Prometheus, GET /metrics/json for people and the page."""

import http
import json
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from nexus_grpc.access.call import API_KEY, AUTHORIZATION, Admit
from nexus_grpc.access.rules import RULES
from nexus_grpc.ipc.errors import Code, NexusError
from nexus_grpc.rest.errors import error_body, http_status
from nexus_grpc.supervisor.metrics import MetricsCollector, MetricsSources
from nexus_grpc.supervisor.metrics_summary import summary_of


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not worth a line each."""


class MetricsServer:
    """The thread that answers."""

    def __init__(self, server: WSGIServer, thread: threading.Thread) -> None:
        self._server = server
        self._thread = thread

    @property
    def port(self) -> int:
        """The bound port, also where port 0 was asked for."""
        return self._server.server_port

    def close(self) -> None:
        """Stops answering and frees the port; returns when the thread has ended."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def serve(current: Callable[[], MetricsSources], host: str, port: int, admit: Admit | None = None) -> MetricsServer:
    """Serves the metrics on http://host:port/metrics and /metrics/json from a daemon thread; port 0 picks a free one.

    Args:
        admit: recognises callers, where they need a credential.

    Raises:
        OSError: the address can't be bound, e.g. the port is taken (errno EADDRINUSE).
    """
    registry = CollectorRegistry()
    registry.register(MetricsCollector(current))
    server_class = _Server6 if ":" in host else _Server
    server: WSGIServer = make_server(host, port, _application(current, registry, admit), server_class, _Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True, name="metrics")
    thread.start()
    return MetricsServer(server, thread)


def _application(current: Callable[[], MetricsSources], registry: CollectorRegistry, admit: Admit | None) -> Any:
    prometheus = make_wsgi_app(registry)

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "HEAD":
            return _head(answer, environ, start_response)
        return answer(environ, start_response)

    def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if environ["REQUEST_METHOD"] != "GET":
            return _error(environ, start_response, "405 Method Not Allowed", Code.UNIMPLEMENTED, "this path takes GET")
        try:
            if admit is not None:
                admit(RULES["/metrics"], _credentials(environ), _Caller(environ.get("REMOTE_ADDR", "")))
        except NexusError as error:
            status = f"{http_status(error.code)} {http.HTTPStatus(http_status(error.code)).phrase}"
            return _error(environ, start_response, status, error.code, error.message)
        if path in ("/metrics", "/metrics/prom", "/"):
            return prometheus(environ, start_response)  # type: ignore[no-any-return]
        if path == "/metrics/json":
            body = json.dumps(summary_of(current(), time.time())).encode()
            return _send(start_response, "200 OK", body)
        message = "no such path here; there are /metrics (or /metrics/prom) and /metrics/json"
        return _error(environ, start_response, "404 Not Found", Code.NOT_FOUND, message)

    return application


def _head(answer: Any, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """The answer to HEAD: GET's headers, its length among them."""
    begun: list[Any] = []
    body = b"".join(answer({**environ, "REQUEST_METHOD": "GET"}, lambda *said: begun.append(said)))
    status, headers = begun[0][:2]
    kept = [(name, value) for name, value in headers if name.lower() != "content-length"]
    start_response(status, [*kept, ("Content-Length", str(len(body)))])
    return []


class _Caller:
    """What the gate asks of a connection."""

    def __init__(self, address: str) -> None:
        self._address = address

    def peer(self) -> str:
        return f"http:{self._address}:0"

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}


def _credentials(environ: dict[str, Any]) -> list[tuple[str, str]]:
    names = {AUTHORIZATION: "HTTP_AUTHORIZATION", API_KEY: "HTTP_X_API_KEY"}
    return [(header, environ[name]) for header, name in names.items() if name in environ]


def _error(environ: dict[str, Any], start_response: Any, status: str, code: Code, message: str) -> Iterable[bytes]:
    return _send(start_response, status, error_body(code, message, environ.get("HTTP_X_REQUEST_ID", "")[:128]))


def _send(start_response: Any, status: str, body: bytes) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]

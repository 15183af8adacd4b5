"""The supervisor's HTTP server: two paths, and errors in the common shape."""

import json
import urllib.error
import urllib.request

import pytest

from nexus_grpc.supervisor.metrics import MetricsSources
from nexus_grpc.supervisor.metrics_server import serve


def ask(port: int, path: str, method: str = "GET") -> tuple[int, str, bytes]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method, headers={"X-Request-ID": "r-1"})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.headers["Content-Type"], response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read()


def test_what_it_answers() -> None:
    server = serve(lambda: MetricsSources(models_ready_count=3, started_at_s=1.0), "127.0.0.1", 0)
    try:
        status, kind, body = ask(server.port, "/metrics")
        assert (status, kind.split(";")[0]) == (200, "text/plain")
        assert b"nexus_models_loaded 3.0" in body
        assert ask(server.port, "/metrics/prom")[2] == body
        assert ask(server.port, "/metrics", "HEAD") == (status, kind, b"")
        status, kind, body = ask(server.port, "/metrics/json")
        assert (status, kind) == (200, "application/json")
        summary = json.loads(body)
        assert (summary["models_loaded"], summary["requests_total"], summary["models"]) == (3, 0, [])
        assert summary["uptime_seconds"] > 0
    finally:
        server.close()


@pytest.mark.parametrize(
    ("path", "method", "expected", "code"),
    [
        ("/nothing", "GET", 404, "NOT_FOUND"),
        ("/metrics", "POST", 405, "UNIMPLEMENTED"),
        ("/metrics/json", "DELETE", 405, "UNIMPLEMENTED"),
    ],
)
def test_what_it_refuses(path: str, method: str, expected: int, code: str) -> None:
    server = serve(MetricsSources, "127.0.0.1", 0)
    try:
        status, kind, body = ask(server.port, path, method)
    finally:
        server.close()
    assert (status, kind) == (expected, "application/json")
    assert json.loads(body)["error"]["code"] == code
    assert json.loads(body)["request_id"] == "r-1"

"""What clients get wrong, by accident or on purpose, through the real Envoy: the right status, the one error shape, and
a server that serves on."""

import contextlib
import json
import socket
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.harness import Server
from tests.integration.rest import IRIS, Raw, assert_error, assert_serves, call, get, post

MIB = 1 << 20
BODY = json.dumps(IRIS).encode()
HEAD = b"POST /predict HTTP/1.1\r\nHost: nexus\r\nContent-Type: application/json\r\n"


@pytest.fixture
def port(rest_server: Server) -> Iterator[int]:
    """The REST port; whatever a test did, the next good request must work."""
    yield rest_server.rest_port
    assert_serves(rest_server.rest_port)


BAD_BODIES = {
    "empty": (b"", "empty"),
    "not JSON": (b"features=1", "JSON"),
    "cut off": (BODY[:-3], "JSON"),
    "something after the end": (BODY + b"}", "JSON"),
    "an array": (b"[]", "object"),
    "no model": (b'{"features": [1, 2, 3, 4]}', "model_id"),
    "unknown field": (
        b'{"model_id": "iris", "feature": [1, 2, 3, 4]}',
        'unknown field "feature"; did you mean "features"?',
    ),
    "duplicate key": (b'{"model_id": "iris", "features": [1], "features": [1, 2, 3, 4]}', "features"),
    "duplicate model": (b'{"model_id": "iris", "model_id": "scale", "features": [1, 2, 3, 4]}', "model_id"),
    "wrong count": (b'{"model_id": "iris", "features": [1, 2, 3]}', "invalid input: expected 4 features, got 3"),
    "text for a number": (b'{"model_id": "iris", "features": ["1", 2, 3, 4]}', "features"),
    "null for a whole number": (b'{"model_id": "counts_i64", "features": [null, 2, 3, 4]}', "features"),
    "NaN for a whole number": (b'{"model_id": "counts_i64", "features": ["NaN", 2, 3, 4]}', "features"),
    "NaN": (b'{"model_id": "iris", "features": [NaN, 2, 3, 4]}', 'write "NaN", with quotes'),
    "Infinity": (b'{"model_id": "iris", "features": [Infinity, 2, 3, 4]}', "JSON"),
    "a number beyond float64": (b'{"model_id": "iris", "features": [1e999, 2, 3, 4]}', ""),
    "invalid UTF-8": (b'{"model_id": "iri\xff", "features": [1, 2, 3, 4]}', ""),
    "lone surrogate": (b'{"model_id": "iri\\ud800", "features": [1, 2, 3, 4]}', ""),
    "deep nesting": (b'{"model_id": "iris", "inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", ""),
    "deep objects": (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, ""),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_bad_bodies_of_predict(port: int, name: str) -> None:
    body, words = BAD_BODIES[name]
    answer = post(port, "/predict", body)
    assert_error(answer, 400)
    assert words in answer.message, answer.message


def test_an_unknown_model_is_not_found_as_on_grpc(port: int) -> None:
    answer = post(port, "/predict", IRIS | {"model_id": "nobody"})
    assert_error(answer, 404)
    assert answer.message == "Request for unknown model: 'nobody' is not found"


@pytest.mark.parametrize("content_type", ["text/plain", "multipart/form-data", "application/jsonp", "x"])
def test_another_content_type_is_415(port: int, content_type: str) -> None:
    assert_error(post(port, "/predict", BODY, Content_Type=content_type), 415)


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "Application/JSON"])
def test_content_types_of_json(port: int, content_type: str) -> None:
    assert post(port, "/predict", BODY, Content_Type=content_type).status == 200


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/predict", "POST"),
        ("PUT", "/predict", "POST"),
        ("DELETE", "/models", "GET"),
        ("TRACE", "/predict", "POST"),
        ("PATCH", "/v2/models/iris/infer", "POST"),
    ],
)
def test_the_wrong_method_is_405_and_names_the_right_ones(port: int, method: str, path: str, allowed: str) -> None:
    answer = call(port, method, path)
    assert_error(answer, 405)
    assert allowed in answer.headers["allow"]


@pytest.mark.parametrize(
    "path", ["/", "/models", "/models/iris", "/models/nobody", "/health", "/v2/models/iris", "/metrics"]
)
def test_head_is_get_without_a_body(port: int, path: str) -> None:
    """On a connection that goes on: what came of a body would be taken for the next answer."""
    by_get = get(port, path)
    request = b"HEAD %b HTTP/1.1\r\nHost: nexus\r\n\r\n" % path.encode()
    with Raw(port) as raw:
        raw.send(request + b"GET /v2/health/live HTTP/1.1\r\nHost: nexus\r\nConnection: close\r\n\r\n")
        first, second, body = raw.answers(5).split(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 %d " % by_get.status)
    assert b"content-type: " + by_get.headers["content-type"].encode() in first
    assert b"x-nexus" not in first
    if path not in ("/metrics", "/health"):  # whose lengths change
        assert b"content-length: " + by_get.headers["content-length"].encode() in first
    assert (second.split(b"\r\n")[0], body) == (b"HTTP/1.1 200 OK", b'{"live": true}')


@pytest.mark.parametrize("host", [b"", b"Host: nexus\r\n"])
def test_http_1_0(port: int, host: bytes) -> None:
    for request, words in (
        (b"GET /health HTTP/1.0\r\n" + host, b'"status": "ok"'),
        (b"POST /predict HTTP/1.0\r\n" + host + b"Content-Length: %d\r\n" % len(BODY), b'"model_id":"iris"'),
        (b"GET /nowhere HTTP/1.0\r\n" + host, b'"code":"NOT_FOUND"'),
    ):
        with Raw(port) as raw:
            raw.send(request + b"\r\n" + (BODY if b"POST" in request else b""))
            head, _, body = raw.answers(5).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.0 ")
        assert b"transfer-encoding" not in head
        assert words in body


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/predict/",
        "//predict",
        "/predict/x",
        "/models/iris/x/y",
        "/PREDICT",
        "/v2/models//infer",
        "/.well-known/x",
    ],
)
def test_unknown_paths_are_404(port: int, path: str) -> None:
    assert_error(post(port, path, BODY), 404)


@pytest.mark.parametrize("path", ["/models/..%2fhealth", "/models/..%5chealth", "/models/%2e%2e%2fhealth"])
def test_escaped_slashes_are_refused(port: int, path: str) -> None:
    answer = get(port, path)
    assert answer.status == 400
    assert answer.json["error"]["code"] == "INVALID_ARGUMENT"


def test_dots_are_taken_out_as_rfc_3986_says(port: int) -> None:
    assert get(port, "/models/%2e%2e/health").json["status"] == "ok"
    assert_error(get(port, "/%2e%2e/%2e%2e/etc/passwd"), 404)
    assert post(port, "/%2e/predict", BODY).status == 200


def test_a_path_that_cannot_be_is_400(port: int) -> None:
    answer = get(port, "/models/%00")
    assert answer.status == 400
    assert answer.json["error"]["code"] == "INVALID_ARGUMENT"
    assert "path_normalization_failed" in answer.message


def test_the_internal_service_cannot_be_called_from_outside(port: int) -> None:
    answer = post(port, "/nexus.http.v1.Http/InferencePredict", BODY, Content_Type="application/grpc")
    assert answer.status in (404, 415) or answer.headers.get("grpc-status") not in (None, "0"), answer


def test_an_unknown_query_parameter_is_named(port: int) -> None:
    answer = get(port, "/models/info?id=iris&colour=blue")
    assert_error(answer, 400)
    assert "colour" in answer.message


def test_a_body_over_the_limit_is_413_and_takes_no_memory(rest_server: Server, port: int) -> None:
    processes = [
        psutil.Process(rest_server.process.pid),
        *psutil.Process(rest_server.process.pid).children(recursive=True),
    ]
    before = sum(process.memory_info().rss for process in processes)
    for _ in range(4):
        with Raw(port) as raw:
            raw.send(HEAD + b"Content-Length: %d\r\n\r\n" % (1 << 30))
            with contextlib.suppress(OSError):
                for _ in range(80):
                    raw.send(b" " * MIB)
            answer = raw.answers(5)
        # Whoever still sends when the refusal comes may find the connection closed before reading it.
        assert answer == b"" or b" 413 " in answer.split(b"\r\n", 1)[0], answer[:200]
    grown = sum(process.memory_info().rss for process in processes) - before
    assert grown < 150 * MIB, f"{grown / MIB:.0f} MiB more"


def test_the_413_can_be_read(port: int) -> None:
    answer = post(port, "/predict", b" " * (65 * MIB))
    assert_error(answer, 413)


def test_headers_over_the_limit_are_refused(port: int) -> None:
    with Raw(port) as raw:
        raw.send(HEAD + b"X-Long: " + b"a" * 100_000 + b"\r\nContent-Length: 2\r\n\r\n{}")
        assert raw.answers(5).startswith(b"HTTP/1.1 431")
    with Raw(port) as raw:
        raw.send(HEAD + b"".join(b"X-%d: a\r\n" % number for number in range(1000)) + b"Content-Length: 2\r\n\r\n{}")
        assert raw.answers(5).startswith(b"HTTP/1.1 431")


def test_ten_thousand_header_bytes_are_fine(port: int) -> None:
    assert post(port, "/predict", BODY, X_Long="a" * 10_000).status == 200


def test_underscores_in_header_names_are_refused(port: int) -> None:
    with Raw(port) as raw:
        raw.send(HEAD + b"x_request_id: a\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(BODY) + BODY)
        assert b" 400 " in raw.answers(5).split(b"\r\n", 1)[0]


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\x01\x02\x03\r\n\r\n",
        b"POST /predict HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no Host
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused(port: int, garbage: bytes) -> None:
    with Raw(port) as raw:
        raw.send(garbage)
        answer = raw.answers(3)
    # What is neither HTTP/1.1 nor 1.0 is 1.0 to Envoy.
    assert answer == b"" or answer.startswith((b"HTTP/1.1 400", b"HTTP/1.0 4")), answer[:200]


def test_pipelined_garbage_does_not_spoil_the_first_answer(port: int) -> None:
    with Raw(port) as raw:
        raw.send(HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY + b"\xff\xfe rubbish\r\n\r\n")
        answer = raw.answers(3)
    assert answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 400")), answer[:200]


def test_pipelined_requests_are_answered_in_order(port: int) -> None:
    ids = [b"first", b"second", b"third"]
    with Raw(port) as raw:
        for name in ids:
            raw.send(HEAD + b"X-Request-ID: %s\r\nContent-Length: %d\r\n\r\n" % (name, len(BODY)) + BODY)
        answer = raw.answers(2)
    assert answer.count(b"HTTP/1.1 200") == 3
    assert [answer.index(name) for name in ids] == sorted(answer.index(name) for name in ids)


def test_many_idle_connections_do_not_stop_others(port: int) -> None:
    idle = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(200)]
    try:
        assert_serves(port)
    finally:
        for connection in idle:
            connection.close()


def test_a_client_that_leaves_in_the_middle(port: int) -> None:
    for _ in range(20):
        with Raw(port) as raw:
            raw.send(HEAD + b"Content-Length: 1000\r\n\r\n{")
    time.sleep(0.1)

"""The rendered bootstrap in a real Envoy: what reaches a front, what a client gets, and that the limits hold."""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from nexus_grpc.rest.bootstrap import EnvoyOptions
from tests.harness import free_port
from tests.integration.rest import Raw, assert_error, call, get, post
from tests.unit.rest.conftest import MAX_BODY, ORIGIN, TIMEOUT_S
from tests.unit.rest.live import running_envoy

MIB = 1 << 20
HEAD = b"POST /predict HTTP/1.1\r\nHost: nexus\r\nContent-Type: application/json\r\n"
BODY = "\n\x10application/json\x12\x02{}"


def arrived(content: Any) -> tuple[str, list[list[Any]]]:
    """(twin, fields as [number, content]); empty fields aside: the transcoder writes an empty body first."""
    twin = content["method"].removeprefix("/nexus.http.v1.Http/")
    return twin, [field for field in content["fields"] if field[1]]


@pytest.mark.parametrize(
    ("verb", "path", "twin", "parameters"),
    [
        ("POST", "/predict", "InferencePredict", []),
        ("GET", "/models", "ModelsList", []),
        ("GET", "/models/iris", "ModelsInfo", [[1, "iris"]]),
        ("GET", "/models/info?id=iris", "ModelsInfo", [[1, "iris"]]),
        ("GET", "/models/a%20b", "ModelsInfo", [[1, "a b"]]),
        ("GET", "/health", "SystemHealth", []),
        ("GET", "/ready", "SystemReady", []),
        ("GET", "/admin/version", "SystemVersion", []),
        ("POST", "/api/v1/predict", "RestApiPredict", []),
        ("POST", "/api/v1/batch_predict", "RestApiBatchPredict", []),
        ("GET", "/api/v1/models/iris", "RestApiModel", [[1, "iris"]]),
        ("POST", "/v1/infer", "RestInfer", []),
        ("GET", "/v2", "RestV2Server", []),
        ("GET", "/v2/health/live", "RestV2Live", []),
        ("GET", "/v2/health/ready", "RestV2Ready", []),
        ("GET", "/v2/models/iris", "RestV2Model", [[1, "iris"]]),
        ("GET", "/v2/models/iris/versions/3", "RestV2Model", [[1, "iris"], [2, "3"]]),
        ("GET", "/v2/models/iris/ready", "RestV2ModelReady", [[1, "iris"]]),
        ("GET", "/v2/models/iris/versions/3/ready", "RestV2ModelReady", [[1, "iris"], [2, "3"]]),
        ("POST", "/v2/models/iris/infer", "RestV2Infer", [[1, "iris"]]),
        ("POST", "/v2/models/iris/versions/3/infer", "RestV2Infer", [[1, "iris"], [2, "3"]]),
        ("POST", "/v1/models/iris/load", "ModelsLoad", [[1, "iris"]]),
        ("POST", "/v1/models/iris/rollback", "ModelsRollback", [[1, "iris"]]),
        ("DELETE", "/v1/models/iris", "ModelsDelete", [[1, "iris"]]),
        ("DELETE", "/v1/models/iris/versions/3", "ModelsDelete", [[1, "iris"], [2, "3"]]),
        ("GET", "/v1/models/iris/history", "ModelsHistory", [[1, "iris"]]),
        ("GET", "/v1/models/iris/history?limit=3", "ModelsHistory", [[2, "3"], [1, "iris"]]),
        ("GET", "/v1/models", "ModelsListRecords", []),
        ("GET", "/v1/models/iris", "ModelsGetRecord", [[1, "iris"]]),
        ("POST", "/v1/models", "ModelsRegister", []),
        ("PUT", "/v1/models/iris", "ModelsUpdateRecord", [[1, "iris"]]),
        ("POST", "/admin/ab/setup", "TrafficSetup", []),
        ("GET", "/admin/ab/status?model=iris", "TrafficStatus", [[1, "iris"]]),
        ("POST", "/admin/reload", "SystemReload", []),
    ],
)
def test_every_route_arrives_at_its_twin(
    rest_port: int, verb: str, path: str, twin: str, parameters: list[list[Any]]
) -> None:
    has_body = verb in ("POST", "PUT")
    answer = call(rest_port, verb, path, b"{}" if has_body else None)
    assert answer.status == 200, answer
    name, fields = arrived(answer.json)
    assert (name, sorted(fields)) == (twin, sorted(parameters + ([[15, BODY]] if has_body else [])))


def test_the_body_arrives_byte_for_byte(rest_port: int) -> None:
    body = b'{"a": NaN, "a": \xff [[[\x00 not JSON'
    _, fields = arrived(post(rest_port, "/predict", body).json)
    assert fields[-1][1].encode("latin-1").endswith(body)


def test_large_bodies_both_ways(rest_port: int) -> None:
    answer = post(rest_port, "/predict", b'{"bytes": 5000000}' + b" " * (MAX_BODY - 100))
    assert (answer.status, len(answer.body)) == (200, 5_000_000)


@pytest.mark.parametrize("status", [201, 400, 404, 429, 503])
def test_the_front_says_the_status(rest_port: int, status: int) -> None:
    answer = post(rest_port, "/predict", {"status": status})
    assert answer.status == status
    assert arrived(answer.json)[0] == "InferencePredict"
    assert not {"x-nexus-http-status", "grpc-status", "grpc-message", "server", "x-envoy-upstream-service-time"} & set(
        answer.headers
    )


def test_what_grpc_refuses_has_our_shape(rest_port: int) -> None:
    answer = post(rest_port, "/predict", {"refuse": 'say "no" \\ \n'})
    assert_error(answer, 503)
    assert answer.json["error"] == {"code": "UNAVAILABLE", "message": 'say "no" \\ \n', "details": []}


def test_request_ids_and_traces(rest_port: int, envoy_log: Path) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    answer = get(rest_port, "/models", X_Request_ID="mine", Traceparent=trace)
    assert answer.headers["x-request-id"] == "mine"
    assert (answer.json["sent"]["x-request-id"], answer.json["sent"]["traceparent"]) == ("mine", trace)
    made = get(rest_port, "/models")
    assert made.headers["x-request-id"] == made.json["sent"]["x-request-id"]
    refused = get(rest_port, "/nothing").headers["x-request-id"]
    time.sleep(0.3)
    logged = {
        line["request_id"]: line for line in map(json.loads, envoy_log.read_text().splitlines()) if "request_id" in line
    }
    assert {"mine", made.headers["x-request-id"], refused} <= set(logged)
    assert (logged["mine"]["method"], logged["mine"]["path"], logged["mine"]["status"]) == ("GET", "/models", 200)
    assert logged["mine"]["traceparent"] == trace


@pytest.mark.parametrize("header", [{"x_a_bin": "a"}, {"grpc_encoding": ""}, {"grpc_timeout": "soon"}])
def test_headers_that_grpc_cannot_read_are_the_clients_mistake(rest_port: int, header: dict[str, str]) -> None:
    answer = post(rest_port, "/predict", b"{}", **header)
    assert_error(answer, 400)
    assert answer.json["error"]["code"] == "INVALID_ARGUMENT"


@pytest.mark.parametrize("path", ["/nothing", "/predict/", "//predict", "/predict/x", "/v2/models//infer", "/PREDICT"])
def test_unknown_paths(rest_port: int, path: str) -> None:
    assert_error(post(rest_port, path, b"{}"), 404)


@pytest.mark.parametrize("path", ["/nexus.http.v1.Http/InferencePredict", "/nexus.v1.Inference/Predict", "/grpc.x/y"])
def test_grpc_paths_are_for_grpc(rest_port: int, path: str) -> None:
    assert_error(post(rest_port, path, b"{}"), 404)


def test_the_twin_cannot_be_called_from_outside(rest_port: int) -> None:
    answer = post(rest_port, "/nexus.http.v1.Http/InferencePredict", b"\0\0\0\0\0", Content_Type="application/grpc")
    assert (answer.headers["grpc-status"], answer.body) == ("12", b"")


@pytest.mark.parametrize("verb", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_verbs(rest_port: int, verb: str) -> None:
    answer = call(rest_port, verb, "/predict")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    if verb != "HEAD":
        assert_error(answer, 405)


def test_allow_names_all_verbs_of_a_path(rest_port: int) -> None:
    assert call(rest_port, "PATCH", "/v1/models/x").headers["allow"] == "DELETE, GET, HEAD, PUT"
    assert call(rest_port, "POST", "/models/info").headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize("kind", ["text/plain", "application/jsonp", "application/grpc"])
def test_other_content_types(rest_port: int, kind: str) -> None:
    answer = post(rest_port, "/predict", b"{}", Content_Type=kind)
    if kind == "application/grpc":
        assert answer.headers["grpc-status"] != "0"
    else:
        assert_error(answer, 415)


def test_planned_routes(rest_port: int) -> None:
    answer = post(rest_port, "/v1/batch", b"{}")
    assert_error(answer, 501)
    assert answer.json["error"]["code"] == "UNIMPLEMENTED"


def test_unknown_query_parameters(rest_port: int) -> None:
    answer = get(rest_port, "/models/info?colour=blue")
    assert_error(answer, 400)
    assert "colour" in answer.message


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/a/history?id=b",
        "/v1/models/a/history?limit=3&id=b",
        "/models/iris?id=other",
        "/v2/models/iris?model_version=2",
        "/models/iris?x",
    ],
)
def test_what_the_path_says_cannot_be_said_again(rest_port: int, path: str) -> None:
    assert_error(get(rest_port, path), 400)


def test_a_body_cannot_come_in_the_query(rest_port: int) -> None:
    assert_error(post(rest_port, "/predict?body.data=e30=", b""), 400)


@pytest.mark.parametrize("path", ["/models/..%2fhealth", "/models/..%5chealth", "/models/%00"])
def test_paths_that_cannot_be(rest_port: int, path: str) -> None:
    for headers in ({}, {"X_Request_ID": "mine"}):
        answer = get(rest_port, path, **headers)
        assert_error(answer, 400)
        assert "path_normalization_failed" in answer.message


def test_dots_of_a_path_are_resolved(rest_port: int) -> None:
    assert arrived(get(rest_port, "/models/%2e%2e/health").json)[0] == "SystemHealth"
    assert_error(get(rest_port, "/%2e%2e/%2e%2e/etc/passwd"), 404)


def test_a_metrics_server_that_is_away(rest_port: int) -> None:
    answer = get(rest_port, "/metrics")
    assert_error(answer, 503)
    assert answer.json["error"]["code"] == "UNAVAILABLE"


def test_a_front_that_is_away_is_passed_over(rest_port: int) -> None:
    """One of the two upstream addresses has nobody; requests that go there first are sent to the other."""
    assert [get(rest_port, "/health").status for _ in range(100)] == [200] * 100


def test_envoy_headers_of_clients_do_not_count(rest_port: int) -> None:
    assert post(rest_port, "/predict", {"sleep": 0.3}, X_Envoy_Upstream_Rq_Timeout_Ms="1").status == 200


@pytest.mark.parametrize(("wish", "status"), [({}, 200), ({"status": 404}, 404), ({"refuse": "busy"}, 503)])
def test_nothing_of_grpc_is_left_in_an_answer(rest_port: int, wish: dict[str, Any], status: int) -> None:
    answer = post(rest_port, "/predict", wish)
    assert answer.status == status
    assert not [name for name in answer.headers if name.lower().startswith(("grpc-", "x-nexus-", "x-envoy-"))]


def test_fronts_need_not_read_what_they_have_no_use_for(rest_port: int) -> None:
    browser = {"User_Agent": "Mozilla/5.0", "Accept": "*/*", "Accept_Language": "en", "Accept_Encoding": "gzip"}
    sent = post(rest_port, "/predict", {}, Traceparent="00-1-2-03", X_Api_Key="k", **browser).json["sent"]
    own = {"x-forwarded-for", "x-envoy-external-address", "x-envoy-original-path", "x-envoy-original-method"}
    assert sent.keys() == {"traceparent", "x-api-key", "x-request-id", *own}


def test_an_answer_that_does_not_come_is_504(rest_port: int) -> None:
    answer = post(rest_port, "/predict", {"sleep": TIMEOUT_S + 1})
    assert_error(answer, 504)
    assert answer.json["error"]["code"] == "DEADLINE_EXCEEDED"


@pytest.mark.parametrize("beginning", [b"Content-Length: 9\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"])
def test_a_body_that_never_ends_is_408(rest_port: int, beginning: bytes) -> None:
    with Raw(rest_port) as raw:
        raw.send(HEAD + beginning)
        answer = raw.answers(TIMEOUT_S + 2)
    assert answer.startswith(b"HTTP/1.1 408"), answer
    assert b'"code":"DEADLINE_EXCEEDED"' in answer


def test_a_body_over_the_limit_is_413_and_takes_no_memory(envoy: tuple[int, int]) -> None:
    port, pid = envoy
    assert_error(post(port, "/predict", b" " * (MAX_BODY + 1)), 413)
    before = psutil.Process(pid).memory_info().rss
    for _ in range(4):
        with Raw(port) as raw, contextlib.suppress(OSError):
            raw.send(HEAD + b"Content-Length: %d\r\n\r\n" % (1 << 30))
            for _ in range(64):
                raw.send(b" " * MIB)
    assert psutil.Process(pid).memory_info().rss - before < 4 * MAX_BODY


def test_ten_thousand_header_bytes_are_fine_and_more_are_431(rest_port: int) -> None:
    assert {get(rest_port, "/models", X_Long="a" * 10_000).status for _ in range(20)} == {200}
    assert_error(get(rest_port, "/models", X_Long="a" * 25_000), 431)
    assert_error(get(rest_port, "/models", **{f"X_{number}": "a" for number in range(101)}), 431)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET /models HTTP/1.1\r\n\r\n",
        b"GET /models HTTP/1.1\r\nHost: x\r\na_b: c\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_http_is_400_with_an_id(rest_port: int, request_bytes: bytes) -> None:
    with Raw(rest_port) as raw:
        raw.send(request_bytes)
        head, _, body = raw.answers(3).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400"), head
    content = json.loads(body)
    assert content["error"]["message"]
    assert f"x-request-id: {content['request_id']}".encode() in head


@pytest.mark.parametrize("path", ["/predict", "/models", "/models/iris", "/", "/metrics", "/nothing", "/v1/jobs/1"])
def test_preflights_work_on_every_path(rest_port: int, path: str) -> None:
    answer = call(rest_port, "OPTIONS", path, Origin=ORIGIN, Access_Control_Request_Method="POST")
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, ORIGIN)
    assert "x-grpc-web" in answer.headers["access-control-allow-headers"]
    other = call(rest_port, "OPTIONS", path, Origin="http://b.example", Access_Control_Request_Method="POST")
    assert "access-control-allow-origin" not in other.headers


def test_pages_from_anywhere(tmp_path: Path) -> None:
    options = EnvoyOptions(port=free_port(), upstreams=(f"127.0.0.1:{free_port()}",), cors_origins=("*",))
    with running_envoy(options, tmp_path):
        answer = call(options.port, "OPTIONS", "/predict", Origin=ORIGIN, Access_Control_Request_Method="POST")
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, ORIGIN)
        assert "access-control-allow-credentials" not in answer.headers


def test_pages_may_read_answers_and_errors(rest_port: int) -> None:
    for body, status in (({}, 200), ({"status": 404}, 404), ({"refuse": "no"}, 503)):
        answer = post(rest_port, "/predict", body, Origin=ORIGIN)
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (status, ORIGIN)
        assert "ratelimit-remaining" in answer.headers["access-control-expose-headers"]
    assert "access-control-allow-origin" not in post(rest_port, "/predict", {}, Origin="http://b.example").headers


@pytest.mark.parametrize("verb", ["GET", "HEAD"])
def test_the_page(rest_port: int, verb: str) -> None:
    answer = call(rest_port, verb, "/")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'self'" in answer.headers["content-security-policy"]

"""Envoy's own limit of requests per second: what it lets through, what it says, whom it leaves alone."""

import contextlib
import time
from collections.abc import Iterator

import grpc
import pytest

from nexus_grpc.rest.bootstrap import EnvoyOptions
from tests.harness import free_port
from tests.integration.rest import Answer, assert_error, get, post
from tests.unit.rest.live import running_backend, running_envoy

PER_SECOND = 5
ORIGIN = "http://page.example"


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    backend = free_port()
    upstreams = (f"127.0.0.1:{backend}",)
    limits = {"per_second": PER_SECOND, "cors_origins": (ORIGIN,)}
    nobody = f"127.0.0.1:{free_port()}"
    options = EnvoyOptions(port=free_port(), upstreams=upstreams, metrics=nobody, **limits)
    with running_backend(backend), running_envoy(options, tmp_path_factory.mktemp("envoy")):
        yield options.port


def use_up(port: int) -> Answer:
    """The first refusal."""
    for _ in range(4 * PER_SECOND):
        answer = post(port, "/predict", {})
        if answer.status != 200:
            return answer
    raise AssertionError("nothing is refused")


def test_a_refusal_says_when_to_come_again(port: int) -> None:
    answer = use_up(port)
    assert_error(answer, 429)
    error = answer.json["error"]
    assert error["code"] == "RESOURCE_EXHAUSTED"
    assert "rest_per_second" in error["message"]
    assert error["details"] == [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1s"}]
    names = ("retry-after", "ratelimit-limit", "ratelimit-remaining", "ratelimit-reset")
    assert [answer.headers[name] for name in names] == ["1", str(PER_SECOND), "0", "1"]
    assert answer.headers["ratelimit-policy"] == f"{PER_SECOND};w=1;burst={PER_SECOND}"
    time.sleep(float(answer.headers["retry-after"]))
    assert post(port, "/predict", {}).status == 200


def test_no_more_than_a_burst_and_the_rate_pass(port: int) -> None:
    time.sleep(1.1)
    began, passed = time.monotonic(), 0
    while time.monotonic() - began < 2.0:
        passed += post(port, "/predict", {}).status == 200
    elapsed = time.monotonic() - began
    # The one that was under way at the end, too.
    assert PER_SECOND <= passed <= PER_SECOND * (1 + elapsed) + 1


def test_health_pages_metrics_and_refusals_are_free(port: int) -> None:
    use_up(port)
    for path in ("/health", "/ready", "/v2/health/live", "/v2/health/ready", "/", "/docs"):
        assert [get(port, path).status for _ in range(2 * PER_SECOND)] == [200] * (2 * PER_SECOND), path
    assert {get(port, "/nothing").status for _ in range(2 * PER_SECOND)} == {404}
    # There is no server for metrics.
    assert {get(port, "/metrics").status for _ in range(2 * PER_SECOND)} == {503}
    use_up(port)
    assert get(port, "/models").status == 429


def test_a_page_can_read_the_refusal_and_a_preflight_is_free(port: int) -> None:
    use_up(port)
    answer = post(port, "/predict", {}, Origin=ORIGIN)
    assert_error(answer, 429)
    assert answer.headers["access-control-allow-origin"] == ORIGIN


def test_grpc_and_grpc_web_get_a_status(port: int) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.enable_http_proxy", 0)]) as channel:
        listed = channel.unary_unary("/nexus.v1.Models/List")
        # The channel connects first: by then there may be a token again.
        with contextlib.suppress(grpc.RpcError):
            listed(b"", timeout=10)
        use_up(port)
        with pytest.raises(grpc.RpcError) as raised:
            listed(b"", timeout=10)
        assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    use_up(port)
    answer = post(port, "/nexus.v1.Models/List", b"\0\0\0\0\0", Content_Type="application/grpc-web+proto")
    assert (answer.status, answer.headers["retry-after"]) == (429, "1")

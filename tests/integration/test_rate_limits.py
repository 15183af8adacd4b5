"""Rate limits on running servers: exact under two fronts and many clients, told to clients, shared through Redis."""

import contextlib
import dataclasses
import http.client
import pathlib
import threading
import time
from collections.abc import Iterable, Iterator, Sequence

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from nexus_grpc.access.identity import Scope
from nexus_grpc.access.keys import new_key
from nexus_grpc.ipc.rich_errors import DETAILS_KEY
from nexus_grpc.limits.redis_share import HEARTBEAT_S, SERVERS_KEY
from nexus_grpc.pb.nexus.v1 import inference_pb2
from tests.harness import Server, copy_models, running_server
from tests.integration.access import bearer, make_key, registry_of, status_of, wait_until, web_status
from tests.integration.client import IRIS_ROW, NEXUS, Client
from tests.integration.rest import IRIS, TIMEOUT_S, assert_error, get, post
from tests.redis import PASSWORD, Redis, running_redis

PER_MINUTE, BURST = 600, 20
pytestmark = pytest.mark.timed
CONNECTIONS = 16
# Between two requests of a connection: all of them together ask for a hundred times the rate.
PAUSE_S = 0.01
IRIS_REQUEST = inference_pb2.PredictRequest(model_id="iris", features=IRIS_ROW)
PREDICT = NEXUS + "Predict"
AWAY, AGAIN = "Redis does not share the rate limits", "Redis shares the rate limits"


@dataclasses.dataclass
class Tally:
    """What came of a demand; times by the monotonic clock."""

    began_s: float
    accepted_s: list[float] = dataclasses.field(default_factory=list)
    refused: int = 0

    def check(self, share_min: float = 0.95, more: float = 0.0) -> None:
        """Never more than burst + rate · time (and so many more), and that nearly."""
        most = BURST + PER_MINUTE / 60 * (max(self.accepted_s) - self.began_s)
        print(f"{len(self.accepted_s)} accepted of at most {most:.2f} ({len(self.accepted_s) / most:.1%}),")
        print(f"{self.refused} refused")
        assert len(self.accepted_s) <= most + more
        assert len(self.accepted_s) >= share_min * most
        assert self.refused > 2 * len(self.accepted_s)


def demand(addresses: Sequence[str], key: str, seconds: float) -> Tally:
    """More than the limit gives, over many connections at once."""
    clients = [Client(addresses[number % len(addresses)]) for number in range(CONNECTIONS)]
    for client in clients:
        grpc.channel_ready_future(client.channel).result(20)
    tally, failures = Tally(time.monotonic()), []
    until_s = tally.began_s + seconds

    def ask(client: Client) -> None:
        while time.monotonic() < until_s:
            try:
                client.predict(IRIS_REQUEST, metadata=bearer(key))
                tally.accepted_s.append(time.monotonic())
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:
                    failures.append(error)
                    return
                tally.refused += 1
            time.sleep(PAUSE_S)

    threads = [threading.Thread(target=ask, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for client in clients:
        client.close()
    assert not failures, failures[0]
    return tally


@dataclasses.dataclass
class Site:
    server: Server
    client: Client
    folder: pathlib.Path

    def key(self, name: str, per_minute: float, burst: int) -> str:
        """One that the server knows already."""
        text = make_key(self.folder, name, scopes=Scope.PREDICT | Scope.READ, rate_per_minute=per_minute, burst=burst)
        # Known, and nothing of its rate used: as admin it is refused before anything is counted.
        wait_until(lambda: status_of(self.client.channel, "/nexus.v1.System/Reload", bearer(text)) == 403)
        return text


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two fronts that ask for keys."""
    folder = tmp_path_factory.mktemp("rates")
    repository = copy_models(folder / "models", "iris")
    with running_server(folder, "--auth=required", "--fronts=2", repository=repository, rest=True) as server:
        client = Client(server.address)
        yield Site(server, client, folder)
        client.close()


def test_two_fronts_let_through_what_the_rate_says(site: Site) -> None:
    text = site.key("busy", PER_MINUTE, BURST)
    # Both fronts know it.
    wait_until(lambda: all(_knows(site.server.address, text) for _ in range(8)))
    demand([site.server.address], text, 5.0).check()


def _knows(address: str, text: str) -> bool:
    client = Client(address)
    known = status_of(client.channel, "/nexus.v1.System/Reload", bearer(text)) == 403
    client.close()
    return known


def test_what_a_refused_grpc_client_is_told(site: Site) -> None:
    text = site.key("slow", 1, 1)
    site.client.predict(IRIS_REQUEST, metadata=bearer(text))
    with pytest.raises(grpc.RpcError) as caught:
        site.client.predict(IRIS_REQUEST, metadata=bearer(text))
    error = caught.value
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "the limit of 1 requests per minute" in error.details()
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())[DETAILS_KEY])
    retry, reason = error_details_pb2.RetryInfo(), error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(retry) for detail in status.details)
    assert any(detail.Unpack(reason) for detail in status.details)
    assert reason.reason == "RATE_LIMITED"
    assert 50 < retry.retry_delay.seconds <= 60
    assert standing(error.trailing_metadata()) == USED_UP


def test_what_a_refused_rest_client_is_told(site: Site) -> None:
    text = site.key("slow too", 1, 1)
    assert post(site.server.rest_port, "/predict", IRIS, X_Api_Key=text).status == 200
    for answer in (
        post(site.server.rest_port, "/predict", IRIS, X_Api_Key=text),
        get(site.server.rest_port, "/models", X_Api_Key=text),
    ):
        assert_error(answer, 429)
        assert 50 < int(answer.headers["retry-after"]) <= 60
        assert standing(answer.headers.items()) == USED_UP
        assert answer.headers["ratelimit-reset"] == answer.headers["retry-after"]
        assert answer.json["error"]["code"] == "RESOURCE_EXHAUSTED"
        kinds = [detail["@type"].rpartition(".")[2] for detail in answer.json["error"]["details"]]
        assert sorted(kinds) == ["ErrorInfo", "RetryInfo"]
    message = IRIS_REQUEST.SerializeToString()
    assert web_status(site.server.rest_port, PREDICT, bearer(text), message) == 429
    assert status_of(site.client.channel, PREDICT, bearer(text), message) == 429


# What the headers of a key with one request a minute, one at a time, say once it is used up.
USED_UP = {"limit": "1", "policy": "1;w=60;burst=1", "remaining": "0"}


def standing(headers: Iterable[tuple[str, str | bytes]]) -> dict[str, str]:
    """What the RateLimit headers say, each of which is there once; the reset, which goes with time, as it should be."""
    pairs = [(key.lower(), str(value)) for key, value in headers if key.lower().startswith("ratelimit-")]
    found = {key.removeprefix("ratelimit-"): value for key, value in pairs}
    assert len(found) == len(pairs)
    if found:
        used = int(found["limit"]) - int(found["remaining"])
        interval_s = 60 / float(found["policy"].partition(";")[0])
        assert (used - 1) * interval_s <= int(found.pop("reset")) <= used * interval_s
    return found


def left(number: int) -> dict[str, str]:
    return {"limit": "10", "policy": "1;w=60;burst=10", "remaining": str(number)}


@pytest.fixture(scope="module")
def public_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One front, by grpcio's public API."""
    folder = tmp_path_factory.mktemp("public")
    repository = copy_models(folder / "models", "iris")
    options = ("--auth=required", "--front-api=public")
    with running_server(folder, *options, repository=repository, rest=True) as server:
        client = Client(server.address)
        yield Site(server, client, folder)
        client.close()


@pytest.mark.parametrize("which", ["site", pytest.param("public_site", marks=pytest.mark.long)])
def test_every_answer_tells_where_its_caller_stands(which: str, request: pytest.FixtureRequest) -> None:
    """Hot and cold methods, answers and errors, by gRPC and REST; who has no rate hears nothing."""
    site: Site = request.getfixturevalue(which)
    text, free = site.key(f"told {which}", 1, 10), site.key(f"free {which}", 0, 0)
    port, channel = site.server.rest_port, site.client.channel
    message, unknown = IRIS_REQUEST.SerializeToString(), b"\x0a\x04none"
    for key, told in ((text, left), (free, lambda number: {})):
        predict, metadata = channel.unary_unary(PREDICT), bearer(key)
        assert standing(predict.with_call(message, metadata=metadata)[1].initial_metadata()) == told(9)
        answer = post(port, "/predict", b"no JSON", X_Api_Key=key)
        assert (answer.status, standing(answer.headers.items())) == (400, told(8))
        answer = post(port, "/predict", IRIS, X_Api_Key=key)
        assert (answer.status, standing(answer.headers.items())) == (200, told(7))
        answer = get(port, "/models", X_Api_Key=key)
        assert (answer.status, standing(answer.headers.items())) == (200, told(6))
        answer = post(port, "/predict", {**IRIS, "model_id": "none"}, X_Api_Key=key)
        assert (answer.status, standing(answer.headers.items())) == (404, told(5))
        with pytest.raises(grpc.RpcError) as caught:
            predict(unknown, metadata=metadata)
        assert standing(caught.value.trailing_metadata()) == told(4)
        call = channel.unary_unary("/nexus.v1.Models/List").with_call(b"", metadata=metadata)[1]
        assert standing(call.initial_metadata()) == told(3)
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/nexus.v1.Models/Info")(unknown, metadata=metadata)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        assert standing(caught.value.trailing_metadata()) == told(2)
        # A stream says it as it opens; each of its requests counts.
        stream = channel.stream_stream(PREDICT + "Stream")(iter([message]), metadata=metadata)
        assert standing(stream.initial_metadata()) == told(2)
        assert len(list(stream)) == 1
        assert standing(predict.with_call(message, metadata=metadata)[1].initial_metadata()) == told(0)


def test_one_bucket_for_all_that_a_key_does(site: Site) -> None:
    """Hot and cold methods, by gRPC, gRPC-web and REST."""
    text = site.key("mixed", 1, 4)
    message = IRIS_REQUEST.SerializeToString()
    assert status_of(site.client.channel, PREDICT, bearer(text), message) == 200
    assert get(site.server.rest_port, "/models", X_Api_Key=text).status == 200
    assert web_status(site.server.rest_port, PREDICT, bearer(text), message) == 200
    assert status_of(site.client.channel, "/nexus.v1.Models/List", bearer(text)) == 200
    assert post(site.server.rest_port, "/predict", IRIS, X_Api_Key=text).status == 429
    assert get(site.server.rest_port, "/health").status == 200


def rest_predict(port: int, source: str, **headers: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S, source_address=(source, 0))
    with contextlib.closing(connection):
        body = b'{"model_id": "iris", "features": [5.1, 3.5, 1.4, 0.2]}'
        connection.request("POST", "/predict", body, {"content-type": "application/json", **headers})
        return connection.getresponse().status


def test_anonymous_callers_are_limited_by_address(tmp_path: pathlib.Path) -> None:
    """100 in a minute, 16 at once. Saying that one is somebody else does not help."""
    repository = copy_models(tmp_path / "models", "iris")
    with running_server(tmp_path, "--auth=optional", "--fronts=2", repository=repository, rest=True) as server:
        began_s = time.monotonic()
        statuses = [
            rest_predict(server.rest_port, "127.0.0.2", **{"x-forwarded-for": f"192.0.2.{number}"})
            for number in range(40)
        ]
        at_most = 16 + 100 / 60 * (time.monotonic() - began_s)
        assert 16 <= statuses.count(200) <= at_most
        headers = get(server.rest_port, "/models").headers
        assert (headers["ratelimit-limit"], headers["ratelimit-policy"]) == ("16", "100;w=60;burst=16")
        assert set(statuses) == {200, 429}
        assert rest_predict(server.rest_port, "127.0.0.3") == 200
        client = Client(server.address)
        message = IRIS_REQUEST.SerializeToString()
        began_s = time.monotonic()
        forged = [
            status_of(client.channel, PREDICT, (("x-forwarded-for", f"192.0.2.{number}"),), message)
            for number in range(40)
        ]
        assert 16 <= forged.count(200) <= 16 + 100 / 60 * (time.monotonic() - began_s)
        client.close()


def test_each_model_has_its_rate(tmp_path: pathlib.Path) -> None:
    """Whoever asks; ten at once, of sixty in a minute."""
    repository = copy_models(tmp_path / "models", "iris", "iris_forest")
    with running_server(tmp_path, "--model-per-minute=60", repository=repository) as server:
        client = Client(server.address)
        for model in ("iris", "iris_forest"):
            message = inference_pb2.PredictRequest(model_id=model, features=IRIS_ROW).SerializeToString()
            began_s = time.monotonic()
            statuses = [status_of(client.channel, PREDICT, (), message) for _ in range(30)]
            assert 10 <= statuses.count(200) <= 10 + time.monotonic() - began_s
            assert set(statuses) == {200, 429}
        message = IRIS_REQUEST.SerializeToString()
        call = client.channel.unary_unary(PREDICT).future(message)
        refused = call.exception() is not None
        headers = standing(call.trailing_metadata() if refused else call.initial_metadata())
        assert headers == {"limit": "10", "policy": "60;w=60;burst=10", "remaining": headers["remaining"]}
        client.close()


# On a machine with much else to do Redis may seem away for a moment: then each server goes by its own limit.
SLOW_REDIS = BURST / 4


def wait_joined(redis_server: Redis) -> None:
    """Both servers have heard of each other: until then each takes the other's part as its own (leases.py)."""
    with redis_server.connection() as connection:
        wait_until(lambda: connection.zcard(SERVERS_KEY) == 2)
    time.sleep(1.5 * HEARTBEAT_S)


def redis_metrics(server: Server) -> tuple[float, float]:
    """(up, outages)"""
    return server.metric("nexus_rate_limit_redis_up"), server.metric("nexus_rate_limit_redis_outages_total")


@pytest.fixture
def redis_server() -> Iterator[Redis]:
    with running_redis() as running:
        yield running


def test_two_servers_share_a_rate_by_redis_and_go_on_without(tmp_path: pathlib.Path, redis_server: Redis) -> None:
    repository = copy_models(tmp_path / "models", "iris")
    folders = [tmp_path / "one", tmp_path / "two"]
    text, key = new_key("shared", time.time(), scopes=Scope.PREDICT, rate_per_minute=PER_MINUTE, burst=BURST)
    for folder in folders:
        folder.mkdir()
        with registry_of(folder) as registry:
            registry.add_key(key)
    options = ("--auth=required", f"--redis-url={redis_server.url}")
    with (
        running_server(folders[0], *options, repository=repository) as one,
        running_server(folders[1], *options, repository=repository) as two,
    ):
        servers = (one, two)
        addresses = [server.address for server in servers]
        for server in servers:
            wait_until(lambda log=server.log_text: AGAIN in log())  # type: ignore[misc]
        wait_joined(redis_server)
        demand(addresses, text, 3.0).check(0.9, SLOW_REDIS)
        for server in servers:
            assert redis_metrics(server) == (1.0, 0.0)
        redis_server.kill()
        for server in servers:
            wait_until(lambda log=server.log_text: AWAY in log())  # type: ignore[misc]
            # Each for itself, and none above its own limit.
            alone = demand([server.address], text, 1.0)
            at_most = BURST + PER_MINUTE / 60 * (max(alone.accepted_s) - alone.began_s)
            # What it had given before is counted still: there may be less than the burst, and is the rate.
            assert PER_MINUTE / 60 * 0.8 <= len(alone.accepted_s) <= at_most
            assert redis_metrics(server) == (0.0, 1.0)
            # The thread that counts them looks once in a second at least.
            decided = len(alone.accepted_s) + alone.refused
            wait_until(lambda: server.metric("nexus_rate_limit_local_decisions_total") >= decided)  # noqa: B023
        redis_server.start()
        for server in servers:
            wait_until(lambda log=server.log_text: log().count(AGAIN) == 2)  # type: ignore[misc]
            assert redis_metrics(server) == (1.0, 1.0)
        # Full again; then one limit for both.
        wait_joined(redis_server)
        time.sleep(BURST / (PER_MINUTE / 60))
        demand(addresses, text, 3.0).check(0.9, SLOW_REDIS)
        for server in servers:
            assert PASSWORD not in server.log_text()
            assert redis_server.url not in server.log_text()

"""Whatever metadata comes with a call to a server that wants a credential: refused in the proper form, at once, always.

Sent by hand, since no library would: a hot and a cold method by gRPC, and REST, where Envoy has a word in it.
"""

import dataclasses
import json
import socket
import string
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nexus_grpc.access.identity import Scope
from tests import http2
from tests.effort import IS_LONG, examples
from tests.harness import copy_models, running_server
from tests.http2 import Connection, grpc_fields, message, request
from tests.integration.access import bearer, make_key
from tests.integration.client import Client, iris_request, outputs_of
from tests.integration.rest import IRIS, post

pytestmark = pytest.mark.timeout(120)
EXAMPLES, GARBAGE_EXAMPLES = 50, 15
# The core takes up to a second for what is too large, on purpose; the rest is for a machine that does much else.
ANSWER_SECONDS = 15.0
PATHS = (b"/inference.GRPCInferenceService/ModelInfer", b"/inference.GRPCInferenceService/ModelMetadata")
UNAUTHENTICATED, RESOURCE_EXHAUSTED = "16", "8"
# By the core, before any of our code: metadata that is too large, that is no metadata, whose deadline has passed.
BY_THE_CORE = {"8", "13", "3", "4", "1", "2", "14"}
Fields = list[tuple[bytes, bytes]]


@dataclasses.dataclass
class Site:
    """The server, a key that it knows, and a connection that is used until it ends."""

    address: str
    port: int
    rest_port: int
    key: str
    connection: Connection | None = None

    def connected(self) -> Connection:
        if self.connection is None or self.connection.closed:
            self.connection = Connection(self.port)
            self.connection.settle()
        return self.connection

    def assert_serves(self) -> None:
        client = Client(self.address)
        try:
            answer = client.infer(iris_request(), metadata=bearer(self.key))
            assert outputs_of(answer)["label"].tolist() == [0]
        finally:
            client.close()
        assert post(self.rest_port, "/predict", IRIS, X_Api_Key=self.key).status == 200


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("metadata")
    repository = copy_models(folder / "models", "iris")
    key = make_key(folder, "good", scopes=Scope.PREDICT | Scope.READ)
    options = ("--auth=required", "--workers=1", "--log-sample=0")
    with running_server(folder, *options, repository=repository, rest=True) as server:
        site = Site(server.address, server.port, server.rest_port, key)
        yield site
        if site.connection is not None:
            site.connection.close()
        assert len(server.children("front")) == 1
        assert "Traceback" not in server.log_text()


# --- what is sent ---

# For the server's own key, which there is none of when examples are made.
KEY = b"<key>"
PRINTABLE = st.text(string.ascii_letters + string.digits + string.punctuation + " ", max_size=60).map(str.encode)
# Those around the limits are examples of their own: the core takes its time to refuse them.
LONG = st.sampled_from([1_000, 4_000, 12_000, 20_000]).map(lambda size: b"a" * size)
SIZES = (23_000, 25_000, 30_000, 31_000, 32_000, 33_000, 40_000, 41_000, 60_000, 1_000_000)
VALUES = (
    PRINTABLE
    | st.binary(max_size=60)
    | st.sampled_from(
        [b"", b" ", b"Bearer", b"Bearer ", b"nxk_", b"a.b.c", b"\0", b"\r\nx: y", b"\xff" * 9, b"%00", "ü".encode()]
    )
)
# Nearly the key: none of them is one.
NEARLY = st.sampled_from(
    [KEY + b"A", KEY + b"," + KEY, KEY + b"\0", b"A" + KEY, KEY[:3], b"Basic " + KEY, KEY + b" " + KEY]
)
CREDENTIALS = VALUES | NEARLY | (VALUES | NEARLY).map(lambda value: b"Bearer " + value)
TIMEOUTS = st.sampled_from(
    [b"1n", b"0S", b"10S", b"99999999H", b"999999999H", b"-1S", b"1.5S", b"S", b"", b"1x", b"1 S", b"\xff"]
)
TRACES = st.sampled_from(
    [
        b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        b"00-00000000000000000000000000000000-0000000000000000-00",
        b"ff-" + b"f" * 32 + b"-" + b"f" * 16 + b"-ff",
        b"00-" + b"-" * 52,
    ]
)
# The key where it does not count.
ELSEWHERE = st.sampled_from(
    [
        (b"x-request-id", KEY),
        (b"x-api-key-bin", KEY),
        (b"authorization-bin", b"Bearer " + KEY),
        (b"proxy-authorization", b"Bearer " + KEY),
        (b"cookie", b"x-api-key=" + KEY),
        (b"x-forwarded-client-cert", b'Hash=00;Subject="CN=root"'),
    ]
)
FIELD = (
    st.tuples(st.sampled_from([b"authorization", b"x-api-key"]), CREDENTIALS)
    | st.tuples(st.sampled_from([b"x-request-id", b"user-agent", b"baggage", b"x-forwarded-for"]), VALUES)
    | st.tuples(st.sampled_from([b"authorization-bin", b"x-api-key-bin", b"x-a-bin", b"grpc-trace-bin"]), VALUES)
    | st.tuples(st.just(b"grpc-timeout"), TIMEOUTS | VALUES)
    | st.tuples(st.just(b"traceparent"), TRACES | VALUES)
    | st.tuples(st.sampled_from([b"grpc-encoding", b"grpc-accept-encoding", b"grpc-tags-bin"]), VALUES)
    | st.tuples(st.sampled_from([b"authorization", b"x-api-key", b"x-request-id", b"x-a"]), LONG)
    | ELSEWHERE
)
GARBAGE = st.lists(FIELD, max_size=6)
# What nobody but the gate finds anything wrong with.
WORDS = PRINTABLE.map(lambda value: value.replace(b" ", b"")) | NEARLY.filter(lambda value: b"\0" not in value)
PLAIN = st.lists(
    st.tuples(
        st.sampled_from([b"authorization", b"x-api-key"]), WORDS | LONG | WORDS.map(lambda value: b"Bearer " + value)
    )
    | st.tuples(st.sampled_from([b"x-request-id", b"baggage", b"traceparent"]), WORDS)
    | ELSEWHERE.filter(lambda field: not field[0].endswith(b"-bin")),
    max_size=6,
    # More than these are above a limit when all are long.
).filter(lambda fields: sum(len(value) for _, value in fields) < 20_500)
bounded = settings(
    max_examples=examples(EXAMPLES),
    derandomize=not IS_LONG,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def with_key(fields: Fields, key: str) -> Fields:
    return [(name, value.replace(KEY, key.encode())) for name, value in fields]


# --- what came of it ---


def grpc_outcome(site: Site, path: bytes, fields: Fields) -> str:
    """The call's status, "reset" or "closed"; "silence" when nothing came."""
    connection = site.connected()
    stream = connection.new_stream()
    connection.send(request(stream, grpc_fields(path, *fields)) + message(stream, b""))
    for each in connection.frames(ANSWER_SECONDS):
        if each.stream == stream and each.kind == http2.RST_STREAM:
            return "reset"
        if each.stream == stream and each.kind == http2.HEADERS and each.flags & http2.END_STREAM:
            return http2.literals(each.payload).get(b"grpc-status", b"none").decode()
    return "closed" if connection.closed else "silence"


@bounded
@given(PLAIN)
@example([])
@example([(b"authorization", b"Bearer a"), (b"authorization", b"Bearer a")])
@example([(b"x-api-key", KEY), (b"x-api-key", KEY)])
@example([(b"authorization", b"Bearer " + KEY), (b"x-api-key", b"a")])
def test_wrong_credentials_by_grpc(site: Site, fields: Fields) -> None:
    for path in PATHS:
        assert grpc_outcome(site, path, with_key(fields, site.key)) == UNAUTHENTICATED, path


@settings(bounded, max_examples=examples(GARBAGE_EXAMPLES))
@given(GARBAGE)
@example([(b"grpc-timeout", b"1n")])
@example([(b"x-a-bin", b"\0")])
def test_garbage_by_grpc(site: Site, fields: Fields) -> None:
    for path in PATHS:
        outcome = grpc_outcome(site, path, with_key(fields, site.key))
        assert outcome in {UNAUTHENTICATED, "reset", "closed"} | BY_THE_CORE, (path, outcome)


@pytest.mark.parametrize("size", SIZES)
def test_sizes_by_grpc(site: Site, size: int) -> None:
    for path in PATHS:
        for name in (b"authorization", b"x-a"):
            outcome = grpc_outcome(site, path, [(name, b"a" * size)])
            # The limit is 32 KiB.
            assert outcome == (UNAUTHENTICATED if size <= 32_000 else RESOURCE_EXHAUSTED), (name, outcome)


def test_the_key_still_counts_after_that(site: Site) -> None:
    # Requests about no model: they got past the gate.
    assert {grpc_outcome(site, path, [(b"x-api-key", site.key.encode())]) for path in PATHS} == {"3", "5"}
    site.assert_serves()


def rest_answer(port: int, fields: Fields) -> tuple[int, bytes]:
    """An answer's status and body; (0, b"") when the connection was closed without one."""
    body = json.dumps(IRIS).encode()
    lines = [b"POST /predict HTTP/1.1", b"Host: localhost", b"Content-Type: application/json", b"Connection: close"]
    lines += [b"Content-Length: %d" % len(body), *(name + b": " + value for name, value in fields)]
    content = b""
    with socket.create_connection(("127.0.0.1", port), ANSWER_SECONDS) as connection:
        try:
            connection.sendall(b"\r\n".join(lines) + b"\r\n\r\n" + body)
            while piece := connection.recv(1 << 16):
                content += piece
        except ConnectionError:
            pass
    head, _, answer = content.partition(b"\r\n\r\n")
    return (int(head.split()[1]) if head else 0), answer


@bounded
@given(PLAIN)
@example([])
@example([(b"x-api-key", KEY), (b"x-api-key", KEY)])
@example([(b"authorization", b"Bearer " + KEY), (b"x-api-key", b"a")])
def test_wrong_credentials_by_rest(site: Site, fields: Fields) -> None:
    status, body = rest_answer(site.rest_port, with_key(fields, site.key))
    assert status == 401, (status, body)
    error = json.loads(body)["error"]
    assert error["code"] == "UNAUTHENTICATED", body
    assert site.key not in json.dumps(error)


@settings(bounded, max_examples=examples(GARBAGE_EXAMPLES))
@given(GARBAGE)
@example([(b"x-a-bin", b"a")])
@example([(b"grpc-encoding", b"")])
def test_garbage_by_rest(site: Site, fields: Fields) -> None:
    status, body = rest_answer(site.rest_port, with_key(fields, site.key))
    # 400 and 431 are Envoy's, of what is no HTTP or too large; 504 where the client's own deadline has passed.
    assert status in (400, 401, 431, 504), (status, body)


@pytest.mark.parametrize("size", SIZES)
def test_sizes_by_rest(site: Site, size: int) -> None:
    for name in (b"authorization", b"x-a"):
        status, _ = rest_answer(site.rest_port, [(name, b"a" * size)])
        # It may close the connection before all was sent.
        assert status == 401 if size <= 24_000 else status in (0, 431), (name, status)


def test_the_key_still_counts_after_all(site: Site) -> None:
    site.assert_serves()

"""Every method over every transport, with every kind of credential: the table of access/rules.py, as servers keep it.

Methods and routes are read off the descriptors: a new one is tried without being named here, and fails without a rule.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from nexus_grpc.access.identity import Scope
from nexus_grpc.access.rules import OPEN, RULES, TWIN_PREFIX, required
from nexus_grpc.pb.inference import grpc_service_pb2
from nexus_grpc.rest.http_rules import FILES, Binding, HttpMethod, http_methods
from nexus_grpc.rest.routes import METRICS_PATHS
from nexus_grpc.rest.twin import path_of
from tests.conftest import TRANSPORTS
from tests.harness import Server, copy_models, running_server
from tests.integration.access import Metadata, bearer, make_key, registry_of, status_of, web_status
from tests.integration.rest import assert_error, call, get

# REST forms only: no front serves them as gRPC methods.
REST_ONLY = ("/nexus.v1.Rest/", "/nexus.v1.V2Admin/")
NOT_SERVED = {"/grpc.health.v1.Health/List"}
SERVICES = [
    service
    for file in (*FILES, grpc_service_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
]
METHODS = [
    path
    for path in (f"/{service.full_name}/{method.name}" for service in SERVICES for method in service.methods)
    if not path.startswith(REST_ONLY)
]
METHODS += [path.replace("v1alpha", "v1") for path in METHODS if "v1alpha" in path]
BINDINGS = [(method, binding) for method in http_methods() for binding in method.bindings]
SCOPES = (Scope.PREDICT, Scope.READ, Scope.ADMIN)
ALL = Scope.PREDICT | Scope.READ | Scope.ADMIN
FORGED = (
    ("x-forwarded-client-cert", 'Hash=00;Subject="CN=root";URI=spiffe://example/root'),
    ("x-forwarded-for", "::1"),
)


@dataclasses.dataclass
class Credentials:
    """Metadata by what is wrong with it; keys with one scope, and with all others."""

    bad: dict[str, Metadata]
    only: dict[Scope, str]
    without: dict[Scope, str]


@dataclasses.dataclass
class Guarded:
    server: Server
    channel: grpc.Channel
    credentials: Credentials


def make_credentials(folder: pathlib.Path) -> Credentials:
    now = time.time()
    good = make_key(folder, "good", scopes=ALL)
    expired = make_key(folder, "expired", scopes=ALL, now=now - 100, expires_at=now - 50)
    revoked = make_key(folder, "revoked", scopes=ALL)
    with registry_of(folder) as registry:
        registry.revoke_key(next(key.id for key in registry.list_keys() if key.name == "revoked"), "test", now)
    wrong = good[:-4] + ("AAAA" if good[-4:] != "AAAA" else "BBBB")
    bad: dict[str, Metadata] = {
        "none": (),
        "forged certificate": FORGED,
        "wrong": bearer(wrong),
        "wrong, the other header": (("x-api-key", wrong),),
        "unknown id": bearer(f"nxk_000000000000_{'A' * 43}"),
        "no token": bearer("a.b.c"),
        "another scheme": (("authorization", "Basic cm9vdDpyb290"),),
        "empty": (("authorization", ""),),
        "expired": bearer(expired),
        "revoked": bearer(revoked),
    }
    only = {scope: make_key(folder, f"only {scope.name}", scopes=scope) for scope in SCOPES}
    without = {scope: make_key(folder, f"without {scope.name}", scopes=ALL & ~scope) for scope in SCOPES}
    return Credentials(bad, only, without)


@pytest.fixture(scope="module", params=TRANSPORTS)
def guarded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp(f"table-{request.param}")
    repository = copy_models(folder / "models", "iris")
    credentials = make_credentials(folder)
    options = ("--auth=required", f"--front-api={request.param}")
    with (
        running_server(folder, *options, repository=repository, rest=True) as server,
        grpc.insecure_channel(server.address, options=[("grpc.enable_http_proxy", 0)]) as channel,
    ):
        yield Guarded(server, channel, credentials)


def check(credentials: Credentials, scope: Scope | None, title: str, attempt: Callable[[Metadata], int]) -> None:
    """What needs this scope is refused to those without, and not refused to those with it."""
    assert scope is not None, f"{title}: add it to nexus_grpc/access/rules.py"
    if scope == OPEN:
        # 501: what grpc's protocol has and its package does not serve.
        assert attempt(()) == (501 if title in NOT_SERVED else 200), title
        return
    for name, metadata in credentials.bad.items():
        assert attempt(metadata) == 401, (title, name)
    for header in ("authorization", "x-api-key"):
        assert attempt(((header, _value(header, credentials.without[scope])),)) == 403, (title, header)
        answered = attempt(((header, _value(header, credentials.only[scope])),))
        assert answered not in (401, 403), (title, header)


def _value(header: str, key: str) -> str:
    return key if header == "x-api-key" else f"Bearer {key}"


def test_there_is_much_to_try() -> None:
    assert len(METHODS) > 40
    assert len(BINDINGS) > 25


@pytest.mark.parametrize("path", METHODS)
def test_grpc(guarded: Guarded, path: str) -> None:
    check(guarded.credentials, required(path), path, lambda metadata: status_of(guarded.channel, path, metadata))


@pytest.mark.parametrize("path", METHODS)
def test_grpc_web(guarded: Guarded, path: str) -> None:
    port = guarded.server.rest_port
    check(guarded.credentials, required(path), path, lambda metadata: web_status(port, path, metadata))


@pytest.mark.parametrize("name", [method.name for method in http_methods()])
def test_twins_on_the_grpc_port(guarded: Guarded, name: str) -> None:
    """CVE-2026-24207's way in: the path that a proxy writes, called directly."""
    path = path_of(name)
    check(guarded.credentials, required(path), path, lambda metadata: status_of(guarded.channel, path, metadata))


@pytest.mark.parametrize("method", http_methods(), ids=lambda method: method.name)
def test_rest(guarded: Guarded, method: HttpMethod) -> None:
    scope = required(path_of(method.name))
    for binding in method.bindings:
        title = f"{binding.verb} {binding.template}"
        check(guarded.credentials, scope, title, lambda metadata, at=binding: ask(guarded, method, at, metadata))  # type: ignore[misc]


def ask(guarded: Guarded, method: HttpMethod, binding: Binding, metadata: Metadata) -> int:
    """With a body that is none, about a model that there is not."""
    path = binding.template
    for parameter in binding.parameters:
        path = path.replace(f"{{{parameter}}}", "1" if "version" in parameter else "absent")
    body, headers = None, dict(metadata)
    if method.client_streaming:
        body, headers["content-type"] = b"--x--\r\n", "multipart/form-data; boundary=x"
    elif method.has_body:
        body = b"{}"
    answer = call(guarded.server.rest_port, binding.verb, path, body, **headers)
    if answer.status == 401:
        assert answer.headers["www-authenticate"] == "Bearer", answer
    if answer.status in (401, 403):
        assert_error(answer, answer.status)
        codes = {401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED"}
        assert answer.is_v2 or answer.json["error"]["code"] == codes[answer.status], answer
    return answer.status


def test_twins_are_not_to_be_reached_through_envoy(guarded: Guarded) -> None:
    port, key = guarded.server.rest_port, guarded.credentials.only[Scope.ADMIN]
    for method in http_methods():
        for metadata in ((), bearer(key)):
            assert web_status(port, path_of(method.name), metadata) == 404, method.name


def test_no_rule_lets_a_call_through_that_nobody_serves(guarded: Guarded) -> None:
    """Such as the twins that have no HTTP form: 501 is gRPC's UNIMPLEMENTED."""
    for path, scope in RULES.items():
        if path not in METRICS_PATHS and scope != OPEN:
            assert status_of(guarded.channel, path) in (401, 501), path


@pytest.mark.parametrize(
    "path",
    [
        "/nexus.v1.Models/load",
        "//nexus.v1.Models/Load",
        "/nexus.v1.Models/Load/",
        "/nexus.v1.Models/%4coad",
        TWIN_PREFIX,
    ],
)
def test_other_ways_of_writing_a_path_lead_nowhere(guarded: Guarded, path: str) -> None:
    for metadata in ((), FORGED, bearer(guarded.credentials.only[Scope.ADMIN])):
        assert status_of(guarded.channel, path, metadata) == 501
        assert web_status(guarded.server.rest_port, path, metadata) in (400, 401, 404, 501)


def test_metrics_of_loopback_are_open(guarded: Guarded) -> None:
    for path in METRICS_PATHS:
        assert get(guarded.server.metrics_port, path).status == 200

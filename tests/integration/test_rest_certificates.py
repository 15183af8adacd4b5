"""Client certificates on the REST port: what Envoy verified is an identity, and nobody else's word for it counts."""

import contextlib
import dataclasses
import http.client
import json
import os
import pathlib
import re
import signal
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

import grpc
import psutil
import pytest

from nexus_grpc.access.call import ENVOY_WORD
from nexus_grpc.access.identity import Scope
from nexus_grpc.front.hot_methods import HTTP_STATUS_KEY
from nexus_grpc.ipc.wire import json_body, length_prefix
from nexus_grpc.pb.nexus.v1 import inference_pb2
from nexus_grpc.rest.twin import path_of
from tests.certificates import Authority, Pair
from tests.harness import NEXUS as COMMAND
from tests.harness import Server, copy_models, running_server
from tests.integration.access import Metadata, bearer, make_key, status_of, wait_until
from tests.integration.client import IRIS_ROW, NEXUS, OIP
from tests.integration.rest import IRIS

PREDICT, READ = NEXUS + "Predict", OIP + "RepositoryIndex"
IRIS_REQUEST = inference_pb2.PredictRequest(model_id="iris", features=IRIS_ROW).SerializeToString()
FOREST = {"model_id": "iris_forest", "features": [5.1, 3.5, 1.4, 0.2]}
OPTIONS = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
RULES = """
[[certificate]]
subject = "reader"
scopes = ["read"]

[[certificate]]
subject = "deployer"
scopes = ["admin"]

[[certificate]]
subject = "spiffe://example/shop/*"
scopes = ["predict"]
models = ["iris"]
"""


@dataclasses.dataclass
class Site:
    server: Server
    folder: pathlib.Path
    authority: Authority
    clients: Authority
    admin: str

    def client(self, name: str, uri: str = "") -> Pair:
        return self.clients.sign(name, for_client=True, uri=uri)

    def call(self, own: Pair | None, path: str, body: Any = None, verb: str = "", **headers: str) -> int:
        """A REST call's status. Raises OSError where TLS is refused."""
        return self.exchange(own, path, body, verb, **headers)[0]

    def exchange(
        self, own: Pair | None, path: str, body: Any = None, verb: str = "", **headers: str
    ) -> tuple[int, bytes]:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            sent |= {"Content-Type": "application/json"}
        connection = http.client.HTTPSConnection("127.0.0.1", self.server.rest_port, timeout=20, context=self.tls(own))
        with contextlib.closing(connection):
            content = None if body is None else json.dumps(body)
            connection.request(verb or ("GET" if body is None else "POST"), path, content, sent)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def tls(self, own: Pair | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cadata=self.authority.pem.decode())
        if own is not None:
            context.load_cert_chain(*own.write(self.folder, "shown"))
        return context


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """REST with TLS and client certificates; the gRPC port is plain, so that only the header could be believed."""
    folder = tmp_path_factory.mktemp("rest-mtls")
    repository = copy_models(folder / "models", "iris", "iris_forest")
    authority, clients = Authority(), Authority("clients")
    chain, key = authority.sign("localhost").write(folder, "server")
    (folder / "trust.toml").write_text(RULES)
    admin = make_key(folder, "admin", scopes=Scope.ADMIN)
    options = (
        "--auth=required",
        f"--rest-tls-certificate={chain}",
        f"--rest-tls-key={key}",
        f"--tls-client-ca={clients.write(folder, 'clients')}",
        f"--jwt-issuers={folder / 'trust.toml'}",
        "--log-level=debug",
        "--log-sample=1",
        "--fronts=2",
        "--cors-origins=*",
    )
    with running_server(folder, *options, repository=repository, wait=False, rest=True) as server:
        found = Site(server, folder, authority, clients, admin)

        def is_ready() -> bool:
            assert server.process.poll() is None, server.log_text()
            with contextlib.suppress(OSError, http.client.HTTPException):
                return found.call(None, "/ready") == 200
            return False

        wait_until(is_ready, 60)
        yield found


def secret_of(server: Server) -> str:
    """As the server's own user can find it out: in the memfd that Envoy reads."""
    [envoy] = server.children("envoy")
    memfd = next(word for word in envoy.cmdline() if word.startswith("/dev/fd/"))
    text = pathlib.Path(f"/proc/{envoy.pid}/fd/{memfd.rpartition('/')[2]}").read_text()
    [secret] = set(re.findall(rf'"key": "{ENVOY_WORD}", "value": "([0-9a-f]+)"', text))
    assert len(secret) == 64
    return secret


def forged(pair: Pair) -> dict[str, str]:
    """What Envoy would write."""
    return {"x-forwarded-client-cert": f'Hash={"ab" * 32};Cert="{quote(pair.chain.decode(), safe="")}"'}


# --- who shows one ---


def test_a_common_name_is_an_identity(site: Site) -> None:
    reader = site.client("reader")
    assert site.call(reader, "/models") == 200
    assert site.call(reader, "/predict", IRIS) == 403
    assert site.call(reader, "/admin/reload", {}) == 403


def test_a_spiffe_id_is_an_identity(site: Site) -> None:
    """Before the common name; with the models that its rule says."""
    shop = site.client("reader", "spiffe://example/shop/till")
    assert site.call(shop, "/predict", IRIS) == 200
    assert site.call(shop, "/models") == 403
    assert site.call(shop, "/predict", FOREST) == 403


def test_a_certificate_that_no_rule_fits(site: Site) -> None:
    for own in (site.client("somebody"), site.client("reader", "spiffe://example/other")):
        status, body = site.exchange(own, "/models")
        assert status == 401
        assert b"no [[certificate]]" in body
        assert site.call(own, "/health") == 200


def test_a_certificate_cannot_say_two_things(site: Site) -> None:
    """Envoy writes names as they are: only the whole certificate tells one name from two."""
    for uri in ("urn:x;URI=spiffe://example/shop/till", 'urn:x";Subject="CN=reader'):
        assert site.call(site.client("somebody", uri), "/predict", IRIS) == 401


def test_none_is_needed(site: Site) -> None:
    assert site.call(None, "/models") == 401
    assert site.call(None, "/predict", IRIS) == 401
    assert site.call(None, "/admin/reload", {}, X_Api_Key=site.admin) == 200


@pytest.mark.parametrize("kind", ["of others", "expired", "of a server"])
def test_a_wrong_one_is_refused_by_tls(site: Site, kind: str) -> None:
    pairs = {
        "of others": Authority("clients").sign("reader", for_client=True),
        "expired": site.clients.sign("reader", for_client=True, days=-1),
        "of a server": site.clients.sign("reader"),
    }
    with pytest.raises(OSError, match=r"(?i)alert|reset|eof|closed"):
        site.call(pairs[kind], "/health")


def test_a_key_goes_before_the_certificate(site: Site) -> None:
    reader = site.client("reader")
    assert site.call(reader, "/admin/reload", {}, X_Api_Key=site.admin) == 200
    assert site.call(reader, "/models", X_Api_Key=site.admin) == 403
    assert site.call(reader, "/models", X_Api_Key=f"nxk_000000000000_{'A' * 43}") == 401


def test_grpc_by_way_of_envoy(site: Site) -> None:
    shop = site.client("x", "spiffe://example/shop/web")
    credentials = grpc.ssl_channel_credentials(site.authority.pem, shop.key, shop.chain)
    with grpc.secure_channel(f"127.0.0.1:{site.server.rest_port}", credentials, options=OPTIONS) as channel:
        assert status_of(channel, PREDICT, (), IRIS_REQUEST) == 200
        assert status_of(channel, READ) == 403
        assert status_of(channel, READ, bearer(site.admin)) == 403


def test_a_page_cannot_use_its_visitors_certificate(site: Site) -> None:
    """Browsers show it for any page: changes that other pages ask for are refused, even where all may call."""
    deployer = site.client("deployer")
    assert site.call(deployer, "/admin/reload", {}) == 200
    elsewhere = {"Origin": "https://evil.example", "Sec_Fetch_Site": "cross-site"}
    assert site.call(deployer, "/admin/reload", verb="POST", **elsewhere) == 403
    assert site.call(None, "/admin/reload", verb="POST", X_Api_Key=site.admin, **elsewhere) == 200


# --- who only says so ---


def attempts(site: Site) -> Iterator[Mapping[str, str]]:
    header = forged(site.client("reader"))
    yield header
    yield {"x-forwarded-client-cert": 'Hash=ab;Subject="CN=reader";URI=spiffe://example/shop/till'}
    for guess in ("", "0" * 64, "true", ENVOY_WORD):
        yield {ENVOY_WORD: guess, **header}


def test_by_rest_it_does_not_count(site: Site) -> None:
    for headers in attempts(site):
        assert site.call(None, "/models", **headers) == 401
        assert site.call(None, "/predict", IRIS, **headers) == 401
    # Not even of one who knows the secret: Envoy throws away what a client says.
    known = {ENVOY_WORD: secret_of(site.server), **forged(site.client("reader"))}
    assert site.call(None, "/models", **known) == 401
    # Nor beside a certificate.
    assert site.call(site.client("somebody"), "/models", **known) == 401
    assert site.call(site.client("reader"), "/models", **{ENVOY_WORD: "x", **forged(site.client("somebody"))}) == 200


def direct(site: Site) -> Iterator[grpc.Channel]:
    """Past Envoy: the gRPC port, and the abstract socket of each front."""
    names = {
        line.split()[-1][1:] for line in pathlib.Path("/proc/net/unix").read_text().splitlines() if "@nexus-" in line
    }
    sockets = sorted(name for name in names if name.startswith(f"nexus-{site.server.process.pid}-"))
    assert len(sockets) == 2
    for target in (site.server.address, *(f"unix-abstract:{name}" for name in sockets)):
        with grpc.insecure_channel(target, options=OPTIONS) as channel:
            yield channel


def twin_status(channel: grpc.Channel, metadata: Metadata) -> int:
    """POST /predict as Envoy would hand it over: an answer with a status of its own."""
    wrapped = json_body(json.dumps(IRIS).encode())
    call = channel.unary_unary(path_of("InferencePredict"))
    _, done = call.with_call(b"z\0" + length_prefix(15, len(wrapped)) + wrapped, timeout=20, metadata=metadata)
    return int(dict(done.initial_metadata()).get(HTTP_STATUS_KEY, 200))


def test_past_envoy_it_does_not_count(site: Site) -> None:
    for channel in direct(site):
        for headers in attempts(site):
            metadata = tuple(headers.items())
            assert status_of(channel, READ, metadata) == 401
            assert status_of(channel, PREDICT, metadata, IRIS_REQUEST) == 401
            assert twin_status(channel, metadata) == 401


def test_the_secret_is_what_makes_the_difference(site: Site) -> None:
    """So the tests above try what would work if it were guessed."""
    metadata = ((ENVOY_WORD, secret_of(site.server)), *forged(site.client("reader")).items())
    for channel in direct(site):
        assert status_of(channel, READ, metadata) == 200
        assert status_of(channel, PREDICT, metadata, IRIS_REQUEST) == 403


# --- the secret ---


def test_the_secret_is_nowhere_to_be_seen(site: Site) -> None:
    secret = secret_of(site.server)
    site.call(site.client("reader"), "/models")
    family = [
        psutil.Process(site.server.process.pid),
        *psutil.Process(site.server.process.pid).children(recursive=True),
    ]
    for process in family:
        assert secret not in " ".join(process.cmdline())
        assert secret not in str(process.environ())
    wait_until(lambda: site.server.log_text().count("http_request") > 0)
    assert secret not in site.server.log_text()
    assert "x-forwarded-client-cert" not in site.server.log_text().lower()
    for path in site.folder.rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path


def test_another_envoy_and_other_fronts_know_it_too(site: Site) -> None:
    """As long as the supervisor lives."""
    secret, reader = secret_of(site.server), site.client("reader")
    [envoy] = site.server.children("envoy")
    os.kill(envoy.pid, signal.SIGKILL)
    os.kill(site.server.children("front")[0].pid, signal.SIGKILL)

    def is_back() -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return len(site.server.children("front")) == 2 and site.call(reader, "/models") == 200
        return False

    wait_until(is_back, 30)
    assert {site.call(reader, "/models") for _ in range(10)} == {200}
    assert site.call(None, "/models") == 401
    assert secret_of(site.server) == secret


def test_an_envoy_of_your_own_gets_none(site: Site) -> None:
    options = [f"--{name}={value}" for name, value in (
        ("auth", "required"),
        ("envoy", "external"),
        ("rest-tls-certificate", site.folder / "server.pem"),
        ("rest-tls-key", site.folder / "server.key"),
        ("tls-client-ca", site.folder / "clients.pem"),
    )]  # fmt: skip
    done = subprocess.run([*COMMAND, "envoy", "bootstrap", *options], capture_output=True, text=True, check=True)
    assert ENVOY_WORD not in done.stdout
    assert "trusted_ca" not in done.stdout
    assert '"forward_client_cert_details": "SANITIZE"' in done.stdout

"""TLS on the gRPC port of running servers: real clients, changing certificates, client certificates as identities."""

import contextlib
import dataclasses
import os
import pathlib
import queue
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import pytest
from cryptography import x509

from nexus_grpc.access.identity import Scope
from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from nexus_grpc.pb.nexus.v1 import inference_pb2
from nexus_grpc.settings import EXIT_CONFIGURATION
from nexus_grpc.supervisor.main import EXIT_FAILED
from tests.certificates import Authority, Pair
from tests.harness import Server, copy_models, running_server, wait_rest
from tests.integration.access import Metadata, bearer, make_key, status_of, wait_until
from tests.integration.client import IRIS_ROW, NEXUS, OIP
from tests.integration.rest import IRIS, call, get, post

PREDICT, READY, READ = NEXUS + "Predict", OIP + "ServerReady", OIP + "RepositoryIndex"
IRIS_REQUEST = inference_pb2.PredictRequest(model_id="iris", features=IRIS_ROW)
CHANGE = "/nexus.v1.System/Reload"
RULES = """
[[certificate]]
subject = "reader"
scopes = ["read"]

[[certificate]]
subject = "spiffe://example/shop/*"
scopes = ["predict"]
models = ["iris"]
"""
OPTIONS = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]


def secure_channel(server: Server, authority: Authority, own: Pair | None = None) -> grpc.Channel:
    chain, key = (own.chain, own.key) if own is not None else (None, None)
    return grpc.secure_channel(server.address, grpc.ssl_channel_credentials(authority.pem, key, chain), options=OPTIONS)


def wait_served(channel: grpc.Channel, server: Server) -> None:
    def is_ready() -> bool:
        assert server.process.poll() is None, server.log_text()
        with contextlib.suppress(grpc.RpcError):
            answer: bytes = channel.unary_unary(READY)(b"", timeout=2, wait_for_ready=True)
            return pb.ServerReadyResponse.FromString(answer).ready
        return False

    wait_until(is_ready, 40)


def replace(pair: Pair, folder: pathlib.Path, name: str = "server") -> None:
    """As cert-manager does: whole files, one after the other."""
    for fresh, old in zip(pair.write(folder, "fresh"), (f"{name}.pem", f"{name}.key"), strict=True):
        os.replace(fresh, folder / old)


def presented(server: Server, authority: Authority) -> int:
    """The serial number of the certificate that a new connection is shown."""
    context = ssl.create_default_context(cadata=authority.pem.decode())
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as wrapped,
    ):
        shown = wrapped.getpeercert(binary_form=True)
        assert shown is not None
        return x509.load_der_x509_certificate(shown).serial_number


def stream_on(channel: grpc.Channel) -> tuple["queue.Queue[bytes | None]", Any]:
    """A call that stays open: (what to send, its answers)."""
    requests: queue.Queue[bytes | None] = queue.Queue()
    return requests, channel.stream_stream(NEXUS + "PredictStream")(iter(requests.get, None), timeout=60)


@dataclasses.dataclass
class Site:
    server: Server
    folder: pathlib.Path
    authority: Authority
    first: Pair


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """With a certificate; asks for no credentials."""
    folder = tmp_path_factory.mktemp("tls")
    repository = copy_models(folder / "models", "iris")
    authority = Authority()
    first = authority.sign("localhost")
    chain, key = first.write(folder, "server")
    options = (f"--grpc-tls-certificate={chain}", f"--grpc-tls-key={key}", "--fronts=2")
    with running_server(folder, *options, repository=repository, wait=False) as server:
        with secure_channel(server, authority) as channel:
            wait_served(channel, server)
        yield Site(server, folder, authority, first)


def test_a_real_client(site: Site) -> None:
    with secure_channel(site.server, site.authority) as channel:
        answer = channel.unary_unary(PREDICT)(IRIS_REQUEST.SerializeToString(), timeout=20)
        assert inference_pb2.PredictResponse.FromString(answer).model_id == "iris"
        assert status_of(channel, READ) == 200


def test_clients_that_trust_another_or_speak_no_tls(site: Site) -> None:
    with secure_channel(site.server, Authority("another")) as channel:
        assert status_of(channel, READ) == 503
    with grpc.insecure_channel(site.server.address, options=OPTIONS) as channel:
        assert status_of(channel, READ) == 503


def test_handshakes_that_fail_harm_nobody(site: Site) -> None:
    message = IRIS_REQUEST.SerializeToString()
    with secure_channel(site.server, site.authority) as channel, contextlib.ExitStack() as silent:
        for number in range(40):
            bad = silent.enter_context(socket.create_connection(("127.0.0.1", site.server.port), timeout=20))
            # One half says something: nonsense, plain HTTP/2, the beginning of a handshake.
            nonsense = (b"\0" * 100, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"")
            bad.sendall(nonsense[number % 4])
            if number % 3 == 0:
                bad.close()
            assert status_of(channel, PREDICT, (), message) == 200
        with secure_channel(site.server, site.authority) as another:
            assert status_of(another, PREDICT, (), message) == 200


def test_the_certificate_changes_while_the_server_runs(site: Site) -> None:
    assert presented(site.server, site.authority) == site.first.serial
    message = IRIS_REQUEST.SerializeToString()
    with secure_channel(site.server, site.authority) as channel:
        requests, answers = stream_on(channel)
        requests.put(message)
        next(answers)
        second = site.authority.sign("localhost")
        replace(second, site.folder)
        # Each of the fronts looks by itself.
        took_s = wait_until(lambda: {presented(site.server, site.authority) for _ in range(8)} == {second.serial})
        print(f"shown {took_s:.3f} s after the files had it")
        requests.put(message)
        assert not inference_pb2.PredictStreamResponse.FromString(next(answers)).HasField("error")
        requests.put(None)
        assert list(answers) == []
    with secure_channel(site.server, site.authority) as channel:
        assert status_of(channel, PREDICT, (), message) == 200


def test_a_broken_certificate_is_not_taken(site: Site) -> None:
    before = presented(site.server, site.authority)
    # Of another key.
    (site.folder / "server.pem").write_bytes(site.authority.sign("localhost").chain)

    def is_told() -> bool:
        assert presented(site.server, site.authority) == before
        return "the new TLS certificate is not used" in site.server.log_text()

    wait_until(is_told)
    good = site.authority.sign("localhost")
    replace(good, site.folder)
    wait_until(lambda: {presented(site.server, site.authority) for _ in range(8)} == {good.serial})


@dataclasses.dataclass
class MutualSite:
    server: Server
    authority: Authority
    clients: Authority
    admin: str

    def status(self, own: Pair, path: str, metadata: Metadata = (), message: bytes = b"") -> int:
        with secure_channel(self.server, self.authority, own) as channel:
            return status_of(channel, path, metadata, message)


@pytest.fixture(scope="module")
def mutual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MutualSite]:
    """Wants client certificates; with Envoy."""
    folder = tmp_path_factory.mktemp("mtls")
    repository = copy_models(folder / "models", "iris", "iris_forest")
    authority, clients = Authority(), Authority("clients")
    chain, key = authority.sign("localhost").write(folder, "server")
    (folder / "trust.toml").write_text(RULES)
    admin = make_key(folder, "admin", scopes=Scope.ADMIN)
    options = (
        "--auth=required",
        f"--grpc-tls-certificate={chain}",
        f"--grpc-tls-key={key}",
        f"--tls-client-ca={clients.write(folder, 'clients')}",
        f"--jwt-issuers={folder / 'trust.toml'}",
    )
    with running_server(folder, *options, repository=repository, wait=False, rest=True) as server:
        with secure_channel(server, authority, clients.sign("anybody", for_client=True)) as channel:
            wait_served(channel, server)
        wait_rest(server.rest_port, server.process, server.log)
        yield MutualSite(server, authority, clients, admin)


def test_a_common_name_is_an_identity(mutual: MutualSite) -> None:
    reader = mutual.clients.sign("reader", for_client=True)
    assert mutual.status(reader, READ) == 200
    assert mutual.status(reader, PREDICT, (), IRIS_REQUEST.SerializeToString()) == 403
    assert mutual.status(reader, CHANGE) == 403


def test_a_spiffe_id_is_an_identity(mutual: MutualSite) -> None:
    """Before the common name; with the models that its rule says."""
    shop = mutual.clients.sign("reader", for_client=True, uri="spiffe://example/shop/till")
    assert mutual.status(shop, PREDICT, (), IRIS_REQUEST.SerializeToString()) == 200
    assert mutual.status(shop, READ) == 403
    other = inference_pb2.PredictRequest(model_id="iris_forest", features=IRIS_ROW)
    assert mutual.status(shop, PREDICT, (), other.SerializeToString()) == 403


def test_a_certificate_that_no_rule_fits(mutual: MutualSite) -> None:
    for own in (
        mutual.clients.sign("somebody", for_client=True),
        mutual.clients.sign("reader", for_client=True, uri="spiffe://example/other"),
    ):
        assert mutual.status(own, READ) == 401
        assert mutual.status(own, READY) == 200


def test_certificates_of_others_and_none(mutual: MutualSite) -> None:
    assert mutual.status(Authority("clients").sign("reader", for_client=True), READ) == 503
    assert mutual.status(mutual.clients.sign("reader", for_client=True, days=-1), READ) == 503
    with secure_channel(mutual.server, mutual.authority) as channel:
        assert status_of(channel, READ) == 503


def test_a_key_goes_before_the_certificate(mutual: MutualSite) -> None:
    reader = mutual.clients.sign("reader", for_client=True)
    assert mutual.status(reader, CHANGE, bearer(mutual.admin)) == 200
    assert mutual.status(reader, READ, bearer(mutual.admin)) == 403
    assert mutual.status(reader, READ, bearer(f"nxk_000000000000_{'A' * 43}")) == 401


def test_envoys_clients_have_no_certificate(mutual: MutualSite) -> None:
    """What they say of one counts for nothing."""
    port = mutual.server.rest_port
    forged = {"X_Forwarded_Client_Cert": 'Hash=00;Subject="CN=reader";URI=spiffe://example/shop/till'}
    assert get(port, "/models").status == 401
    assert get(port, "/models", **forged).status == 401
    assert post(port, "/predict", IRIS, **forged).status == 401
    assert call(port, "POST", "/admin/reload", X_Api_Key=mutual.admin).status == 200


def refused_start(folder: pathlib.Path, options: Sequence[str]) -> tuple[int, str]:
    """How a server ends that cannot start: (exit code, log)."""
    repository = copy_models(folder / "models", "iris")
    with running_server(folder, *options, repository=repository, wait=False) as server:
        return server.process.wait(40), server.log_text()


def test_a_start_without_the_files(tmp_path: pathlib.Path) -> None:
    chain, _ = Authority().sign("localhost").write(tmp_path, "server")
    began_s = time.monotonic()
    code, log = refused_start(tmp_path, (f"--grpc-tls-certificate={chain}", f"--grpc-tls-key={tmp_path}/none.key"))
    print(f"ended after {time.monotonic() - began_s:.1f} s")
    assert code in (EXIT_CONFIGURATION, EXIT_FAILED), log
    assert f"grpc_tls_key = '{tmp_path}/none.key': No such file or directory" in log


def test_a_start_with_a_key_of_another_certificate(tmp_path: pathlib.Path) -> None:
    authority = Authority()
    chain, _ = authority.sign("localhost").write(tmp_path, "server")
    _, key = authority.sign("localhost").write(tmp_path, "other")
    code, log = refused_start(tmp_path, (f"--grpc-tls-certificate={chain}", f"--grpc-tls-key={key}"))
    assert code in (EXIT_CONFIGURATION, EXIT_FAILED), log
    assert f"grpc_tls_key = '{key}': it is not the key of grpc_tls_certificate = '{chain}'" in log


def test_a_start_with_authorities_that_are_none(tmp_path: pathlib.Path) -> None:
    chain, key = Authority().sign("localhost").write(tmp_path, "server")
    options = (f"--grpc-tls-certificate={chain}", f"--grpc-tls-key={key}", f"--tls-client-ca={key}", "--auth=required")
    code, log = refused_start(tmp_path, options)
    assert code in (EXIT_CONFIGURATION, EXIT_FAILED), log
    assert f"tls_client_ca = '{key}': expected a PEM file with certificates" in log

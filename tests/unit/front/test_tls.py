"""TLS of the gRPC port: real servers, clients and certificates."""

import contextlib
import json
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from nexus_grpc import logs
from nexus_grpc.configuration import ConfigurationError
from nexus_grpc.front.tls import CHECK_SECONDS, ReloadingCertificates, TlsFiles, server_credentials
from tests.certificates import Authority, Pair, encrypted

WAIT_S = 20.0
METHOD = "/test/Who"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(autouse=True)
def _json_logs() -> None:
    logs.configure("json", "info", "front")


def answer_who(_request: bytes, context: grpc.ServicerContext) -> bytes:
    """The client's common names, as its certificate says."""
    return b",".join(context.auth_context().get("x509_common_name", []))


@contextlib.contextmanager
def serving(credentials: grpc.ServerCredentials) -> Iterator[int]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    handler = grpc.unary_unary_rpc_method_handler(answer_who)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test", {"Who": handler})])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait(10)


@contextlib.contextmanager
def connected(port: int, authority: Authority, client: Pair | None = None) -> Iterator[grpc.Channel]:
    key, chain = (client.key, client.chain) if client is not None else (None, None)
    credentials = grpc.ssl_channel_credentials(authority.pem, key, chain)
    # Else channels to the same place share a connection.
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.secure_channel(f"localhost:{port}", credentials, options) as channel:
        yield channel


def who(channel: grpc.Channel) -> bytes:
    answer: bytes = channel.unary_unary(METHOD)(b"", timeout=10)
    return answer


def served_serial(port: int, authority: Authority) -> int:
    """Of the certificate that a new connection is shown; checked against the authority."""
    context = ssl.create_default_context(cadata=authority.pem.decode())
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), 10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as wrapped,
    ):
        shown = wrapped.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown).serial_number


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def replace(path: Path, content: bytes) -> None:
    """As cert-manager and editors do: another file by the same name."""
    temporary = path.with_suffix(".tmp")
    temporary.touch(0o600)
    temporary.write_bytes(content)
    os.replace(temporary, path)


def logged(captured: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in captured.splitlines() if line.startswith("{")]


# --- certificates that change ---


def test_new_connections_see_a_new_certificate_and_old_ones_go_on(
    authority: Authority, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = authority.sign("localhost"), authority.sign("localhost")
    chain, key = first.write(tmp_path, "server")
    with serving(server_credentials(str(chain), str(key))) as port, connected(port, authority) as old:
        assert who(old) == b""
        assert served_serial(port, authority) == first.serial
        replace(chain, second.chain)
        # Half of it: the pair does not match, and the old one serves on.
        time.sleep(CHECK_SECONDS + 0.2)
        assert served_serial(port, authority) == first.serial
        replace(key, second.key)
        until(lambda: served_serial(port, authority) == second.serial)
        assert who(old) == b""
        with connected(port, authority) as new:
            assert who(new) == b""
    [half, whole] = logged(capsys.readouterr().err)
    assert half["level"] == "error"
    assert f"it is not the key of grpc_tls_certificate = '{chain}'" in half["reason"]
    assert (whole["event"], whole["subject"]) == ("TLS certificate loaded", "CN=localhost")


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("server.pem", b"", "expected a PEM file with certificates"),
        ("server.pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "expected a PEM file with"),
        ("server.pem", None, "No such file or directory"),
        ("server.key", b"no key", "expected a PEM file with a private key"),
        ("server.key", None, "No such file or directory"),
    ],
    ids=["empty", "garbage", "gone", "no key", "key gone"],
)
def test_broken_files_keep_the_old_certificate(
    file: str, content: bytes | None, reason: str, authority: Authority, tmp_path: Path, capsys: Any
) -> None:
    now = [0.0]
    chain, key = authority.sign("localhost").write(tmp_path, "server")
    reloading = ReloadingCertificates(TlsFiles(str(chain), str(key)), clock=lambda: now[0])
    kept = reloading.configuration
    if content is None:
        (tmp_path / file).unlink()
    else:
        replace(tmp_path / file, content)
    for _ in range(3):
        now[0] += CHECK_SECONDS
        assert reloading.fetch() is None
    assert reloading.configuration is kept
    [line] = logged(capsys.readouterr().err)  # once, not at every handshake
    assert (line["level"], line["event"]) == ("error", "the new TLS certificate is not used: the old one serves on")
    assert reason in line["reason"]
    fresh = authority.sign("localhost")
    replace(chain, fresh.chain)
    replace(key, fresh.key)
    now[0] += CHECK_SECONDS
    assert reloading.fetch() is reloading.configuration is not kept


def test_files_are_looked_at_once_a_second(authority: Authority, tmp_path: Path) -> None:
    now = [100.0]
    chain, key = authority.sign("localhost").write(tmp_path, "server")
    reloading = ReloadingCertificates(TlsFiles(str(chain), str(key)), clock=lambda: now[0])
    fresh = authority.sign("localhost")
    replace(chain, fresh.chain)
    replace(key, fresh.key)
    now[0] += CHECK_SECONDS - 0.01
    assert reloading.fetch() is None
    now[0] += 0.01
    assert reloading.fetch() is not None
    now[0] += CHECK_SECONDS
    assert reloading.fetch() is None  # nothing new


def test_links_that_are_turned_are_followed(authority: Authority, tmp_path: Path) -> None:
    """As Kubernetes mounts secrets: a link to a folder is replaced, and with it all files at once."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        authority.sign("localhost").write(tmp_path / name, "tls")
    (tmp_path / "data").symlink_to("one")
    now = [0.0]
    files = TlsFiles(str(tmp_path / "data" / "tls.pem"), str(tmp_path / "data" / "tls.key"))
    reloading = ReloadingCertificates(files, clock=lambda: now[0])
    (tmp_path / "next").symlink_to("two")
    os.replace(tmp_path / "next", tmp_path / "data")
    now[0] += CHECK_SECONDS
    assert reloading.fetch() is not None


# --- client certificates ---


def test_clients_are_known_by_their_certificates(authority: Authority, tmp_path: Path) -> None:
    chain, key = authority.sign("localhost").write(tmp_path, "server")
    trusted = Authority("clients' authority")
    credentials = server_credentials(str(chain), str(key), str(trusted.write(tmp_path)), True)
    with serving(credentials) as port:
        with connected(port, authority, trusted.sign("alice", for_client=True)) as channel:
            assert who(channel) == b"alice"
        strangers = {
            "none": None,
            "another authority's": Authority().sign("alice", for_client=True),
            "expired": trusted.sign("alice", for_client=True, days=-1),
        }
        for name, client in strangers.items():
            with connected(port, authority, client) as channel, pytest.raises(grpc.RpcError) as refused:
                who(channel)
            assert refused.value.code() == grpc.StatusCode.UNAVAILABLE, name  # type: ignore[attr-defined]


def test_the_authorities_of_clients_change_too(authority: Authority, tmp_path: Path) -> None:
    chain, key = authority.sign("localhost").write(tmp_path, "server")
    before, after = Authority("before"), Authority("after")
    file = before.write(tmp_path)
    with serving(server_credentials(str(chain), str(key), str(file), True)) as port:
        replace(file, after.pem)
        time.sleep(CHECK_SECONDS + 0.1)
        with connected(port, authority, after.sign("bob", for_client=True)) as channel:
            assert who(channel) == b"bob"
        with connected(port, authority, before.sign("alice", for_client=True)) as channel, pytest.raises(grpc.RpcError):
            who(channel)


@pytest.mark.parametrize(("client_ca", "require"), [("ca.pem", False), ("", True)])
def test_certificates_are_required_or_not_asked_for(client_ca: str, require: bool) -> None:
    with pytest.raises(ConfigurationError, match="tls_client_ca: client certificates can be required"):
        server_credentials("server.pem", "server.key", client_ca, require)


# --- the start ---


def problem(*paths: Path | str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        server_credentials(*map(str, paths), require_client=len(paths) > 2)
    return caught.value.message


def test_what_is_wrong_is_said_at_the_start(authority: Authority, tmp_path: Path) -> None:
    pair = authority.sign("localhost")
    chain, key = pair.write(tmp_path, "server")
    other_chain, _ = authority.sign("localhost").write(tmp_path, "other")
    _, locked = encrypted(pair, b"password").write(tmp_path, "locked")
    reversed_chain = tmp_path / "reversed.pem"
    reversed_chain.write_bytes(authority.pem + pair.chain)
    missing = tmp_path / "missing"
    assert problem(missing, key) == f"grpc_tls_certificate = '{missing}': No such file or directory"
    assert problem(chain, missing) == f"grpc_tls_key = '{missing}': No such file or directory"
    assert problem(chain, key, missing) == f"tls_client_ca = '{missing}': No such file or directory"
    assert problem(tmp_path, key) == f"grpc_tls_certificate = '{tmp_path}': Is a directory"
    assert problem(key, key) == f"grpc_tls_certificate = '{key}': expected a PEM file with certificates"
    assert problem(chain, chain) == f"grpc_tls_key = '{chain}': expected a PEM file with a private key"
    assert problem(chain, key, key) == f"tls_client_ca = '{key}': expected a PEM file with certificates"
    assert problem(chain, locked) == f"grpc_tls_key = '{locked}': it is encrypted; expected an unencrypted PEM key"
    assert problem(other_chain, key) == (
        f"grpc_tls_key = '{key}': it is not the key of grpc_tls_certificate = '{other_chain}'"
    )
    assert problem(reversed_chain, key) == (
        f"grpc_tls_certificate = '{reversed_chain}': the server's own certificate must come first, then those that"
        " signed it; it is number 2"
    )


def rsa_pair(authority: Authority, bits: int) -> Pair:
    key = rsa.generate_private_key(public_exponent=65537, key_size=bits)
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    return Pair(authority.sign("localhost", key=key).chain, text)


def test_the_keys_that_are_accepted_serve(authority: Authority, tmp_path: Path) -> None:
    pairs = [authority.sign("localhost", key=ec.generate_private_key(ec.SECP384R1()))]
    for number, pair in enumerate([*pairs, rsa_pair(authority, 2048)]):
        chain, key = pair.write(tmp_path, str(number))
        with serving(server_credentials(str(chain), str(key))) as port, connected(port, authority) as channel:
            assert who(channel) == b""


def test_keys_that_no_client_would_take_are_refused(authority: Authority, tmp_path: Path) -> None:
    for name, pair in {
        "edwards": authority.sign("localhost", key=ed25519.Ed25519PrivateKey.generate()),
        "P-521": authority.sign("localhost", key=ec.generate_private_key(ec.SECP521R1())),
        "weak": rsa_pair(authority, 1024),
    }.items():
        chain, key = pair.write(tmp_path, name)
        assert "gRPC cannot serve with this kind of key; expected RSA of 2048 bits" in problem(chain, key)


def warnings(files: TlsFiles, capsys: pytest.CaptureFixture[str]) -> list[str]:
    ReloadingCertificates(files)
    return [line["reason"] for line in logged(capsys.readouterr().err) if line["level"] == "warning"]


def test_what_is_unwise_is_a_warning(authority: Authority, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chain, key = authority.sign("localhost").write(tmp_path, "server")
    files = TlsFiles(str(chain), str(key))
    assert warnings(files, capsys) == []
    key.chmod(0o640)
    assert warnings(files, capsys) == []
    key.chmod(0o644)
    assert warnings(files, capsys) == [f"every user of this machine can read {key} (mode 0644): chmod 600 it"]
    chain, key = authority.sign("localhost", days=-1).write(tmp_path, "old")
    [expired] = warnings(TlsFiles(str(chain), str(key)), capsys)
    assert expired.startswith(f"{chain} expired at 20")
    chain, key = authority.sign("localhost", begins_in_days=2).write(tmp_path, "early")
    [early] = warnings(TlsFiles(str(chain), str(key)), capsys)
    assert early.startswith(f"{chain} is valid only from 20")

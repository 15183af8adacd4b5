"""Key sets: from files and a real HTTP server; rotation, cooldown, outages."""

import base64
import json
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import pytest

from nexus_grpc.access import jwks
from nexus_grpc.access.jwks import COOLDOWN_SECONDS, REFRESH_SECONDS, JwksSource, JwksSources, fetch, fitting_keys
from nexus_grpc.access.jwt_tokens import JwtVerifier, UnknownKey
from nexus_grpc.ipc.errors import InvalidInput
from tests.unit.access.support import (
    ISSUER,
    NOW,
    Clock,
    Documents,
    documents,
    ec_key,
    ed_key,
    issuer,
    jwk,
    key_set,
    rsa_key,
    token,
)

ONE, TWO = jwk(rsa_key(), "one"), jwk(rsa_key(1), "two")


@pytest.fixture
def server() -> Iterator[Documents]:
    with documents() as found:
        found.answer = (200, {}, key_set(ONE))
        yield found


def kids(source: JwksSource) -> list[str]:
    return [key["kid"] for key in source.snapshot()]


# --- keys ---


def test_only_what_fits_is_kept_and_nothing_private() -> None:
    private = json.loads(json.dumps({**ONE, "kid": "private", "d": "secret", "p": "secret", "x5u": "https://a"}))
    entries: list[Any] = [
        ONE,
        private,
        {**ONE, "use": "enc"},
        {**ONE, "key_ops": ["encrypt"]},
        {**ONE, "alg": "RSA-OAEP"},
        {**ONE, "alg": "HS256"},
        {**ONE, "n": "AQAB"},
        {**ONE, "n": 7},
        {**ONE, "kid": 7},
        {**ONE, "kid": "x" * 256},
        {"kty": "RSA", "n": ONE["n"]},
        {"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0", "kid": "oct"},
        {"kty": "rsa"},
        jwk(ec_key("P-256"), "ec"),
        jwk(ed_key(), "ed"),
        None,
        [],
        "x",
        7,
    ]
    found = fitting_keys(json.dumps({"keys": entries}).encode(), ["RS256"])
    assert [key["kid"] for key in found] == ["one", "private"]
    assert all(set(key) <= {"kty", "kid", "alg", "n", "e"} for key in found)
    assert [key["kid"] for key in fitting_keys(key_set(*entries[13:15]), ["ES256", "EdDSA"])] == ["ec", "ed"]
    # Another curve's.
    with pytest.raises(InvalidInput, match="none of its 1 keys is a valid one for ES384"):
        fitting_keys(key_set(entries[13]), ["ES384"])


@pytest.mark.parametrize("bits", [1024, 16384])
def test_rsa_keys_too_weak_or_too_slow(bits: int) -> None:
    """A modulus of so many bits: whether it is a product of two primes is not looked at here."""
    modulus = base64.urlsafe_b64encode(((1 << bits) - 1).to_bytes(bits // 8, "big")).decode().rstrip("=")
    with pytest.raises(InvalidInput, match="none of its 1 keys"):
        fitting_keys(key_set({**ONE, "n": modulus}), ["RS256"])


def test_at_most_64() -> None:
    assert len(fitting_keys(key_set(*({**ONE, "kid": str(number)} for number in range(100))), ["RS256"])) == 64


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"keys": {}}', b'{"keys": []}', b"[" * 9999, b"\xff"])
def test_documents_that_are_no_key_set(content: bytes) -> None:
    with pytest.raises(InvalidInput, match="key"):
        fitting_keys(content, ["RS256"])


# --- files ---


def test_a_file_is_read_again_when_it_changes(tmp_path: pathlib.Path) -> None:
    path, clock = tmp_path / "keys.json", Clock()
    path.write_bytes(key_set(ONE))
    source = JwksSource(issuer(jwks_file=str(path)), clock=clock)
    assert source.refresh_if_due()
    assert not source.refresh_if_due()
    # As an editor does it.
    (tmp_path / "new").write_bytes(key_set(TWO))
    os.replace(tmp_path / "new", path)
    assert source.refresh_if_due()
    assert kids(source) == ["two"]


def test_a_file_that_breaks_or_goes_leaves_the_last_good_keys(tmp_path: pathlib.Path) -> None:
    path, clock, lines = tmp_path / "keys.json", Clock(), []
    path.write_bytes(key_set(ONE))
    source = JwksSource(
        issuer(jwks_file=str(path)), clock=clock, report=lambda event, about: lines.append(about.get("reason", event))
    )
    source.load()
    path.write_bytes(b"{")
    assert not source.refresh_if_due()
    path.unlink()
    assert not source.refresh_if_due()
    assert not source.refresh_if_due()
    assert kids(source) == ["one"]
    assert len(lines) == 3
    assert "no key set" in lines[1]
    assert "cannot be read" in lines[2]
    path.write_bytes(key_set(TWO))
    assert source.refresh_if_due()
    assert kids(source) == ["two"]


def test_at_the_start_a_file_must_be_right(tmp_path: pathlib.Path) -> None:
    with pytest.raises(InvalidInput, match=rf"issuer '{ISSUER}': {tmp_path}/none.json cannot be read: No such file"):
        JwksSources([issuer(jwks_file=str(tmp_path / "none.json"))]).load_files()
    (tmp_path / "short").write_text("secret")
    with pytest.raises(InvalidInput, match="the secret has 6 bytes; expected 32") as failure:
        JwksSources([issuer(algorithms=["HS256"], secret_file=str(tmp_path / "short"))]).load_files()
    assert "'secret'" not in failure.value.message


# --- URLs ---


def test_rotation(server: Documents) -> None:
    """A token of a new key is refused, makes the key set be read again, and is accepted then."""
    clock = Clock()
    trusted = issuer(jwks_url=server.url)
    sources = JwksSources([trusted], clock=clock)
    assert sources.refresh_if_due()
    clock.now += COOLDOWN_SECONDS
    server.answer = (200, {}, key_set(ONE, TWO))
    new = token(rsa_key(1), headers={"kid": "two"})
    with pytest.raises(UnknownKey) as failure:
        JwtVerifier([trusted], sources.snapshot()).verify(new, NOW)
    assert not sources.refresh_if_due()
    sources.ask_refresh(failure.value.issuer)
    assert sources.refresh_if_due()
    found = JwtVerifier([trusted], json.loads(json.dumps(sources.snapshot())))
    assert found.verify(new, NOW).name == found.verify(token(), NOW).name
    # The old key goes with the regular refresh.
    server.answer = (200, {}, key_set(TWO))
    clock.now += REFRESH_SECONDS
    assert sources.refresh_if_due()
    with pytest.raises(UnknownKey):
        JwtVerifier([trusted], sources.snapshot()).verify(token(), NOW)


def test_a_flood_of_unknown_keys_is_one_request_in_30_s(server: Documents) -> None:
    clock = Clock()
    trusted = issuer(jwks_url=server.url)
    sources = JwksSources([trusted], clock=clock)
    sources.refresh_if_due()
    for second in range(0, 120):
        found = JwtVerifier([trusted], sources.snapshot())
        for number in range(10):
            with pytest.raises(UnknownKey) as failure:
                found.verify(token(headers={"kid": f"{second}-{number}"}), NOW)
            sources.ask_refresh(failure.value.issuer)
        sources.refresh_if_due()
        clock.now += 1
    assert len(server.paths) == 1 + 3
    assert found.verify(token(), NOW)


def test_it_is_read_every_300_s(server: Documents) -> None:
    clock = Clock()
    source = JwksSource(issuer(jwks_url=server.url), clock=clock)
    for _ in range(1000):
        source.refresh_if_due()
        clock.now += 1
    assert len(server.paths) == 4


def test_an_outage_leaves_the_last_good_keys(server: Documents) -> None:
    clock, lines = Clock(), []
    source = JwksSource(
        issuer(jwks_url=server.url), clock=clock, report=lambda event, about: lines.append((event, dict(about)))
    )
    source.refresh_if_due()
    clock.now += REFRESH_SECONDS
    for answer in ((500, {}, b""), (200, {}, b"<html>"), (200, {}, key_set(jwk(ed_key(), "one")))):
        server.answer = answer
        asked = len(server.paths)
        assert not source.refresh_if_due()
        assert not source.refresh_if_due()
        assert len(server.paths) == asked + 1
        assert kids(source) == ["one"]
        clock.now += COOLDOWN_SECONDS
    server.answer = (200, {}, key_set(ONE))
    assert not source.refresh_if_due()
    assert ["stay" in event for event, _ in lines] == [False, True, True, True, False]
    assert lines[1][1]["reason"] == "it answered with status 500"
    assert lines[1][1]["keys"] == "1"


def test_it_need_not_be_there_at_the_start() -> None:
    with documents() as server:
        url = server.url
    clock = Clock()
    sources = JwksSources([issuer(jwks_url=url)], clock=clock)
    sources.load_files()
    assert not sources.refresh_if_due()
    assert sources.snapshot() == {ISSUER: []}
    sources.ask_refresh("https://nobody.example")


@pytest.mark.parametrize(
    ("status", "headers", "body", "message"),
    [
        (404, {}, b"", "status 404"),
        (302, {"location": "http://127.0.0.2:1/jwks"}, b"", "redirects to another host"),
        (302, {"location": "https://127.0.0.1/jwks"}, b"", "redirects to another host"),
        (302, {"location": "file:///etc/passwd"}, b"", "status 302"),
        (302, {"location": "/jwks"}, b"", "status 302"),
        (200, {}, b"x" * ((1 << 20) + 1), "more than 1048576 bytes"),
    ],
)
def test_what_is_not_fetched(
    server: Documents, status: int, headers: dict[str, str], body: bytes, message: str
) -> None:
    server.answer = (status, headers, body)
    with pytest.raises(InvalidInput, match=message):
        fetch(server.url)
    assert len(server.paths) <= 5


def test_redirects_inside_one_host(server: Documents) -> None:
    server.pages["/other"] = server.answer
    server.answer = (302, {"location": "/other"}, b"")
    assert fetch(server.url) == key_set(ONE)
    assert server.paths == ["/jwks", "/other"]


def test_one_that_never_ends(server: Documents, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit holds for the whole answer, not for each piece."""
    monkeypatch.setattr(jwks, "FETCH_SECONDS", 0.3)
    handler: Any = server.RequestHandlerClass

    def drip(self: Any) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            for _ in range(100):
                self.wfile.write(b" ")
                time.sleep(0.05)
        except OSError:
            return

    monkeypatch.setattr(handler, "do_GET", drip)
    began = time.monotonic()
    with pytest.raises(InvalidInput, match=r"took more than 0\.3 s"):
        fetch(server.url)
    assert time.monotonic() - began < 3

"""Real keys, tokens and a real HTTP server with a key set, for the tests of access control."""

import base64
import contextlib
import functools
import http.server
import json
import pathlib
import threading
from collections.abc import Iterator
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from nexus_grpc.access.issuers import Issuer, parse_trust
from nexus_grpc.access.jwks import Jwk, fitting_keys
from nexus_grpc.access.jwt_tokens import JwtVerifier

ISSUER = "https://login.example"
NOW = 1_700_000_000.0
HERE = pathlib.Path("/nowhere")
CURVES = {"P-256": ec.SECP256R1, "P-384": ec.SECP384R1, "P-521": ec.SECP521R1}


@functools.cache
def rsa_key(number: int = 0, bits: int = 2048) -> rsa.RSAPrivateKey:
    """Of the tests: made once for each number."""
    return rsa.generate_private_key(65537, bits)


@functools.cache
def ec_key(curve: str) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(CURVES[curve]())


@functools.cache
def ed_key() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


def jwk(private: Any, kid: str = "", **more: Any) -> dict[str, Any]:
    """The public half, as an issuer publishes it."""
    public = private.public_key()
    name = {rsa.RSAPrivateKey: "RS256", ec.EllipticCurvePrivateKey: "ES256"}
    kind = next((algorithm for of, algorithm in name.items() if isinstance(private, of)), "EdDSA")
    if kind == "ES256":
        kind = {256: "ES256", 384: "ES384", 521: "ES512"}[public.curve.key_size]
    algorithm: Any = jwt.get_algorithm_by_name(kind)
    entry = algorithm.to_jwk(public, as_dict=True)
    entry.pop("key_ops", None)
    return {**entry, **({"kid": kid} if kid else {}), **more}


def key_set(*entries: dict[str, Any]) -> bytes:
    return json.dumps({"keys": list(entries)}).encode()


def public_pem(private: Any) -> bytes:
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    content: bytes = private.public_key().public_bytes(encoding, form)
    return content


def issuer(**settings: Any) -> Issuer:
    """One of the configuration, with RS256 unless told otherwise."""
    table = {
        "issuer": ISSUER,
        "audience": "nexus",
        "algorithms": ["RS256"],
        **({} if {"jwks_url", "jwks_file", "secret_file"} & set(settings) else {"jwks_file": "keys.json"}),
        **settings,
    }
    return parse_trust({"issuer": [table]}, HERE).issuers[0]


def verifier(trusted: Issuer | None = None, *keys: dict[str, Any]) -> JwtVerifier:
    """With the key `one` of rsa_key() unless told otherwise."""
    trusted = trusted or issuer()
    found: list[Jwk] = fitting_keys(key_set(*(keys or (jwk(rsa_key(), "one"),))), trusted.algorithms)
    return JwtVerifier([trusted], {trusted.issuer: found})


def claims(**more: Any) -> dict[str, Any]:
    """Those of a good token; None takes one out."""
    all_of_them = {"iss": ISSUER, "aud": "nexus", "sub": "ada", "exp": NOW + 60, "iat": NOW, "scope": "predict"} | more
    return {name: value for name, value in all_of_them.items() if value is not None}


def token(key: Any = None, algorithm: str = "RS256", headers: dict[str, Any] | None = None, **more: Any) -> str:
    """A signed one; the claims as claims() has them."""
    return jwt.encode(claims(**more), key or rsa_key(), algorithm, headers={"kid": "one", **(headers or {})})


def forged(header: dict[str, Any], payload: dict[str, Any] | None = None, signature: bytes = b"x" * 256) -> str:
    """Any header with any signature."""
    parts = (json.dumps(header).encode(), json.dumps(payload or claims()).encode(), signature)
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


class Documents(http.server.ThreadingHTTPServer):
    """Serves what tests put into `pages` by path, else `answer`: (status, headers, body); notes the paths asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer: tuple[int, dict[str, str], bytes] = (200, {}, b"")
        self.pages: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.paths: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/jwks"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Documents

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        status, headers, body = self.server.pages.get(self.path, self.server.answer)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def documents() -> Iterator[Documents]:
    server = Documents()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Clock:
    """Stands still until it is moved."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

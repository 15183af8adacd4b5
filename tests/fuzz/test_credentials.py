"""Whatever a caller sends as a credential: an identity, or Unauthenticated; no parser says anything else."""

import base64
import contextlib
import json
import string
from typing import Any
from urllib.parse import quote

from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nexus_grpc.access.authenticator import Authenticator
from nexus_grpc.access.certificates import Certificates, from_auth_context
from nexus_grpc.access.forwarded import parse_forwarded
from nexus_grpc.access.issuers import parse_trust
from nexus_grpc.access.jwks import fitting_keys
from nexus_grpc.access.keys import new_key, parse
from nexus_grpc.ipc.errors import InvalidInput, Unauthenticated
from tests.certificates import Authority
from tests.effort import examples
from tests.unit.access.support import HERE, NOW, claims, jwk, key_set, rsa_key, token, verifier

TEXT, KEY = new_key("a", NOW)
VERIFIER = verifier()
TOKEN = token()
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
HEADERS = st.fixed_dictionaries(
    {"alg": st.sampled_from(["RS256", "HS256", "none"]) | JSON},
    optional={name: JSON for name in ("kid", "typ", "crit", "b64", "jku", "jwk", "x5c", "zip", "cty")},
)
NAMES = ("iss", "aud", "sub", "exp", "nbf", "iat", "scope", "jti", "models")
TEXTS = st.text(max_size=100) | st.text(string.printable, max_size=100)


def part(value: object) -> str:
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def hold_token(text: str) -> None:
    with contextlib.suppress(Unauthenticated):
        assert VERIFIER.verify(text, NOW).name.startswith("jwt:https://login.example/")


@given(TEXTS)
@settings(deadline=None, max_examples=examples(300))
def test_keys(text: str) -> None:
    for each in (text, "nxk_" + text, TEXT[:17] + text, TEXT + text):
        with contextlib.suppress(Unauthenticated):
            id, secret = parse(each)
            assert each == f"nxk_{id}_{secret}"


@given(HEADERS, st.dictionaries(st.sampled_from(NAMES), JSON))
@settings(deadline=None, max_examples=examples(150))
def test_forged_tokens(header: dict[str, Any], changed: dict[str, Any]) -> None:
    hold_token(f"{part(header)}.{part({**claims(), **changed})}.{part(b'x' * 256)}")


@given(st.dictionaries(st.sampled_from(NAMES), JSON))
@settings(deadline=None, max_examples=examples(300))
@example({"exp": float("inf")})
@example({"exp": float("nan")})
@example({"exp": 10**5000})
def test_signed_tokens_with_any_claims(changed: dict[str, Any]) -> None:
    """An issuer that is trusted, and signs nonsense."""
    import jwt

    try:
        payload = json.dumps({**claims(), **changed}).encode()
    except ValueError:
        # More digits than Python writes.
        payload = b'{"iss": "https://login.example", "exp": ' + b"9" * 5001 + b"}"
    hold_token(jwt.PyJWS().encode(payload, rsa_key(), "RS256", headers={"kid": "one"}))


@given(st.integers(0, len(TOKEN) - 1), st.binary(min_size=1, max_size=4), st.integers(0, 5))
@settings(deadline=None, max_examples=examples(300))
def test_damaged_tokens(at: int, inserted: bytes, removed: int) -> None:
    hold_token(TOKEN[:at] + inserted.decode("latin-1") + TOKEN[at + removed :])


@given(st.lists(st.binary(max_size=60).map(part) | TEXTS, max_size=5))
@settings(deadline=None, max_examples=examples(300))
def test_random_parts(parts: list[str]) -> None:
    hold_token(".".join(parts))


VALUES = (
    st.none()
    | TEXTS
    | st.binary(max_size=80)
    | TEXTS.map(lambda text: f"Bearer {text}")
    | st.binary(max_size=80).map(lambda content: b"Bearer " + content)
    | st.sampled_from([TEXT, f"Bearer {TEXT}", f"bearer  {TEXT}", TEXT.encode(), f"Bearer {TOKEN}"])
)


@given(st.lists(st.tuples(VALUES, VALUES), max_size=5))
@settings(deadline=None, max_examples=examples(400))
def test_headers(pairs: list[tuple[Any, Any]]) -> None:
    found = Authenticator({KEY.id: KEY}, VERIFIER, None, clock=lambda: NOW)
    for authorization, api_key in pairs:
        outcomes = set()
        for _ in range(2):
            try:
                outcomes.add(found.identify(authorization, api_key).name)
            except Unauthenticated as error:
                outcomes.add(error.message)
        assert not any(TEXT[17:] in outcome for outcome in outcomes)
        # What is remembered is what would be found out again.
        assert len(outcomes) == 1


BEGIN, END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
CERTIFICATE = Authority().sign("somebody", uri="spiffe://example/x").certificate.public_bytes(Encoding.DER)
XFCC = st.lists(
    st.sampled_from(
        ["By=", "Hash=", "Cert=", '"', "%", ",", ";", "=", "a", "ü", quote(BEGIN), quote(END), "%0A", "MIIB", "%2B"]
    )
    | st.text(max_size=5),
    max_size=20,
).map("".join)


@given(XFCC)
@settings(deadline=None, max_examples=examples(500))
def test_envoys_header(header: str) -> None:
    for each in (
        header,
        f'Hash=a;Cert="{header}"',
        f'Hash=a;Cert="{quote(BEGIN)}%0A{header}%0A{quote(END)}%0A"',
        f"Hash=a;{header}",
    ):
        with contextlib.suppress(Unauthenticated):
            assert Certificates().identity(parse_forwarded(each)).name.isprintable()


@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=4))
@settings(deadline=None, max_examples=examples(500))
def test_certificates_with_other_bytes(changes: list[tuple[int, int]]) -> None:
    content = bytearray(CERTIFICATE)
    for at, value in changes:
        content[at % len(content)] = value
    pem = f"{BEGIN}\n{base64.encodebytes(bytes(content)).decode()}{END}\n"
    with contextlib.suppress(Unauthenticated):
        names = parse_forwarded(f'Hash=a;Cert="{quote(pem)}"')
        assert Certificates().identity(names).name.isprintable()


@given(st.dictionaries(st.sampled_from(["x509_common_name", "x509_subject_alternative_name"]), st.lists(st.binary())))
@settings(deadline=None, max_examples=examples(200))
def test_grpcs_context(context: dict[str, list[bytes]]) -> None:
    with contextlib.suppress(Unauthenticated):
        names = from_auth_context(context)
        if names is not None:
            assert Certificates().identity(names).name.isprintable()


@given(
    JSON | st.lists(JSON | st.fixed_dictionaries({"kty": st.sampled_from(["RSA", "EC", "OKP"]), "n": JSON, "e": JSON}))
)
@settings(deadline=None, max_examples=examples(300))
def test_key_sets(entries: Any) -> None:
    for content in (json.dumps(entries).encode(), json.dumps({"keys": entries}).encode()):
        with contextlib.suppress(InvalidInput):
            fitting_keys(content, ["RS256", "ES256", "EdDSA"])


@given(st.dictionaries(st.sampled_from(["kty", "kid", "n", "e", "alg", "use", "key_ops", "crv", "x", "y"]), JSON))
@settings(deadline=None, max_examples=examples(300))
def test_keys_of_a_set(changed: dict[str, Any]) -> None:
    with contextlib.suppress(InvalidInput):
        fitting_keys(key_set({**jwk(rsa_key(), "one"), **changed}), ["RS256", "ES256", "EdDSA"])


@given(st.dictionaries(st.sampled_from(["issuer", "certificate", "x"]), JSON | st.lists(st.dictionaries(TEXTS, JSON))))
@settings(deadline=None, max_examples=examples(100))
def test_the_issuers_file(document: dict[str, Any]) -> None:
    with contextlib.suppress(InvalidInput):
        parse_trust(document, HERE)


ISSUER_NAMES = (
    "issuer", "audience", "algorithms", "jwks_file", "jwks_url", "secret_file", "leeway_seconds", "scopes_claim",
    "scopes", "models_claim", "models", "default_scopes", "rate_per_minute", "burst", "priority",
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(ISSUER_NAMES), JSON))
@settings(deadline=None, max_examples=examples(150))
def test_one_issuer(changed: dict[str, Any]) -> None:
    table = {"issuer": "a", "audience": "b", "algorithms": ["RS256"], "jwks_file": "k", **changed}
    with contextlib.suppress(InvalidInput):
        parse_trust({"issuer": [table]}, HERE)

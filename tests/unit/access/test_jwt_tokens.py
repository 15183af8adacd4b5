"""Tokens: what is accepted, and that attacks are not."""

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import jwt
import pytest

from nexus_grpc.access.identity import ALL_MODELS, Scope
from nexus_grpc.access.jwks import fitting_keys, secret_key
from nexus_grpc.access.jwt_tokens import JwtVerifier, UnknownKey
from nexus_grpc.ipc.errors import InvalidInput, Unauthenticated
from tests.unit.access.support import (
    ISSUER,
    NOW,
    claims,
    ec_key,
    ed_key,
    forged,
    issuer,
    jwk,
    key_set,
    public_pem,
    rsa_key,
    token,
    verifier,
)

SECRET = b"0123456789abcdef0123456789abcdef"


def refused(text: str, found: JwtVerifier | None = None, now: float = NOW) -> str:
    with pytest.raises(Unauthenticated) as failure:
        (found or verifier()).verify(text, now)
    message = failure.value.message
    assert not any(len(part) > 8 and part in message for part in text.split("."))
    assert "ada" not in message
    return message


def test_a_good_one() -> None:
    found = verifier().verify(token(), NOW)
    assert (found.name, found.scopes, found.models) == (f"jwt:{ISSUER}/ada", Scope.PREDICT, ALL_MODELS)
    # Its leeway counts when it is remembered, too.
    assert found.expires_s == NOW + 60 + 30


@pytest.mark.parametrize(
    ("algorithm", "key"),
    [
        *((name, rsa_key()) for name in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")),
        ("ES256", ec_key("P-256")),
        ("ES384", ec_key("P-384")),
        ("ES512", ec_key("P-521")),
        ("EdDSA", ed_key()),
    ],
)
def test_every_algorithm(algorithm: str, key: Any) -> None:
    found = verifier(issuer(algorithms=[algorithm]), jwk(key, "one"))
    assert found.verify(token(key, algorithm), NOW).name == f"jwt:{ISSUER}/ada"
    # Signed by another key of the same kind.
    assert "signature" in refused(token(key, algorithm)[:-8] + "AAAAAAAA", found)


def test_a_shared_secret() -> None:
    trusted = issuer(algorithms=["HS256"], secret_file="secret")
    found = JwtVerifier([trusted], {ISSUER: [secret_key(SECRET)]})
    assert found.verify(token(SECRET, "HS256"), NOW).scopes is Scope.PREDICT
    assert "signature is wrong" in refused(token(b"x" * 32, "HS256"), found)
    assert "algorithm" in refused(token(), found)


# --- attacks ---


@pytest.mark.parametrize("name", ["none", "None", "NONE", "", None, 7, ["RS256"], "HS256", "RS384", "RS256 "])
def test_other_algorithms(name: Any) -> None:
    for payload in (claims(), None):
        assert "algorithm" in refused(forged({"alg": name, "kid": "one", "typ": "JWT"}, payload))


def test_no_signature() -> None:
    unsigned = jwt.encode(claims(), None, "none")
    assert unsigned.endswith(".")
    assert "form" in refused(unsigned)
    assert "form" in refused(token().rpartition(".")[0] + ".")
    assert "form" in refused(token().rpartition(".")[0])


def test_a_public_key_is_no_secret() -> None:
    """CVE-2022-29217 and its kind: HS256 over the public key, in whatever form it may be used."""
    public = jwk(rsa_key(), "one")
    for secret in (
        public_pem(rsa_key()),
        public_pem(rsa_key()).strip(),
        json.dumps(public).encode(),
        public["n"].encode(),
    ):
        part = ".".join(
            base64.urlsafe_b64encode(json.dumps(each).encode()).decode().rstrip("=")
            for each in ({"alg": "HS256", "typ": "JWT", "kid": "one"}, claims())
        )
        signature = hmac.new(secret, part.encode(), hashlib.sha256).digest()
        attack = f"{part}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"
        assert "algorithm" in refused(attack)
        # An issuer with a secret of its own beside it changes nothing.
        other = issuer(issuer="https://other.example", algorithms=["HS256"], secret_file="secret")
        both = JwtVerifier([issuer(), other], {ISSUER: fitting_keys(key_set(public), ["RS256"])})
        assert "algorithm" in refused(attack, both)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"aud": "other"}, "audience"),
        ({"aud": ["other", "another"]}, "audience"),
        ({"aud": None}, "has no aud"),
        ({"aud": {"nexus": 1}}, "audience"),
        ({"iss": "https://evil.example"}, "issuer"),
        ({"iss": ISSUER + "/"}, "issuer"),
        ({"iss": None}, "issuer"),
        ({"exp": NOW - 31}, "expired"),
        ({"exp": None}, "has no exp"),
        ({"exp": True}, "exp is no number"),
        ({"exp": str(NOW + 60)}, "exp is no number"),
        ({"exp": 10**400}, "exp is no number"),
        ({"exp": -5}, "exp is no number"),
        ({"nbf": NOW + 31}, "not valid yet"),
        ({"nbf": "soon"}, "nbf is no number"),
        ({"iat": NOW + 31}, "not valid yet"),
        ({"iat": [1]}, "iat is no number"),
        ({"sub": None}, "has no sub"),
        ({"sub": ""}, "subject"),
        ({"sub": "a" * 256}, "subject"),
        ({"sub": "a\nb"}, "subject"),
        ({"scope": 7}, "scope"),
        ({"scope": [7]}, "scope"),
        ({"scope": "x " * 300}, "scope"),
    ],
)
def test_wrong_claims(changed: dict[str, Any], message: str) -> None:
    assert message in refused(_signed(claims(**changed)))


def _signed(payload: dict[str, Any]) -> str:
    """PyJWT refuses to make some of these."""
    return jwt.PyJWS().encode(json.dumps(payload).encode(), rsa_key(), "RS256", headers={"kid": "one", "typ": "JWT"})


@pytest.mark.parametrize("payload", ["[]", '"x"', "7", "null", '{"iss": ', '{"exp": NaN}', "[" * 5000, '{"a":1,"a":2}'])
def test_payloads_that_are_none(payload: str) -> None:
    text = jwt.PyJWS().encode(payload.encode(), rsa_key(), "RS256", headers={"kid": "one"})
    assert "JSON object" in refused(text)


def test_the_leeway_holds_and_not_more() -> None:
    found = verifier(issuer(leeway_seconds=5))
    assert found.verify(token(exp=NOW - 4.9, nbf=NOW + 4.9, iat=NOW + 4.9), NOW)
    refused(token(exp=NOW - 5), found)
    refused(token(nbf=NOW + 5.1), found)


def test_headers_that_bring_a_key_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fetched: a socket cannot even be made."""
    monkeypatch.setattr("socket.socket", None)
    brought = {
        "jwk": jwk(rsa_key(1), "one"),
        "jku": "https://evil.example/jwks",
        "x5u": "https://evil.example/cert",
        "x5c": ["MIIB"],
    }
    found = verifier()
    for names in ([name] for name in brought):
        headers = {name: brought[name] for name in names}
        assert "signature is wrong" in refused(token(rsa_key(1), headers=headers), found)
        assert found.verify(token(headers=headers), NOW)


@pytest.mark.parametrize("header", [{"crit": ["exp"]}, {"crit": []}, {"b64": False, "crit": ["b64"]}, {"b64": True}])
def test_critical_extensions(header: dict[str, Any]) -> None:
    assert "extensions" in refused(forged({"alg": "RS256", "kid": "one", **header}))


def test_100_kb() -> None:
    began = time.perf_counter()
    for text in ("a" * 100_000, token(filler="x" * 100_000), "." * 100_000, "[" * 100_000):
        assert "longer than" in refused(text)
    assert time.perf_counter() - began < 1


def test_unknown_keys_are_told_apart() -> None:
    for headers in ({"kid": "two"}, {"kid": "../../etc/passwd"}, {"kid": "' OR 1=1"}, {"kid": "\0" + "0"}):
        with pytest.raises(UnknownKey) as failure:
            verifier().verify(token(headers=headers), NOW)
        assert (failure.value.reason, failure.value.issuer) == ("UNKNOWN_KEY", ISSUER)
    for kid in (7, ["one"], {}, "x" * 256):
        assert "kid" in refused(forged({"alg": "RS256", "kid": kid}))
    with pytest.raises(UnknownKey):
        JwtVerifier([issuer()], {}).verify(token(), NOW)


def test_without_a_kid_there_must_be_one_key() -> None:
    text = jwt.encode(claims(), rsa_key(), "RS256")
    assert verifier().verify(text, NOW)
    assert verifier(None, jwk(rsa_key())).verify(text, NOW)
    assert "kid" in refused(text, verifier(None, jwk(rsa_key(), "one"), jwk(rsa_key(1), "two")))


def test_a_key_of_one_issuer_is_not_anothers() -> None:
    """Both have a key with the same id."""
    other = issuer(issuer="https://other.example")
    sets = {
        ISSUER: fitting_keys(key_set(jwk(rsa_key(), "one")), ["RS256"]),
        other.issuer: fitting_keys(key_set(jwk(rsa_key(1), "one")), ["RS256"]),
    }
    found = JwtVerifier([issuer(), other], sets)
    assert found.verify(token(rsa_key(1), iss=other.issuer), NOW).name == "jwt:https://other.example/ada"
    assert "signature" in refused(token(rsa_key(1)), found)


def test_a_key_bound_to_another_algorithm() -> None:
    trusted = issuer(algorithms=["RS256", "PS256"])
    found = verifier(trusted, jwk(rsa_key(), "one", alg="PS256"))
    assert found.verify(token(algorithm="PS256"), NOW)
    with pytest.raises(UnknownKey):
        found.verify(token(), NOW)


# --- what a token may do ---


@pytest.mark.parametrize(
    ("settings", "changed", "scopes"),
    [
        ({}, {"scope": "predict read other"}, Scope.PREDICT | Scope.READ),
        ({}, {"scope": ["nexus:admin"]}, Scope.ADMIN),
        ({}, {"scope": ""}, Scope.NONE),
        ({}, {"scope": None}, Scope.NONE),
        ({"default_scopes": ["read"]}, {"scope": None}, Scope.READ),
        ({"default_scopes": ["read"]}, {"scope": "other"}, Scope.NONE),
        ({"scopes_claim": "roles", "scopes": {"ml": ["predict", "read"]}}, {"roles": ["ml", "admin"]}, Scope(3)),
    ],
)
def test_scopes(settings: dict[str, Any], changed: dict[str, Any], scopes: Scope) -> None:
    assert verifier(issuer(**settings)).verify(token(**changed), NOW).scopes == scopes


def test_models() -> None:
    trusted = issuer(models_claim="models")
    found = verifier(trusted)
    assert found.verify(token(models=["iris", "fraud-*"]), NOW).models == ("iris", "fraud-*")
    assert found.verify(token(models="iris churn"), NOW).models == ("iris", "churn")
    assert found.verify(token(), NOW).models == found.verify(token(models=[]), NOW).models == ()
    assert not found.verify(token(), NOW).may_use("iris")
    assert "models" in refused(token(models=["../x"]), found)
    assert verifier(issuer(models=["a*"])).verify(token(), NOW).models == ("a*",)


def test_limits_are_the_issuers() -> None:
    found = verifier(issuer(rate_per_minute=60, burst=5, priority=1)).verify(token(), NOW)
    assert (found.rate_per_minute, found.burst, found.priority) == (60, 5, 1)


def test_without_issuers() -> None:
    assert "accepts no tokens" in refused(token(), JwtVerifier([], {}))


def test_secrets_have_a_length() -> None:
    assert secret_key(SECRET + b"\r\n") == secret_key(SECRET)
    for secret in (b"", b"x" * 31, b"x" * 5000):
        with pytest.raises(InvalidInput, match=r"expected 32 to 4096"):
            secret_key(secret)

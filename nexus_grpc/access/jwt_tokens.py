"""Tokens (JWT, RFC 7519; rules of RFC 8725) of the configured issuers: verified with keys that are here already.

What the token says of itself decides nothing but where to look: its `iss` picks an issuer of the configuration, its
`kid` one of that issuer's keys, its `alg` must be among the issuer's algorithms and fit that key. Signatures are
PyJWT's to check. Nothing is fetched, and no key comes from a token.
"""

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jwt

from nexus_grpc.access.identity import Identity, Scope
from nexus_grpc.access.issuers import Issuer
from nexus_grpc.access.jwks import KID_CHARACTERS_MAX, Jwk, key_for
from nexus_grpc.access.keys import check_patterns
from nexus_grpc.ipc.errors import InvalidInput, Unauthenticated

TOKEN_CHARACTERS_MAX = 16 << 10
SUBJECT_CHARACTERS_MAX = 255
CLAIM_VALUES_MAX = 256
REQUIRED = ("exp", "iss", "aud", "sub")

# Three parts; the last, the signature, is not empty: there are no unsigned tokens.
_TOKEN = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+", re.ASCII)
# Times are checked here, by a clock that can be set. PyJWT checks the rest.
_OPTIONS: Any = {
    "require": list(REQUIRED),
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
    "enforce_minimum_key_length": True,
}


class UnknownKey(Unauthenticated):
    """The token names a key that its issuer's key set has not; a newer set may have it: ask for a refresh.

    Attributes:
        issuer: whose.
    """

    reason = "UNKNOWN_KEY"

    def __init__(self, issuer: str) -> None:
        super().__init__(
            "the token is signed with a key that its issuer's key set does not have; try again, or renew it"
        )
        self.issuer = issuer


class JwtVerifier:
    """Immutable: another key set is another verifier.

    Args:
        issuers: of the configuration.
        key_sets: JwksSources.snapshot(): keys by issuer; an issuer may be missing.
    """

    def __init__(self, issuers: Sequence[Issuer], key_sets: Mapping[str, Sequence[Jwk]]) -> None:
        self._issuers = {issuer.issuer: issuer for issuer in issuers}
        self._keys = {issuer.issuer: _keys(issuer, key_sets.get(issuer.issuer, ())) for issuer in issuers}

    def verify(self, token: str, now: float) -> Identity:
        """Whose token it is: "jwt:ISSUER/SUBJECT".

        Args:
            now: seconds since 1970.

        Raises:
            Unauthenticated: it is not valid; UnknownKey: its key is not known (yet). No word of it is in the message.
        """
        if not self._issuers:
            raise Unauthenticated("this server accepts no tokens; send an API key")
        if len(token) > TOKEN_CHARACTERS_MAX:
            _refuse(f"it is longer than {TOKEN_CHARACTERS_MAX} characters")
        parts = _TOKEN.fullmatch(token)
        if parts is None:
            _refuse("it is not of the form header.payload.signature")
        header, unverified = _json_object(parts[1]), _json_object(parts[2])
        name = unverified.get("iss")
        issuer = self._issuers.get(name) if isinstance(name, str) else None
        if issuer is None:
            _refuse("its issuer (iss) is none that this server trusts")
        algorithm = _algorithm(header, issuer)
        claims = _verified(token, self._key(header, issuer, algorithm), algorithm, issuer)
        _check_times(claims, issuer, now)
        return _identity(claims, issuer)

    def _key(self, header: Mapping[str, Any], issuer: Issuer, algorithm: str) -> Any:
        keys = self._keys[issuer.issuer]
        kid = header.get("kid", "")
        if not isinstance(kid, str) or len(kid) > KID_CHARACTERS_MAX:
            _refuse(f"its kid is no text of at most {KID_CHARACTERS_MAX} characters")
        if kid and not issuer.is_symmetric:
            if (kid, algorithm) not in keys:
                raise UnknownKey(issuer.issuer)
            return keys[kid, algorithm]
        fitting = [key for (_, each), key in keys.items() if each == algorithm]
        if not fitting:
            raise UnknownKey(issuer.issuer)
        if len(fitting) > 1:
            _refuse("it does not say with which of its issuer's keys it is signed (kid)")
        return fitting[0]


def _keys(issuer: Issuer, key_set: Sequence[Jwk]) -> dict[tuple[str, str], Any]:
    """The keys by id and algorithm; of two the first."""
    keys: dict[tuple[str, str], Any] = {}
    for index, jwk in enumerate(key_set):
        for algorithm in issuer.algorithms:
            key = key_for(jwk, algorithm)
            if key is not None:
                # No token's kid has a NUL in front: keys without an id are found only when there is no other.
                keys.setdefault((jwk.get("kid") or f"\0{index}", algorithm), key)
    return keys


def _refuse(reason: str) -> NoReturn:
    raise Unauthenticated(f"the token is not valid: {reason}")


def _json_object(part: str) -> dict[str, Any]:
    """A part's JSON, decoded strictly: each name once, no NaN or Infinity."""
    try:
        content = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
        found = json.loads(content.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, binascii.Error, RecursionError):
        _refuse("a part of it is no base64url of a JSON object")
    if not isinstance(found, dict):
        _refuse("a part of it is no base64url of a JSON object")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name comes twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _algorithm(header: Mapping[str, Any], issuer: Issuer) -> str:
    # What is critical must be understood (RFC 7515, 4.1.11), and no extension is; b64 is one that changes the payload.
    if "crit" in header or "b64" in header:
        _refuse("it has header extensions (crit, b64) that this server does not support")
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in issuer.algorithms:
        _refuse(f"its algorithm is not among its issuer's: {', '.join(issuer.algorithms)}")
    return algorithm


def _verified(token: str, key: Any, algorithm: str, issuer: Issuer) -> dict[str, Any]:
    """The claims, once the signature, issuer and audience are right."""
    try:
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            audience=issuer.audience,
            issuer=issuer.issuer,
            options=_OPTIONS,
        )
        return claims
    except jwt.MissingRequiredClaimError as error:
        _refuse(f"it has no {error.claim}")
    except jwt.InvalidAudienceError:
        _refuse(f"its audience (aud) is not {' or '.join(issuer.audience)}")
    except jwt.InvalidSignatureError:
        _refuse("its signature is wrong")
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
        # Their words could quote it.
        _refuse("its signature or its claims cannot be read")


def _check_times(claims: Mapping[str, Any], issuer: Issuer, now: float) -> None:
    """RFC 7519, 4.1.4 to 4.1.6. A clock that is off by the leeway is fine."""
    leeway = issuer.leeway_seconds
    if now >= _time(claims, "exp") + leeway:
        _refuse("it has expired (exp); renew it")
    for name in ("nbf", "iat"):
        if name in claims and now < _time(claims, name) - leeway:
            _refuse(f"it is not valid yet ({name})")


def _time(claims: Mapping[str, Any], name: str) -> float:
    value = claims[name]
    # The range also keeps numbers out that no float holds.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e15:
        _refuse(f"its {name} is no number of seconds since 1970")
    return float(value)


def _identity(claims: Mapping[str, Any], issuer: Issuer) -> Identity:
    subject, grant = claims["sub"], issuer.grant
    if not isinstance(subject, str) or not 0 < len(subject) <= SUBJECT_CHARACTERS_MAX or not subject.isprintable():
        _refuse(f"its subject (sub) is no printable text of 1 to {SUBJECT_CHARACTERS_MAX} characters")
    return Identity(
        f"jwt:{issuer.issuer}/{subject}",
        _scopes(claims, issuer),
        _models(claims, issuer),
        grant.rate_per_minute,
        grant.burst,
        grant.priority,
        _time(claims, "exp") + issuer.leeway_seconds,
    )


def _scopes(claims: Mapping[str, Any], issuer: Issuer) -> Scope:
    if issuer.scopes_claim not in claims:
        return issuer.grant.scopes
    scopes = Scope.NONE
    for word in _words(claims, issuer.scopes_claim):
        # A word that is not in the map is another service's.
        scopes |= issuer.scopes.get(word, Scope.NONE)
    return scopes


def _models(claims: Mapping[str, Any], issuer: Issuer) -> tuple[str, ...]:
    if not issuer.models_claim:
        return issuer.grant.models
    words = _words(claims, issuer.models_claim) if issuer.models_claim in claims else ()
    if not words:
        return ()
    try:
        return check_patterns(words)
    except InvalidInput:
        _refuse(f"its claim {issuer.models_claim} has what is no pattern of models' ids, or too many of them")


def _words(claims: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """A claim that is a list of texts, or a text of words (RFC 8693, 4.2)."""
    value = claims[name]
    words = value.split() if isinstance(value, str) else value
    if not isinstance(words, list) or len(words) > CLAIM_VALUES_MAX or not all(isinstance(word, str) for word in words):
        _refuse(f"its claim {name} is neither words nor a list of at most {CLAIM_VALUES_MAX} texts")
    return tuple(words)

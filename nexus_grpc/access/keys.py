"""API keys: their text, what is kept of them, and how one is recognised.

    nxk_3f9a1c0b77de_<43 characters>
        └─ id, public    └─ secret: 256 random bits, base64url without padding

Of the secret only its SHA-256 is kept. A slow hash (scrypt, argon2) is for what people make up: against 256 random bits
guessing is hopeless at any speed, and a slow hash would be paid by every request that misses the cache.
"""

import dataclasses
import datetime
import hashlib
import hmac
import math
import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from nexus_grpc.access.identity import ALL_MODELS, SCOPE_NAMES, Identity, Scope
from nexus_grpc.ipc import model_names
from nexus_grpc.ipc.errors import InvalidInput, Unauthenticated

PREFIX = "nxk_"
ID_BYTES = 6
SECRET_BYTES = 32
ID_CHARACTERS = 2 * ID_BYTES
# base64url: four characters for three bytes, without padding.
SECRET_CHARACTERS = math.ceil(SECRET_BYTES * 4 / 3)
KEY_CHARACTERS = len(PREFIX) + ID_CHARACTERS + 1 + SECRET_CHARACTERS
DIGEST_BYTES = hashlib.sha256().digest_size
PRIORITY_MAX = 9
PRIORITY_DEFAULT = 5
DEFAULT_SCOPES = Scope.PREDICT | Scope.READ
NAME_CHARACTERS_MAX = 64
MODELS_MAX = 64
PATTERN_CHARACTERS_MAX = model_names.CHARACTERS_MAX
BURST_MAX = 1_000_000
RATE_MAX = 1e9

_KEY = re.compile(rf"{PREFIX}([0-9a-f]{{{ID_CHARACTERS}}})_([A-Za-z0-9_-]{{{SECRET_CHARACTERS}}})", re.ASCII)
_ID = re.compile(rf"[0-9a-f]{{{ID_CHARACTERS}}}", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._@/+-]*", re.ASCII)
# A model's name with a shell's wildcards. Case counts.
_PATTERN = re.compile(rf"[*?\[\]!{model_names.CHARACTERS}]+", re.ASCII)
# What the secret of an unknown id is compared with: random, so that no secret fits.
_NO_DIGEST = secrets.token_bytes(DIGEST_BYTES)
_WRONG = "the API key is not valid; expected one that `nexus keys create` printed and that was not revoked"


@dataclasses.dataclass(frozen=True, slots=True)
class ApiKey:
    """What the server keeps of a key.

    Attributes:
        id: public; 12 hexadecimal digits.
        name: what its maker called it; one that is not revoked has its name for itself.
        digest: SHA-256 of the secret.
        models: shell patterns of the models it may be used with.
        rate_per_minute: requests in a minute; 0 = any.
        burst: requests at once; 0 = a default that depends on the rate.
        priority: 0 is shed last, 9 first.
        created_at, expires_at, last_used_at, revoked_at: seconds since 1970; None = never.
    """

    id: str
    name: str
    digest: bytes = dataclasses.field(repr=False)
    scopes: Scope = DEFAULT_SCOPES
    models: tuple[str, ...] = ALL_MODELS
    rate_per_minute: float = 0.0
    burst: int = 0
    priority: int = PRIORITY_DEFAULT
    created_at: float = 0.0
    created_by: str = ""
    expires_at: float | None = None
    last_used_at: float | None = None
    revoked_at: float | None = None

    def state(self, now: float) -> str:
        """active, expired or revoked.

        Args:
            now: seconds since 1970.
        """
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "active"

    def identity(self) -> Identity:
        """Who calls with this key: "key:ID"."""
        return Identity(
            f"key:{self.id}",
            self.scopes,
            self.models,
            self.rate_per_minute,
            self.burst,
            self.priority,
            math.inf if self.expires_at is None else self.expires_at,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, for a control message or a snapshot. Holds the digest: not for people."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            **values,
            "digest": self.digest.hex(),
            "scopes": list(scope_names(self.scopes)),
            "models": list(self.models),
        }

    def shown(self, now: float) -> dict[str, Any]:
        """What people may see, as JSON: not the digest; times as RFC 3339, None for never.

        Args:
            now: seconds since 1970.
        """
        content = self.to_json()
        del content["digest"]
        for name in ("created_at", "expires_at", "last_used_at", "revoked_at"):
            content[name] = None if content[name] is None else _time_text(content[name])
        return {**content, "state": self.state(now)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "ApiKey":
        """Raises KeyError, TypeError or ValueError for what to_json() did not write."""
        values = dict(content)
        digest = bytes.fromhex(values["digest"])
        if len(digest) != DIGEST_BYTES or not _ID.fullmatch(values["id"]):
            raise ValueError("no API key of ours")
        return cls(
            **{**values, "digest": digest, "scopes": scopes_of(values["scopes"]), "models": tuple(values["models"])}
        )


def new_key(name: str, now: float, **attributes: Any) -> tuple[str, ApiKey]:
    """(the key's text, which nobody sees again; what to keep).

    Args:
        name: for people.
        now: seconds since 1970.
        attributes: others of ApiKey's.

    Raises:
        InvalidInput: a name, pattern or number is out of its bounds.
    """
    id, secret = secrets.token_hex(ID_BYTES), secrets.token_urlsafe(SECRET_BYTES)
    key = ApiKey(id, name, digest_of(secret), created_at=now, **attributes)
    _check(key, now)
    return f"{PREFIX}{id}_{secret}", key


def asked_key(name: str, given: Mapping[str, Any], now: float, created_by: str) -> tuple[str, ApiKey]:
    """The same for what somebody asks for.

    Args:
        given: the other fields of nexus.v1.CreateKeyRequest, by name; what is left out has its default.
        created_by: who asks.

    Raises:
        InvalidInput: as `new_key`; or a scope or time that is none.
    """
    attributes = {field: given[field] for field in ("rate_per_minute", "burst", "priority") if field in given}
    seconds = given.get("expires_in_seconds", 0.0)
    if seconds < 0:
        raise InvalidInput(f"expires_in_seconds is {seconds:g}; expected 0 (never) or more", field="expires_in_seconds")
    try:
        scopes = scopes_of(given["scopes"]) if given.get("scopes") else DEFAULT_SCOPES
    except ValueError as error:
        raise InvalidInput(str(error), field="scopes") from None
    if given.get("models"):
        attributes["models"] = tuple(given["models"])
    expires_at = now + seconds if seconds else None
    return new_key(name, now, **attributes, scopes=scopes, expires_at=expires_at, created_by=created_by)


def parse(text: str) -> tuple[str, str]:
    """(id, secret) of a key's text. Raises Unauthenticated, without a word of the text."""
    # The length first: nothing else is done with what cannot be a key.
    found = _KEY.fullmatch(text) if len(text) == KEY_CHARACTERS else None
    if found is None:
        raise Unauthenticated(_WRONG)
    return found[1], found[2]


def digest_of(secret: str) -> bytes:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode()).digest()


def recognise(keys: Mapping[str, ApiKey], text: str, now: float) -> ApiKey:
    """The key that this is the text of.

    Constant time by construction: the id, which is public, finds the digest; the secret is hashed and the digests, of
    one length, are compared by hmac.compare_digest, which looks at every byte. An unknown id is compared with a random
    digest, so that it takes the same path. Even a leak of the comparison's time would tell of the digest only, which is
    of no use without a preimage. Expiry is looked at after that: only who has the secret is told of it.

    Args:
        keys: by id.
        now: seconds since 1970.

    Raises:
        Unauthenticated: no key, an unknown, expired or revoked one.
    """
    id, secret = parse(text)
    key = keys.get(id)
    is_equal = hmac.compare_digest(digest_of(secret), _NO_DIGEST if key is None else key.digest)
    if key is None or not is_equal:
        raise Unauthenticated(_WRONG)
    state = key.state(now)
    if state != "active":
        raise Unauthenticated(f"the API key {id} is {state}; ask for another (nexus keys create)")
    return key


def scope_names(scopes: Scope) -> tuple[str, ...]:
    """The names of the scopes in it, in the order predict, read, admin."""
    return tuple(name for name, scope in SCOPE_NAMES.items() if scope in scopes)


def scopes_of(names: Iterable[str]) -> Scope:
    """The scopes with these names. Raises ValueError for another name."""
    scopes = Scope.NONE
    for name in names:
        if name not in SCOPE_NAMES:
            raise ValueError(f"{name[:40]!r} is no scope; expected {', '.join(SCOPE_NAMES)}")
        scopes |= SCOPE_NAMES[name]
    return scopes


def is_id(text: str) -> bool:
    """Whether a key could have this id."""
    return _ID.fullmatch(text) is not None


def check_patterns(models: Iterable[str]) -> tuple[str, ...]:
    """Shell patterns of models' ids. Raises InvalidInput."""
    found = tuple(models)
    if not 1 <= len(found) <= MODELS_MAX:
        raise InvalidInput(f"{len(found)} model patterns; expected 1 to {MODELS_MAX}", field="models")
    for pattern in found:
        if len(pattern) > PATTERN_CHARACTERS_MAX or not _PATTERN.fullmatch(pattern):
            raise InvalidInput(
                f"{pattern[:PATTERN_CHARACTERS_MAX]!a} is no pattern of models' ids; expected such as iris, fraud-* or"
                f" *, at most {PATTERN_CHARACTERS_MAX} characters",
                field="models",
            )
    return found


def check_limits(rate_per_minute: float, burst: int, priority: int) -> None:
    """Raises InvalidInput for numbers out of their bounds."""
    if not 0 <= rate_per_minute <= RATE_MAX:
        raise InvalidInput(f"rate_per_minute is {rate_per_minute:g}; expected 0 (any) to {RATE_MAX:g}", field="rate")
    if not 0 <= burst <= BURST_MAX:
        raise InvalidInput(f"burst is {burst}; expected 0 (chosen by the server) to {BURST_MAX}", field="burst")
    if not 0 <= priority <= PRIORITY_MAX:
        raise InvalidInput(f"priority is {priority}; expected 0 (shed last) to {PRIORITY_MAX}", field="priority")


def _check(key: ApiKey, now: float) -> None:
    if key.name.startswith(PREFIX):
        # Not a word of it: it is a key that somebody pasted.
        raise InvalidInput(f"a key's name may not begin with {PREFIX}; it is for people, such as webshop", field="name")
    if len(key.name) > NAME_CHARACTERS_MAX or not _NAME.fullmatch(key.name) or is_id(key.name):
        raise InvalidInput(
            f"{key.name[:NAME_CHARACTERS_MAX]!a} is no name for a key; expected 1 to {NAME_CHARACTERS_MAX} letters,"
            " digits, spaces and . _ @ / + -, beginning with a letter or digit, and not an id",
            field="name",
        )
    if not key.scopes:
        raise InvalidInput(f"a key without scopes is of no use; expected {', '.join(SCOPE_NAMES)}", field="scopes")
    check_patterns(key.models)
    check_limits(key.rate_per_minute, key.burst, key.priority)
    if key.expires_at is not None and not now < key.expires_at < math.inf:
        raise InvalidInput("the key would have expired already; expected a time to come", field="expires")


def _time_text(seconds: float) -> str:
    """RFC 3339, UTC, to the second."""
    try:
        at = datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)
    except (ValueError, OverflowError, OSError):
        # Further away than the calendar goes.
        return "never"
    return at.isoformat().replace("+00:00", "Z")

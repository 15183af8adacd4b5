"""From a request's credentials to an identity: one dictionary look-up for a credential that was seen lately.

What was recognised is remembered for RECHECK_SECONDS, or until it expires; what was refused for REFUSED_SECONDS: a
flood of one wrong token costs no signature check each. Another snapshot of keys (replace) forgets all of it at once:
that is how a revocation takes effect.
"""

import time
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from nexus_grpc.access.identity import Identity
from nexus_grpc.access.jwt_tokens import TOKEN_CHARACTERS_MAX, JwtVerifier
from nexus_grpc.access.keys import PREFIX, ApiKey, recognise
from nexus_grpc.ipc.errors import Unauthenticated

KEPT_MAX = 10_000
REFUSED_MAX = 1_000
# Both of what is kept and of what is refused; a token may have 16 KiB.
CHARACTERS_MAX = 16 << 20
RECHECK_SECONDS = 30.0
REFUSED_SECONDS = 5.0
SCHEME = "bearer "
CREDENTIAL_MAX = TOKEN_CHARACTERS_MAX + 16

Credential = str | bytes
"""A header's value, as the transport has it."""

_Value = TypeVar("_Value")

_NOTHING = "this server needs a credential; send `authorization: Bearer KEY-OR-TOKEN` or `x-api-key: KEY`"
_FORM = "the header authorization is not of the form `Bearer KEY-OR-TOKEN`"


class Remembered(Generic[_Value]):
    """A dictionary that forgets: two generations, the older of which goes when the younger is full.

    So it holds between half of its entries and all of them, and each costs O(1). Other threads may use it at the same
    time: at worst one of them forgets what the other has just put in.

    Args:
        entries_max: of both generations together.
        characters_max: of the keys of both generations together.
    """

    def __init__(self, entries_max: int, characters_max: int = CHARACTERS_MAX) -> None:
        self.young: dict[Credential, _Value] = {}
        self._old: dict[Credential, _Value] = {}
        self._entries_max, self._characters_max = entries_max // 2, characters_max // 2
        self._characters = 0

    def __len__(self) -> int:
        return len(self.young) + len(self._old)

    def get(self, key: Credential) -> _Value | None:
        """What was put for it, if it is remembered."""
        found = self.young.get(key)
        return self._old.get(key) if found is None else found

    def put(self, key: Credential, value: _Value) -> None:
        """Remember it."""
        if key not in self.young:
            self._characters += len(key)
            if len(self.young) >= self._entries_max or self._characters > self._characters_max:
                self._old, self.young, self._characters = self.young, {}, len(key)
        self.young[key] = value


class _Header:
    """What came of the values of one header: (until when, by the monotonic clock; what).

    The headers are kept apart: what is right in one of them may be wrong in the other.
    """

    def __init__(self) -> None:
        self.accepted: Remembered[tuple[float, Identity]] = Remembered(KEPT_MAX)
        self.refused: Remembered[tuple[float, Unauthenticated]] = Remembered(REFUSED_MAX)


class _Snapshot:
    """The keys and what was made of them: replaced as a whole, so that nothing old gets into a new cache."""

    def __init__(self, keys: Mapping[str, ApiKey], verifier: JwtVerifier) -> None:
        self.keys, self.verifier = keys, verifier
        self.authorization, self.api_key = _Header(), _Header()


class Authenticator:
    """Recognises callers. Any thread of a front may call it; one at a time may call replace().

    Args:
        keys: API keys by id.
        verifier: of tokens; one without issuers accepts none.
        anonymous: who calls without a credential; None = nobody may.
        clock: seconds since 1970: keys and tokens expire by it.
        monotonic: seconds that only rise: what is remembered expires by it.
    """

    def __init__(
        self,
        keys: Mapping[str, ApiKey],
        verifier: JwtVerifier,
        anonymous: Identity | None,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._snapshot = _Snapshot(keys, verifier)
        self._anonymous = anonymous
        self._clock, self._monotonic = clock, monotonic
        self._used: dict[str, float] = {}

    def replace(self, keys: Mapping[str, ApiKey], verifier: JwtVerifier) -> None:
        """Go by other keys from now on."""
        self._snapshot = _Snapshot(keys, verifier)

    def take_used(self) -> dict[str, float]:
        """When API keys, by id, were used last (seconds since 1970, to RECHECK_SECONDS), since the last call."""
        used, self._used = self._used, {}
        return used

    def identify(
        self, authorization: Credential | None, api_key: Credential | None = None, certificate: Identity | None = None
    ) -> Identity:
        """Who calls.

        A credential in a header goes before the certificate: the connection may be a proxy's. One that is wrong is an
        error wherever callers may be anonymous, too: nobody shall be served as somebody else than they think.

        Args:
            authorization: the header of that name; None = there is none.
            api_key: the header x-api-key.
            certificate: of the connection, if it has one (certificates.py).

        Raises:
            Unauthenticated: no credential, or a wrong one; UnknownKey (jwt_tokens.py): the supervisor should look
                whether the issuer has another key set.
        """
        snapshot = self._snapshot
        if api_key is None:
            if authorization is None:
                return self._without_header(certificate)
            kept = snapshot.authorization.accepted.young.get(authorization)
            if kept is not None and self._monotonic() < kept[0]:
                return kept[1]
            return self._look(snapshot, snapshot.authorization, authorization, _bearer)
        if authorization is not None and _bearer(_text(authorization)) != _text(api_key):
            raise Unauthenticated("authorization and x-api-key have different credentials; send one of them")
        kept = snapshot.api_key.accepted.young.get(api_key)
        if kept is not None and self._monotonic() < kept[0]:
            return kept[1]
        return self._look(snapshot, snapshot.api_key, api_key, _key)

    def _without_header(self, certificate: Identity | None) -> Identity:
        found = certificate or self._anonymous
        if found is None:
            raise Unauthenticated(_NOTHING)
        return found

    def _look(
        self,
        snapshot: _Snapshot,
        header: _Header,
        value: Credential,
        credential_of: Callable[[str], str],
    ) -> Identity:
        """What is not remembered, or not any more, or in the older generation."""
        kept = header.accepted.get(value)
        if kept is not None and self._monotonic() < kept[0]:
            header.accepted.put(value, kept)
            return kept[1]
        if len(value) > CREDENTIAL_MAX:
            # Not remembered either.
            raise Unauthenticated(f"the credential is longer than {TOKEN_CHARACTERS_MAX} characters")
        refused = header.refused.get(value)
        if refused is not None and self._monotonic() < refused[0]:
            raise _again(refused[1])
        now = self._clock()
        try:
            identity = self._verify(snapshot, credential_of(_text(value)), now, kept)
        except Unauthenticated as error:
            header.refused.put(value, (self._monotonic() + REFUSED_SECONDS, _again(error)))
            raise
        header.accepted.put(value, (self._monotonic() + min(RECHECK_SECONDS, identity.expires_s - now), identity))
        return identity

    def _verify(
        self, snapshot: _Snapshot, credential: str, now: float, kept: tuple[float, Identity] | None
    ) -> Identity:
        if not credential.startswith(PREFIX):
            identity = snapshot.verifier.verify(credential, now)
        else:
            key = recognise(snapshot.keys, credential, now)
            self._used[key.id] = now
            identity = key.identity()
        # The object that the front knows already, with its counts.
        return kept[1] if kept is not None else identity


def _again(error: Unauthenticated) -> Unauthenticated:
    """A copy without the traceback: that holds frames, and grows each time the exception is raised."""
    copy = error.__class__.__new__(error.__class__)
    copy.__dict__.update(error.__dict__)
    copy.args = error.args
    return copy


def _text(header: Credential) -> str:
    try:
        return header if isinstance(header, str) else header.decode("ascii")
    except UnicodeDecodeError:
        raise Unauthenticated("the credential has characters that no key or token has") from None


def _bearer(header: str) -> str:
    """The credential in the header authorization (RFC 6750, 2.1)."""
    if header[: len(SCHEME)].lower() != SCHEME:
        raise Unauthenticated(_FORM)
    credential = header[len(SCHEME) :].strip(" ")
    if not credential or " " in credential:
        raise Unauthenticated(_FORM)
    return credential


def _key(header: str) -> str:
    """The key in the header x-api-key."""
    if not header.startswith(PREFIX):
        raise Unauthenticated(f"the header x-api-key has no API key; expected {PREFIX}…; tokens go into authorization")
    return header

"""Issuers' keys: read from files and URLs, checked, kept while their source is away. Formats: RFC 7517, RFC 7518.

Only the supervisor reads them, in a thread of its own; the fronts get the snapshot by control message. No token ever
names where a key is: the headers jku, x5u, x5c and jwk are not looked at.
"""

import base64
import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from nexus_grpc.access.issuers import Issuer, is_loopback_host
from nexus_grpc.ipc.errors import InvalidInput

REFRESH_SECONDS = 300.0
# A key that nobody knows makes us ask at most so often; so does a source that fails.
COOLDOWN_SECONDS = 30.0
FETCH_SECONDS = 10.0
REDIRECTS_MAX = 3
DOCUMENT_BYTES_MAX = 1 << 20
KEYS_MAX = 64
KID_CHARACTERS_MAX = 255
# NIST SP 800-131A: RSA below 2048 bits is not for use; above 8192 one check costs more than a prediction.
RSA_BITS_MIN, RSA_BITS_MAX = 2048, 8192
# RFC 7518, 3.2: the secret of HS256 is no shorter than its hash.
SECRET_BYTES_MIN, SECRET_BYTES_MAX = 32, 4096

_CURVES = {"ES256": ("EC", "P-256"), "ES384": ("EC", "P-384"), "ES512": ("EC", "P-521"), "EdDSA": ("OKP", "Ed25519")}
# What travels of each kind of key: nothing private, whatever the document has.
_MEMBERS = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x"), "oct": ("k",)}

Jwk = dict[str, str]
"""One key: kty, kid (if it has one), alg (if it is bound to one) and the members of its kind; all of them text."""
Report = Callable[[str, Mapping[str, str]], None]
"""Is told what should be logged: (event, its values)."""


class JwksSource:
    """One issuer's keys. All but ask_refresh() and snapshot() are called by one thread.

    Args:
        clock: seconds that only rise.
        report: is told when the source fails, and when it is back.
    """

    def __init__(
        self, issuer: Issuer, *, clock: Callable[[], float] = time.monotonic, report: Report = lambda event, about: None
    ) -> None:
        self.issuer = issuer
        self._clock, self._report = clock, report
        self._keys: tuple[Jwk, ...] = ()
        self._tried_at: float | None = None
        self._has_failed = False
        self._is_asked = threading.Event()
        self._file_state: tuple[int, ...] | None = None

    def snapshot(self) -> list[Jwk]:
        """The last good key set."""
        return [dict(key) for key in self._keys]

    def ask_refresh(self) -> None:
        """Somebody has a token with an unknown key: look again, unless that was done within the cooldown."""
        self._is_asked.set()

    def refresh_if_due(self) -> bool:
        """Reads the source if it is time to; returns whether the keys changed. What fails is reported, not raised."""
        if not self._is_due():
            return False
        try:
            return self.load()
        except InvalidInput as error:
            self._failed(error.message)
            return False

    def load(self) -> bool:
        """Reads the source now; returns whether the keys changed. Raises InvalidInput; then the last good set stays."""
        self._is_asked.clear()
        self._tried_at = self._clock()
        was_away, self._has_failed = self._has_failed, True
        keys = tuple(self._read())
        self._has_failed = False
        is_new, self._keys = keys != self._keys, keys
        if is_new or was_away:
            self._report("issuer's keys were read", {**self._about(), "keys": str(len(keys))})
        return is_new

    def _is_due(self) -> bool:
        if self._tried_at is None:
            return True
        if not self.issuer.is_url and self._state_of_file() != self._file_state:
            return True
        since = self._clock() - self._tried_at
        is_urgent = self._is_asked.is_set() or self._has_failed
        return since >= (COOLDOWN_SECONDS if is_urgent else REFRESH_SECONDS)

    def _read(self) -> list[Jwk]:
        if self.issuer.is_symmetric:
            return [secret_key(self._file_content())]
        content = fetch(self.issuer.keys_at) if self.issuer.is_url else self._file_content()
        return fitting_keys(content, self.issuer.algorithms)

    def _file_content(self) -> bytes:
        # The state first: a change while it is read is seen the next time.
        self._file_state = self._state_of_file()
        try:
            with open(self.issuer.keys_at, "rb") as file:
                content = file.read(DOCUMENT_BYTES_MAX + 1)
        except OSError as error:
            raise InvalidInput(f"{self.issuer.keys_at} cannot be read: {error.strerror}") from None
        if len(content) > DOCUMENT_BYTES_MAX:
            raise InvalidInput(f"{self.issuer.keys_at} has more than {DOCUMENT_BYTES_MAX} bytes")
        return content

    def _state_of_file(self) -> tuple[int, ...] | None:
        try:
            state = os.stat(self.issuer.keys_at)
        except OSError:
            return None
        return (state.st_mtime_ns, state.st_size, state.st_ino)

    def _failed(self, reason: str) -> None:
        self._report(
            "issuer's keys cannot be read: the last good ones stay",
            {**self._about(), "reason": reason, "keys": str(len(self._keys))},
        )

    def _about(self) -> dict[str, str]:
        return {"issuer": self.issuer.issuer, "source": self.issuer.keys_at}


class JwksSources:
    """The keys of all issuers. Arguments as JwksSource's."""

    def __init__(
        self,
        issuers: Iterable[Issuer],
        *,
        clock: Callable[[], float] = time.monotonic,
        report: Report = lambda event, about: None,
    ) -> None:
        self._sources = {issuer.issuer: JwksSource(issuer, clock=clock, report=report) for issuer in issuers}

    def load_files(self) -> None:
        """At the start: what is wrong with a file is wrong with the configuration. Raises InvalidInput."""
        for source in self._sources.values():
            if not source.issuer.is_url:
                try:
                    source.load()
                except InvalidInput as error:
                    raise InvalidInput(f"jwt_issuers: issuer {source.issuer.issuer!r}: {error.message}") from None

    def refresh_if_due(self) -> bool:
        """Reads what is due; returns whether any key changed. May take FETCH_SECONDS for each URL: in a thread only."""
        return any([source.refresh_if_due() for source in self._sources.values()])

    def ask_refresh(self, issuer: str) -> None:
        """A front saw an unknown key of this issuer. Any thread."""
        if issuer in self._sources:
            self._sources[issuer].ask_refresh()

    def snapshot(self) -> dict[str, list[Jwk]]:
        """The key sets by issuer: plain JSON, for a control message. Has the secrets of HS256 issuers: never log it."""
        return {name: source.snapshot() for name, source in self._sources.items()}


# --- checking keys ---


def fitting_keys(content: bytes, algorithms: Sequence[str]) -> list[Jwk]:
    """The keys of a set (RFC 7517, 5) that these algorithms can use; at most KEYS_MAX.

    Raises:
        InvalidInput: it is no key set, or no key fits.
    """
    try:
        document = json.loads(content)
        entries = document["keys"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise InvalidInput('it is no key set; expected JSON such as {"keys": [...]}') from None
    if not isinstance(entries, list):
        raise InvalidInput('it is no key set; expected a list as "keys"')
    keys: list[Jwk] = []
    # Not all of a hostile list: parsing a key costs something.
    for entry in entries[: 4 * KEYS_MAX]:
        key = _public(entry, algorithms)
        if key is not None and len(keys) < KEYS_MAX:
            keys.append(key)
    if not keys:
        raise InvalidInput(f"none of its {len(entries)} keys is a valid one for {', '.join(algorithms)}")
    return keys


def secret_key(content: bytes) -> Jwk:
    """The key of an HS256 issuer: the content of its file, without a line break at the end. Raises InvalidInput."""
    secret = content.removesuffix(b"\n").removesuffix(b"\r")
    if not SECRET_BYTES_MIN <= len(secret) <= SECRET_BYTES_MAX:
        raise InvalidInput(
            f"the secret has {len(secret)} bytes; expected {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX}, such as from"
            " `openssl rand -hex 32`"
        )
    return {"kty": "oct", "alg": "HS256", "k": base64.urlsafe_b64encode(secret).decode().rstrip("=")}


def _public(entry: Any, algorithms: Sequence[str]) -> Jwk | None:
    """What is needed of a key, if it is a valid one for one of the algorithms."""
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
        return None
    operations = entry.get("key_ops", ["verify"])
    kind, kid = entry.get("kty"), entry.get("kid", "")
    if not isinstance(operations, list) or "verify" not in operations or kind not in ("RSA", "EC", "OKP"):
        return None
    if not isinstance(kid, str) or len(kid) > KID_CHARACTERS_MAX:
        return None
    key: dict[str, Any] = {name: entry.get(name) for name in ("kty", *_MEMBERS[kind])}
    key |= {name: entry[name] for name in ("kid", "alg") if entry.get(name)}
    if not all(isinstance(value, str) for value in key.values()):
        return None
    return key if any(key_for(key, algorithm) is not None for algorithm in algorithms) else None


def key_for(key: Jwk, algorithm: str) -> Any:
    """The key as PyJWT takes it, if it is one for the algorithm; else None.

    The kind of key and its curve must be the algorithm's own: a public key cannot become the secret of an HMAC.
    """
    if key.get("alg", algorithm) != algorithm or not _is_kind(key, algorithm):
        return None
    try:
        parsed: Any = jwt.get_algorithm_by_name(algorithm).from_jwk(key)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, OverflowError):
        return None
    if isinstance(parsed, RSAPublicKey) and not RSA_BITS_MIN <= parsed.key_size <= RSA_BITS_MAX:
        return None
    return parsed


def _is_kind(key: Jwk, algorithm: str) -> bool:
    if algorithm in _CURVES:
        return (key["kty"], key.get("crv")) == _CURVES[algorithm]
    return key["kty"] == ("oct" if algorithm.startswith("HS") else "RSA")


# --- fetching ---


class _SameOrigin(urllib.request.HTTPRedirectHandler):
    """Follows redirects inside one scheme, host and port."""

    max_redirections = max_repeats = REDIRECTS_MAX

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        before, after = urlsplit(req.full_url), urlsplit(newurl)
        if (before.scheme, before.netloc) != (after.scheme, after.netloc):
            raise InvalidInput("it redirects to another host; name that host's URL as jwks_url if you trust it")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch(url: str) -> bytes:
    """The document at a URL of the configuration: within FETCH_SECONDS and DOCUMENT_BYTES_MAX. Raises InvalidInput."""
    handlers: list[Any] = [_SameOrigin()]
    if is_loopback_host(urlsplit(url).hostname or ""):
        # A proxy is for other machines.
        handlers.append(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, headers={"accept": "application/json", "user-agent": "nexus-grpc"})
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=FETCH_SECONDS) as response:
            return _body(response, time.monotonic() + FETCH_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        raise InvalidInput(f"it answered with status {error.code}") from None
    except urllib.error.URLError as error:
        raise InvalidInput(f"it cannot be reached: {error.reason}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise InvalidInput(f"it cannot be reached: {error or type(error).__name__}") from None


def _body(response: http.client.HTTPResponse, until: float) -> bytes:
    """All of it. The socket's timeout is for each piece: `until` (monotonic) is for all of them."""
    content = b""
    while piece := response.read1(1 << 16):
        content += piece
        if len(content) > DOCUMENT_BYTES_MAX:
            raise InvalidInput(f"it has more than {DOCUMENT_BYTES_MAX} bytes")
        if time.monotonic() > until:
            raise InvalidInput(f"it took more than {FETCH_SECONDS:g} s")
    return content

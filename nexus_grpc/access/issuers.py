"""The file of the setting jwt_issuers: whose tokens (JWT) are accepted, and what certificates may do. TOML:

[[issuer]]
issuer = "https://login.example"           # the claim `iss`, letter by letter
audience = "nexus"                         # `aud` must have it; a list is fine: one of them
algorithms = ["RS256"]
jwks_url = "https://login.example/jwks"    # or jwks_file; with algorithms = ["HS256"]: secret_file
scopes_claim = "scope"                     # words, or a list of texts
scopes = {"ml:call" = "predict"}           # claim value = scopes; default predict, nexus:predict and so on
models_claim = "models"                    # patterns of models; all models without this setting
rate_per_minute = 600

[[certificate]]
subject = "spiffe://example/*"             # pattern for the SPIFFE id, or for the common name
scopes = ["predict"]
"""

import dataclasses
import difflib
import ipaddress
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from nexus_grpc.access.identity import ALL_MODELS, SCOPE_NAMES, Scope
from nexus_grpc.access.keys import PRIORITY_DEFAULT, check_limits, check_patterns, scopes_of
from nexus_grpc.ipc.errors import InvalidInput

ASYMMETRIC = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
SYMMETRIC = ("HS256",)
LEEWAY_SECONDS_MAX = 60.0
LEEWAY_SECONDS = 30.0
TEXT_CHARACTERS_MAX = 512
FILE_BYTES_MAX = 1 << 20
ISSUERS_MAX = 32
CERTIFICATES_MAX = 256
DEFAULT_SCOPES = {**SCOPE_NAMES, **{f"nexus:{name}": scope for name, scope in SCOPE_NAMES.items()}}

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, slots=True)
class Grant:
    """What a recognised caller gets; the meaning of each is Identity's."""

    scopes: Scope
    models: tuple[str, ...] = ALL_MODELS
    rate_per_minute: float = 0.0
    burst: int = 0
    priority: int = PRIORITY_DEFAULT


@dataclasses.dataclass(frozen=True, slots=True)
class Issuer:
    """Whose tokens are accepted.

    Attributes:
        issuer: the claim `iss`.
        audience: one of these must be in the claim `aud`.
        algorithms: all asymmetric, with a key set, or all symmetric, with a secret.
        keys_at: where its keys are: an https URL, or a file's path.
        is_url: which of the two it is.
        leeway_seconds: by how much its clock may be wrong.
        scopes: what each value of the scopes' claim stands for.
        models_claim: the claim with patterns of models; a token without it may use none. Empty = grant.models.
        grant: its scopes are those of a token without the scopes' claim.
    """

    issuer: str
    audience: tuple[str, ...]
    algorithms: tuple[str, ...]
    keys_at: str
    is_url: bool
    leeway_seconds: float
    scopes_claim: str
    scopes: Mapping[str, Scope]
    models_claim: str
    grant: Grant

    @property
    def is_symmetric(self) -> bool:
        return self.algorithms[0] in SYMMETRIC


@dataclasses.dataclass(frozen=True, slots=True)
class CertificateRule:
    """What certificates may do whose SPIFFE id or common name fits the shell pattern `subject`."""

    subject: str
    grant: Grant


@dataclasses.dataclass(frozen=True, slots=True)
class Trust:
    """What the file says. `document` is its content as plain JSON: parse_trust() makes the same of it elsewhere."""

    issuers: tuple[Issuer, ...] = ()
    certificates: tuple[CertificateRule, ...] = ()
    document: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)


def load_trust(path: Path) -> Trust:
    """Reads the file; not the key sets that it names. Raises InvalidInput, with the file's name and what is wrong."""
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise InvalidInput(f"jwt_issuers: {path} cannot be read: {error.strerror}") from None
    if len(content) > FILE_BYTES_MAX:
        raise InvalidInput(f"jwt_issuers: {path} has more than {FILE_BYTES_MAX} bytes")
    try:
        document = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"jwt_issuers: {path} is not a TOML file: {error}") from None
    try:
        return parse_trust(document, path.parent)
    except InvalidInput as error:
        raise InvalidInput(f"jwt_issuers: {path}: {error.message}") from None


def parse_trust(document: Mapping[str, Any], folder: Path) -> Trust:
    """What a file's content means. Raises InvalidInput.

    Args:
        folder: what relative paths in it are relative to.
    """
    top = _Table(document, "the file")
    issuers = tuple(_issuer(each, folder) for each in top.tables("issuer", ISSUERS_MAX))
    certificates = tuple(_certificate(each) for each in top.tables("certificate", CERTIFICATES_MAX))
    top.finish()
    names = [each.issuer for each in issuers]
    for name in names:
        if names.count(name) > 1:
            raise InvalidInput(f"issuer {name!r} is there twice; expected one [[issuer]] for each")
    return Trust(issuers, certificates, document)


def _issuer(table: "_Table", folder: Path) -> Issuer:
    name = table.text("issuer")
    table.place = f"issuer {name!r}"
    algorithms = _algorithms(table)
    keys_at, is_url = _keys_at(table, algorithms[0] in SYMMETRIC, folder)
    leeway = table.number("leeway_seconds", LEEWAY_SECONDS)
    if not 0 <= leeway <= LEEWAY_SECONDS_MAX:
        raise table.wrong("leeway_seconds", f"0 to {LEEWAY_SECONDS_MAX:g}")
    models_claim = table.text("models_claim", "")
    if models_claim and "models" in table:
        raise table.wrong("models", "models or models_claim, not both")
    issuer = Issuer(
        name,
        table.texts("audience"),
        algorithms,
        keys_at,
        is_url,
        leeway,
        table.text("scopes_claim", "scope"),
        _scopes_map(table),
        models_claim,
        _grant(table, "default_scopes", ()),
    )
    table.finish()
    return issuer


def _algorithms(table: "_Table") -> tuple[str, ...]:
    algorithms = table.texts("algorithms")
    if not (set(algorithms) <= set(ASYMMETRIC) or set(algorithms) <= set(SYMMETRIC)):
        # Both at once is how a public key becomes a secret (CVE-2022-29217 and its kind).
        raise table.wrong("algorithms", f"some of {', '.join(ASYMMETRIC)}; or HS256 alone, with secret_file")
    return algorithms


def _keys_at(table: "_Table", is_symmetric: bool, folder: Path) -> tuple[str, bool]:
    """(path or URL, whether it is a URL)."""
    names = ("secret_file",) if is_symmetric else ("jwks_file", "jwks_url")
    given = [name for name in ("secret_file", "jwks_file", "jwks_url") if name in table]
    if len(given) != 1 or given[0] not in names:
        shown = " and ".join(given) or "none of them"
        raise InvalidInput(f"{table.place}: with these algorithms expected {' or '.join(names)}; there is {shown}")
    value = table.text(given[0])
    if given[0] != "jwks_url":
        return str(folder / value), False
    if not _is_safe_url(value):
        # Not a word of it: it may have a password.
        raise InvalidInput(f"{table.place}: jwks_url: expected https://host/path (http on loopback), without a user")
    return value, True


def _is_safe_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return False
    # Spaces and control characters, which urllib refuses late and in words of its own.
    is_clean = url.isascii() and url.isprintable() and " " not in url
    if not is_clean or not host or "@" in parts.netloc or parts.fragment:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback_host(host))


def is_loopback_host(host: str) -> bool:
    """Whether a URL's host is this machine, beyond doubt."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _scopes_map(table: "_Table") -> Mapping[str, Scope]:
    if "scopes" not in table:
        return DEFAULT_SCOPES
    found = table.table("scopes")
    return {name: found.scopes(name) for name in found.names()}


def _certificate(table: "_Table") -> CertificateRule:
    subject = table.text("subject")
    table.place = f"certificate {subject!r}"
    rule = CertificateRule(subject, _grant(table, "scopes", ("predict", "read")))
    table.finish()
    return rule


def _grant(table: "_Table", scopes_name: str, default: tuple[str, ...]) -> Grant:
    scopes = table.scopes(scopes_name) if scopes_name in table else scopes_of(default)
    models = table.texts("models") if "models" in table else ALL_MODELS
    rate, burst = table.number("rate_per_minute", 0.0), table.whole("burst", 0)
    priority = table.whole("priority", PRIORITY_DEFAULT)
    try:
        check_limits(rate, burst, priority)
        return Grant(scopes, check_patterns(models), rate, burst, priority)
    except InvalidInput as error:
        raise InvalidInput(f"{table.place}: {error.message}") from None


class _Table:
    """A TOML table, read strictly: each name that is read is known; finish() refuses the others.

    Args:
        place: how messages call it.
    """

    def __init__(self, values: Mapping[str, Any], place: str) -> None:
        self._values = values
        self._known: list[str] = []
        self.place = place

    def __contains__(self, name: str) -> bool:
        self._known.append(name)
        return name in self._values

    def names(self) -> Iterable[str]:
        return self._values.keys()

    def text(self, name: str, default: str | None = None) -> str:
        """Some printable text. Required without a default."""
        value: str = self._take(name, str, "a text", default)
        if name in self._values and not _is_text(value):
            raise self.wrong(name, f"1 to {TEXT_CHARACTERS_MAX} printable characters")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A text, or a list of some. Required."""
        value = self._take(name, (str, list), "a text or a list of texts")
        found = (value,) if isinstance(value, str) else tuple(value)
        if not found or not all(isinstance(each, str) and _is_text(each) for each in found):
            raise self.wrong(name, "a text or a list of texts, none of them empty")
        return found

    def scopes(self, name: str) -> Scope:
        """A scope, or a list of some; an empty list is none. Required."""
        value = self._take(name, (str, list), "a scope or a list of scopes")
        found = [value] if isinstance(value, str) else value
        if not all(isinstance(each, str) and each in SCOPE_NAMES for each in found):
            raise self.wrong(name, f"some of {', '.join(SCOPE_NAMES)}")
        return scopes_of(found)

    def number(self, name: str, default: float) -> float:
        return float(self._take(name, (int, float), "a number", default))

    def whole(self, name: str, default: int) -> int:
        value: int = self._take(name, int, "a whole number", default)
        return value

    def table(self, name: str) -> "_Table":
        return _Table(self._take(name, dict, "a table"), f"{self.place}: {name}")

    def tables(self, name: str, count_max: int) -> list["_Table"]:
        """The tables [[name]]; none if there are none."""
        value = self._take(name, list, f"[[{name}]]", [])
        if len(value) > count_max or not all(isinstance(each, dict) for each in value):
            raise self.wrong(name, f"at most {count_max} tables [[{name}]]")
        return [_Table(each, f"{name} {number}") for number, each in enumerate(value, 1)]

    def _take(self, name: str, kinds: type | tuple[type, ...], expected: str, default: Any = None) -> Any:
        self._known.append(name)
        if name not in self._values:
            if default is None:
                raise InvalidInput(f"{self.place}: {name} is missing; expected {expected}")
            return default
        value = self._values[name]
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise self.wrong(name, expected)
        return value

    def wrong(self, name: str, expected: str) -> InvalidInput:
        """The error for a value that is not as expected."""
        return InvalidInput(f"{self.place}: {name} = {ascii(self._values[name])[:80]}; expected {expected}")

    def finish(self) -> None:
        """Raises InvalidInput for a name that nobody asked for."""
        known = sorted(set(self._known))
        for name in self._values:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
                raise InvalidInput(f"{self.place}: there is no setting {name[:40]!a}; {hint}")


def _is_text(value: str) -> bool:
    return 0 < len(value) <= TEXT_CHARACTERS_MAX and value.isprintable()

"""Who a client certificate is of: its SPIFFE id (a URI among its alternative names), else its common name.

TLS has verified the certificate before: gRPC's core on the gRPC port, Envoy on the REST port. Envoy hands it on in the
header x-forwarded-client-cert, which counts only on the sockets that Envoy alone can reach.
"""

import dataclasses
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NoReturn

from nexus_grpc.access.identity import Identity, Scope
from nexus_grpc.access.issuers import CertificateRule, Grant
from nexus_grpc.ipc.errors import Unauthenticated

SPIFFE = "spiffe://"
SUBJECT_CHARACTERS_MAX = 255
HEADER_CHARACTERS_MAX = 16 << 10
IDENTITIES_MAX = 10_000
DEFAULT_GRANT = Grant(Scope.PREDICT | Scope.READ)

# One `Key=value`: the value quoted (with \" for a quote), or free of what separates. Source: Envoy's documentation,
# "HTTP header manipulation", x-forwarded-client-cert.
_PAIR = re.compile(r'([A-Za-z]+)=(?:"((?:[^"\\]|\\.)*)"|([^",;=]*))', re.ASCII)
# One part of a distinguished name (RFC 4514): a type, and a value in which special characters are escaped.
_RDN = re.compile(r"([A-Za-z][A-Za-z0-9-]*|[0-9.]+)=((?:[^\\,+;]|\\[0-9A-Fa-f]{2}|\\[^0-9A-Fa-f])*)", re.ASCII)
_ESCAPES = re.compile(rb"\\([0-9A-Fa-f]{2}|.)", re.DOTALL)
_KEYS = frozenset({"by", "hash", "cert", "chain", "subject", "uri", "dns"})


@dataclasses.dataclass(frozen=True, slots=True)
class CertificateNames:
    """What a verified certificate is called: its common names, and its alternative names of any kind."""

    common_names: tuple[str, ...] = ()
    alternative: tuple[str, ...] = ()

    def subject(self) -> str:
        """The one name that identifies it. Raises Unauthenticated if there is none, or more than one."""
        found = tuple(dict.fromkeys(name for name in self.alternative if name.startswith(SPIFFE))) or self.common_names
        if len(found) != 1:
            _refuse(f"it has {len(found)} names; expected one SPIFFE id (URI) or one common name")
        if not 0 < len(found[0]) <= SUBJECT_CHARACTERS_MAX or not found[0].isprintable():
            _refuse(f"its name is no printable text of 1 to {SUBJECT_CHARACTERS_MAX} characters")
        return found[0]


def _refuse(reason: str) -> NoReturn:
    raise Unauthenticated(f"the client certificate is not accepted: {reason}")


def from_auth_context(context: Mapping[str, Iterable[bytes]]) -> CertificateNames | None:
    """Of grpc.ServicerContext.auth_context(); None for a caller without a certificate. Raises Unauthenticated."""
    names, others = context.get("x509_common_name", ()), context.get("x509_subject_alternative_name", ())
    try:
        found = CertificateNames(tuple(name.decode() for name in names), tuple(name.decode() for name in others))
    except UnicodeDecodeError:
        _refuse("its names are not UTF-8")
    return found if found.common_names or found.alternative else None


def from_forwarded(header: str) -> CertificateNames:
    """Of Envoy's x-forwarded-client-cert. Raises Unauthenticated for what Envoy does not write.

    Envoy has to set it (SANITIZE_SET): then it has one element, which is of the one who called Envoy.
    """
    pairs = _pairs(header)
    subjects = [value for key, value in pairs if key == "subject"]
    if len(subjects) > 1:
        _refuse("x-forwarded-client-cert has more than one subject")
    common_names = _common_names(subjects[0]) if subjects else ()
    return CertificateNames(common_names, tuple(value for key, value in pairs if key == "uri"))


def _pairs(header: str) -> list[tuple[str, str]]:
    """The pairs of its one element: (key in small letters, value)."""
    if len(header) > HEADER_CHARACTERS_MAX:
        _refuse(f"x-forwarded-client-cert is longer than {HEADER_CHARACTERS_MAX} characters")
    pairs, at = [], 0
    while True:
        found = _PAIR.match(header, at)
        if found is None or found[1].lower() not in _KEYS:
            _refuse("x-forwarded-client-cert is not of the form Key=value;Key=value")
        quoted, plain = found[2], found[3]
        pairs.append((found[1].lower(), plain if quoted is None else quoted.replace('\\"', '"')))
        at = found.end()
        if at == len(header):
            return pairs
        if header[at] != ";":
            _refuse("x-forwarded-client-cert has more than one element; expected that Envoy sets it (SANITIZE_SET)")
        at += 1


def _common_names(subject: str) -> tuple[str, ...]:
    """The CNs of a distinguished name such as `CN=client,O=Example\\, Inc.` (RFC 4514)."""
    found, at = [], 0
    while at < len(subject):
        part = _RDN.match(subject, at)
        if part is None:
            _refuse("its subject is no distinguished name")
        if part[1].upper() == "CN":
            found.append(_unescaped(part[2]))
        at = part.end()
        if at < len(subject):
            if subject[at] not in ",+" or at + 1 == len(subject):
                _refuse("its subject is no distinguished name")
            at += 1
    return tuple(found)


def _unescaped(value: str) -> str:
    def plain(found: re.Match[bytes]) -> bytes:
        return bytes.fromhex(found[1].decode()) if len(found[1]) == 2 else found[1]

    try:
        return _ESCAPES.sub(plain, value.encode()).decode()
    except UnicodeError:
        _refuse("its common name is not UTF-8")


class Certificates:
    """Identities of certificates: one object for each subject.

    Args:
        rules: the first whose pattern fits decides. Without any rule every certificate may predict and read; with some,
            one that none fits is refused.
    """

    def __init__(self, rules: Sequence[CertificateRule] = ()) -> None:
        self._rules = rules
        self._kept: dict[str, Identity] = {}

    def identity(self, names: CertificateNames) -> Identity:
        """Whose certificate it is: "cert:SUBJECT". Raises Unauthenticated."""
        subject = names.subject()
        found = self._kept.get(subject)
        if found is None:
            grant = self._grant(subject)
            found = Identity(
                f"cert:{subject}", grant.scopes, grant.models, grant.rate_per_minute, grant.burst, grant.priority
            )
            if len(self._kept) >= IDENTITIES_MAX:
                self._kept = {}
            self._kept[subject] = found
        return found

    def _grant(self, subject: str) -> Grant:
        if not self._rules:
            return DEFAULT_GRANT
        for rule in self._rules:
            if fnmatch.fnmatchcase(subject, rule.subject):
                return rule.grant
        _refuse("no [[certificate]] of the server's configuration fits its name")

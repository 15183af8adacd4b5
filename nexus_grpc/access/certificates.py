"""Who a client certificate is of: its SPIFFE id (a URI among its alternative names), else its common name.

TLS has verified the certificate before: gRPC's core on the gRPC port, Envoy on the REST port. Envoy hands it on in a
header, which anybody could write: forwarded.py says when it counts.
"""

import dataclasses
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import NoReturn

from nexus_grpc.access.identity import Identity, Scope
from nexus_grpc.access.issuers import CertificateRule, Grant
from nexus_grpc.ipc.errors import Unauthenticated

SPIFFE = "spiffe://"
SUBJECT_CHARACTERS_MAX = 255
IDENTITIES_MAX = 10_000
DEFAULT_GRANT = Grant(Scope.PREDICT | Scope.READ)


@dataclasses.dataclass(frozen=True, slots=True)
class CertificateNames:
    """What a verified certificate is called: its common names, and its alternative names of any kind."""

    common_names: tuple[str, ...] = ()
    alternative: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.common_names or self.alternative)

    def subject(self) -> str:
        """The one name that identifies it. Raises Unauthenticated if there is none, or more than one."""
        found = tuple(dict.fromkeys(name for name in self.alternative if name.startswith(SPIFFE))) or self.common_names
        if len(found) != 1:
            refuse(f"it has {len(found)} names; expected one SPIFFE id (URI) or one common name")
        if not 0 < len(found[0]) <= SUBJECT_CHARACTERS_MAX or not found[0].isprintable():
            refuse(f"its name is no printable text of 1 to {SUBJECT_CHARACTERS_MAX} characters")
        return found[0]


def refuse(reason: str) -> NoReturn:
    """Raises Unauthenticated."""
    raise Unauthenticated(f"the client certificate is not accepted: {reason}")


def from_auth_context(context: Mapping[str, Iterable[bytes]]) -> CertificateNames | None:
    """Of grpc.ServicerContext.auth_context(); None for a caller without a certificate. Raises Unauthenticated."""
    names, others = context.get("x509_common_name", ()), context.get("x509_subject_alternative_name", ())
    try:
        found = CertificateNames(tuple(name.decode() for name in names), tuple(name.decode() for name in others))
    except UnicodeDecodeError:
        refuse("its names are not UTF-8")
    return found or None


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
        refuse("no [[certificate]] of the server's configuration fits its name")

"""Client certificates: their names, and what they may do."""

import pytest

from nexus_grpc.access.certificates import CertificateNames, Certificates, from_auth_context
from nexus_grpc.access.identity import Scope
from nexus_grpc.access.issuers import CertificateRule, Grant
from nexus_grpc.ipc.errors import Unauthenticated

SPIFFE = "spiffe://example/ns/prod/sa/webshop"


def test_of_grpc() -> None:
    context = {
        "transport_security_type": [b"ssl"],
        "x509_common_name": [b"webshop"],
        "x509_subject_alternative_name": [b"webshop.example", SPIFFE.encode()],
    }
    assert from_auth_context(context) == CertificateNames(("webshop",), ("webshop.example", SPIFFE))
    assert from_auth_context({"transport_security_type": [b"ssl"]}) is None
    assert from_auth_context({}) is None
    with pytest.raises(Unauthenticated, match="UTF-8"):
        from_auth_context({"x509_common_name": [b"\xff"]})


@pytest.mark.parametrize(
    ("names", "subject"),
    [
        (CertificateNames(("webshop",)), "webshop"),
        (CertificateNames(("webshop",), ("webshop.example", SPIFFE)), SPIFFE),
        (CertificateNames((), (SPIFFE, SPIFFE)), SPIFFE),
    ],
)
def test_the_one_name(names: CertificateNames, subject: str) -> None:
    assert Certificates().identity(names).name == f"cert:{subject}"


@pytest.mark.parametrize(
    "names",
    [
        CertificateNames(),
        CertificateNames((), ("webshop.example",)),
        CertificateNames(("a", "b")),
        CertificateNames(("a",), ("spiffe://a", "spiffe://b")),
        CertificateNames(("",)),
        CertificateNames(("a\nb",)),
        CertificateNames(("a" * 256,)),
    ],
)
def test_no_name_or_more_than_one(names: CertificateNames) -> None:
    with pytest.raises(Unauthenticated, match="client certificate is not accepted"):
        Certificates().identity(names)


def test_without_rules_they_predict_and_read() -> None:
    found = Certificates()
    identity = found.identity(CertificateNames(("webshop",)))
    assert identity.scopes == Scope.PREDICT | Scope.READ
    assert found.identity(CertificateNames(("webshop",))) is identity


def test_the_first_rule_that_fits_decides() -> None:
    rules = (
        CertificateRule("spiffe://example/ns/prod/*", Grant(Scope.PREDICT, ("fraud-*",), 60, 5, 1)),
        CertificateRule("spiffe://example/*", Grant(Scope.ADMIN)),
    )
    found = Certificates(rules)
    identity = found.identity(CertificateNames((), (SPIFFE,)))
    assert (identity.scopes, identity.models, identity.rate_per_minute) == (Scope.PREDICT, ("fraud-*",), 60)
    assert found.identity(CertificateNames((), ("spiffe://example/x",))).scopes is Scope.ADMIN
    with pytest.raises(Unauthenticated, match="no \\[\\[certificate\\]\\]"):
        found.identity(CertificateNames(("webshop",)))

"""Client certificates: their names, from gRPC and from Envoy's header."""

import pytest

from nexus_grpc.access.certificates import CertificateNames, Certificates, from_auth_context, from_forwarded
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
    ("header", "names"),
    [
        ('Hash=ab12;Subject="CN=webshop,O=Example";URI=' + SPIFFE, (("webshop",), (SPIFFE,))),
        ('Subject="O=Example\\, Inc.,CN=webshop"', (("webshop",), ())),
        ('subject="CN=web\\,shop\\=1"', (("web,shop=1",), ())),
        ('Subject="CN=L\\C3\\B6we"', (("Löwe",), ())),
        ('Subject="CN=L\u00f6we"', (("Löwe",), ())),
        ('Subject="CN=say \\"hi\\""', (('say "hi"',), ())),
        ('Subject="CN=a+OU=b,CN=c"', (("a", "c"), ())),
        ('Subject="2.5.4.3=a"', ((), ())),
        ('Subject="";URI=spiffe://a;URI=spiffe://b;DNS=x', ((), ("spiffe://a", "spiffe://b"))),
        ("By=spiffe://me;Hash=ab", ((), ())),
    ],
)
def test_of_envoy(header: str, names: tuple[tuple[str, ...], tuple[str, ...]]) -> None:
    assert from_forwarded(header) == CertificateNames(*names)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "x",
        "Subject",
        'Subject="CN=a',
        "Subject=CN=a",
        'Subject="CN=a"x',
        'Subject="CN=a";',
        'Subject="CN=a";;Hash=b',
        'Subject="CN=a",Subject="CN=admin"',
        'Subject="CN=a";Subject="CN=admin"',
        "Hash=a,Hash=b",
        "Colour=red",
        "Subject =x",
        ' Subject="CN=a"',
        'Subject="CN=a,"',
        'Subject="CN=a,,CN=b"',
        'Subject="CN"',
        'Subject="CN=\\FF"',
        'Subject="CN=a;CN=b"',
        "URI=" + "x" * 20_000,
    ],
)
def test_what_envoy_does_not_write(header: str) -> None:
    with pytest.raises(Unauthenticated, match="client certificate is not accepted"):
        from_forwarded(header)


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

"""x-forwarded-client-cert: when it counts, and what is read of it."""

from typing import Any
from urllib.parse import quote

import pytest

from nexus_grpc.access import forwarded
from nexus_grpc.access.certificates import CertificateNames
from nexus_grpc.access.forwarded import ForwardedCertificates, parse_forwarded
from nexus_grpc.ipc.errors import Unauthenticated
from tests.certificates import Authority

SECRET = "5e" * 32
SPIFFE = "spiffe://example/ns/prod/sa/webshop"
AUTHORITY = Authority()


def header(name: str = "webshop", uri: str = "", by: str = "") -> str:
    """As Envoy writes it."""
    pem = AUTHORITY.sign(name, for_client=True, uri=uri).chain.decode()
    return f'{by}Hash={"ab" * 32};Cert="{quote(pem, safe="")}"'


def test_the_names_are_the_certificates() -> None:
    assert parse_forwarded(header()) == CertificateNames(("webshop",))
    assert parse_forwarded(header(uri=SPIFFE)) == CertificateNames(("webshop",), (SPIFFE,))
    assert parse_forwarded(header(by="By=spiffe://example/me;By=spiffe://example/us;")).common_names == ("webshop",)
    server = quote(AUTHORITY.sign("web").chain.decode(), safe="")
    assert parse_forwarded(f'Hash=ab;Cert="{server}"') == CertificateNames(("web",), ("localhost",))


@pytest.mark.parametrize("uri", ["urn:x;URI=spiffe://root", 'urn:"x",URI=spiffe://root', "urn:x;Cert=spiffe://root"])
def test_a_name_stays_one_name(uri: str) -> None:
    """Were it written out beside the others, it would look like two."""
    assert parse_forwarded(header("a;URI=spiffe://root", uri=uri)).subject() == "a;URI=spiffe://root"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        'Subject="CN=root"',
        'Hash=ab;Subject="CN=root";URI=spiffe://root',
        f"{header()},{header()}",
        f"{header()};{header()}",
        f'{header()};Subject="CN=root"',
        f" {header()}",
        header().replace("Hash", "hash"),
        header().replace("%20", " "),
        'Hash=ab;Cert=""',
        'Hash=ab;Cert="MIIB"',
        f'Hash=ab;Cert="{quote("-----BEGIN CERTIFICATE-----")}"',
        'Hash=ab;Cert="' + "A" * forwarded.HEADER_CHARACTERS_MAX + '"',
    ],
)
def test_what_our_envoy_does_not_write(text: str) -> None:
    with pytest.raises(Unauthenticated, match="client certificate is not accepted"):
        parse_forwarded(text)


def test_it_counts_beside_the_secret_alone() -> None:
    known, sent = ForwardedCertificates(SECRET), ("x-forwarded-client-cert", header())
    found = known.names((("x-nexus-envoy", SECRET), sent))
    assert found is not None
    assert found.common_names == ("webshop",)
    for metadata in [
        (),
        (sent,),
        (("x-nexus-envoy", SECRET),),
        (("x-nexus-envoy", ""), sent),
        (("x-nexus-envoy", SECRET[:-1]), sent),
        (("x-nexus-envoy", SECRET.upper()), sent),
        (("x-nexus-envoy", SECRET + "\0"), sent),
        (("x-nexus-envoy", "ü"), sent),
        (("x-nexus-envoy", "\udcff"), sent),
        (("x-nexus-envoy", "\ud800"), sent),
        (("x-nexus-envoy-bin", SECRET.encode()), sent),
        (("x-nexus-envoy", SECRET), ("x-nexus-envoy", "5f" * 32), sent),
    ]:
        assert known.names(metadata) is None, metadata


def test_a_forged_header_is_not_even_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(_: str) -> CertificateNames:
        raise AssertionError("parsed")

    monkeypatch.setattr(forwarded, "parse_forwarded", never)
    assert ForwardedCertificates(SECRET).names((("x-forwarded-client-cert", "x"), ("x-nexus-envoy", "x"))) is None


def test_a_certificate_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []

    def count(text: str) -> CertificateNames:
        parsed.append(text)
        return parse_forwarded(text)

    monkeypatch.setattr(forwarded, "parse_forwarded", count)
    known = ForwardedCertificates(SECRET)
    first, second = header(), header("reader")
    sent: Any
    for sent in (first, second, first.encode(), second, first):
        assert known.names((("x-nexus-envoy", SECRET.encode()), ("x-forwarded-client-cert", sent))) is not None
    assert parsed == [first, second]

"""Client certificates of the REST port: our own Envoy has verified them, and hands them on in x-forwarded-client-cert.

Anybody can write that header, on the gRPC port and at Envoy's abstract sockets. So it counts only beside a secret that
the supervisor made at its start and told fronts and Envoy alone: Envoy adds it to each request (and overwrites what a
client sent), the supervisor's control channel has brought it here.

Envoy sends the whole certificate (percent-encoded PEM), not the names: it writes those as they are, so that a URI with
a semicolon in it would look like two. Names are read of the certificate as they are on the gRPC port.
"""

import hmac
import re
from urllib.parse import unquote

from cryptography import x509
from cryptography.x509.oid import NameOID

from nexus_grpc.access.authenticator import Remembered
from nexus_grpc.access.call import ENVOY_WORD, FORWARDED_CERTIFICATE, Metadata
from nexus_grpc.access.certificates import CertificateNames, refuse

HEADER_CHARACTERS_MAX = 16 << 10
KEPT_MAX = 10_000
# What Envoy writes with set_current_client_cert_details {cert: true}: its own certificate's URIs, a hash, the PEM.
# Source: https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_conn_man/headers#x-forwarded-client-cert
_HEADER = re.compile(r'(?:By=[^",;]*;)*Hash=[0-9a-f]+;Cert="([A-Za-z0-9%._~+/=-]+)"', re.ASCII)
# What cryptography raises for certificates that BoringSSL has let pass.
_UNREADABLE = (ValueError, TypeError, x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)


class ForwardedCertificates:
    """Reads the header of requests that come by way of our Envoy. Any thread may call it.

    Args:
        secret: what those requests have in the header x-nexus-envoy.
    """

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()
        # A certificate is parsed once: that takes longer than all else that is done for a request here.
        self._kept: Remembered[CertificateNames] = Remembered(KEPT_MAX)

    def names(self, metadata: Metadata) -> CertificateNames | None:
        """Of the certificate that Envoy was shown; None if it was shown none, or the request is not of our Envoy.

        Raises Unauthenticated for a certificate without names that can be read.
        """
        word: str | bytes = b""
        header: str | bytes = ""
        for key, value in metadata:
            if key == ENVOY_WORD:
                word = value
            elif key == FORWARDED_CERTIFICATE:
                header = value
        if not header or not hmac.compare_digest(_as_bytes(word), self._secret):
            return None
        text = header if isinstance(header, str) else header.decode("latin-1")
        found = self._kept.get(text)
        if found is None:
            found = parse_forwarded(text)
            self._kept.put(text, found)
        return found or None


def parse_forwarded(header: str) -> CertificateNames:
    """The names in the certificate of an x-forwarded-client-cert. Raises Unauthenticated for any other."""
    found = _HEADER.fullmatch(header) if len(header) <= HEADER_CHARACTERS_MAX else None
    if found is None:
        refuse("x-forwarded-client-cert has no certificate as Envoy writes it")
    try:
        certificate = x509.load_pem_x509_certificate(unquote(found[1]).encode())
        common_names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return CertificateNames(tuple(str(name.value) for name in common_names), _alternative(certificate))
    except _UNREADABLE:
        refuse("its names cannot be read")


def _alternative(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return (*names.get_values_for_type(x509.DNSName), *names.get_values_for_type(x509.UniformResourceIdentifier))


def _as_bytes(value: str | bytes) -> bytes:
    return value.encode("utf-8", "replace") if isinstance(value, str) else value

"""Real certificates for tests, made by `cryptography`: an authority, and what it signs."""

import dataclasses
import datetime
import ipaddress
import pathlib

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


@dataclasses.dataclass(frozen=True)
class Pair:
    """A certificate (with those above it, in `chain`) and its key, as PEM."""

    chain: bytes
    key: bytes

    @property
    def certificate(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.chain)

    @property
    def serial(self) -> int:
        return self.certificate.serial_number

    def write(self, folder: pathlib.Path, name: str) -> tuple[pathlib.Path, pathlib.Path]:
        """As NAME.pem and NAME.key, the key for its owner alone. Returns both paths."""
        chain, key = folder / f"{name}.pem", folder / f"{name}.key"
        chain.write_bytes(self.chain)
        key.touch(0o600)
        key.write_bytes(self.key)
        return chain, key


class Authority:
    """Signs certificates; `pem` is what those need who trust it."""

    def __init__(self, name: str = "test authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(self._name, self._name, self._key, 3650, -1)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        self._certificate = builder.sign(self._key, hashes.SHA256())
        self.pem = _pem(self._certificate)

    def write(self, folder: pathlib.Path, name: str = "ca") -> pathlib.Path:
        path = folder / f"{name}.pem"
        path.write_bytes(self.pem)
        return path

    def sign(
        self,
        name: str,
        *,
        for_client: bool = False,
        days: float = 30,
        begins_in_days: float = -1,
        key: PrivateKey | None = None,
        uri: str = "",
    ) -> Pair:
        """A certificate for localhost, or for a client of that common name.

        Args:
            days: how long it is valid from now on; below 0: it has expired.
            begins_in_days: when it begins to be valid.
            key: its own; a new P-256 one if None.
            uri: a name of that form beside the others, such as spiffe://….
        """
        key = key or ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri)] if uri else []
        if not for_client:
            names += [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        usage = ExtendedKeyUsageOID.CLIENT_AUTH if for_client else ExtendedKeyUsageOID.SERVER_AUTH
        builder = _builder(subject, self._name, key, days, begins_in_days)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        return Pair(_pem(certificate), _key_pem(key))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: PrivateKey, days: float, begins_in_days: float
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=min(begins_in_days, days - 1)))
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: PrivateKey, password: bytes = b"") -> bytes:
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden)


def encrypted(pair: Pair, password: bytes) -> Pair:
    """The same, with the key behind a password."""
    key = serialization.load_pem_private_key(pair.key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return Pair(pair.chain, _key_pem(key, password))

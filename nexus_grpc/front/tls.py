"""TLS of the gRPC port, with certificates that change while the server runs (cert-manager, certbot, a person with cp).

    kept ──(files changed)──▶ read ──▶ whole, matching, usable ──▶ new connections get it; old ones keep theirs
      ▲                                   │
      └──────────(anything else: logged once per change, what was kept serves on)

gRPC asks for the configuration before each handshake (`grpc.dynamic_ssl_server_credentials`); the files are looked at
then, at most once a second, so a server that nobody connects to does no work for it.
"""

import datetime
import os
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from nexus_grpc import logs
from nexus_grpc.configuration import ConfigurationError

CHECK_SECONDS = 1.0
# What gRPC's TLS library offers to clients; it has others, but no client that this server would understand.
_KEYS = "RSA of 2048 bits or more, or ECDSA on P-256 or P-384"
_RSA_BITS_MIN = 2048
_CURVES = (ec.SECP256R1, ec.SECP384R1)

Facts = tuple[tuple[int, int, int, int] | None, ...]
"""Device, inode, modification time in ns and size of each file; None for one that is not there."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files, and the settings that name them; `client_ca` is empty when clients need no certificate."""

    certificate: str
    key: str
    client_ca: str = ""

    def facts(self) -> Facts:
        return tuple(_facts(path) for path in (self.certificate, self.key, self.client_ca) if path)


def server_credentials(
    certificate_path: str, key_path: str, client_ca_path: str = "", require_client: bool = False
) -> grpc.ServerCredentials:
    """Credentials for `add_secure_port` that follow their files.

    Args:
        certificate_path: PEM, the server's own certificate first, then those that signed it.
        key_path: PEM, not encrypted.
        client_ca_path: PEM, the authorities whose client certificates are accepted; empty when none is asked for.
        require_client: that every client must show one. gRPC for Python cannot ask for a certificate without insisting
            on it, so this and `client_ca_path` go together.

    Raises:
        ConfigurationError: a file is missing, unreadable or not what it should be, or they don't belong together.
    """
    if require_client != bool(client_ca_path):
        raise ConfigurationError(
            "tls_client_ca: client certificates can be required on the gRPC port, or not be asked for; name the"
            " authorities and require them, or neither"
        )
    reloading = ReloadingCertificates(TlsFiles(certificate_path, key_path, client_ca_path))
    return grpc.dynamic_ssl_server_credentials(
        reloading.configuration,
        reloading.fetch,  # type: ignore[arg-type]  # None means no change, whatever the stubs say
        require_client,
    )


class ReloadingCertificates:
    """`configuration` is the newest that is usable. `fetch` is called by gRPC's threads.

    Raises:
        ConfigurationError: the files cannot be used now, at the start.
    """

    def __init__(self, files: TlsFiles, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._files = files
        self._clock = clock
        self._lock = threading.Lock()
        self._next_look = clock() + CHECK_SECONDS
        # Before the reading: what changes meanwhile is read again.
        self._seen = files.facts()
        self._log = logs.logger()
        loaded = load(files)
        self.configuration: grpc.ServerCertificateConfiguration = loaded.configuration
        self._warn(loaded)

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """A new configuration if the files hold one, else None. Never raises: gRPC would only print it."""
        # A handshake does not wait for another one's look at the files.
        if self._clock() < self._next_look or not self._lock.acquire(blocking=False):
            return None
        try:
            return self._look()
        finally:
            self._lock.release()

    def _look(self) -> grpc.ServerCertificateConfiguration | None:
        self._next_look = self._clock() + CHECK_SECONDS
        facts = self._files.facts()
        if facts == self._seen:
            return None
        try:
            loaded = load(self._files)
        except ConfigurationError as error:
            if self._files.facts() == facts:  # not just being written
                self._seen = facts
                self._log.error("the new TLS certificate is not used: the old one serves on", reason=error.message)
            return None
        if self._files.facts() != facts:
            return None
        self._seen = facts
        self.configuration = loaded.configuration
        self._log.info("TLS certificate loaded", subject=loaded.subject, valid_until=loaded.valid_until.isoformat())
        self._warn(loaded)
        return self.configuration

    def _warn(self, loaded: "Loaded") -> None:
        for warning in loaded.warnings:
            self._log.warning("TLS certificate", reason=warning)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the files hold: for gRPC, and for people."""

    configuration: grpc.ServerCertificateConfiguration
    subject: str
    valid_until: datetime.datetime
    warnings: tuple[str, ...]


def load(files: TlsFiles) -> Loaded:
    """Read and check them. Raises ConfigurationError, which names the setting, the file and what is wrong."""
    chain_text = _read("grpc_tls_certificate", files.certificate)
    key_text = _read("grpc_tls_key", files.key)
    chain = _certificates("grpc_tls_certificate", files.certificate, chain_text)
    _check_key(files, key_text, chain)
    authorities = None
    if files.client_ca:
        authorities = _read("tls_client_ca", files.client_ca)
        _certificates("tls_client_ca", files.client_ca, authorities)
    leaf = chain[0]
    return Loaded(
        grpc.ssl_server_certificate_configuration([(key_text, chain_text)], authorities),
        leaf.subject.rfc4514_string(),
        leaf.not_valid_after_utc,
        tuple(_warnings(files, leaf)),
    )


def _read(setting: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{setting} = {path!r}: {error.strerror}") from None


def _certificates(setting: str, path: str, text: bytes) -> list[x509.Certificate]:
    try:
        found = x509.load_pem_x509_certificates(text)
        for certificate in found:
            certificate.public_key()
        return found
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigurationError(f"{setting} = {path!r}: expected a PEM file with certificates") from None


def _check_key(files: TlsFiles, text: bytes, chain: list[x509.Certificate]) -> None:
    """Raises ConfigurationError when it is not a usable key, or not that of the first certificate."""
    title = f"grpc_tls_key = {files.key!r}"
    try:
        key = load_pem_private_key(text, None)
    except TypeError:
        raise ConfigurationError(f"{title}: it is encrypted; expected an unencrypted PEM key") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigurationError(f"{title}: expected a PEM file with a private key") from None
    is_strong_rsa = isinstance(key, rsa.RSAPrivateKey) and key.key_size >= _RSA_BITS_MIN
    if not is_strong_rsa and not (isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, _CURVES)):
        raise ConfigurationError(f"{title}: gRPC cannot serve with this kind of key; expected {_KEYS}")
    own = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    matching = [
        place
        for place, certificate in enumerate(chain)
        if certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == own
    ]
    if not matching:
        raise ConfigurationError(f"{title}: it is not the key of grpc_tls_certificate = {files.certificate!r}")
    if matching[0]:
        raise ConfigurationError(
            f"grpc_tls_certificate = {files.certificate!r}: the server's own certificate must come first, then those"
            f" that signed it; it is number {matching[0] + 1}"
        )


def _warnings(files: TlsFiles, leaf: x509.Certificate) -> list[str]:
    """What is unwise, and no reason not to serve."""
    found = []
    now = datetime.datetime.now(datetime.UTC)
    if leaf.not_valid_after_utc < now:
        found.append(f"{files.certificate} expired at {leaf.not_valid_after_utc.isoformat()}: clients will refuse it")
    if leaf.not_valid_before_utc > now:
        found.append(f"{files.certificate} is valid only from {leaf.not_valid_before_utc.isoformat()} on")
    try:
        mode = stat.S_IMODE(os.stat(files.key).st_mode)
    except OSError:
        return found
    # A group may be meant to read it: so Kubernetes mounts secrets for a user that is not root.
    if mode & stat.S_IRWXO:
        found.append(f"every user of this machine can read {files.key} (mode {mode:04o}): chmod 600 it")
    return found


def _facts(path: str) -> tuple[int, int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size

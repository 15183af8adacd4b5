"""Envoy's bootstrap: envoy/bootstrap.yaml with addresses, routes and descriptor filled in: one self-contained piece."""

import base64
import dataclasses
from pathlib import Path
from typing import Any

import yaml

from nexus_grpc.ipc.wire import HTTP_ANSWER_MAX_BYTES
from nexus_grpc.rest.coarse_limit import add_coarse_limit
from nexus_grpc.rest.local_replies import access_log, local_reply_config
from nexus_grpc.rest.routes import overwrite_headers, virtual_host
from nexus_grpc.rest.twin import descriptor_set

TEMPLATE = Path(__file__).parents[1] / "envoy" / "bootstrap.yaml"
# What the transcoder keeps beside the body: the rest of the request's frame.
DIRECT_BODY_MAX_BYTES = 4 << 20
# Whole, not by its names (access/forwarded.py says why). A client's own header of that name never passes.
_TELL_CERTIFICATES = {
    "forward_client_cert_details": "SANITIZE_SET",
    "set_current_client_cert_details": {"cert": True},
}
_CORS = {
    "name": "envoy.filters.http.cors",
    "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors"},
}
_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"


@dataclasses.dataclass(frozen=True)
class EnvoyOptions:
    """What differs from one Envoy to another.

    Attributes:
        host, port: where REST listens.
        upstreams: the fronts: "host:port", or "unix:<path>", where a path beginning with @ is an abstract socket.
        metrics: "host:port" of the supervisor's HTTP server.
        admin_socket: path of a unix socket for Envoy's admin interface; none when empty.
        tls_certificate, tls_key: PEM files for HTTPS; both or neither.
        tls_client_ca: PEM file with authorities; who shows a certificate of theirs is told to the fronts in
            x-forwarded-client-cert. None is asked for if empty; none is needed in any case.
        front_headers: names and values that each request to a front has, whatever its client sent.
        cors_origins: origins whose pages may call; "*" for all.
        per_second: requests that are let through in a second, those for health and files apart; 0 = any.
        max_body_bytes: longer bodies are 413.
        timeout_s: a request that takes longer is 504.
        upload_timeout_s: the same for uploads, and for all that waits for models to be loaded.
        access_log: the file of the JSON access log; none when empty.
        access_log_sample: share of the requests with a status below 400 that are logged, 0 to 1.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    upstreams: tuple[str, ...] = ("127.0.0.1:8001",)
    metrics: str = "127.0.0.1:8002"
    admin_socket: str = ""
    tls_certificate: str = ""
    tls_key: str = ""
    tls_client_ca: str = ""
    front_headers: tuple[tuple[str, str], ...] = dataclasses.field(default=(), repr=False)
    cors_origins: tuple[str, ...] = ()
    per_second: int = 0
    max_body_bytes: int = 64 << 20
    timeout_s: float = 60.0
    upload_timeout_s: float = 900.0
    access_log: str = "/dev/stderr"
    access_log_sample: float = 1.0


def render_bootstrap(options: EnvoyOptions) -> dict[str, Any]:
    """The whole bootstrap, ready to be written as JSON or YAML."""
    bootstrap: dict[str, Any] = yaml.safe_load(TEMPLATE.read_text(encoding="utf-8"))
    listener = bootstrap["static_resources"]["listeners"][0]
    listener["address"] = _address(f"{options.host}:{options.port}")
    if options.tls_certificate:
        _add_tls(listener, options)
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    manager["local_reply_config"] = local_reply_config()
    manager["access_log"] = access_log(options.access_log, options.access_log_sample)
    if options.tls_client_ca:
        manager |= _TELL_CERTIFICATES
    host = virtual_host(
        options.timeout_s,
        max(options.timeout_s, options.upload_timeout_s),
        options.cors_origins,
        certificates=bool(options.tls_client_ca),
    )
    overwrite_headers(host["routes"], options.front_headers)
    manager["route_config"]["virtual_hosts"] = [host]
    manager["route_config"]["max_direct_response_body_size_bytes"] = DIRECT_BODY_MAX_BYTES
    transcoder = next(each for each in manager["http_filters"] if each["name"].endswith("grpc_json_transcoder"))
    transcoder["typed_config"]["proto_descriptor_bin"] = base64.b64encode(
        descriptor_set().SerializeToString(deterministic=True)
    ).decode()
    transcoder["typed_config"]["max_request_body_size"] = options.max_body_bytes
    # With the message around it.
    transcoder["typed_config"]["max_response_body_size"] = HTTP_ANSWER_MAX_BYTES + 1024
    if options.cors_origins:
        manager["http_filters"].insert(0, _CORS)
    if options.per_second:
        add_coarse_limit(manager, options.per_second)
    _fill_clusters(bootstrap["static_resources"]["clusters"], options)
    if options.admin_socket:
        bootstrap["admin"] = {"address": {"pipe": {"path": options.admin_socket, "mode": 0o600}}}
    return bootstrap


def _fill_clusters(clusters: list[dict[str, Any]], options: EnvoyOptions) -> None:
    addresses = {"fronts": options.upstreams, "metrics": (options.metrics,)}
    for cluster in clusters:
        members = addresses[cluster["name"]]
        endpoints = [{"endpoint": {"address": _address(member)}} for member in members]
        cluster["load_assignment"]["endpoints"] = [{"lb_endpoints": endpoints}]
        if not all(_is_literal(member) for member in members):
            cluster["type"] = "STRICT_DNS"


def _address(text: str) -> dict[str, Any]:
    """Envoy's form of "host:port" or "unix:<path>"."""
    if text.startswith("unix:"):
        return {"pipe": {"path": text.removeprefix("unix:")}}
    host, _, port = text.rpartition(":")
    return {"socket_address": {"address": host.strip("[]"), "port_value": int(port)}}


def _is_literal(text: str) -> bool:
    """Whether Envoy needs no name service for it."""
    host = text.rpartition(":")[0]
    return text.startswith("unix:") or ":" in host or all(part.isdigit() for part in host.split("."))


def _add_tls(listener: dict[str, Any], options: EnvoyOptions) -> None:
    certificate = {
        "certificate_chain": {"filename": options.tls_certificate},
        "private_key": {"filename": options.tls_key},
    }
    common: dict[str, Any] = {
        "tls_certificates": [certificate],
        "alpn_protocols": ["h2", "http/1.1"],
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
    }
    context: dict[str, Any] = {"@type": _TLS, "common_tls_context": common}
    if options.tls_client_ca:
        # Asked for and, if there is one, verified; clients with a key or a token need none.
        context["require_client_certificate"] = False
        common["validation_context"] = {"trusted_ca": {"filename": options.tls_client_ca}}
    listener["filter_chains"][0]["transport_socket"] = {
        "name": "envoy.transport_sockets.tls",
        "typed_config": context,
    }

"""nexus_grpc/rest/bootstrap.py: what Envoy says of it, and what a reader of envoy/bootstrap.yaml relies on."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nexus_grpc.rest import static_files as static
from nexus_grpc.rest.bootstrap import DIRECT_BODY_MAX_BYTES, EnvoyOptions, render_bootstrap
from nexus_grpc.rest.coarse_limit import FILTER
from nexus_grpc.rest.routes import GRPC_PREFIXES, NOT_BEGUN, NOT_SENT
from nexus_grpc.supervisor.envoy_setup import find_binary
from tests.certificates import Authority

OPTION_SETS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "several fronts and a socket": {"upstreams": ("127.0.0.1:9001", "[::1]:9001", "unix:@nexus", "unix:/run/front")},
    "names": {"upstreams": ("server:8001",), "metrics": "server:8002"},
    "every address": {"host": "0.0.0.0"},
    "IPv6": {"host": "[::1]"},
    "an admin socket": {"admin_socket": "/tmp/admin"},
    "pages from elsewhere": {"cors_origins": ("https://a.example", "http://localhost:3000")},
    "pages from anywhere": {"cors_origins": ("*",)},
    "a sampled log": {"access_log_sample": 0.01},
    "no log": {"access_log": ""},
    "a coarse limit": {"per_second": 1},
    "a coarse limit and pages from elsewhere": {"per_second": 1_000_000, "cors_origins": ("https://a.example",)},
    "other limits": {"max_body_bytes": 1 << 30, "timeout_s": 0.25, "upload_timeout_s": 5.0},
}


def validate(options: EnvoyOptions, folder: Path) -> None:
    path = folder / "bootstrap.json"
    path.write_text(json.dumps(render_bootstrap(options)))
    command = [find_binary(), "--mode", "validate", "-c", str(path), "-l", "warning"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "[warning]" not in done.stderr, done.stderr


@pytest.mark.parametrize("name", OPTION_SETS)
def test_envoy_takes_it(name: str, tmp_path: Path) -> None:
    validate(EnvoyOptions(**OPTION_SETS[name]), tmp_path)


@pytest.mark.parametrize("more", [{}, {"cors_origins": ("*",), "per_second": 10, "admin_socket": "/tmp/admin"}])
def test_envoy_takes_client_certificates(more: dict[str, Any], tmp_path: Path) -> None:
    authority = Authority()
    chain, key = authority.sign("localhost").write(tmp_path, "server")
    validate(
        EnvoyOptions(
            tls_certificate=str(chain),
            tls_key=str(key),
            tls_client_ca=str(authority.write(tmp_path)),
            front_headers=(("x-nexus-envoy", "word"),),
            **more,
        ),
        tmp_path,
    )


def manager(options: EnvoyOptions) -> Any:
    (listener,) = render_bootstrap(options)["static_resources"]["listeners"]
    return listener["filter_chains"][0]["filters"][0]["typed_config"]


def cluster(options: EnvoyOptions) -> Any:
    return render_bootstrap(options)["static_resources"]["clusters"][0]


def test_no_admin_interface_unless_asked_for() -> None:
    assert "admin" not in render_bootstrap(EnvoyOptions())
    admin = render_bootstrap(EnvoyOptions(admin_socket="/run/a"))["admin"]
    assert admin == {"address": {"pipe": {"path": "/run/a", "mode": 0o600}}}


def test_fronts_with_names_are_looked_up() -> None:
    assert cluster(EnvoyOptions(upstreams=("server:8001",)))["type"] == "STRICT_DNS"
    assert cluster(EnvoyOptions(upstreams=("10.0.0.1:8001", "unix:@x", "[::1]:1")))["type"] == "STATIC"


def test_a_socket_is_a_pipe() -> None:
    (locality,) = cluster(EnvoyOptions(upstreams=("unix:@nexus",)))["load_assignment"]["endpoints"]
    assert locality["lb_endpoints"] == [{"endpoint": {"address": {"pipe": {"path": "@nexus"}}}}]


def test_the_limits_of_the_edge_checklist() -> None:
    """safety.md's list; each is shown to work in test_live.py."""
    rendered = render_bootstrap(EnvoyOptions())
    (listener,) = rendered["static_resources"]["listeners"]
    config = manager(EnvoyOptions())
    assert listener["per_connection_buffer_limit_bytes"] == 32 << 10
    assert config["http2_protocol_options"]["max_concurrent_streams"] == 100
    assert config["common_http_protocol_options"]["headers_with_underscores_action"] == "REJECT_REQUEST"
    assert config["normalize_path"] is True
    assert config["path_with_escaped_slashes_action"] == "REJECT_REQUEST"
    assert rendered["overload_manager"]["actions"]


def routes_of(options: EnvoyOptions) -> Any:
    return manager(options)["route_config"]["virtual_hosts"][0]["routes"]


def test_only_what_was_not_begun_is_sent_again() -> None:
    policies = [route["route"]["retry_policy"] for route in routes_of(EnvoyOptions()) if is_tried_again(route)]
    assert {policy["retry_on"] for policy in policies} == {NOT_BEGUN, NOT_SENT}
    assert {policy["num_retries"] for policy in policies} == {2}
    assert all("base_interval" in policy["retry_back_off"] for policy in policies)
    # No answer is a reason, and nothing that may have been begun.
    assert set(NOT_BEGUN.split(",")) == {"connect-failure", "refused-stream", "reset-before-request"}
    assert set(NOT_SENT.split(",")) == {"connect-failure", "reset-before-request"}


def is_tried_again(route: Any) -> bool:
    return "retry_policy" in route.get("route", {})


def test_what_may_change_the_server_is_sent_again_only_if_it_never_left() -> None:
    """The routes of changes, and those of gRPC, which has both kinds."""
    careful = {
        str(route["match"].get("path") or route["match"].get("prefix") or route["match"]["safe_regex"]["regex"])
        for route in routes_of(EnvoyOptions())
        if is_tried_again(route) and route["route"]["retry_policy"]["retry_on"] == NOT_SENT
    }
    assert {"/models/upload", "/admin/reload", *GRPC_PREFIXES} <= careful
    assert not {"/predict", "/health", "/models"} & careful


def test_attempts_have_a_budget() -> None:
    [threshold] = cluster(EnvoyOptions())["circuit_breakers"]["thresholds"]
    assert threshold["retry_budget"]["budget_percent"] == {"value": 20}
    assert "max_retries" not in threshold


def test_the_coarse_limit_is_there_only_if_asked_for() -> None:
    assert "ratelimit" not in json.dumps(render_bootstrap(EnvoyOptions()))
    config = manager(EnvoyOptions(per_second=50, cors_origins=("*",)))
    names = [each["name"].rpartition(".")[2] for each in config["http_filters"]]
    assert names[:4] == ["cors", "grpc_web", "local_ratelimit", "lua"]
    assert names[4:] == ["header_mutation", "grpc_json_transcoder", "router"]
    bucket = config["http_filters"][2]["typed_config"]["token_bucket"]
    assert bucket == {"max_tokens": 50, "tokens_per_fill": 50, "fill_interval": "1s"}


def test_the_coarse_limit_is_for_what_fronts_do_but_health() -> None:
    limited = {
        route["match"].get("path") or route["match"].get("prefix")
        for route in routes_of(EnvoyOptions(per_second=50))
        if FILTER not in route.get("typed_per_filter_config", {})
    }
    assert {"/predict", "/models", "/models/upload", *GRPC_PREFIXES} <= limited
    assert not {"/health", "/ready", "/v2/health/live", "/v2/health/ready", "/metrics", "/", "/docs"} & limited


def test_certificates_are_asked_for_only_where_authorities_are_named() -> None:
    plain = render_bootstrap(EnvoyOptions(tls_certificate="/a", tls_key="/b"))
    text = json.dumps(plain)
    assert '"forward_client_cert_details": "SANITIZE"' in text
    assert "trusted_ca" not in text
    assert "set_current_client_cert_details" not in text
    options = EnvoyOptions(
        tls_certificate="/a", tls_key="/b", tls_client_ca="/c", front_headers=(("x-nexus-envoy", "word"),)
    )
    assert "word" not in repr(options)
    (listener,) = render_bootstrap(options)["static_resources"]["listeners"]
    tls = listener["filter_chains"][0]["transport_socket"]["typed_config"]
    assert tls["require_client_certificate"] is False
    assert tls["common_tls_context"]["validation_context"] == {"trusted_ca": {"filename": "/c"}}
    assert manager(options)["forward_client_cert_details"] == "SANITIZE_SET"


def test_every_way_to_a_front_and_no_other_has_the_fronts_headers() -> None:
    """In place of a client's."""
    options = EnvoyOptions(front_headers=(("x-nexus-envoy", "word"),))
    for route in routes_of(options):
        added = route.get("request_headers_to_add", [])
        assert bool(added) == (route.get("route", {}).get("cluster") == "fronts"), route["match"]
        for each in added:
            assert each["header"] == {"key": "x-nexus-envoy", "value": "word"}
            assert each["append_action"] == "OVERWRITE_IF_EXISTS_OR_ADD"
    assert "word" not in json.dumps(render_bootstrap(options)["static_resources"]["clusters"])


def test_a_certificate_is_shown_for_any_page() -> None:
    """So where it makes somebody known, other pages' changes are refused, even if all may call."""

    def refused(options: EnvoyOptions) -> int:
        return sum(route.get("direct_response", {}).get("status") == 403 for route in routes_of(options))

    everywhere: dict[str, Any] = {"cors_origins": ("*",), "tls_certificate": "/a", "tls_key": "/b"}
    assert refused(EnvoyOptions(**everywhere)) == 0
    assert refused(EnvoyOptions(**everywhere, tls_client_ca="/c")) == refused(EnvoyOptions()) > 0


def test_silence_is_never_cut_before_the_timeout() -> None:
    """A model that takes ten minutes to load: the listener's own limit for silence is five."""
    routes = routes_of(EnvoyOptions(upload_timeout_s=600.0))
    actions = {(route["match"].get("path") or route["match"].get("prefix")): route["route"]
               for route in routes if "retry_policy" in route.get("route", {})}  # fmt: skip
    for path, limit in {"/models/upload": "600s", "/predict": "60s"}.items():
        assert actions[path]["max_stream_duration"] == {"max_stream_duration": limit}
        assert actions[path]["idle_timeout"] == "0s"
    # gRPC streams have no timeout; silent ones end as the listener says.
    for prefix in GRPC_PREFIXES:
        assert actions[prefix]["max_stream_duration"] == {"max_stream_duration": "0s"}
        assert "idle_timeout" not in actions[prefix]


def test_pages_of_others_may_not_call_unless_allowed() -> None:
    assert "filters.http.cors" not in json.dumps(manager(EnvoyOptions()))
    assert "https://a.example" in json.dumps(manager(EnvoyOptions(cors_origins=("https://a.example",))))


def test_static_files_have_a_path_each_and_fit(tmp_path: Path) -> None:
    assert static.static_files(tmp_path / "missing") == []
    for name in ("index.html", "docs.html", "openapi.json", "app.js", "notes.txt"):
        (tmp_path / name).write_text(name)
    files = {file.path: file.content_type for file in static.static_files(tmp_path)}
    assert files == {
        "/": "text/html; charset=utf-8",
        "/docs": "text/html; charset=utf-8",
        "/openapi.json": "application/json",
        "/assets/app.js": "text/javascript; charset=utf-8",
    }
    assert all(len(file.content) < DIRECT_BODY_MAX_BYTES for file in static.static_files())

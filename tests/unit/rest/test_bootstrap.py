"""nexus_grpc/rest/bootstrap.py: what Envoy says of it, and what a reader of envoy/bootstrap.yaml relies on."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nexus_grpc.rest import static_files as static
from nexus_grpc.rest.bootstrap import DIRECT_BODY_MAX_BYTES, EnvoyOptions, render_bootstrap
from nexus_grpc.supervisor.envoy_setup import find_binary

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


def test_only_what_was_not_begun_is_sent_again() -> None:
    routes = manager(EnvoyOptions())["route_config"]["virtual_hosts"][0]["routes"]
    policies = {
        route["route"]["retry_policy"]["retry_on"] for route in routes if "retry_policy" in route.get("route", {})
    }
    assert policies == {"connect-failure,refused-stream,reset-before-request"}


def test_silence_is_never_cut_before_the_timeout() -> None:
    """A model that takes ten minutes to load: the listener's own limit for silence is five."""
    routes = manager(EnvoyOptions(upload_timeout_s=600.0))["route_config"]["virtual_hosts"][0]["routes"]
    limits = {(route["match"].get("path"), route["route"]["timeout"]): route["route"].get("idle_timeout")
              for route in routes if "retry_policy" in route.get("route", {})}  # fmt: skip
    assert limits["/models/upload", "600s"] == "605s"
    assert limits["/predict", "60s"] == "65s"
    # gRPC streams have no timeout; silent ones end as the listener says.
    assert {idle for (_, timeout), idle in limits.items() if timeout == "0s"} == {None}


def test_pages_of_others_may_not_call_unless_allowed() -> None:
    assert "filters.http.cors" not in json.dumps(manager(EnvoyOptions())["route_config"])
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

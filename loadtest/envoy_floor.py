"""An Envoy that answers by itself: the least that any REST answer through Envoy costs on this machine."""

import json
from pathlib import Path
from typing import Any

import envoy

_MANAGER = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
BINARY = Path(envoy.__file__).parent / "_bin" / "envoy"


def bootstrap(port: int, answer: bytes) -> dict[str, Any]:
    """One listener whose every answer is `answer`; no other filter than the router."""
    route = {
        "match": {"prefix": "/"},
        "direct_response": {"status": 200, "body": {"inline_string": answer.decode()}},
        "response_headers_to_add": [{"header": {"key": "content-type", "value": "application/json"}}],
    }
    manager = {
        "@type": f"type.googleapis.com/{_MANAGER}",
        "stat_prefix": "floor",
        "route_config": {"virtual_hosts": [{"name": "floor", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
            }
        ],
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    return {"static_resources": {"listeners": [{"name": "floor", "address": address, "filter_chains": [chain]}]}}


def command(folder: Path, port: int, answer: bytes) -> list[str]:
    path = folder / "envoy-floor.json"
    path.write_text(json.dumps(bootstrap(port, answer)))
    return [str(BINARY), "-c", str(path), "--concurrency", "1", "--disable-hot-restart", "-l", "error"]

"""A limit of requests per second for one Envoy, whoever sends them: what is above it costs the fronts nothing.

Coarse: one token bucket for all. The exact limits, of keys and models and over several servers, are the fronts'.
"""

from typing import Any

FILTER = "envoy.filters.http.local_ratelimit"
_TYPE = "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"
_EXEMPT = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}
# Behind these: a preflight is not counted, and pages and gRPC-web clients can read the refusal.
_BEFORE = ("envoy.filters.http.cors", "envoy.filters.http.grpc_web")
# Whether the server lives must be known also when it is busy.
HEALTH_PATHS = ("/health", "/ready", "/v2/health/live", "/v2/health/ready")


def add_coarse_limit(manager: dict[str, Any], per_second: int) -> None:
    """Into a connection manager that has its routes; a burst is what a second allows."""
    filters = manager["http_filters"]
    at = max(number for number, each in enumerate(filters) if each["name"] in _BEFORE) + 1
    filters.insert(at, {"name": FILTER, "typed_config": _limit(per_second)})
    for host in manager["route_config"]["virtual_hosts"]:
        for route in host["routes"]:
            # Pages, metrics and refusals are no front's work.
            if route.get("route", {}).get("cluster") != "fronts" or route["match"].get("path") in HEALTH_PATHS:
                route["typed_per_filter_config"] = {**route.get("typed_per_filter_config", {}), FILTER: _EXEMPT}


def _limit(per_second: int) -> dict[str, Any]:
    always = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    # The bucket is full again within a second at most, and has a token before that. As limits/buckets.py names them.
    headers = {
        "retry-after": "1",
        "ratelimit-limit": str(per_second),
        "ratelimit-policy": f"{per_second};w=1;burst={per_second}",
        "ratelimit-remaining": "0",
        "ratelimit-reset": "1",
    }
    return {
        "@type": _TYPE,
        "stat_prefix": "rest",
        "token_bucket": {"max_tokens": per_second, "tokens_per_fill": per_second, "fill_interval": "1s"},
        "filter_enabled": always,
        "filter_enforced": always,
        "rate_limited_as_resource_exhausted": True,
        "response_headers_to_add": [
            {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
            for key, value in headers.items()
        ],
    }

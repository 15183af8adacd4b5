"""Envoy's own words: its answers in the one error shape (under /v2 in the protocol's), and its access log as JSON."""

from typing import Any

from nexus_grpc.rest.http_rules import V2_PREFIX

# HTTP status of what Envoy answers by itself → the gRPC code that the error body names.
CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED",
    413: "RESOURCE_EXHAUSTED",
    415: "INVALID_ARGUMENT",
    426: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    431: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
    507: "UNAVAILABLE",
}
# What is refused at once (no HTTP, a malformed path, overload) has got no id of Envoy's yet.
REQUEST_ID = '%COALESCE({"operators": [{"command": "REQ", "param": "x-request-id"}, "UNIQUE_ID"]})%'
_ACCESS_LOG = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"
_LOG_FIELDS = {
    "timestamp": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
    "level": "info",
    "event": "http_request",
    "role": "envoy",
    "index": 0,
    # The supervisor, which hands the lines on, puts Envoy's here (supervisor/foreign_log.py).
    "pid": 0,
    "method": "%REQ(X-ENVOY-ORIGINAL-METHOD?:METHOD)%",
    "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
    "protocol": "%PROTOCOL%",
    "status": "%RESPONSE_CODE%",
    "flags": "%RESPONSE_FLAGS%",
    "latency_ms": "%DURATION%",
    "bytes_in": "%BYTES_RECEIVED%",
    "bytes_out": "%BYTES_SENT%",
    "client": "%DOWNSTREAM_REMOTE_ADDRESS%",
    # The answer's, which the client saw; a CORS preflight's has none.
    "request_id": '%COALESCE({"operators": [{"command": "RESP", "param": "x-request-id"}, '
    '{"command": "REQ", "param": "x-request-id"}]})%',
    "traceparent": "%REQ(TRACEPARENT)%",
}


def local_reply_config() -> dict[str, Any]:
    """Mappers by status. Answers to gRPC calls stay what they are: their error is in the trailers."""
    # The text of an early refusal says little or nothing; the details are a word such as path_normalization_failed.
    early = [_mapper(status, code, _IS_EARLY, "refused: %RESPONSE_CODE_DETAILS%") for status, code in CODES.items()]
    v2_limited = _v2_mapper(429, _LIMITED)
    v2 = [_v2_mapper(status, "%LOCAL_REPLY_BODY%") for status in CODES if status != 429]
    limited = _mapper(429, CODES[429], _IS_REST, _LIMITED, _COME_AGAIN)
    later = [_mapper(status, code, _IS_REST, "%LOCAL_REPLY_BODY%") for status, code in CODES.items() if status != 429]
    return {"mappers": [*early, v2_limited, *v2, limited, *later]}


def _v2_mapper(status: int, message: str) -> dict[str, Any]:
    header = {"key": "x-request-id", "value": REQUEST_ID}
    return {
        "filter": {"and_filter": {"filters": [_status_is("EQ", status), _IS_V2]}},
        "headers_to_add": [{"header": header, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}],
        "body_format_override": {"json_format": {"error": message}, "content_type": "application/json"},
    }


def _mapper(
    status: int, code: str, condition: dict[str, Any], message: str, details: tuple[dict[str, str], ...] = ()
) -> dict[str, Any]:
    header = {"key": "x-request-id", "value": REQUEST_ID}
    return {
        "filter": {"and_filter": {"filters": [_status_is("EQ", status), condition]}},
        "headers_to_add": [{"header": header, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}],
        "body_format_override": {
            "json_format": {
                "error": {"code": code, "message": message, "details": list(details)},
                "request_id": "%RESP(X-REQUEST-ID)%",
            },
            "content_type": "application/json",
        },
    }


# The coarse limit (coarse_limit.py) alone has Envoy say 429; the server's own are answers like any other.
_LIMITED = "more requests at a time than this server lets through (rest_per_second); try again in 1 s"
_COME_AGAIN = ({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1s"},)
# Envoy gives every request this header, right after it has accepted it as HTTP.
_IS_EARLY = {
    "header_filter": {"header": {"name": "x-envoy-external-address", "present_match": True, "invert_match": True}}
}


def _status_is(operation: str, status: int) -> dict[str, Any]:
    value = {"default_value": status, "runtime_key": f"nexus.status.{operation.lower()}.{status}"}
    return {"status_code_filter": {"comparison": {"op": operation, "value": value}}}


# The transcoder puts another path in its place, and keeps the client's.
_V2_PATH = {"safe_regex": {"regex": f"{V2_PREFIX}([/?].*)?"}}
_IS_V2 = {
    "or_filter": {
        "filters": [
            {"header_filter": {"header": {"name": name, "string_match": _V2_PATH}}}
            for name in (":path", "x-envoy-original-path")
        ]
    }
}
# The second is for REST that the transcoder has made a gRPC call of.
_IS_REST = {
    "or_filter": {
        "filters": [
            {
                "header_filter": {
                    "header": {
                        "name": "content-type",
                        "string_match": {"prefix": "application/grpc"},
                        "invert_match": True,
                        "treat_missing_header_as_empty": True,
                    }
                }
            },
            {"header_filter": {"header": {"name": "x-envoy-original-method", "present_match": True}}},
        ]
    }
}


def access_log(path: str, sample: float) -> list[dict[str, Any]]:
    """JSON lines: every error, and the given share of the others."""
    if not path:
        return []
    log: dict[str, Any] = {
        "name": "envoy.access_loggers.file",
        "typed_config": {"@type": _ACCESS_LOG, "path": path, "log_format": {"json_format": _LOG_FIELDS}},
    }
    if sample < 1.0:
        chosen = {
            "runtime_filter": {
                "runtime_key": "nexus.access_log_sample",
                "percent_sampled": {"numerator": round(sample * 1e6), "denominator": "MILLION"},
                "use_independent_randomness": True,
            }
        }
        log["filter"] = {"or_filter": {"filters": [_status_is("GE", 400), chosen]}}
    return [log]

"""An error as REST clients see it: an HTTP status and one JSON shape, whatever went wrong; under /v2 another one."""

import json
import math

from google.protobuf import json_format
from google.rpc import error_details_pb2, status_pb2

from nexus_grpc.ipc.errors import Code

# Source: google.rpc.Code's own mapping (google/rpc/code.proto), CANCELLED as 499.
HTTP_STATUS = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
    Code.UNAUTHENTICATED: 401,
}
# Where HTTP tells more than gRPC's code: by ErrorInfo.reason.
HTTP_STATUS_BY_REASON = {"TOO_LARGE": 413, "MODEL_REFUSED": 422}
# json_format needs the details' descriptors in protobuf's default pool.
assert error_details_pb2.DESCRIPTOR is not None


def http_status(code: int, reason: str = "") -> int:
    """By the error's reason, else by its code; 500 for what has no status of its own."""
    return HTTP_STATUS_BY_REASON.get(reason) or HTTP_STATUS.get(Code(code), 500)


def error_headers(code: int, status: bytes) -> tuple[tuple[str, str], ...]:
    """The headers that tell what to do: Retry-After with 429 and 503 (RFC 9110, 10.2.3), WWW-Authenticate with 401 (RFC
    6750, 3). Where a client stands with its rate is told by others, with any answer (limits/buckets.py).

    Args:
        status: a serialised google.rpc.Status (ipc/rich_errors.py); may be empty.
    """
    if code == Code.UNAUTHENTICATED:
        return (("www-authenticate", "Bearer"),)
    seconds = retry_after_s(status) if code in (Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE) else 0.0
    if not seconds:
        return ()
    # Whole seconds, and not too early.
    return (("retry-after", str(math.ceil(seconds))),)


def retry_after_s(status: bytes) -> float:
    """Seconds of the google.rpc.RetryInfo in a serialised google.rpc.Status; 0.0 if there is none."""
    info = error_details_pb2.RetryInfo()
    for detail in status_pb2.Status.FromString(status).details:
        if detail.Unpack(info):
            return float(info.retry_delay.ToNanoseconds()) / 1e9
    return 0.0


def error_body(code: int, message: str, request_id: str, status: bytes = b"", *, v2: bool = False) -> bytes:
    """`{"error": {"code", "message", "details"}, "request_id"}` as UTF-8; for /v2 `{"error": "message"}`.

    Args:
        status: a serialised google.rpc.Status (ipc/rich_errors.py), whose details are shown; may be empty.
        v2: for a client of the Open Inference Protocol, which has that shape.
    """
    if v2:
        return _json({"error": message})
    details = json_format.MessageToDict(status_pb2.Status.FromString(status)).get("details", []) if status else []
    error = {"code": Code(code).name, "message": message, "details": details}
    return _json({"error": error, "request_id": request_id})


def _json(content: object) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")

"""What a call of the client can fail with. No type of grpc shows through.

NexusClientError        any failure; `code` is the gRPC status code's name
├── InvalidInput        INVALID_ARGUMENT, OUT_OF_RANGE: the request does not fit the model, or can't be encoded;
│                       RESOURCE_EXHAUSTED: a message is larger than somebody's limit (reason MESSAGE_TOO_LARGE)
├── NotFound            NOT_FOUND: no such model or version
├── AlreadyExists       ALREADY_EXISTS: the model has that version already
├── Unavailable         UNAVAILABLE: no server there, or the model is not ready; was retried
├── Overloaded          RESOURCE_EXHAUSTED: a limit is full; was retried if the server said when
└── DeadlineExceeded    DEADLINE_EXCEEDED: no answer in time
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

REQUEST_ID_KEY = "x-request-id"
_DETAILS_KEY = "grpc-status-details-bin"
_DETAIL_TYPES = {
    cls.DESCRIPTOR.full_name: cls
    for cls in (
        error_details_pb2.BadRequest,
        error_details_pb2.DebugInfo,
        error_details_pb2.ErrorInfo,
        error_details_pb2.Help,
        error_details_pb2.LocalizedMessage,
        error_details_pb2.PreconditionFailure,
        error_details_pb2.QuotaFailure,
        error_details_pb2.RequestInfo,
        error_details_pb2.ResourceInfo,
        error_details_pb2.RetryInfo,
    )
}
# As gRPC core says it (src/core/ext/filters/message_size/message_size_filter.cc).
_TOO_LARGE = re.compile(r"(CLIENT|SERVER): (Sent|Received) message larger than max \((\d+) vs\. (\d+)\)")


class NexusClientError(Exception):
    """A failed call.

    Attributes:
        code: the gRPC status code's name, such as "NOT_FOUND".
        message: what was wrong, in the server's words where it has spoken.
        reason: UPPER_SNAKE_CASE constant for programs (google.rpc.ErrorInfo.reason); "" when none was given.
        request_id: under which the server's log knows the call; "" when no server was reached and none was given.
        details: the google.rpc details as JSON-like dicts, each with its "@type".
        retry_after_s: seconds after which the server wants to be asked again (google.rpc.RetryInfo); None without one.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        reason: str = "",
        request_id: str = "",
        details: Sequence[dict[str, Any]] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.reason = reason
        self.request_id = request_id
        self.details = tuple(details)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        marks = [self.code, self.reason, f"request {self.request_id}" if self.request_id else ""]
        return f"{self.message} ({', '.join(mark for mark in marks if mark)})"


class InvalidInput(NexusClientError, ValueError):
    """The request does not fit the model (the message names the input), can't be encoded at all, or is too large."""


class NotFound(NexusClientError):
    """The server has no such model or version."""


class AlreadyExists(NexusClientError):
    """The server has that version of the model already; it was not touched."""


class Unavailable(NexusClientError):
    """No server could be reached, it is shutting down, or the model is not ready."""


class Overloaded(NexusClientError):
    """A queue, a ring or a rate is used up; later it is not."""


class DeadlineExceeded(NexusClientError):
    """The call's timeout passed before its answer came."""


_CLASSES: dict[str, type[NexusClientError]] = {
    "INVALID_ARGUMENT": InvalidInput,
    "OUT_OF_RANGE": InvalidInput,
    "NOT_FOUND": NotFound,
    "ALREADY_EXISTS": AlreadyExists,
    "UNAVAILABLE": Unavailable,
    "RESOURCE_EXHAUSTED": Overloaded,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
}


def error_of(code: str, message: str, **more: Any) -> NexusClientError:
    """The hierarchy's class for a status code's name; `more` as NexusClientError takes it."""
    return _CLASSES.get(code, NexusClientError)(code, message, **more)


def invalid(message: str) -> InvalidInput:
    """What the client itself refuses, before anything is sent."""
    return InvalidInput("INVALID_ARGUMENT", message, reason="INVALID_INPUT")


def closed() -> NexusClientError:
    return NexusClientError("FAILED_PRECONDITION", "the client is closed", reason="CLIENT_CLOSED")


def from_rpc(error: grpc.RpcError, request_id: str) -> NexusClientError:
    """The error of a call that grpc or grpc.aio reports; `request_id` is the one sent, if any."""
    # Both kinds of RpcError are calls too; only the stubs don't say so.
    call: Any = error
    code: grpc.StatusCode = call.code()
    details, reason, retry_after_s = _rich_details(call.trailing_metadata() or ())
    too_large = _TOO_LARGE.search(call.details() or "") if code is grpc.StatusCode.RESOURCE_EXHAUSTED else None
    if too_large is not None and not reason:
        sent = request_id_of(call.initial_metadata(), request_id)
        return InvalidInput(code.name, _too_large(*too_large.groups()), reason="MESSAGE_TOO_LARGE", request_id=sent)
    return error_of(
        code.name,
        call.details() or code.name,
        reason=reason,
        request_id=request_id_of(call.initial_metadata(), request_id),
        details=details,
        retry_after_s=retry_after_s,
    )


def _too_large(side: str, action: str, size: str, limit: str) -> str:
    """In the words of this client, for gRPC core's."""
    if action == "Sent":
        return f"the request has {size} bytes; this client sends at most {limit} (max_message_bytes): send fewer rows"
    if side == "SERVER":
        return f"the request has {size} bytes; the server takes at most {limit} (--max-message-bytes): send fewer rows"
    return f"the answer has {size} bytes; this client takes at most {limit} (max_message_bytes): ask for fewer rows"


def request_id_of(metadata: Iterable[tuple[str, str | bytes]] | None, sent: str) -> str:
    """The id that the server answered with; the one sent where it gave none."""
    return next((str(value) for key, value in metadata or () if key == REQUEST_ID_KEY), sent)


def _rich_details(metadata: Iterable[tuple[str, str | bytes]]) -> tuple[list[dict[str, Any]], str, float | None]:
    """(details, reason, retry_after_s) from the trailers. Source: https://grpc.io/docs/guides/error/"""
    raw = next((value for key, value in metadata if key == _DETAILS_KEY), b"")
    details: list[dict[str, Any]] = []
    reason, retry_after_s = "", None
    try:
        status = status_pb2.Status.FromString(raw if isinstance(raw, bytes) else b"")
        for packed in status.details:
            cls = _DETAIL_TYPES.get(packed.type_url.rpartition("/")[2])
            fields: dict[str, Any] = {}
            if cls is not None:
                message = cls.FromString(packed.value)
                fields = MessageToDict(message, preserving_proto_field_name=True)
                if isinstance(message, error_details_pb2.ErrorInfo):
                    reason = message.reason
                elif isinstance(message, error_details_pb2.RetryInfo):
                    retry_after_s = message.retry_delay.ToTimedelta().total_seconds()
            details.append({"@type": packed.type_url, **fields})
    except DecodeError:
        pass  # The code and the message are there all the same.
    return details, reason, retry_after_s

"""The errors a request can end with, and the one table of gRPC status codes.

    NexusError                      what happened, for whom, and which gRPC status it becomes
    ├── InvalidInput                INVALID_ARGUMENT     the request does not fit the model
    │   └── RejectedInput           INVALID_ARGUMENT     ONNX Runtime does not run the model on it
    ├── UnknownModel                NOT_FOUND            no such model or version
    ├── Overloaded                  RESOURCE_EXHAUSTED   a queue, a ring or a size limit is full
    ├── DeadlinePassed              DEADLINE_EXCEEDED    the client's deadline passed before the answer
    ├── Cancelled                   CANCELLED            the client went away
    ├── Unsupported                 UNIMPLEMENTED        a call this server does not offer
    ├── ModelUnavailable            UNAVAILABLE          the model or its worker is not ready (retry later)
    ├── ModelNotServable            FAILED_PRECONDITION  the model in the repository cannot be loaded or configured
    ├── AlreadyExists               ALREADY_EXISTS       an upload or a record for what is there already
    ├── StateConflict               FAILED_PRECONDITION  not in this state, such as no experiment running
    ├── TooLarge                    RESOURCE_EXHAUSTED   a file over its limit
    ├── Unauthenticated             UNAUTHENTICATED      no credential, or none that is known and valid
    ├── PermissionDenied            PERMISSION_DENIED    a known caller that may not do this
    ├── RateLimited                 RESOURCE_EXHAUSTED   a caller's or a model's rate is used up
    ├── StorageFailed               UNAVAILABLE          the disk or the registry did not take a change; nothing changed
    └── InferenceFailed             INTERNAL             ONNX Runtime failed, or the request killed its workers

Workers raise these without importing grpc; `Code` carries gRPC's numbers (grpc/status.h).
"""

import enum

from nexus_grpc.ipc.record import Blame


class Code(enum.IntEnum):
    """gRPC status codes. Source: https://grpc.github.io/grpc/core/md_doc_statuscodes.html"""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


CODE_COUNT = len(Code)
# google.rpc.ErrorInfo.domain of every error this server makes.
ERROR_DOMAIN = "nexus-grpc"
# A message goes into the trailers three times (grpc-message, Status, BadRequest), and clients take 8 KiB of metadata by
# default: what a client sent must not come back at any length.
MESSAGE_MAX_CHARACTERS = 1000
FIELD_MAX_CHARACTERS = 100


class NexusError(Exception):
    """A request-level error.

    Args:
        message: what was wrong, what was expected, and what to do; shown to the client as it is.
        reason: UPPER_SNAKE_CASE constant for programs (google.rpc.ErrorInfo.reason); the class's default if empty.
        field: name of the offending request field or tensor, for google.rpc.BadRequest; empty when none.
        retry_after_s: when to try again, for google.rpc.RetryInfo and Retry-After; 0 when there is no saying.

    Attributes:
        blame: whose fault it is, for circuits, guards and statistics.
    """

    code: Code = Code.UNKNOWN
    reason: str = "UNKNOWN"
    blame: Blame = Blame.NOBODY

    def __init__(self, message: str, *, reason: str = "", field: str = "", retry_after_s: float = 0.0) -> None:
        self.message = _cut(message, MESSAGE_MAX_CHARACTERS)
        super().__init__(self.message)
        self.field = _cut(field, FIELD_MAX_CHARACTERS)
        self.retry_after_s = retry_after_s
        if reason:
            self.reason = reason


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"


class InvalidInput(NexusError):
    code = Code.INVALID_ARGUMENT
    reason = "INVALID_INPUT"
    blame = Blame.CALLER


class RejectedInput(InvalidInput):
    reason = "MODEL_REJECTED_INPUT"
    blame = Blame.INPUT


class UnknownModel(NexusError):
    """A model, or a version, that is not there.

    Args:
        meant: the model that was probably meant; it is named to those only who may use it (`unhinted`).
    """

    code = Code.NOT_FOUND
    reason = "UNKNOWN_MODEL"
    blame = Blame.CALLER

    def __init__(self, message: str, *, reason: str = "", field: str = "", meant: str = "") -> None:
        super().__init__(f"{message}; did you mean '{meant}'?" if meant else message, reason=reason, field=field)
        self.meant = meant
        self._message = message

    def unhinted(self) -> "UnknownModel":
        """The same without the model that was meant."""
        return UnknownModel(self._message, reason=self.reason, field=self.field) if self.meant else self


class Overloaded(NexusError):
    code = Code.RESOURCE_EXHAUSTED
    reason = "OVERLOADED"


class DeadlinePassed(NexusError):
    code = Code.DEADLINE_EXCEEDED
    reason = "DEADLINE_PASSED"


class Cancelled(NexusError):
    code = Code.CANCELLED
    reason = "CANCELLED"
    blame = Blame.CALLER


class Unsupported(NexusError):
    code = Code.UNIMPLEMENTED
    reason = "UNSUPPORTED"
    blame = Blame.CALLER


class ModelUnavailable(NexusError):
    code = Code.UNAVAILABLE
    reason = "MODEL_UNAVAILABLE"


class ModelNotServable(NexusError):
    code = Code.FAILED_PRECONDITION
    reason = "MODEL_NOT_SERVABLE"


class InferenceFailed(NexusError):
    code = Code.INTERNAL
    reason = "INFERENCE_FAILED"


class AlreadyExists(NexusError):
    code = Code.ALREADY_EXISTS
    reason = "ALREADY_EXISTS"


class StateConflict(NexusError):
    code = Code.FAILED_PRECONDITION
    reason = "STATE_CONFLICT"


class TooLarge(NexusError):
    code = Code.RESOURCE_EXHAUSTED
    reason = "TOO_LARGE"


class StorageFailed(NexusError):
    code = Code.UNAVAILABLE
    reason = "STORAGE_FAILED"


class Unauthenticated(NexusError):
    code = Code.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"
    blame = Blame.CALLER


class PermissionDenied(NexusError):
    code = Code.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"
    blame = Blame.CALLER


class RateLimited(NexusError):
    code = Code.RESOURCE_EXHAUSTED
    reason = "RATE_LIMITED"
    blame = Blame.CALLER
    # RateLimit-… of the bucket that refused (limits/buckets.py).
    headers: tuple[tuple[str, str], ...] = ()

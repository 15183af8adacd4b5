"""NexusError → google.rpc.Status bytes, for the `grpc-status-details-bin` trailer.

Source: https://grpc.io/docs/guides/error/ (richer error model), google/rpc/error_details.proto.
"""

from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from nexus_grpc.ipc.errors import ERROR_DOMAIN, NexusError

DETAILS_KEY = "grpc-status-details-bin"


def status_bytes(error: NexusError) -> bytes:
    """A serialised google.rpc.Status: ErrorInfo, BadRequest if the error names a field, RetryInfo if it says when."""
    details = [_packed(error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN))]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.message)
        details.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
    if error.retry_after_s:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    status = status_pb2.Status(code=int(error.code), message=error.message, details=details)
    return bytes(status.SerializeToString())


def _packed(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed

"""grpc-status-details-bin."""

from google.rpc import error_details_pb2, status_pb2

from nexus_grpc.ipc.errors import ERROR_DOMAIN, InvalidInput, Overloaded
from nexus_grpc.ipc.rich_errors import status_bytes

# What gRPC's clients take of metadata unless told otherwise.
METADATA_BYTES = 8 << 10


def test_code_message_reason_and_domain() -> None:
    status = status_pb2.Status.FromString(status_bytes(Overloaded("too much")))
    assert (status.code, status.message) == (8, "too much")
    [detail] = status.details
    info = error_details_pb2.ErrorInfo()
    assert detail.Unpack(info)
    assert (info.reason, info.domain) == ("OVERLOADED", ERROR_DOMAIN)


def test_a_field_makes_a_bad_request() -> None:
    status = status_pb2.Status.FromString(status_bytes(InvalidInput("wrong", field="x")))
    violation = error_details_pb2.BadRequest()
    assert status.details[1].Unpack(violation)
    assert [(item.field, item.description) for item in violation.field_violations] == [("x", "wrong")]


def test_the_longest_error_fits_into_a_client_s_metadata() -> None:
    error = InvalidInput("x" * 100_000, field="f" * 100_000)
    assert len(error.message) + 4 * len(status_bytes(error)) / 3 < METADATA_BYTES

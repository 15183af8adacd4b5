"""Statuses become the right exceptions, with everything the server told; nothing of grpc shows."""

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from nexus_grpc.client import (
    AlreadyExists,
    DeadlineExceeded,
    InvalidInput,
    NexusClientError,
    NotFound,
    Overloaded,
    Retry,
    Unavailable,
)
from tests.unit.client.scripted import Ask, Refuse, ScriptedServer

ONCE = Retry(attempts=1)
CLASSES = {
    "INVALID_ARGUMENT": InvalidInput,
    "OUT_OF_RANGE": InvalidInput,
    "NOT_FOUND": NotFound,
    "ALREADY_EXISTS": AlreadyExists,
    "UNAVAILABLE": Unavailable,
    "RESOURCE_EXHAUSTED": Overloaded,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
}


def caught_from(ask: Ask, refusal: Refuse, request_id: str = "") -> NexusClientError:
    with ScriptedServer(refusal) as server, pytest.raises(NexusClientError) as caught:
        ask(server.address, retry=ONCE, request_id=request_id)
    return caught.value


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_code_has_its_class(ask: Ask, code: grpc.StatusCode) -> None:
    error = caught_from(ask, Refuse(code, "what was wrong"))
    assert type(error) is CLASSES.get(code.name, NexusClientError)
    assert (error.code, error.message, error.reason, error.details) == (code.name, "what was wrong", "", ())
    assert error.retry_after_s is None
    assert error.__cause__ is None
    assert not isinstance(error, grpc.RpcError)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (
            "SERVER: Received message larger than max (3000 vs. 2000)",
            "the request has 3000 bytes; the server takes at most 2000 (--max-message-bytes): send fewer rows",
        ),
        (
            "CLIENT: Sent message larger than max (3000 vs. 2000)",
            "the request has 3000 bytes; this client sends at most 2000 (max_message_bytes): send fewer rows",
        ),
        (
            "Stream removed (CLIENT: Received message larger than max (3000 vs. 2000))",
            "the answer has 3000 bytes; this client takes at most 2000 (max_message_bytes): ask for fewer rows",
        ),
    ],
)
def test_a_message_too_large_is_the_callers_to_make_smaller(ask: Ask, told: str, said: str) -> None:
    error = caught_from(ask, Refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, told), request_id="mine")
    assert type(error) is InvalidInput
    assert (error.code, error.reason, error.message) == ("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE", said)
    assert error.request_id == "mine"
    other = caught_from(ask, Refuse(grpc.StatusCode.INTERNAL, told))
    assert (type(other), other.message) == (NexusClientError, told)


def test_an_invalid_input_is_a_value_error(ask: Ask) -> None:
    assert isinstance(caught_from(ask, Refuse(grpc.StatusCode.INVALID_ARGUMENT)), ValueError)


def test_the_request_id_is_the_servers(ask: Ask) -> None:
    assert caught_from(ask, Refuse(grpc.StatusCode.INTERNAL)).request_id == "made-by-the-server"
    error = caught_from(ask, Refuse(grpc.StatusCode.INTERNAL, "broken"), request_id="mine")
    assert error.request_id == "mine"
    assert str(error) == "broken (INTERNAL, request mine)"


def test_details(ask: Ask) -> None:
    packed = [any_pb2.Any() for _ in range(4)]
    packed[0].Pack(error_details_pb2.ErrorInfo(reason="BAD_SHAPE", domain="nexus-grpc", metadata={"input": "X"}))
    violation = error_details_pb2.BadRequest.FieldViolation(field="X", description="too short")
    packed[1].Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    packed[2].CopyFrom(any_pb2.Any(type_url="type.googleapis.com/some.Other", value=b"\x01"))
    packed[3].Pack(error_details_pb2.RetryInfo(retry_delay={"seconds": 1, "nanos": 500_000_000}))
    status = status_pb2.Status(code=3, message="m", details=packed).SerializeToString()
    trailers = (("grpc-status-details-bin", status),)
    error = caught_from(ask, Refuse(grpc.StatusCode.INVALID_ARGUMENT, "m", trailers=trailers))
    assert (error.reason, error.retry_after_s) == ("BAD_SHAPE", 1.5)
    assert list(error.details) == [
        {
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": "BAD_SHAPE",
            "domain": "nexus-grpc",
            "metadata": {"input": "X"},
        },
        {
            "@type": "type.googleapis.com/google.rpc.BadRequest",
            "field_violations": [{"field": "X", "description": "too short"}],
        },
        {"@type": "type.googleapis.com/some.Other"},
        {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retry_delay": "1.500s"},
    ]
    assert str(error) == "m (INVALID_ARGUMENT, BAD_SHAPE, request made-by-the-server)"


@pytest.mark.parametrize("garbage", [b"\xff\xff", b"\x1a\x05\x0a\x30type.googleapis.com", b""])
def test_broken_details_hide_nothing(ask: Ask, garbage: bytes) -> None:
    trailers = (("grpc-status-details-bin", garbage),)
    error = caught_from(ask, Refuse(grpc.StatusCode.NOT_FOUND, "no such model", trailers=trailers))
    assert (type(error), error.message, error.details) == (NotFound, "no such model", ())

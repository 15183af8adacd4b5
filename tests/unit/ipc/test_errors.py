"""Errors and gRPC's codes."""

import grpc
import pytest

from nexus_grpc.ipc import errors
from nexus_grpc.ipc.errors import CODE_COUNT, Code, InvalidInput, NexusError

CLASSES = sorted(NexusError.__subclasses__(), key=lambda item: item.__name__)


def test_the_codes_are_grpc_s() -> None:
    assert {code.name: int(code) for code in Code} == {code.name: code.value[0] for code in grpc.StatusCode}
    assert len(grpc.StatusCode) == CODE_COUNT


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_has_a_reason_and_stands_in_the_table(kind: type[NexusError]) -> None:
    error = kind("what", field="where")
    assert str(error) == error.message == "what"
    assert error.field == "where"
    assert error.reason == error.reason.upper() != ""
    if kind.__module__ == errors.__name__:
        assert f"{kind.__name__} " in (errors.__doc__ or "")
        assert kind.code.name in (errors.__doc__ or "")


def test_a_reason_may_be_given() -> None:
    assert InvalidInput("x", reason="SPECIAL").reason == "SPECIAL"
    assert InvalidInput("x").reason == "INVALID_INPUT"


def test_what_a_client_sent_does_not_come_back_at_any_length() -> None:
    error = InvalidInput("x" * 1_000_000, field="f" * 1_000_000)
    assert len(error.message) == errors.MESSAGE_MAX_CHARACTERS
    assert len(error.field) == errors.FIELD_MAX_CHARACTERS
    assert error.message.endswith("x…")

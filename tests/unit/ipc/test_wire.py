"""The wire-format scanner."""

import pytest

from nexus_grpc.ipc.wire import (
    FIXED32,
    FIXED64,
    LENGTH_DELIMITED,
    VARINT,
    WireError,
    fields,
    length_prefix,
    read_varint,
    spans,
)
from nexus_grpc.ipc.wire import varint as encode
from nexus_grpc.pb.inference import grpc_service_pb2 as pb


@pytest.mark.parametrize("value", [0, 1, 127, 128, 16_383, 16_384, 2**32, 2**63, 2**64 - 1])
def test_varints_round_trip(value: int) -> None:
    assert read_varint(b"?" + encode(value) + b"\x80", 1) == (value, 1 + len(encode(value)))


@pytest.mark.parametrize("cut", [b"", b"\x80", b"\xff" * 9, b"\x80" * 10 + b"\x01"])
def test_a_cut_or_endless_varint(cut: bytes) -> None:
    with pytest.raises(WireError, match="varint"):
        read_varint(cut, 0)


def test_fields_in_order_with_their_spans() -> None:
    message = b"\x08\x96\x01" + b"\x11" + bytes(8) + b"\x1a\x03abc" + b"\x25" + bytes(4)
    assert list(fields(message)) == [
        (1, VARINT, 1, 3),
        (2, FIXED64, 4, 12),
        (3, LENGTH_DELIMITED, 14, 17),
        (4, FIXED32, 18, 22),
    ]


@pytest.mark.parametrize(
    "message", [b"\x1a\x04abc", b"\x11" + bytes(7), b"\x25" + bytes(3), b"\x0b", b"\x0c", b"\x00\x00"]
)
def test_what_is_no_message(message: bytes) -> None:
    with pytest.raises(WireError):
        list(fields(message))


def test_spans_of_one_field() -> None:
    message = pb.ModelInferRequest(model_name="m", raw_input_contents=[b"one", b"", b"x" * 200]).SerializeToString()
    assert [message[start:end] for start, end in spans(message, 7)] == [b"one", b"", b"x" * 200]
    assert spans(message, 9) == []


def test_a_length_prefix_is_protobuf_s() -> None:
    whole = pb.ModelInferRequest(raw_input_contents=[b"x" * 300]).SerializeToString()
    assert length_prefix(7, 300) + b"x" * 300 == whole

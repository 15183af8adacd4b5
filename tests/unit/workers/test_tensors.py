"""The table of datatypes and the BYTES encoding."""

import numpy as np
import pytest

from nexus_grpc.ipc.errors import InvalidInput
from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from nexus_grpc.pb.inference import model_config_pb2 as config_pb
from nexus_grpc.worker.tensors import (
    BY_NAME,
    BY_ONNX,
    DATATYPES,
    Datatype,
    decode_bytes_tensor,
    encode_bytes_tensor,
    text_array,
    text_elements,
)


@pytest.mark.parametrize("row", DATATYPES, ids=lambda row: row.name)
def test_every_row_names_things_that_exist(row: Datatype) -> None:
    assert BY_NAME[row.name] is BY_ONNX[row.onnx] is row
    assert row.config in config_pb.DataType.DESCRIPTOR.values_by_name
    assert not row.contents or row.contents in pb.InferTensorContents.DESCRIPTOR.fields_by_name
    assert row.dtype.byteorder in "<|="
    assert row.itemsize_bytes == row.dtype.itemsize


def test_bytes_elements_round_trip() -> None:
    array = text_array(["", "a", "äöü", "x" * 300]).reshape(2, 2)
    raw = encode_bytes_tensor(array)
    assert raw.startswith(b"\0\0\0\0\1\0\0\0a")
    assert decode_bytes_tensor(raw, 4, "x").tolist() == ["", "a", "äöü", "x" * 300]
    assert decode_bytes_tensor(memoryview(raw), 4, "x").tolist() == ["", "a", "äöü", "x" * 300]


def test_bytes_and_text_elements_are_both_written() -> None:
    assert text_elements(np.array([b"\xff", "ä", 3], dtype=object)) == [b"\xff", "ä".encode(), b"3"]


@pytest.mark.parametrize(
    ("raw", "count", "text"),
    [
        (b"\1\0\0", 1, r"ends inside a length prefix \(3 of 4 bytes\)"),
        (b"\5\0\0\0abc", 1, "element 0 is truncated: expected 5 bytes, got 3"),
        (b"\xff\xff\xff\xff", 1, "truncated"),
        (b"\1\0\0\0a", 2, "expected 2 BYTES elements, got 1"),
        (b"\1\0\0\0a\0\0\0\0", 1, "expected 1 BYTES elements, got 2"),
        (b"", 1, "expected 1 BYTES elements, got 0"),
        (b"\1\0\0\0a\1\0\0\0\xff", 2, "element 1 is not valid UTF-8"),
    ],
)
def test_malformed_bytes_content(raw: bytes, count: int, text: str) -> None:
    with pytest.raises(InvalidInput, match=text) as caught:
        decode_bytes_tensor(raw, count, "words")
    assert caught.value.field == "words"
    assert "input 'words'" in caught.value.message


def test_no_elements_are_an_empty_array() -> None:
    assert decode_bytes_tensor(b"", 0, "x").shape == (0,)

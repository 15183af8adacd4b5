"""A model file without its weights: what a proof reads of 500 MB are a few hundred kilobytes.

The file is protobuf (onnx/onnx.proto); a message is a row of fields, each a key (number and wire type, a varint) and
what it holds. Messages that are small are copied as they are; of large tensors the data are left out, of large
attributes the lists of numbers.
"""

import mmap
import os
from collections.abc import Iterator

from onnx import ModelProto

from nexus_grpc.ipc.wire import varint

# No tensor or attribute that says something about shapes is as large.
SMALL_BYTES = 1 << 16
# A model that is larger than this without its weights is not one that people make.
SKIMMED_BYTES_MAX = 256 << 20

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# By message: the fields that are messages to be looked into, and what they are.
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
    "tensor": {},
}
# By message: the fields that hold data. A tensor's: float, int32, string, int64, raw, double, uint64.
_DATA: dict[str, frozenset[int]] = {
    "tensor": frozenset({4, 5, 6, 7, 9, 10, 11}),
    "attribute": frozenset({7, 8, 9}),
}


class NotSkimmed(Exception):
    """The file is no protobuf message, or too large even without its weights."""


def skim_file(path: str) -> ModelProto:
    """A model file without its weights. Raises OSError, NotSkimmed."""
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise NotSkimmed("the file is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content, memoryview(content) as view:
            return skim(view)


def skim(content: memoryview) -> ModelProto:
    """As `skim_file`, of a file's content."""
    model = ModelProto()
    try:
        kept = b"".join(_kept("model", content))
        if len(kept) > SKIMMED_BYTES_MAX:
            raise NotSkimmed("the model is very large, even without its weights")
        model.ParseFromString(kept)
    except NotSkimmed:
        raise
    except Exception:
        raise NotSkimmed("the file is not read as an ONNX model") from None
    return model


def _kept(kind: str, view: memoryview) -> Iterator[bytes]:
    """The pieces of a message that stay."""
    inside, data = _INSIDE[kind], _DATA.get(kind, frozenset())
    for number, key, value in _fields(view):
        if number in data:
            continue
        if number in inside and len(value) > SMALL_BYTES:
            content = b"".join(_kept(inside[number], value))
            yield key + varint(len(content)) + content
        elif key[0] & 7 == _BYTES:
            yield key + varint(len(value)) + bytes(value)
        else:
            yield key + bytes(value)


def _fields(view: memoryview) -> Iterator[tuple[int, bytes, memoryview]]:
    """A message's fields: number, key as it is, and what it holds (of a varint: its bytes). Raises IndexError and
    NotSkimmed where it is broken."""
    at, end = 0, len(view)
    while at < end:
        start = at
        number, at = _read_varint(view, at)
        key = bytes(view[start:at])
        wire = number & 7
        start = at
        if wire == _BYTES:
            length, start = _read_varint(view, at)
            at = start + length
        elif wire == _VARINT:
            _, at = _read_varint(view, at)
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
        else:
            raise NotSkimmed("a field of a kind that ONNX does not have")
        if at > end:
            raise NotSkimmed("the file is truncated")
        yield number >> 3, key, view[start:at]


def _read_varint(view: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = view[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7

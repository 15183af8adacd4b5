"""Datatypes of the Open Inference Protocol, numpy dtypes and ONNX types: one table, and the BYTES encoding.

Source: Open Inference Protocol v2, "Tensor Data Types"; BYTES elements travel raw as a 4-byte little-endian length
followed by the bytes. BF16's dtype is that of ml_dtypes, which numpy treats as a number of no kind ("V") that it knows.
"""

import dataclasses
import struct
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from nexus_grpc.ipc.errors import InvalidInput

Array = npt.NDArray[np.generic]
# One model input of one request: little-endian bytes of a fixed-size datatype, or an object array of str.
Piece = bytes | memoryview | Array


@dataclasses.dataclass(frozen=True, slots=True)
class Datatype:
    """One row of the table. `contents` is the InferTensorContents field for typed tensors ("" = raw only)."""

    name: str
    onnx: str
    dtype: np.dtype[np.generic]
    contents: str
    config: str

    @property
    def itemsize_bytes(self) -> int:
        return self.dtype.itemsize

    @property
    def is_float(self) -> bool:
        return is_float(self.dtype)


def is_float(dtype: np.dtype[Any]) -> bool:
    """Of a tensor's dtype, in which numpy's kind of no kind is bfloat16."""
    return dtype.kind in "fV"


def _row(name: str, onnx: str, dtype: Any, contents: str, config: str = "") -> Datatype:
    return Datatype(name, f"tensor({onnx})", np.dtype(dtype), contents, f"TYPE_{config or name}")


DATATYPES = (
    _row("BOOL", "bool", "?", "bool_contents"),
    _row("UINT8", "uint8", "<u1", "uint_contents"),
    _row("UINT16", "uint16", "<u2", "uint_contents"),
    _row("UINT32", "uint32", "<u4", "uint_contents"),
    _row("UINT64", "uint64", "<u8", "uint64_contents"),
    _row("INT8", "int8", "<i1", "int_contents"),
    _row("INT16", "int16", "<i2", "int_contents"),
    _row("INT32", "int32", "<i4", "int_contents"),
    _row("INT64", "int64", "<i8", "int64_contents"),
    _row("FP16", "float16", "<f2", ""),
    _row("BF16", "bfloat16", ml_dtypes.bfloat16, ""),
    _row("FP32", "float", "<f4", "fp32_contents"),
    _row("FP64", "double", "<f8", "fp64_contents"),
    _row("BYTES", "string", "O", "bytes_contents", "STRING"),
)
BY_NAME = {row.name: row for row in DATATYPES}
BY_ONNX = {row.onnx: row for row in DATATYPES}
BYTES = BY_NAME["BYTES"]
BOOL = BY_NAME["BOOL"]
BF16 = BY_NAME["BF16"]

_LENGTH = struct.Struct("<I")


def decode_bytes_tensor(raw: bytes | memoryview, count: int, name: str) -> Array:
    """`count` length-prefixed UTF-8 elements → object array of str, shape [count].

    Raises InvalidInput when the elements do not fill `raw` exactly or are not UTF-8 (ONNX strings are UTF-8).
    """
    elements: list[str] = []
    offset = 0
    total = len(raw)
    while offset < total:
        if total - offset < _LENGTH.size:
            raise InvalidInput(
                f"input '{name}': BYTES content ends inside a length prefix ({total - offset} of 4 bytes)", field=name
            )
        (length,) = _LENGTH.unpack_from(raw, offset)
        offset += _LENGTH.size
        if length > total - offset:
            raise InvalidInput(
                f"input '{name}': BYTES element {len(elements)} is truncated: expected {length} bytes, got"
                f" {total - offset}",
                field=name,
            )
        elements.append(decode_text(bytes(raw[offset : offset + length]), name, len(elements)))
        offset += length
    if len(elements) != count:
        raise InvalidInput(f"input '{name}': expected {count} BYTES elements, got {len(elements)}", field=name)
    return text_array(elements)


def decode_text(element: bytes, name: str, index: int) -> str:
    """Raises InvalidInput when the element is not UTF-8."""
    try:
        return element.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"input '{name}': BYTES element {index} is not valid UTF-8: {error.reason}", field=name
        ) from None


def text_array(elements: list[str]) -> Array:
    """Object array of str, shape [len(elements)]."""
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array


def text_elements(array: Array) -> list[bytes]:
    """Flatten an array of str or bytes to UTF-8 bytes, row-major."""
    return [item if isinstance(item, bytes) else str(item).encode() for item in array.ravel().tolist()]


def encode_bytes_tensor(array: Array) -> bytes:
    """Array of str or bytes → length-prefixed elements, row-major."""
    parts = []
    for element in text_elements(array):
        parts.append(_LENGTH.pack(len(element)))
        parts.append(element)
    return b"".join(parts)

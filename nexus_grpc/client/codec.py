"""numpy arrays ↔ tensors of the Open Inference Protocol: the one place that knows datatypes and encodings.

Raw contents are little-endian and row-major; BYTES elements are a 4-byte length and the data.
Source: Open Inference Protocol v2, "Tensor Data Types".
"""

import math
import struct
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nexus_grpc.client.errors import NexusClientError, invalid
from nexus_grpc.client.results import Array, Parameter
from nexus_grpc.pb.inference import grpc_service_pb2 as pb

try:
    import ml_dtypes
except ImportError:
    _BFLOAT16: Any = np.dtype("<u2")
else:
    _BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

BYTES, BF16 = "BYTES", "BF16"
# Datatype → (numpy's dtype, field of InferTensorContents that holds it typed; FP16 and BF16 travel raw only).
_TABLE: dict[str, tuple[np.dtype[Any], str]] = {
    "BOOL": (np.dtype("?"), "bool_contents"),
    "UINT8": (np.dtype("<u1"), "uint_contents"),
    "UINT16": (np.dtype("<u2"), "uint_contents"),
    "UINT32": (np.dtype("<u4"), "uint_contents"),
    "UINT64": (np.dtype("<u8"), "uint64_contents"),
    "INT8": (np.dtype("<i1"), "int_contents"),
    "INT16": (np.dtype("<i2"), "int_contents"),
    "INT32": (np.dtype("<i4"), "int_contents"),
    "INT64": (np.dtype("<i8"), "int64_contents"),
    "FP16": (np.dtype("<f2"), ""),
    "FP32": (np.dtype("<f4"), "fp32_contents"),
    "FP64": (np.dtype("<f8"), "fp64_contents"),
    BF16: (_BFLOAT16, ""),
    BYTES: (np.dtype(object), "bytes_contents"),
}
NUMBERS = {name: dtype for name, (dtype, _) in _TABLE.items() if name not in ("BOOL", BF16, BYTES)}
"""numpy's dtype of each datatype of numbers."""
# By dtype name, which is the same for every byte order. Without ml_dtypes uint16 stays UINT16.
_DATATYPES = {dtype.name: name for name, (dtype, _) in _TABLE.items() if name != BF16} | {"bfloat16": BF16}
# numpy kinds that are text: object, fixed-width str and bytes, StringDType.
_TEXT_KINDS = frozenset("OUST")
_LENGTH = struct.Struct("<I")
_INT64_MAX, _UINT64_MAX = 2**63 - 1, 2**64 - 1
_SWAPPED = ">" if sys.byteorder == "little" else "="


def encode_tensor(name: str, value: npt.ArrayLike, datatype: str = "") -> tuple[str, tuple[int, ...], bytes]:
    """(datatype, shape, raw contents) of an input.

    Args:
        name: the input's name, for errors.
        value: any shape. Numbers and booleans by their dtype; text as object array of str or bytes, or numpy's own
            string dtypes.
        datatype: the OIP datatype, where the dtype can't tell it: "BF16" for a uint16 array of bit patterns.

    Raises:
        InvalidInput: no datatype for this dtype, or an element that is neither str nor bytes.
    """
    array = _array(f"input '{name}'", value)
    known = BYTES if array.dtype.kind in _TEXT_KINDS else _DATATYPES.get(array.dtype.name)
    if known is None:
        raise invalid(f"input '{name}': no datatype of the Open Inference Protocol for dtype {array.dtype}")
    if datatype and datatype != known and not (datatype == BF16 and known == "UINT16"):
        raise invalid(f"input '{name}': an array of {array.dtype} can't be sent as {datatype}")
    if known == BYTES:
        return BYTES, array.shape, _encode_texts(name, array)
    if array.dtype.byteorder == _SWAPPED:
        array = array.astype(array.dtype.newbyteorder("<"))
    return datatype or known, array.shape, array.tobytes()


def _array(what: str, value: npt.ArrayLike) -> Array:
    try:
        return np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise invalid(f"{what}: {error}") from None


def _encode_texts(name: str, array: Array) -> bytes:
    parts: list[bytes] = []
    for index, item in enumerate(array.ravel().tolist()):
        if isinstance(item, str):
            try:
                item = item.encode()
            except UnicodeEncodeError as error:  # a lone surrogate
                raise invalid(f"input '{name}': element {index} can't be encoded: {error.reason}") from None
        elif not isinstance(item, bytes):
            raise invalid(f"input '{name}': element {index} is {type(item).__name__}, expected str or bytes")
        parts += (_LENGTH.pack(len(item)), item)
    return b"".join(parts)


def decode_tensor(name: str, datatype: str, shape: Sequence[int], raw: bytes) -> Array:
    """An output from its raw contents: a read-only view, or an object array of bytes for BYTES.

    Raises:
        NexusClientError: the server's bytes don't fill the shape, or its datatype is unknown (code INTERNAL).
    """
    dtype, _ = _known(name, datatype)
    if datatype == BYTES:
        elements = _decode_texts(name, raw)
        return _shaped(name, _object_array(elements), shape)
    if len(raw) != math.prod(shape) * dtype.itemsize:
        raise _malformed(name, f"{len(raw)} bytes for shape {list(shape)} of {datatype}")
    return _shaped(name, np.frombuffer(raw, dtype), shape)


def decode_typed(name: str, datatype: str, shape: Sequence[int], contents: pb.InferTensorContents) -> Array:
    """An output from typed contents, which servers use where the request had no raw ones. Raises as decode_tensor."""
    dtype, field = _known(name, datatype)
    values = list(getattr(contents, field)) if field else []
    try:
        array = _object_array(values) if datatype == BYTES else np.array(values, dtype)
    except OverflowError:
        raise _malformed(name, f"a value does not fit {datatype}") from None
    return _shaped(name, array, shape)


def _known(name: str, datatype: str) -> tuple[np.dtype[Any], str]:
    if datatype not in _TABLE:
        raise _malformed(name, f"unknown datatype '{datatype}'")
    return _TABLE[datatype]


def _decode_texts(name: str, raw: bytes) -> list[bytes]:
    elements: list[bytes] = []
    offset = 0
    while offset < len(raw):
        start = offset + _LENGTH.size
        end = start + (_LENGTH.unpack_from(raw, offset)[0] if start <= len(raw) else 0)
        if end > len(raw) or start > len(raw):
            raise _malformed(name, f"BYTES element {len(elements)} is cut off")
        elements.append(raw[start:end])
        offset = end
    return elements


def _object_array(elements: list[Any]) -> Array:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array


def _shaped(name: str, array: Array, shape: Sequence[int]) -> Array:
    if array.size != math.prod(shape) or any(dim < 0 for dim in shape):
        raise _malformed(name, f"{array.size} elements for shape {list(shape)}")
    return array.reshape(tuple(shape))


def _malformed(name: str, what: str) -> NexusClientError:
    return NexusClientError("INTERNAL", f"the answer's output '{name}' is malformed: {what}", reason="MALFORMED_ANSWER")


def encode_parameter(name: str, value: Parameter) -> pb.InferParameter:
    """Raises InvalidInput when the value is of no type that a parameter can have, or an integer out of range."""
    # bool is an int too: it must be asked first.
    if isinstance(value, bool):
        return pb.InferParameter(bool_param=value)
    if isinstance(value, int) and -_INT64_MAX - 1 <= value <= _INT64_MAX:
        return pb.InferParameter(int64_param=value)
    if isinstance(value, int) and 0 <= value <= _UINT64_MAX:
        return pb.InferParameter(uint64_param=value)
    if isinstance(value, float):
        return pb.InferParameter(double_param=value)
    if isinstance(value, str):
        return pb.InferParameter(string_param=value)
    raise invalid(f"parameter '{name}': expected bool, int (at most 64 bits), float or str, got {value!r}")


def decode_parameter(parameter: pb.InferParameter) -> Parameter:
    """The value; "" for a parameter that holds none."""
    choice = parameter.WhichOneof("parameter_choice")
    value: Parameter = getattr(parameter, choice) if choice else ""
    return value


def encode_row(features: npt.ArrayLike) -> tuple[list[float], list[str]]:
    """(features, texts) of one row for the predict methods, flattened: one of them is empty.

    Raises:
        InvalidInput: neither numbers nor text, an integer that a double can't hold, bytes that are not UTF-8.
    """
    array = _array("features", features)
    if array.dtype.kind in _TEXT_KINDS:
        return [], [_text(item) for item in array.ravel().tolist()]
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise invalid(f"features: expected numbers or text, got {array.dtype}")
    doubles = array.astype(np.float64).ravel()
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8 and bool((np.abs(doubles) > 2.0**53).any()):
        raise invalid("features: an integer beyond ±2^53 is not exact as a double; use infer")
    return doubles.tolist(), []


def _text(item: object) -> str:
    try:
        if isinstance(item, bytes):
            return item.decode()
        if isinstance(item, str):
            item.encode()  # protobuf refuses lone surrogates
            return item
    except UnicodeError:
        raise invalid(f"features: {item!r} is not UTF-8") from None
    raise invalid(f"features: expected numbers or text, got {type(item).__name__}")

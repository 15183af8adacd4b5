"""JSON values as tensors: lists flattened, every value checked against the input's datatype."""

import math
from typing import Any

import numpy as np

from nexus_grpc.ipc.errors import InvalidInput

from .model import Model, Shape, TensorSpec, shape_fits, shape_text
from .shapes import check_shape, feature_count, resolve_row, row_shape
from .tensors import BOOL, BYTES, Array, Piece, is_float, text_array

# Source: protobuf's JSON mapping of double; null is how tables of data (pandas, R) write what is missing.
_NOT_FINITE = {None: math.nan, "NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
# What an input of integers, or of floats, expects.
_NUMBER = ("a number", 'a number, null or "NaN", "Infinity", "-Infinity"')
_KINDS = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
# Deeper than any tensor that ONNX knows; a limit only so that a hostile body ends early.
DEPTH_MAX = 32


def flatten(data: list[Any], name: str) -> tuple[list[Any], Shape]:
    """Nested lists → (values in row-major order, shape). Raises InvalidInput when they are ragged."""
    shape = [len(data)]
    values = data
    while values and isinstance(values[0], list):
        size = len(values[0])
        if len(shape) >= DEPTH_MAX or any([not isinstance(each, list) or len(each) != size for each in values]):
            raise InvalidInput(f"input '{name}': its lists are not all of one length", field=name)
        shape.append(size)
        values = [value for each in values for value in each]
    return values, tuple(shape)


def json_piece(spec: TensorSpec, values: list[Any], field: str) -> Piece:
    """Flat values as the input's datatype. Raises InvalidInput naming the first that does not fit."""
    if spec.datatype is BYTES:
        _check_kind(spec, values, (str,), "text", field)
        return text_array(values)
    if spec.datatype is BOOL:
        _check_kind(spec, values, (bool,), "true or false", field)
        return np.array(values, dtype=np.bool_).tobytes()
    if not set(map(type, values)) <= {int, float}:
        values = with_missing(spec, values)
        _check_kind(spec, values, (int, float), _NUMBER[is_float(spec.datatype.dtype)], field)
    return number_piece(spec, values, f"value of '{spec.name}',", field)


def with_missing(spec: TensorSpec, values: list[Any]) -> list[Any]:
    """null and the texts of what JSON has no numbers for, as floats, where the input is of floats; the rest untouched.

    A missing value is NaN, as in scikit-learn and its kin; the texts are those that answers have (`json_values`).
    """
    if not is_float(spec.datatype.dtype):
        return values
    return [_NOT_FINITE.get(value, value) if value is None or type(value) is str else value for value in values]


def number_piece(spec: TensorSpec, values: list[Any], what: str, field: str) -> bytes:
    """int and float values as the input's dtype, little-endian. Raises InvalidInput; `what` is a value's name in it.

    Floats may round (a decimal is not a float32); integers may not, and floats for integers must be whole.
    """
    dtype = spec.datatype.dtype
    try:
        with np.errstate(over="raise", invalid="raise"):
            if is_float(dtype):
                return _rounded(np.array(values, dtype=np.float64), dtype).tobytes()
            exact = [int(value) for value in values]
            if exact == values:
                return np.array(exact, dtype=dtype).tobytes()
    except (OverflowError, FloatingPointError, ValueError):
        pass
    raise _misfit(spec, values, what, field)


def _rounded(values: Array, dtype: Any) -> Array:
    """Raises FloatingPointError, under errstate, where a number is too large for the dtype."""
    rounded = values.astype(dtype)
    if dtype.kind == "V" and (np.isinf(rounded) != np.isinf(values)).any():  # ml_dtypes tells numpy nothing of it
        raise FloatingPointError
    return rounded


def _misfit(spec: TensorSpec, values: list[Any], what: str, field: str) -> InvalidInput:
    for index, value in enumerate(values):
        if not _fits(value, spec.datatype.dtype):
            return InvalidInput(
                f"invalid input: {what} {index} ({value!r}) does not fit {spec.datatype.name}", field=field
            )
    return InvalidInput(f"invalid input: a {what} does not fit {spec.datatype.name}", field=field)


def _fits(value: float, dtype: Any) -> bool:
    try:
        with np.errstate(over="raise", invalid="raise"):
            if is_float(dtype):
                _rounded(np.array([value], dtype=np.float64), dtype)
                return True
            np.array([int(value)], dtype=dtype)
            return int(value) == value
    except (OverflowError, FloatingPointError, ValueError):
        return False


def feature_numbers(spec: TensorSpec, features: list[Any]) -> list[Any]:
    """The JSON values of `features` as int and float. Raises InvalidInput naming the first that is none."""
    if set(map(type, features)) <= {int, float} or spec.datatype is BYTES:
        return features
    numbers = with_missing(spec, features)
    for index, value in enumerate(numbers):
        if type(value) not in (int, float):
            place, wanted = f"features[{index}]", _NUMBER[is_float(spec.datatype.dtype)]
            raise InvalidInput(f"{place}: expected {wanted}, got {_KINDS.get(type(value))}", field=place)
    return numbers


def _check_kind(spec: TensorSpec, values: list[Any], kinds: tuple[type, ...], wanted: str, field: str) -> None:
    if set(map(type, values)) <= set(kinds):
        return
    for index, value in enumerate(values):
        if type(value) not in kinds:
            raise InvalidInput(
                f"input '{spec.name}': expected {wanted} for {spec.datatype.name}, value {index} is"
                f" {_KINDS.get(type(value), 'a number')}",
                field=field,
            )


def full_tensor(model: Model, spec: TensorSpec, shape: Shape, data: list[Any]) -> tuple[Piece, Shape]:
    """A tensor with its batch dimension. Raises InvalidInput when shape and data don't agree, or don't fit."""
    values, nested = flatten(data, spec.name)
    check_shape(model, spec, shape)
    count = _count(shape)
    # Lists without values say nothing of the dimensions behind the empty one: [[]] is [1,0], and [1,0,2].
    if len(values) != count or (count and len(nested) > 1 and nested != shape):
        raise InvalidInput(
            f"input '{spec.name}': expected {count} values for shape {shape_text(shape)}, got {len(values)}"
            + (f" in lists of shape {shape_text(nested)}" if len(nested) > 1 else ""),
            field=spec.name,
        )
    return json_piece(spec, values, spec.name), shape


def row_tensor(model: Model, spec: TensorSpec, shape: Shape, data: list[Any]) -> tuple[Piece, Shape]:
    """One row's piece, and its shape without the batch dimension. Raises InvalidInput.

    `shape` (or, without one, the nesting of `data`) may have a leading 1 for the batch; flat data is cut to the row's
    shape. Without a shape and without values, the row's one dimension of any size is 0.
    """
    values, nested = flatten(data, spec.name)
    given = shape or nested
    row = row_shape(model, spec)
    if shape and _count(shape) != len(values):
        raise InvalidInput(
            f"input '{spec.name}': expected {_count(shape)} values for shape {shape_text(shape)}, got {len(values)}",
            field=spec.name,
        )
    if spec.any_rank:
        return json_piece(spec, values, spec.name), given
    for candidate in (given, given[1:] if given[:1] == (1,) else given):
        if shape_fits(row, candidate):
            return json_piece(spec, values, spec.name), candidate
    if not values and not shape and row.count(-1) == 1:
        return json_piece(spec, values, spec.name), tuple([0 if dim == -1 else dim for dim in row])
    if len(given) == 1:
        expected, _ = feature_count(model, spec)
        return json_piece(spec, values, spec.name), resolve_row(model, row, len(values), expected)
    raise InvalidInput(
        f"input '{spec.name}' of model '{model.name}': expected one row of shape {shape_text(row)}, got"
        f" {shape_text(given)}",
        field=spec.name,
    )


def _count(shape: Shape) -> int:
    count = 1
    for dim in shape:
        count *= dim
    return count


def fed_shape(model: Model, spec: TensorSpec, row: Shape) -> Shape:
    """The shape in a signature: the row's, and a 1 before it where the model has a batch dimension we don't use."""
    return row if model.batchable or spec.is_constant or spec.shape[:1] != (-1,) else (1, *row)


def json_values(array: Array) -> list[Any]:
    """An output's values, flat, as JSON can carry them: NaN and infinities as the texts protobuf's mapping has."""
    values: list[Any] = array.ravel().tolist()
    if is_float(array.dtype) and not np.isfinite(array).all():
        return [_as_json(value) for value in values]
    if array.dtype == object:
        return [value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in values]
    return values


def _as_json(value: float) -> float | str:
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def nested(values: list[Any], shape: Shape) -> Any:
    """Flat values as lists nested by `shape`; the value itself for a scalar."""
    if not shape:
        return values[0]
    for size in reversed(shape[1:]):
        values = [values[start : start + size] for start in range(0, len(values), size)] if size else values
    return values

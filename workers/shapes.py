"""Does a request fit the model? Every check of shapes, rows and missing inputs, with its message."""

import math
from collections.abc import Iterable

from nexus_grpc.ipc.errors import InvalidInput

from .model import Model, Shape, TensorSpec, shape_text

# A tensor without elements costs its sender nothing, whatever its other dimensions say; real ones (an empty key-value
# cache, an empty sequence) stay far below this.
EMPTY_TENSOR_MAX = 1 << 20


def check_shape(model: Model, spec: TensorSpec, shape: Shape) -> None:
    """Raises InvalidInput naming the input, the expected shape and the one that came."""
    if any(dim < 0 for dim in shape) or not spec.fits(shape):
        raise InvalidInput(
            f"input '{spec.name}' of model '{model.name}': expected shape {shape_text(spec.shape)}, got"
            f" {shape_text(shape)}",
            field=spec.name,
        )
    if 0 in shape and math.prod([max(dim, 1) for dim in shape]) > EMPTY_TENSOR_MAX:
        raise InvalidInput(
            f"input '{spec.name}' of model '{model.name}': shape {shape_text(shape)} is too large for a tensor without"
            " elements",
            field=spec.name,
        )
    if model.has_rows(spec) and shape[0] < 1:
        raise InvalidInput(
            f"input '{spec.name}' of model '{model.name}': expected a batch of at least 1 row, got {shape_text(shape)}",
            field=spec.name,
        )


def check_missing(model: Model, given: Iterable[str]) -> None:
    """Raises InvalidInput naming the inputs that are required and absent."""
    names = set(given)
    missing = [spec.name for spec in model.inputs if spec.name not in names and not spec.optional]
    if missing:
        expected = ", ".join(f"'{spec.name}'" for spec in model.inputs)
        raise InvalidInput(
            f"model '{model.name}' expects inputs {expected}; missing: {', '.join(missing)}", field=missing[0]
        )


def common_rows(model: Model, shapes: dict[str, Shape]) -> int:
    """The request's row count. Raises InvalidInput when inputs disagree or the config's limit is passed."""
    if not model.batchable:
        return 1
    constant = {spec.name for spec in model.constants}
    counts = {shape[0] for name, shape in shapes.items() if name not in constant}
    if not counts:
        return 1
    if len(counts) != 1:
        listed = ", ".join(f"'{name}' {shape_text(shape)}" for name, shape in shapes.items())
        raise InvalidInput(f"inputs of model '{model.name}' must have the same batch dimension, got {listed}")
    rows = counts.pop()
    if model.batch_limit_is_strict and rows > model.max_batch_size:
        raise InvalidInput(f"batch of {rows} rows is larger than model '{model.name}' allows: {model.max_batch_size}")
    return rows


def row_shape(model: Model, spec: TensorSpec) -> Shape:
    """One row's shape, without the batch dimension."""
    if spec.is_constant or not (model.batchable or spec.shape[:1] == (-1,)):
        return spec.shape
    return spec.row_shape


def feature_count(model: Model, spec: TensorSpec) -> tuple[int, Shape]:
    """(values per row, shape of one request's row without batch dimension) for the flat-features API.

    A single dynamic dimension takes whatever is left over: then the count is 0. Raises InvalidInput when the model has
    more than one. An input of any number of dimensions gets the usual two.
    """
    row = (-1,) if spec.any_rank else row_shape(model, spec)
    dynamic = sum(dim == -1 for dim in row)
    if dynamic > 1:
        raise InvalidInput(
            f"model '{model.name}' has {dynamic} dynamic dimensions {shape_text(spec.shape)}; use ModelInfer, which"
            " carries shapes",
            field="features",
        )
    return (0 if dynamic else math.prod(row)), row


def resolve_row(model: Model, row: Shape, count: int, expected: int) -> Shape:
    """The row's shape with its dynamic dimension filled in. Raises InvalidInput on a wrong count."""
    if expected:
        if count != expected:
            raise InvalidInput(f"invalid input: expected {expected} features, got {count}", field="features")
        return row
    fixed = math.prod([dim for dim in row if dim != -1])
    if -1 not in row:  # an input with a dimension of size 0
        if count:
            raise InvalidInput(f"invalid input: expected 0 features, got {count}", field="features")
        return row
    if count == 0 or not fixed or count % fixed:
        raise InvalidInput(f"invalid input: expected a multiple of {fixed} features, got {count}", field="features")
    return tuple(count // fixed if dim == -1 else dim for dim in row)

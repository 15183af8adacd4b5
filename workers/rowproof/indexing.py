"""Operators that pick elements by their place."""

from collections.abc import Sequence

from .places import picked
from .sizes import BATCH, Dim, Size, divided, is_computed, product
from .values import (
    Call,
    Fixed,
    NotProved,
    RowNumbers,
    RowPlaces,
    Rows,
    Value,
    axes,
    need,
    need_fixed,
    position,
    rows,
)

# A slice that ends beyond this takes all of the batch: no batch has as many rows.
ENDLESS = 10**9
# Symbols of the inputs' own dimensions begin so (walk.py); rows with an empty dimension run alone (decision 0004).
INPUT_DIMENSION = "input "


def gather(call: Call) -> Sequence[Value]:
    data, indices = call.inputs
    if isinstance(indices, RowPlaces):
        return picked(call, data, indices)
    if not isinstance(data, Rows | Fixed) or not isinstance(indices, Rows | Fixed):
        raise NotProved("it picks by the number of rows, or by rows' numbers")
    if data.shape is None or indices.shape is None:
        raise NotProved("the number of dimensions is not known")
    axis = position(call.get("axis", 0), len(data.shape))
    shape = [*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :]]
    if isinstance(indices, Rows):
        need(isinstance(data, Fixed), "what it picks from and where both depend on the rows")
        return [indices.with_shape(shape, axis + indices.axis)]
    need(isinstance(data, Rows) and axis != data.axis, "it picks along the batch axis")
    own = rows(call)
    return [own.with_shape(shape, own.axis if axis > own.axis else own.axis - 1 + len(indices.shape))]


def gather_elements(call: Call) -> Sequence[Value]:
    """GatherElements and ScatterElements: data, indices and updates are rows of one layout."""
    first = rows(call)
    axis = position(call.get("axis", 0), first.rank)
    need(axis != first.axis, "it picks along the batch axis")
    for value in call.inputs:
        if not isinstance(value, Rows):
            raise NotProved("an operand has a fixed extent along the batch axis")
        same = (value.axis, value.rank, value.layout) == (first.axis, first.rank, first.layout)
        need(same, "the operands' batch axes do not line up")
    return [rows(call, 1) if call.op_type == "GatherElements" else first]


def gather_nd(call: Call) -> Sequence[Value]:
    data, indices = call.inputs[:2]
    batch_dims = call.get("batch_dims", 0)
    if isinstance(indices, RowNumbers):
        return [_own_rows(call, data, indices)]
    if not isinstance(indices, Rows) or not isinstance(data, Rows | Fixed) or data.shape is None:
        raise NotProved("its indices are not made of rows")
    width = indices.shape[-1]
    if not isinstance(width, int) or indices.axis == indices.rank - 1:
        raise NotProved("how many indices there are is not known")
    if isinstance(data, Rows):
        together = data.axis == indices.axis < batch_dims and data.layout == indices.layout
        need(together, "it picks along the batch axis")
    else:
        need(indices.axis >= batch_dims, "what it picks from has its own extent along the batch axis")
    return [indices.with_shape([*indices.shape[:-1], *data.shape[batch_dims + width :]])]


def _own_rows(call: Call, data: Value | None, indices: RowNumbers) -> Rows:
    """Indices whose column for the batch axis holds each row's own number: what is picked is the row's own."""
    need(call.get("batch_dims", 0) == 0, "row numbers beside batch_dims")
    if not isinstance(data, Rows) or data.layout != (1, 1):
        raise NotProved("row numbers pick from something else than rows")
    width = indices.shape[-1]
    if not isinstance(width, int) or indices.axis == len(indices.shape) - 1:
        raise NotProved("how many indices there are is not known")
    columns = indices.columns or (True,) * width
    need(columns == tuple(column == data.axis for column in range(width)), "row numbers pick along another axis")
    return Rows(indices.axis, (*indices.shape[:-1], *data.shape[width:]))


def _bounds(call: Call, name: str, index: int) -> list[object] | None:
    if name in call.attributes:
        return list(call.attributes[name])
    value = call.given(index)
    if isinstance(value, Fixed) and value.value is not None:
        return list(value.value.flat)
    return None


def cut(call: Call) -> Sequence[Value]:
    """Slice: not along the batch axis, or all of it."""
    value = rows(call)
    need_fixed(call)
    starts, ends, steps = _bounds(call, "starts", 1), _bounds(call, "ends", 2), _bounds(call, "steps", 4)
    chosen = axes(call, 3, value.rank)
    if chosen is None:
        if starts is None:
            raise NotProved("its axes are not known before the run")
        chosen = list(range(len(starts)))
    shape = list(value.shape)
    for index, axis in enumerate(chosen):
        start, end = starts[index] if starts else None, ends[index] if ends else None
        step = steps[index] if steps else 1 if call.given(4) is None else None
        if axis == value.axis:
            whole = start == 0 and step == 1 and isinstance(end, int) and end >= ENDLESS
            need(whole, "it cuts the batch, or turns it round")
        else:
            shape[axis] = _width(call, axis, shape[axis], (start, end, step))
    return [value.with_shape(shape)]


def _width(call: Call, axis: int, size: Dim, bounds: tuple[object, object, object]) -> Dim:
    start, end, step = bounds
    if not isinstance(start, int) or not isinstance(end, int) or not isinstance(step, int):
        return call.size(axis)
    if isinstance(size, int) and step < 0 and start < -size:  # Python begins elsewhere with it than ONNX
        return call.size(axis)
    if isinstance(size, int):
        # An end before the beginning, going backwards, means all that is left; Python writes None for it.
        return len(range(size)[start : None if step < 0 and end < -size else end : step])
    if (start == 0 and end >= ENDLESS and step == 1) or (start == -1 and end <= -ENDLESS and step == -1):
        return size
    if step == 1:
        own = isinstance(size, Size) and size.factor == 1 and all(n.startswith(INPUT_DIMENSION) for n in size.symbols)
        if (start, end) == (0, 1) and own:
            return 1
    return call.size(axis)


def one_hot(call: Call) -> Sequence[Value]:
    value = rows(call)
    need_fixed(call)
    axis = position(call.get("axis", -1), value.rank + 1)
    shape = list(value.shape)
    shape.insert(axis, call.size("depth"))
    return [value.with_shape(shape, value.axis + (axis <= value.axis))]


def pick_columns(call: Call) -> Sequence[Value]:
    """ai.onnx.ml's ArrayFeatureExtractor: along the last axis."""
    data, picked = call.inputs
    if isinstance(data, Rows) and isinstance(picked, Fixed):
        need(data.rank >= 2 and data.axis < data.rank - 1, "it picks along the batch axis")
        return [data.with_shape([*data.shape[:-1], call.size("width")])]
    if not isinstance(data, Fixed) or data.shape is None or not isinstance(picked, Rows):
        raise NotProved("it picks along the batch axis")
    single = all(size == 1 for size in data.shape[:-1])
    need(single and product(picked.shape[: picked.axis]) == 1 and picked.before == 1, "it picks along the batch axis")
    total = product(picked.shape)
    per_row = divided(total, BATCH)
    if per_row is None or is_computed(per_row):
        raise NotProved("how many it picks is not known")
    rank = max(2, len(data.shape))
    return [Rows(rank - 1, (*[1] * (rank - 1), total), 1, per_row)]

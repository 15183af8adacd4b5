"""Linear indices: a row's number times its length, plus a place in it, into rows that lie end to end.

So exporters write `mask[row_number, place]`: torch's for opsets without GatherND, and whoever flattens first.
"""

from collections.abc import Sequence

from .sizes import BATCH, Dim, broadcast, is_computed, of_batch, product, times
from .values import Call, Fixed, NotProved, RowNumbers, RowPlaces, Rows, Value, need

# They move elements of their first input, and make none.
_MOVING = frozenset({"Unsqueeze", "Squeeze", "Reshape", "Expand", "Transpose", "Identity", "Tile", "Slice", "Flatten"})
_INTEGERS = (6, 7)


def bound(call: Call) -> Dim | None:
    """What the elements of a node's fixed output are less than, if they are integers from 0 on."""
    if call.domain or not all(value is None or isinstance(value, Fixed) for value in call.inputs):
        return None
    if call.op_type == "Range":
        start, limit, step = (_only(value) for value in call.inputs)
        return limit if (start, step) == (0, 1) and not isinstance(limit, float) else None
    if call.op_type in _MOVING or (call.op_type == "Cast" and call.get("to") in _INTEGERS):
        return _below(call.inputs[0])
    if call.op_type == "Add":
        one, other = call.inputs
        return _below(one) if _is_zero(other) else _below(other) if _is_zero(one) else None
    return None


def _only(value: Value | None) -> Dim | float | None:
    """The element of a fixed tensor of one."""
    if not isinstance(value, Fixed) or value.value is None or value.value.size != 1:
        return None
    element: Dim | float | None = value.value.item()
    return element


def _is_zero(value: Value | None) -> bool:
    return isinstance(value, Fixed) and value.value is not None and all(element == 0 for element in value.value.flat)


def _below(value: Value | None) -> Dim | None:
    if not isinstance(value, Fixed):
        return None
    if value.below is None and value.value is not None and value.value.size:
        elements = list(value.value.flat)
        known = all(isinstance(element, int) and element >= 0 for element in elements)
        return max(elements) + 1 if known else None
    return value.below


def is_placing(call: Call) -> bool:
    return call.op_type in ("Mul", "Add") and any(isinstance(value, RowNumbers | RowPlaces) for value in call.inputs)


def placed(call: Call) -> Sequence[Value]:
    """Mul: row numbers by the length of a row. Add: a place in it."""
    one, other = call.inputs
    numbers, fixed = (one, other) if isinstance(one, RowNumbers | RowPlaces) else (other, one)
    if not isinstance(fixed, Fixed) or fixed.shape is None:
        raise NotProved("row numbers meet what depends on the batch")
    if call.op_type == "Mul" and isinstance(numbers, RowNumbers):
        stride = _only(fixed)
        if stride is None or isinstance(stride, float) or of_batch(stride) or is_computed(stride):
            raise NotProved("row numbers are multiplied by what is not the length of a row")
        need(not numbers.columns and stride != 0, "row numbers are rearranged")
        need(len(fixed.shape) <= len(numbers.shape), "row numbers are rearranged")
        return [RowPlaces(numbers.axis, numbers.shape, stride, True)]
    if not isinstance(numbers, RowPlaces) or call.op_type != "Add" or not numbers.is_start:
        raise NotProved("row numbers are rearranged")
    return [_within(numbers, fixed, fixed.shape)]


def _within(starts: RowPlaces, places: Fixed, own: Sequence[Dim]) -> RowPlaces:
    below, stride = _below(places), starts.stride
    fits = below == stride or (isinstance(below, int) and isinstance(stride, int) and below <= stride)
    need(below is not None and fits, "a place may lie in another row")
    back = len(starts.shape) - starts.axis
    need(len(own) < back or own[-back] == 1, "places differ from row to row")
    rank = max(len(own), len(starts.shape))
    pair = [[*[1] * (rank - len(shape)), *shape] for shape in (starts.shape, own)]
    shape = [broadcast(one, other) for one, other in zip(*pair, strict=True)]
    shape[rank - back] = BATCH
    return RowPlaces(rank - back, tuple(shape), stride, False)


def picked(call: Call, data: Value | None, places: RowPlaces) -> Sequence[Value]:
    """Gather from rows that lie end to end."""
    if not isinstance(data, Rows) or data.axis != 0 or call.get("axis", 0) not in (0, -data.rank):
        raise NotProved("row numbers pick from something else than rows")
    laid = data.layout == (1, places.stride) and data.shape[0] == times(BATCH, places.stride)
    need(laid, "row numbers pick from rows of another length")
    need(product(places.shape) != 0, "nothing is picked")
    return [Rows(places.axis, (*places.shape, *data.shape[1:]))]

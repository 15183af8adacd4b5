"""Operators that treat each element, or each element with its counterparts, by itself."""

from collections.abc import Sequence

from .places import is_placing, placed
from .sizes import Dim, broadcast
from .values import (
    Call,
    Fixed,
    NotProved,
    RowNumbers,
    RowPlaces,
    Rows,
    Value,
    is_single,
    need,
    need_fixed,
    position,
    rows,
)


def together(values: Sequence[Value | None]) -> Rows:
    """Operands laid over each other: one batch axis, counted from the end, of one layout; what is fixed is one element
    wide there."""
    operands: list[Rows | Fixed] = []
    for value in values:
        if value is None:
            continue
        if not isinstance(value, Rows | Fixed) or value.shape is None:
            raise NotProved("an operand counts rows, or its number of dimensions is not known")
        operands.append(value)
    batched = [operand for operand in operands if isinstance(operand, Rows)]
    need(batched, "no operand is made of rows")
    first = batched[0]
    back, rank = first.back, max(len(operand.shape or ()) for operand in operands)
    shape: list[Dim] = [1] * rank
    for operand in operands:
        _check_alignment(operand, first)
        own = operand.shape or ()
        for axis, size in enumerate(own, rank - len(own)):
            shape[axis] = broadcast(shape[axis], size)
    shape[rank - back] = first.shape[first.axis]
    return first.with_shape(shape, rank - back)


def _check_alignment(operand: Rows | Fixed, first: Rows) -> None:
    if isinstance(operand, Rows):
        need(operand.back == first.back and operand.layout == first.layout, "the operands' batch axes do not line up")
        return
    shape = operand.shape or ()
    need(
        len(shape) < first.back or shape[-first.back] == 1,
        "an operand that is the same for all batches has its own extent along the batch axis",
    )


def elementwise(call: Call) -> Sequence[Value]:
    need(call.opset >= 7 or call.domain or "axis" not in call.attributes, "the old way of broadcasting")
    if is_placing(call):
        return placed(call)
    return [together(call.inputs)]


def identity(call: Call) -> Sequence[Value]:
    value = call.inputs[0]
    need(isinstance(value, Rows | RowNumbers | RowPlaces), "the input counts rows")
    return [value] if value is not None else []


def cast(call: Call) -> Sequence[Value]:
    """To an integer type that holds any row's number, row numbers stay what they are."""
    value = call.inputs[0]
    if isinstance(value, RowNumbers | RowPlaces):
        need(call.get("to") in (6, 7), "row numbers are cast to another type")
        return [value]
    return [rows(call)]


def dropout(call: Call) -> Sequence[Value]:
    """Dropout, which is the identity outside training."""
    value = rows(call)
    training = call.given(2)
    need(
        training is None or (isinstance(training, Fixed) and training.value is not None and not training.value.any()),
        "it may be in training mode",
    )
    need(call.opset >= 7 or call.get("is_test"), "it is in training mode")
    return [value] * call.outputs


def quantise(call: Call) -> Sequence[Value]:
    """QuantizeLinear and its inverse, by a scale that is the same for all rows."""
    value = rows(call)
    need_fixed(call)
    scale = call.given(1)
    if not is_single(scale):
        vector = isinstance(scale, Fixed) and scale.shape is not None and len(scale.shape) == 1
        need(vector and not call.get("block_size"), "scales in blocks")
        apart = position(call.get("axis", 1), value.rank) != value.axis
        need(apart, "places along the batch axis have scales of their own")
    return [value]


def quantised_elementwise(call: Call) -> Sequence[Value]:
    """com.microsoft's QLinearAdd and its like: every scale and zero point is fixed and a single number."""
    binary = call.op_type in ("QLinearAdd", "QLinearMul")
    operands = (0, 3) if binary else (0,)
    others = [value for index, value in enumerate(call.inputs) if index not in operands]
    need(all(is_single(value) for value in others), "a scale or zero point is not a single fixed number")
    return [together([call.given(index) for index in operands])]


def clip(call: Call) -> Sequence[Value]:
    value = rows(call)
    need(all(is_single(bound) for bound in call.inputs[1:]), "a bound depends on the batch")
    return [value]


def gelu_with_bias(call: Call) -> Sequence[Value]:
    return [together(call.inputs[:2])]

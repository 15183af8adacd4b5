"""Operators along axes: none of them may be the batch's."""

from collections.abc import Sequence

from .values import Call, Fixed, NotProved, Rows, Value, axes, integers, need, need_fixed, position, rows

ALONG = "it works along the batch axis"


def softmax(call: Call) -> Sequence[Value]:
    value = rows(call)
    axis = position(call.get("axis", -1 if call.opset >= 13 else 1), value.rank)
    # Up to opset 12 all axes from this one on are one.
    need(axis != value.axis if call.opset >= 13 else axis > value.axis, ALONG)
    return [value]


def reduce(call: Call) -> Sequence[Value]:
    value = rows(call)
    need_fixed(call)
    gone = axes(call, 1, value.rank)
    if not gone and call.get("noop_with_empty_axes"):
        return [value]
    if not gone:
        raise NotProved("it works along all axes, the batch's among them")
    return [_without(call, value, gone)]


def arg_extreme(call: Call) -> Sequence[Value]:
    value = rows(call)
    return [_without(call, value, [position(call.get("axis", 0), value.rank)])]


def _without(call: Call, value: Rows, gone: list[int]) -> Rows:
    need(value.axis not in gone, ALONG)
    if call.get("keepdims", 1):
        return value.with_shape([1 if axis in gone else size for axis, size in enumerate(value.shape)])
    kept = [axis for axis in range(value.rank) if axis not in gone]
    return value.with_shape([value.shape[axis] for axis in kept], kept.index(value.axis))


def cumulate(call: Call) -> Sequence[Value]:
    value = rows(call)
    need_fixed(call)
    need(position(integers(call.given(1), "axis")[0], value.rank) != value.axis, ALONG)
    return [value]


def top(call: Call) -> Sequence[Value]:
    value = rows(call)
    need_fixed(call)
    axis = position(call.get("axis", -1), value.rank)
    need(axis != value.axis, ALONG)
    shape = list(value.shape)
    count = call.given(1)
    is_known = isinstance(count, Fixed) and count.value is not None and isinstance(count.value.flat[0], int)
    shape[axis] = integers(count, "k")[0] if is_known else call.size("k")
    return [value.with_shape(shape)] * call.outputs


def lp_normalise(call: Call) -> Sequence[Value]:
    value = rows(call)
    need(position(call.get("axis", -1), value.rank) != value.axis, ALONG)
    return [value]


def layer_norm(call: Call) -> Sequence[Value]:
    value = rows(call)
    need_fixed(call)
    need(position(call.get("axis", -1), value.rank) > value.axis, ALONG)
    need(call.outputs == 1, "its second output")
    for scale in call.inputs[1:]:
        if scale is not None:
            shape = scale.shape if isinstance(scale, Fixed) else None
            narrow = shape is not None and (len(shape) < value.back or shape[-value.back] == 1)
            need(narrow, "its scale has its own extent along the batch axis")
    return [value]


def skip_layer_norm(call: Call) -> Sequence[Value]:
    from .elementwise import together

    need_fixed(call, 2)
    need(all(isinstance(value, Rows) for value in call.inputs[:2]), "an operand is not made of rows")
    value = together(call.inputs[:2])
    need(value.axis < value.rank - 1 and rows(call, 0).rank == rows(call, 1).rank, ALONG)
    for scale in call.inputs[2:]:
        shape = scale.shape if isinstance(scale, Fixed) else None
        need(scale is None or (shape is not None and len(shape) == 1), "its scale is no vector")
    need(call.outputs in (1, 4), "its statistics")
    statistics = value.with_shape([*value.shape[:-1], 1])
    return [value, statistics, statistics, value][: call.outputs]


def mean_variance(call: Call) -> Sequence[Value]:
    value = rows(call)
    along = [position(axis, value.rank) for axis in call.get("axes", [0, 2, 3])]
    need(value.axis not in along, ALONG)
    return [value]

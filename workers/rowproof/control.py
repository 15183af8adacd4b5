"""Subgraphs that may hold rows: the branches of an If, and the body of a Scan over something else than the batch."""

from collections.abc import Sequence

from .sizes import Dim
from .values import Fixed, NotProved, Rows, Value, need


def same_form(one: Value, other: Value) -> bool:
    if isinstance(one, Rows) and isinstance(other, Rows):
        return one == other
    return isinstance(one, Fixed) and isinstance(other, Fixed)


def joined(one: list[Value], other: list[Value]) -> list[Value]:
    """What an If gives of which it is not known which branch it takes."""
    need(len(one) == len(other), "its branches differ")
    found: list[Value] = []
    for first, second in zip(one, other, strict=True):
        if not same_form(first, second):
            raise NotProved("its branches differ in form")
        if isinstance(first, Fixed) and isinstance(second, Fixed):
            found.append(Fixed(first.shape if first.shape == second.shape else None))
        else:
            found.append(first)
    return found


def carried(value: Value | None) -> Value:
    """A Scan's state as any of its turns finds it: what is fixed has other contents each time."""
    if isinstance(value, Fixed) and value.shape is not None:
        return Fixed(value.shape)
    if not isinstance(value, Rows):
        raise NotProved("its state counts rows, or has a shape that is not known")
    return value


def turn_of(value: Value | None, axis: int) -> tuple[Value, Dim]:
    """What one turn of a Scan sees of an input that it goes along, and how many turns there are."""
    if not isinstance(value, Rows | Fixed) or value.shape is None:
        raise NotProved("it goes along something whose shape is not known")
    need(0 <= axis < len(value.shape), "its axes are counted from the end")
    shape = [size for index, size in enumerate(value.shape) if index != axis]
    if isinstance(value, Fixed):
        return Fixed(tuple(shape)), value.shape[axis]
    need(axis != value.axis, "it goes along the batch")
    return value.with_shape(shape, value.axis - (axis < value.axis)), value.shape[axis]


def scanned(before: Sequence[Value], outputs: Sequence[Value], turns: Dim) -> list[Value]:
    """What a Scan gives: its state, whose form no turn may change, and what its turns made, one after the other along a
    new first axis."""
    found: list[Value] = []
    for one, other in zip(before, outputs, strict=False):
        same = one == other if isinstance(one, Rows) else isinstance(other, Fixed) and carried(other) == one
        need(same, "a turn changes the form of its state")
        found.append(one)
    for made in outputs[len(before) :]:
        if isinstance(made, Rows):
            found.append(made.with_shape([turns, *made.shape], made.axis + 1))
        else:
            found.append(Fixed())
    return found

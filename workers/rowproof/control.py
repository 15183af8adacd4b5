"""Branches of an If whose condition is the same for all batches: of subgraphs only these may hold rows."""

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

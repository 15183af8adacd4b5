"""What is known of a value in the graph, for all batches whose rows have one shape."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .sizes import BATCH, Dim, Element, batches, divided, is_computed, of_batch, product, shape_text, symbol, times

Shape = tuple[Dim, ...]
# A small tensor's elements: dtype object, each an Element.
Elements = np.ndarray[Any, np.dtype[Any]]


class NotProved(Exception):
    """The operator is not in the table, or not so used. The text says why, for the model's owner."""


@dataclasses.dataclass(frozen=True, slots=True)
class Fixed:
    """The same whatever the batch, though it may depend on the rows' shape. None: shape or contents are not known.

    narrow: in 32 bits, which wrap round sooner.
    below: its elements are integers of 0 or more, and less than this size; None: not known to be.
    """

    shape: Shape | None = None
    value: Elements | None = None
    narrow: bool = False
    below: Dim | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Sizes:
    """A small tensor with elements that depend on the number of rows, and on nothing else of the batch."""

    value: Elements
    narrow: bool = False

    @property
    def shape(self) -> Shape:
        return tuple(int(size) for size in self.value.shape)


@dataclasses.dataclass(frozen=True, slots=True)
class Rows:
    """Rows apart: dimension `axis` is [before, N, per_row] in row-major order, and what lies at n of N depends on row n
    of the inputs alone. No other dimension depends on the batch."""

    axis: int
    shape: Shape
    before: Dim = 1
    per_row: Dim = 1

    def __post_init__(self) -> None:
        own = times(times(self.before, BATCH), self.per_row)
        if self.shape[self.axis] != own or any(
            of_batch(size) for axis, size in enumerate(self.shape) if axis != self.axis
        ):
            raise NotProved(f"the batch dimension of {shape_text(self.shape)} is lost")

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def back(self) -> int:
        """The batch axis, counted from the end: 1 is the last."""
        return self.rank - self.axis

    @property
    def layout(self) -> tuple[Dim, Dim]:
        return self.before, self.per_row

    def with_shape(self, shape: Sequence[Dim], axis: int | None = None) -> "Rows":
        return Rows(self.axis if axis is None else axis, tuple(shape), self.before, self.per_row)


@dataclasses.dataclass(frozen=True, slots=True)
class RowNumbers:
    """Integers that are their own row's number, 0 to N-1, along `axis` of size N. In the last dimension, if it is
    `columns` long, only where `columns` says True; the other elements are as in Rows."""

    axis: int
    shape: Shape
    columns: tuple[bool, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class RowPlaces:
    """Integers that lie in their own row's part where rows of `stride` elements lie end to end: row n's, along `axis`
    of size N, are n * stride and less than stride more; with `is_start` exactly n * stride."""

    axis: int
    shape: Shape
    stride: Dim
    is_start: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Lost:
    """Anything else; `node`, `op_type` and `why` are of the first operator that lost it."""

    node: str
    op_type: str
    why: str


Value = Fixed | Sizes | Rows | RowNumbers | RowPlaces | Lost


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """One node as its rule sees it. `inputs` are never Lost; None for one that is left out."""

    op_type: str
    domain: str
    # Unique in the model: symbols for sizes that a rule does not know are named after it.
    label: str
    attributes: dict[str, Any]
    inputs: tuple[Value | None, ...]
    outputs: int
    opset: int

    def given(self, index: int) -> Value | None:
        return self.inputs[index] if index < len(self.inputs) else None

    def get(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def size(self, what: object) -> Dim:
        """A symbol for a dimension that does not depend on the batch."""
        return symbol(f"{self.label}.{what}")


# Raises NotProved; whatever else it raises counts as not proved, too.
Rule = Callable[[Call], Sequence[Value]]


def need(condition: object, why: str) -> None:
    if not condition:
        raise NotProved(why)


def rows(call: Call, index: int = 0) -> Rows:
    value = call.given(index)
    if not isinstance(value, Rows):
        raise NotProved(f"input {index} is not made of rows")
    return value


def need_fixed(call: Call, first: int = 1, last: int | None = None) -> None:
    for index in range(first, len(call.inputs) if last is None else min(last, len(call.inputs))):
        need(call.inputs[index] is None or isinstance(call.inputs[index], Fixed), f"input {index} depends on the batch")


def integers(value: Value | None, what: str) -> list[int]:
    """The known contents of a fixed tensor."""
    if not isinstance(value, Fixed) or value.value is None:
        raise NotProved(f"{what} is not known before the run")
    elements = list(value.value.flat)
    need(all(isinstance(element, int) for element in elements), f"{what} is not known before the run")
    return [int(element) for element in elements]


def elements_of(value: Value | None, what: str) -> list[Element]:
    """As `integers`, but with sizes, floats and what depends on the batch."""
    if not isinstance(value, Fixed | Sizes) or value.value is None:
        raise NotProved(f"{what} is not known before the run")
    return list(value.value.flat)


def fixed_shape(value: Value | None) -> Shape | None:
    return value.shape if isinstance(value, Fixed) else None


def is_single(value: Value | None) -> bool:
    """Left out, or a fixed tensor of one element."""
    return value is None or (isinstance(value, Fixed) and value.shape is not None and product(value.shape) == 1)


def position(axis: int, rank: int) -> int:
    need(-rank <= axis < rank, f"axis {axis} of {rank} dimensions")
    return axis + rank if axis < 0 else axis


def axes(call: Call, input_index: int, rank: int, what: str = "axes") -> list[int] | None:
    """The operator's axes, counted from 0: an attribute in old opsets, an input in new ones. None: not given."""
    found = call.get(what)
    if found is None:
        if call.given(input_index) is None:
            return None
        found = integers(call.given(input_index), what)
    return [position(axis, rank) for axis in found]


def contents(value: Any, narrow: bool = False) -> Fixed | Sizes:
    """A value with known elements."""
    array = np.asarray(value, dtype=object)
    if any(of_batch(element) for element in array.flat):
        return Sizes(array, narrow)
    return Fixed(array.shape, array, narrow)


def filled(shape: Sequence[Element]) -> Rows:
    """One thing repeated, along one axis N times."""
    sizes: list[Dim] = []
    for size in shape:
        if size is None or isinstance(size, float):
            raise NotProved("its shape depends on the batch in a way that is not followed")
        sizes.append(size)
    own = [axis for axis, size in enumerate(sizes) if batches(size)]
    need(len(own) == 1, f"shape {shape_text(sizes)} has not one batch dimension")
    per_row = divided(sizes[own[0]], BATCH)
    if per_row is None or of_batch(per_row) or is_computed(per_row):
        raise NotProved(f"shape {shape_text(sizes)} has no batch dimension of its own")
    return Rows(own[0], tuple(sizes), 1, per_row)

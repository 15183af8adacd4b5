"""Sizes that are not known as numbers: products of a factor and named symbols, such as 3·N·height.

N is the number of rows in the batch. No other symbol depends on the batch. A symbol whose name begins with "(" was
computed and may be any number, negative ones included; all others are the sizes of real dimensions.
"""

import dataclasses
import math
from collections.abc import Iterable

N = "N"


@dataclasses.dataclass(frozen=True, slots=True)
class Size:
    """`factor` times the product of `symbols`, which are sorted and may repeat; never without symbols."""

    factor: int
    symbols: tuple[str, ...]

    def __str__(self) -> str:
        return "*".join([*([str(self.factor)] if self.factor != 1 else []), *self.symbols])


Dim = int | Size
# One element of a small tensor: None depends on the batch in a way that is not followed.
Element = int | float | bool | Size | None

BATCH = Size(1, (N,))


def symbol(name: str) -> Size:
    return Size(1, (name,))


def _parts(size: Dim) -> tuple[int, tuple[str, ...]]:
    return (size.factor, size.symbols) if isinstance(size, Size) else (int(size), ())


def _made(factor: int, symbols: Iterable[str]) -> Dim:
    ordered = tuple(sorted(symbols))
    return Size(factor, ordered) if ordered and factor else factor


def times(one: Dim, other: Dim) -> Dim:
    (factor, symbols), (other_factor, other_symbols) = _parts(one), _parts(other)
    return _made(factor * other_factor, symbols + other_symbols)


def product(sizes: Iterable[Dim]) -> Dim:
    total: Dim = 1
    for size in sizes:
        total = times(total, size)
    return total


def divided(one: Dim, other: Dim) -> Dim | None:
    """one / other where that surely comes out even, else None."""
    (factor, symbols), (other_factor, other_symbols) = _parts(one), _parts(other)
    if other_factor == 0 or factor % other_factor:
        return None
    left = list(symbols)
    for name in other_symbols:
        if name not in left:
            return None
        left.remove(name)
    return _made(factor // other_factor, left)


def of_batch(element: Element) -> bool:
    """Whether it depends on the number of rows."""
    return element is None or (isinstance(element, Size) and N in element.symbols)


def batches(size: Dim) -> int:
    """How often N is a factor of it."""
    return size.symbols.count(N) if isinstance(size, Size) else 0


def is_computed(size: Dim) -> bool:
    """Whether something in it is not surely the size of a real dimension."""
    return isinstance(size, Size) and any(name.startswith("(") for name in size.symbols)


def computed(operator: str, *elements: Element) -> Element:
    """The result of an operator that is not followed: equal for equal elements; None where it depends on the batch."""
    if any(of_batch(element) for element in elements):
        return None
    return symbol(f"({operator} {' '.join(map(str, elements))})")


def broadcast(one: Dim, other: Dim) -> Dim:
    """The size of two dimensions laid over each other; if they do not fit, the run fails."""
    if one == 1 or one == other:
        return other
    if other == 1:
        return one
    if isinstance(one, int):
        return one
    if isinstance(other, int):
        return other
    return symbol(f"broadcast {one} {other}")


def shape_text(shape: Iterable[Element]) -> str:
    return "[" + ",".join("?" if size is None else str(size) for size in shape) + "]"


def is_small_integer(value: float) -> bool:
    """Whether a float stands for an integer that single precision holds exactly."""
    return math.isfinite(value) and value == int(value) and abs(value) < 1 << 24

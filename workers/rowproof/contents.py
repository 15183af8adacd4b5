"""The contents of small tensors of sizes, through the operators that exporters make shapes with.

Shape, Gather, Concat and their kin work on a handful of integers, of which some are symbols. What is not followed
becomes a computed symbol, or None where it depends on the batch.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, numpy_helper

from .sizes import Element, N, Size, computed, divided, is_computed, is_small_integer, product, times
from .values import Call, Elements, Fixed, NotProved, Sizes, integers, need

# Of more elements nobody makes a shape.
ELEMENTS_MAX = 256
# int64 wraps round beyond it.
INTEGER_MAX = (1 << 63) - 1
# Of a size in symbols, whatever these are.
FACTOR_MAX = 1 << 31
# The same in int32.
NARROW_MAX, NARROW_FACTOR_MAX = (1 << 31) - 1, 1 << 16
# A batch has fewer rows than this, so that N times one of these is exact in single precision.
EXACT_FACTOR_MAX = 16


def _add(one: Element, other: Element) -> Element:
    if isinstance(one, int) and isinstance(other, int):
        return one + other
    if isinstance(one, int) and one == 0:
        return other
    return one if isinstance(other, int) and other == 0 else computed("+", one, other)


def _subtract(one: Element, other: Element) -> Element:
    if isinstance(one, int) and isinstance(other, int):
        return one - other
    if isinstance(other, int) and other == 0:
        return one
    return 0 if isinstance(one, Size) and one == other else computed("-", one, other)


def _multiply(one: Element, other: Element) -> Element:
    if isinstance(one, int | Size) and isinstance(other, int | Size):
        return times(one, other)
    return computed("*", one, other)


def _divide(one: Element, other: Element) -> Element:
    if isinstance(one, int) and isinstance(other, int):
        return one // other if one >= 0 and other > 0 else computed("/", one, other)
    if isinstance(one, int | Size) and isinstance(other, int | Size):
        exact = divided(one, other)
        if exact is not None:
            return exact
    return computed("/", one, other)


def _modulo(one: Element, other: Element) -> Element:
    if isinstance(one, int) and isinstance(other, int) and one >= 0 and other > 0:
        return one % other
    return computed("%", one, other)


def _equal(one: Element, other: Element) -> Element:
    if isinstance(one, int) and isinstance(other, int):
        return one == other
    if isinstance(one, Size) and one == other:
        return True
    for size, number in ((one, other), (other, one)):
        # The size of a dimension is not negative.
        is_real = isinstance(size, Size) and size.factor > 0 and not is_computed(size)
        if is_real and isinstance(number, int) and number < 0:
            return False
    return computed("=", one, other)


def _where(condition: Element, one: Element, other: Element) -> Element:
    if isinstance(condition, int):
        return one if condition else other
    return one if one is not None and one == other else computed("?", condition, one, other)


def _compared(name: str, compare: Callable[[int, int], bool]) -> Callable[[Element, Element], Element]:
    def compared(one: Element, other: Element) -> Element:
        if isinstance(one, int) and isinstance(other, int):
            return compare(one, other)
        return computed(name, one, other)

    return compared


def _not(one: Element) -> Element:
    return not one if isinstance(one, bool) else computed("not", one)


_ELEMENTWISE: dict[str, Callable[..., Element]] = {
    "Add": _add,
    "Sub": _subtract,
    "Mul": _multiply,
    "Div": _divide,
    "Mod": _modulo,
    "Equal": _equal,
    "Greater": _compared(">", operator.gt),
    "GreaterOrEqual": _compared(">=", operator.ge),
    "Less": _compared("<", operator.lt),
    "LessOrEqual": _compared("<=", operator.le),
    "Not": _not,
    "Where": _where,
    "Identity": lambda element: element,
}


def is_narrow(call: Call) -> bool:
    """Whether the result has 32 bits, or may have."""
    if call.op_type == "Cast":
        return bool(call.attributes["to"] != TensorProto.INT64)
    return any(value.narrow for value in call.inputs if isinstance(value, Fixed | Sizes))


def _in_range(element: Element, narrow: bool) -> Element:
    size = element.factor if isinstance(element, Size) else element if isinstance(element, int) else 0
    if isinstance(element, Size):
        largest = NARROW_FACTOR_MAX if narrow else FACTOR_MAX
    else:
        largest = NARROW_MAX if narrow else INTEGER_MAX
    return computed("wrapped", element) if abs(size) > largest else element


def _elementwise(call: Call, values: Sequence[Elements]) -> Elements:
    function, narrow = _ELEMENTWISE[call.op_type], is_narrow(call)
    need(not call.get("fmod"), "another remainder")
    laid = np.broadcast_arrays(*values, subok=True)
    out = np.empty(laid[0].shape, dtype=object)
    for index in np.ndindex(out.shape):
        elements: list[Any] = [array[index] for array in laid]
        out[index] = _unlike_constant(call.op_type, elements, _in_range(function(*elements), narrow))
    return out


def _unlike_constant(name: str, elements: Sequence[Element], result: Element) -> Element:
    """A 0 that comes of sizes is not one that was written down: a Reshape that is given it may be optimised as though
    it were anything."""
    is_zero = isinstance(result, int) and not isinstance(result, bool) and result == 0
    return computed(name, *elements) if is_zero and any(isinstance(each, Size) for each in elements) else result


def _cast_element(element: Element, to: int) -> Element:
    if to == TensorProto.BOOL:
        return bool(element) if isinstance(element, int | float) else computed("bool", element)
    if isinstance(element, bool):
        # False may come of sizes, and then is no 0 that was written down (_unlike_constant).
        is_one = element and to in (TensorProto.INT64, TensorProto.INT32)
        return 1 if is_one else computed(f"cast{to}", element)
    if to in (TensorProto.INT64, TensorProto.INT32):
        # Of symbols only sizes come here unchanged: a fraction has become a computed symbol before.
        if isinstance(element, float):
            return int(element) if is_small_integer(element) else computed(f"cast{to}", element)
        factor = element.factor if isinstance(element, Size) else 1
        small = abs(element) <= NARROW_MAX if isinstance(element, int) else factor <= NARROW_FACTOR_MAX
        fits = to == TensorProto.INT64 or small
        return element if fits else computed(f"cast{to}", element)
    if to in (TensorProto.FLOAT, TensorProto.DOUBLE):
        if isinstance(element, int) and abs(element) < 1 << 24:
            return float(element)
        if isinstance(element, Size) and element.symbols == (N,) and 0 < element.factor <= EXACT_FACTOR_MAX:
            return element
    return element if isinstance(element, float) else computed(f"cast{to}", element)


def _cast(call: Call, values: Sequence[Elements]) -> Elements:
    source: Any = values[0]
    out = np.empty(source.shape, dtype=object)
    for index in np.ndindex(out.shape):
        out[index] = _cast_element(source[index], call.attributes["to"])
    return out


def _concat(call: Call, values: Sequence[Elements]) -> Elements:
    return np.concatenate(values, call.attributes["axis"])


def _gather(call: Call, values: Sequence[Elements]) -> Elements:
    indices = integers(call.given(1), "indices")
    picked = values[0].take(np.array(indices, dtype=np.int64).reshape(values[1].shape), call.get("axis", 0))
    return np.asarray(picked, dtype=object)


def _axes(call: Call) -> tuple[int, ...] | None:
    if "axes" in call.attributes:
        return tuple(call.attributes["axes"])
    return tuple(integers(call.given(1), "axes")) if call.given(1) is not None else None


def _unsqueeze(call: Call, values: Sequence[Elements]) -> Elements:
    chosen = _axes(call)
    need(chosen is not None, "axes are not given")
    return np.expand_dims(values[0], chosen or ())


def _squeeze(call: Call, values: Sequence[Elements]) -> Elements:
    return np.squeeze(values[0], _axes(call))


def _bounds(call: Call, name: str, index: int) -> list[int] | None:
    if name in call.attributes:
        return list(call.attributes[name])
    return integers(call.given(index), name) if call.given(index) is not None else None


def _slice(call: Call, values: Sequence[Elements]) -> Elements:
    starts, ends = _bounds(call, "starts", 1), _bounds(call, "ends", 2)
    chosen, steps = _bounds(call, "axes", 3), _bounds(call, "steps", 4)
    if values[0].ndim != 1 or not starts or not ends or len(starts) != 1 or (chosen or [0]) not in ([0], [-1]):
        raise NotProved("not a slice of a vector")
    step = steps[0] if steps else 1
    # Python begins elsewhere with it than ONNX.
    need(step > 0 or starts[0] >= -len(values[0]), "a start before the beginning, going backwards")
    # A negative end of a backwards slice that lies before the beginning means "all of it", which Python writes None.
    end = None if step < 0 and ends[0] < -len(values[0]) else ends[0]
    return values[0][starts[0] : end : step]


def _reshape(call: Call, values: Sequence[Elements]) -> Elements:
    target = integers(call.given(1), "shape")
    need(0 not in target, "a 0 in the shape")
    return values[0].reshape(target)


def _reduce_prod(call: Call, values: Sequence[Elements]) -> Elements:
    source = values[0]
    chosen = _axes(call)
    need(source.ndim == 1 and (chosen is None or chosen in ((0,), (-1,))), "not the product of a vector")
    need(chosen or not call.get("noop_with_empty_axes"), "no axes")
    if not all(isinstance(element, int | Size) for element in source):
        raise NotProved("a factor is not known")
    need(product(source) != 0, "nothing")
    total = np.empty((), dtype=object)
    total[()] = _in_range(product(source), is_narrow(call))
    return total.reshape((1,) if call.get("keepdims", 1) else ())


def _constant_of_shape(call: Call, values: Sequence[Elements]) -> Elements:
    shape = integers(call.given(0), "shape")
    need(np.prod(shape, dtype=object) <= ELEMENTS_MAX, "large")
    fill = numpy_helper.to_array(call.attributes["value"]).item() if "value" in call.attributes else 0.0
    need(isinstance(fill, int | float), "not a number")
    return np.full(shape, fill, dtype=object)


def _range(call: Call, values: Sequence[Elements]) -> Elements:
    start, limit, step = (integers(value, "the range")[0] for value in call.inputs)
    numbers = range(start, limit, step)
    need(len(numbers) <= ELEMENTS_MAX, "large")
    return np.array(list(numbers), dtype=object)


_FOLLOWED: dict[str, Callable[[Call, Sequence[Elements]], Elements]] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Gather": _gather,
    "Range": _range,
    "ReduceProd": _reduce_prod,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
}


def followed(call: Call) -> Elements | None:
    """The contents of a node's one output, or None where they are not followed."""
    function = _FOLLOWED.get(call.op_type) if not call.domain else None
    values = [value.value if isinstance(value, Fixed | Sizes) else None for value in call.inputs]
    # Only these take optional inputs, which they look up themselves.
    if (
        function is None
        or not values
        or any(value is None and call.inputs[index] is not None for index, value in enumerate(values))
    ):
        return None
    try:
        found = function(call, [value for value in values if value is not None])
    except (NotProved, ValueError, IndexError, TypeError, KeyError, OverflowError):
        return None
    return found if found.size <= ELEMENTS_MAX else None

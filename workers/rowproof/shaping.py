"""Operators that arrange elements anew: Reshape and its kin, Transpose, Tile, Expand, Range."""

from collections.abc import Sequence

from .sizes import (
    BATCH,
    Dim,
    Element,
    batches,
    broadcast,
    divided,
    is_computed,
    of_batch,
    product,
    shape_text,
    times,
)
from .values import (
    Call,
    Fixed,
    NotProved,
    RowNumbers,
    Rows,
    Sizes,
    Value,
    axes,
    elements_of,
    filled,
    fixed_shape,
    integers,
    need,
    need_fixed,
    position,
    rows,
)


def _target(elements: Sequence[Element], source: Sequence[Dim], zero_copies: bool) -> list[Dim]:
    """Reshape's second input, with what 0 stands for. -1 is still in it."""
    target: list[Dim] = []
    for axis, element in enumerate(elements):
        if element is None or isinstance(element, float):
            raise NotProved("the shape depends on the batch in a way that is not followed")
        if element == 0 and zero_copies:
            need(axis < len(source), "a 0 in the shape, past the input's dimensions")
            element = source[axis]
        target.append(element)
    return target


def _complete(call: Call, target: list[Dim], source: Sequence[Dim]) -> None:
    """Fill in -1, or see that the shape is surely right: onnxruntime's optimiser may make one unknown size of it a -1,
    and then a wrong shape is no error but other rows."""
    total = product(source)
    if -1 not in target:
        need(product(target) == total, f"{shape_text(source)} is given the shape {shape_text(target)}")
        return
    index = target.index(-1)
    rest = product(size for size in target if size != -1)
    left = divided(total, rest)
    if left is None:
        need(batches(rest) == 1, f"what the -1 of {shape_text(target)} stands for is not known")
        left = call.size(index)
    target[index] = left


def reshaped(call: Call, value: Rows, target: list[Dim]) -> Rows:
    """Row-major order keeps rows apart where the dimensions before the batch's hold what they held."""
    _complete(call, target, value.shape)
    own = [axis for axis, size in enumerate(target) if batches(size)]
    need(len(own) == 1, f"the shape {shape_text(target)} has not one batch dimension")
    axis = own[0]
    change = f"what stands before the batch changes from {shape_text(value.shape)} to {shape_text(target)}"
    leading = product(target[:axis])
    before = divided(times(product(value.shape[: value.axis]), value.before), leading)
    if before is None or _invented(leading, value.shape):
        raise NotProved(change)
    per_row = divided(target[axis], times(before, BATCH))
    if per_row is None or of_batch(per_row) or _invented(per_row, value.shape):
        raise NotProved(change)
    return Rows(axis, tuple(target), before, per_row)


def _invented(size: Dim, shape: Sequence[Dim]) -> bool:
    """Whether a computed number, which may be 0 or -1, is in it that is no dimension's size."""
    return is_computed(size) and divided(product(shape), size) is None


def reshape(call: Call) -> Sequence[Value]:
    value = call.inputs[0]
    elements = elements_of(call.given(1), "the shape") if call.given(1) is not None else list(call.get("shape"))
    copies = not call.get("allowzero")
    if isinstance(value, RowNumbers):
        return [_moved_numbers(value, _target(elements, value.shape, copies))]
    source = rows(call)
    target = _target(elements, source.shape, copies)
    try:
        return [reshaped(call, source, list(target))]
    except NotProved:
        kept = elements[: source.axis + 1]
        if copies and len(kept) > source.axis and all(element == 0 for element in kept):
            return [_within_rows(call, source, target)]
        raise


def _within_rows(call: Call, value: Rows, target: Sequence[Dim]) -> Rows:
    """Where each dimension up to the batch's is a 0, which copies it, the others rearrange a row's own elements, or the
    run fails: whatever they are, and even where onnxruntime makes one of them a -1."""
    shape = [*value.shape[: value.axis + 1], *target[value.axis + 1 :]]
    for axis in range(value.axis + 1, len(shape)):
        need(not of_batch(shape[axis]), f"the shape {shape_text(target)} has not one batch dimension")
        size = shape[axis]
        shape[axis] = size if isinstance(size, int) and size > 0 else call.size(axis)
    return value.with_shape(shape)


def _moved_numbers(value: RowNumbers, target: Sequence[Dim]) -> RowNumbers:
    """Row numbers with dimensions of one element around them."""
    need(
        not value.columns and all(size == 1 for size in _others(value.shape, value.axis)), "row numbers are rearranged"
    )
    # -1 stands for N here: all else is 1.
    sizes = [BATCH if size == -1 else size for size in target]
    own = [axis for axis, size in enumerate(sizes) if size == BATCH]
    need(len(own) == 1 and all(size == 1 for size in _others(sizes, own[0])), "row numbers are rearranged")
    return RowNumbers(own[0], tuple(sizes))


def _others(shape: Sequence[Dim], axis: int) -> list[Dim]:
    return [size for index, size in enumerate(shape) if index != axis]


def flatten(call: Call) -> Sequence[Value]:
    value = rows(call)
    axis = call.get("axis", 1)
    axis = axis + value.rank if axis < 0 else axis
    return [reshaped(call, value, [product(value.shape[:axis]), product(value.shape[axis:])])]


def squeeze(call: Call) -> Sequence[Value]:
    value = rows(call)
    gone = axes(call, 1, value.rank)
    if not gone:
        raise NotProved("without axes it drops the batch's dimension when there is one row")
    need(value.axis not in gone, "it drops the batch's dimension")
    kept = [axis for axis in range(value.rank) if axis not in gone]
    return [value.with_shape([value.shape[axis] for axis in kept], kept.index(value.axis))]


def unsqueeze(call: Call) -> Sequence[Value]:
    value = call.inputs[0]
    if not isinstance(value, Rows | RowNumbers):
        raise NotProved("input 0 is not made of rows")
    count = len(call.get("axes") or integers(call.given(1), "axes"))
    added = axes(call, 1, len(value.shape) + count) or []
    shape: list[Dim] = list(value.shape)
    axis = value.axis
    for index in sorted(added):
        shape.insert(index, 1)
        axis += index <= axis
    if isinstance(value, RowNumbers):
        need(not value.columns, "row numbers are rearranged")
        return [RowNumbers(axis, tuple(shape))]
    return [value.with_shape(shape, axis)]


def transpose(call: Call) -> Sequence[Value]:
    value = rows(call)
    order = list(call.get("perm") or range(value.rank)[::-1])
    need(sorted(order) == list(range(value.rank)), "perm")
    return [value.with_shape([value.shape[axis] for axis in order], order.index(value.axis))]


def tile(call: Call) -> Sequence[Value]:
    value = call.inputs[0]
    repeats = elements_of(call.given(1), "repeats")
    if not isinstance(value, Rows | Fixed) or value.shape is None or len(repeats) != len(value.shape):
        raise NotProved("its input's dimensions are not known")
    if isinstance(value, Fixed):
        return [filled([_times(size, count) for size, count in zip(value.shape, repeats, strict=True)])]
    need(not any(of_batch(count) for count in repeats), "repeats depend on the batch")
    need(repeats[value.axis] == 1, "it repeats the batch")
    shape = [_times(size, count) for size, count in zip(value.shape, repeats, strict=True)]
    return [value.with_shape(shape)]


def _times(size: Dim, count: Element) -> Dim:
    if count is None or isinstance(count, float):
        raise NotProved("repeats depend on the batch in a way that is not followed")
    return times(size, count)


def constant_of_shape(call: Call) -> Sequence[Value]:
    return [filled(elements_of(call.given(0), "the shape"))]


def expand(call: Call) -> Sequence[Value]:
    value = call.inputs[0]
    target: list[Dim] = []
    for element in elements_of(call.given(1), "the shape"):
        if element is None or isinstance(element, float):
            raise NotProved("the shape depends on the batch in a way that is not followed")
        target.append(element)
    if isinstance(value, RowNumbers):
        need(not value.columns, "row numbers are rearranged")
        laid = _expanded(Rows(value.axis, value.shape), target)
        return [RowNumbers(laid.axis, laid.shape)]
    if isinstance(value, Rows):
        return [_expanded(value, target)]
    if not isinstance(value, Fixed) or value.shape is None:
        raise NotProved("its input's dimensions are not known")
    own = [axis for axis, size in enumerate(target) if of_batch(size)]
    need(len(own) == 1, f"the shape {shape_text(target)} has not one batch dimension")
    back = len(target) - own[0]
    need(len(value.shape) < back or value.shape[-back] == 1, "its input has its own extent along the batch axis")
    return [filled(_laid(value.shape, target))]


def _laid(shape: Sequence[Dim], target: Sequence[Dim]) -> list[Dim]:
    rank = max(len(shape), len(target))
    one = [*[1] * (rank - len(shape)), *shape]
    other = [*[1] * (rank - len(target)), *target]
    return [broadcast(first, second) for first, second in zip(one, other, strict=True)]


def _expanded(value: Rows, target: Sequence[Dim]) -> Rows:
    others = [size for index, size in enumerate(target) if len(target) - index != value.back]
    need(not any(of_batch(size) for size in others), "a second dimension depends on the batch")
    fits = len(target) < value.back or target[-value.back] in (1, value.shape[value.axis])
    need(fits, "the batch's dimension is expanded")
    shape = _laid(value.shape, target)
    axis = len(shape) - value.back
    shape[axis] = value.shape[value.axis]
    return value.with_shape(shape, axis)


def number_range(call: Call) -> Sequence[Value]:
    """0 to N-1: the rows' numbers, as exporters make them for a mask's row."""
    start, limit, step = (elements_of(value, "the range") for value in call.inputs)
    need(start == [0] and limit == [BATCH] and step == [1], "it counts with the batch")
    return [RowNumbers(0, (BATCH,))]


def concat(call: Call) -> Sequence[Value]:
    if any(isinstance(value, RowNumbers) for value in call.inputs):
        return [_numbered_columns(call)]
    first = rows(call)
    axis = position(call.attributes["axis"], first.rank)
    need(axis != first.axis, "it lengthens the batch")
    sizes: list[Dim] = []
    for value in call.inputs:
        if not isinstance(value, Rows):
            raise NotProved("an operand is not made of rows")
        same = (value.axis, value.rank, value.layout) == (first.axis, first.rank, first.layout)
        need(same, "the operands' batch axes do not line up")
        sizes.append(value.shape[axis])
    shape = list(first.shape)
    known = [size for size in sizes if isinstance(size, int)]
    shape[axis] = sum(known) if len(known) == len(sizes) else call.size("width")
    return [first.with_shape(shape)]


def _numbered_columns(call: Call) -> RowNumbers:
    """Row numbers beside other indices, in columns of a last dimension: GatherND's indices."""
    columns: list[bool] = []
    place: tuple[int, Sequence[Dim]] | None = None
    for value in call.inputs:
        if not isinstance(value, Rows | RowNumbers) or (isinstance(value, Rows) and value.layout != (1, 1)):
            raise NotProved("an operand is not made of rows")
        last = len(value.shape) - 1
        need(position(call.attributes["axis"], last + 1) == last != value.axis, "row numbers are rearranged")
        width = value.shape[last]
        if not isinstance(width, int) or width > 16:
            raise NotProved("how many columns there are is not known")
        here = (value.axis, value.shape[:last])
        need(place is None or (place[0] == here[0] and len(place[1]) == len(here[1])), "batch axes do not line up")
        place = place or here
        if isinstance(value, RowNumbers):
            columns += value.columns or [True] * width
        else:
            columns += [False] * width
    if place is None:
        raise NotProved("without operands")
    return RowNumbers(place[0], (*place[1], len(columns)), tuple(columns))


def pad(call: Call) -> Sequence[Value]:
    value = rows(call)
    need_fixed(call)
    amounts = list(call.get("pads") or integers(call.given(1), "pads"))
    chosen = axes(call, 3, value.rank)
    chosen = list(range(value.rank)) if chosen is None else chosen
    need(len(amounts) == 2 * len(chosen), "pads")
    shape = list(value.shape)
    for index, axis in enumerate(chosen):
        first, last = amounts[index], amounts[index + len(chosen)]
        if axis == value.axis:
            need(first == last == 0, "it pads the batch")
            continue
        size = shape[axis]
        shape[axis] = size + first + last if isinstance(size, int) else call.size(axis) if first or last else size
    return [value.with_shape(shape)]


def split(call: Call) -> Sequence[Value]:
    value = rows(call)
    need_fixed(call)
    axis = position(call.get("axis", 0), value.rank)
    need(axis != value.axis, "it cuts the batch")
    sizes = _split_sizes(call, value.shape[axis])
    outputs = []
    for index in range(call.outputs):
        shape = list(value.shape)
        shape[axis] = sizes[index] if sizes else call.size(index)
        outputs.append(value.with_shape(shape))
    return list(outputs)


def _split_sizes(call: Call, size: Dim) -> list[Dim] | None:
    if call.get("split"):
        return list(call.get("split"))
    given = call.given(1)
    if isinstance(given, Fixed):
        known = given.value is not None and all(isinstance(element, int) for element in given.value.flat)
        return list(integers(given, "split")) if known else None
    if isinstance(size, int) and size % call.outputs == 0 and call.get("num_outputs", call.outputs) == call.outputs:
        return [size // call.outputs] * call.outputs
    return None


def resize(call: Call) -> Sequence[Value]:
    value = rows(call)
    need(call.get("coordinate_transformation_mode") != "tf_crop_and_resize", "it crops")
    # Of fewer dimensions onnxruntime takes the first for a line or a plane, and weighs its neighbours, if with nought:
    # a row that is not a number spoils the next.
    images = value.axis == 0 and value.rank >= 4
    need(images or call.get("mode", "nearest") == "nearest", "it interpolates along the batch axis")
    chosen = [position(axis, value.rank) for axis in call.get("axes") or range(value.rank)]
    scales, sizes = _scales_and_sizes(call)
    if value.axis in chosen:
        need(call.get("keep_aspect_ratio_policy", "stretch") == "stretch", "it keeps proportions")
        index = chosen.index(value.axis)
        kept = sizes[index] == value.shape[value.axis] if sizes else len(scales) > index and scales[index] == 1
        need(kept, "it may scale the batch")
    others = [
        size for found in (scales, sizes) for axis, size in zip(chosen, found, strict=False) if axis != value.axis
    ]
    need(not any(of_batch(size) for size in others), "a size depends on the batch")
    shape: list[Dim] = []
    for axis, size in enumerate(value.shape):
        index = chosen.index(axis) if axis in chosen else -1
        unchanged = axis == value.axis or index < 0 or (not sizes and index < len(scales) and scales[index] == 1)
        shape.append(size if unchanged else call.size(axis))
    return [value.with_shape(shape)]


def _scales_and_sizes(call: Call) -> tuple[list[Element], list[Element]]:
    if "scales" in call.attributes:
        return list(call.attributes["scales"]), []
    old = call.op_type == "Upsample" or call.opset < 11
    scales, sizes = call.given(1 if old else 2), None if old else call.given(3)
    found: list[list[Element]] = []
    for value in (scales, sizes):
        need(value is None or isinstance(value, Fixed | Sizes), "a scale depends on the rows")
        known = isinstance(value, Fixed | Sizes) and value.value is not None
        found.append(elements_of(value, "scales") if known else [])
    # Sizes that are not known are sizes all the same.
    need(sizes is None or found[1] or fixed_shape(sizes) == (0,), "sizes are not known before the run")
    return found[0], found[1]


def triangle(call: Call) -> Sequence[Value]:
    value = rows(call)
    need_fixed(call)
    need(value.axis < value.rank - 2, "it works along the batch axis")
    return [value]

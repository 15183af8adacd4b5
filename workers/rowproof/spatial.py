"""Operators on [N, channels, ...]: convolution, pooling, resampling, normalisation of images and of signals."""

from collections.abc import Sequence

from .sizes import Dim
from .values import Call, Fixed, Rows, Value, is_single, need, need_fixed, position, rows


def _image(call: Call, rank_min: int = 3) -> Rows:
    """The first input, whose batch is axis 0; all others are fixed."""
    value = rows(call)
    need_fixed(call)
    need(value.axis == 0 and value.rank >= rank_min, "the batch is not axis 0 of [N, channels, ...]")
    return value


def _opened(call: Call, value: Rows, kept: tuple[int, ...]) -> list[Dim]:
    return [size if axis == 0 or axis in kept else call.size(axis) for axis, size in enumerate(value.shape)]


def convolve(call: Call) -> Sequence[Value]:
    value = _image(call)
    shape = _opened(call, value, ())
    weights = call.given(3 if call.op_type == "QLinearConv" else 1)
    kernel = weights.shape if isinstance(weights, Fixed) else None
    if kernel is not None and len(kernel) == value.rank and call.op_type != "ConvTranspose":
        shape[1] = kernel[0]
        for index in range(2, value.rank):
            if _keeps_size(call, value.rank - 2, index - 2, kernel[index]):
                shape[index] = value.shape[index]
    return [value.with_shape(shape)]


def _keeps_size(call: Call, dimensions: int, index: int, kernel: Dim) -> bool:
    """Whether a spatial dimension of a convolution is as long after it as before it."""
    pads = call.get("pads") or [0] * 2 * dimensions
    strides, dilations = call.get("strides") or [1] * dimensions, call.get("dilations") or [1] * dimensions
    if call.get("auto_pad", "NOTSET") != "NOTSET" or not isinstance(kernel, int) or strides[index] != 1:
        return False
    return bool(pads[index] + pads[index + dimensions] == dilations[index] * (kernel - 1))


def quantised_convolve(call: Call) -> Sequence[Value]:
    singles = all(is_single(call.given(index)) for index in (1, 2, 6, 7))
    need(singles, "a scale or zero point of the rows is not a single number")
    return convolve(call)


def integer_convolve(call: Call) -> Sequence[Value]:
    need(is_single(call.given(2)), "the zero point of the rows is not a single number")
    return convolve(call)


def fused_convolve(call: Call) -> Sequence[Value]:
    """com.microsoft:FusedConv: a fourth input is added to the result."""
    need(len(call.inputs) < 4, "it adds another tensor")
    return convolve(call)


def pool(call: Call) -> Sequence[Value]:
    value = _image(call)
    need(call.outputs == 1, "its indices count through the batch")
    return [value.with_shape(_opened(call, value, (1,)))]


def quantised_pool(call: Call) -> Sequence[Value]:
    need(all(is_single(value) for value in call.inputs[1:]), "a scale is not a single number")
    need(not call.get("channels_last"), "channels come last")
    return pool(call)


def global_pool(call: Call) -> Sequence[Value]:
    value = _image(call)
    return [value.with_shape([*value.shape[:2], *[1] * (value.rank - 2)])]


def normalise(call: Call) -> Sequence[Value]:
    """By each row's own statistics, or by fixed ones."""
    return [_image(call)]


def batch_norm(call: Call) -> Sequence[Value]:
    value = _image(call, 2)
    need(call.outputs == 1 and not call.get("training_mode"), "it is in training mode")
    need(call.opset >= 7 or call.get("is_test"), "it is in training mode")
    return [value]


def rearrange(call: Call) -> Sequence[Value]:
    value = _image(call)
    return [value.with_shape(_opened(call, value, ()))]


def reorder_output(call: Call) -> Sequence[Value]:
    """com.microsoft.nchwc: from onnxruntime's own layout of channels in blocks back to the usual one."""
    value = _image(call)
    need(not call.get("channels_last"), "channels come last")
    return [value.with_shape([value.shape[0], call.attributes["channels"], *value.shape[2:]])]


def blocked_convolve(call: Call) -> Sequence[Value]:
    """com.microsoft.nchwc:Conv, whose fourth input, of the result's shape, is added to it."""
    value = rows(call)
    need(value.axis == 0 and value.rank == 4, "the batch is not axis 0 of [N, channels, ...]")
    need_fixed(call, 1, 3)
    added = call.given(3)
    if added is not None:
        fits = isinstance(added, Rows) and (added.axis, added.rank, added.layout) == (0, 4, value.layout)
        need(fits, "what it adds is not made of rows")
    return [value.with_shape(_opened(call, value, ()))]


def grid_sample(call: Call) -> Sequence[Value]:
    value, grid = rows(call, 0), rows(call, 1)
    need(value.axis == grid.axis == 0 and value.layout == grid.layout, "the operands' batch axes do not line up")
    return [value.with_shape([*value.shape[:2], *grid.shape[1:-1]])]


def short_time_fourier(call: Call) -> Sequence[Value]:
    value = rows(call)
    need_fixed(call)
    need(value.axis == 0 and value.rank >= 2, "it works along the batch axis")
    return [value.with_shape([value.shape[0], call.size("frames"), call.size("bins"), 2])]


def fourier(call: Call) -> Sequence[Value]:
    from .values import integers

    value = rows(call)
    need_fixed(call)
    if call.opset < 20:
        axis = call.get("axis", 1)
    else:
        axis = integers(call.given(2), "axis")[0] if call.given(2) is not None else -2
    axis = position(axis, value.rank)
    need(value.axis not in (axis, value.rank - 1), "it works along the batch axis")
    shape = list(value.shape)
    shape[axis], shape[-1] = call.size(axis), call.size("parts")
    return [value.with_shape(shape)]

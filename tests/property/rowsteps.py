"""The steps of random graphs (rowgraphs.py): operators with arguments at random, in the table of the proof or not."""

from collections.abc import Callable

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.property.rowgraphs import FLOAT, INT, KINDS, Graph

UNARY = [
    "Abs",
    "Ceil",
    "Cos",
    "Elu",
    "Erf",
    "Floor",
    "LeakyRelu",
    "Neg",
    "Not",
    "Relu",
    "Round",
    "Sigmoid",
    "Sign",
    "Sin",
    "Softplus",
    "Tanh",
    "Identity",
    "IsNaN",
]
BINARY = [
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Max",
    "Min",
    "And",
    "Or",
    "Equal",
    "Greater",
    "LessOrEqual",
    "PRelu",
    "Mean",
    "Sum",
]
REDUCE = ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceProd", "ReduceLogSumExp"]
IMAGE = [
    "GlobalAveragePool",
    "GlobalMaxPool",
    "InstanceNormalization",
    "BatchNormalization",
    "MaxPool",
    "AveragePool",
    "Conv",
]


def unary(g: Graph) -> None:
    g.add(g.random.choice(UNARY), g.any())


def binary(g: Graph) -> None:
    one = g.any()
    shape = g.values[one].shape
    if g.random.random() < 0.3:
        own = [size if g.random.random() < 0.5 else 1 for size in shape][g.random.randint(0, len(shape)) :]
        other = g.constant(g.data(g.values[one].dtype, own), g.values[one].dtype)
    else:
        other = g.pick(lambda value: value.dtype == g.values[one].dtype)
    g.add(g.random.choice(BINARY), one, other)


def where(g: Graph) -> None:
    one = g.any()
    other = g.pick(lambda value: value.dtype == g.values[one].dtype)
    g.add("Where", g.pick(lambda value: value.dtype == bool), one, other)


def reduce(g: Graph) -> None:
    name = g.any(1)
    rank = g.values[name].ndim
    axes = g.random.sample(range(-rank, 0), g.random.randint(1, rank))
    given = [g.constant(axes)] if g.random.random() < 0.85 else []
    g.add(g.random.choice(REDUCE), name, *given, keepdims=g.random.choice([0, 1]))


def extreme(g: Graph) -> None:
    name = g.floats(1)
    g.add(g.random.choice(["ArgMax", "ArgMin"]), name, axis=g.axis(name), keepdims=g.random.choice([0, 1]))


def along(g: Graph) -> None:
    name = g.floats(1)
    g.add(g.random.choice(["Softmax", "LogSoftmax", "LpNormalization"]), name, axis=g.axis(name))


def cumulate(g: Graph) -> None:
    name = g.any(1)
    g.add("CumSum", name, g.constant(g.axis(name)))


def top(g: Graph) -> None:
    name = g.floats(1)
    axis = g.axis(name)
    g.add("TopK", name, g.constant([g.random.randint(1, g.values[name].shape[axis])]), outputs=2, axis=axis)


def matmul(g: Graph) -> None:
    one = g.floats(2)
    rows, width = g.values[one].shape[-2:]
    way = g.random.random()
    if way < 0.3:
        g.add("MatMul", g.constant(g.data(FLOAT, [2, rows]), FLOAT), one)
    elif way < 0.6:
        shape = g.random.choice([[width, 2], [width], [2, width, 3]])
        g.add("MatMul", one, g.constant(g.data(FLOAT, shape), FLOAT))
    else:
        g.add("MatMul", one, g.pick(lambda value: value.dtype == FLOAT and value.ndim and width in value.shape[-2:]))


def einsum(g: Graph) -> None:
    one, other = g.floats(1), g.floats(1)
    terms = ["".join(g.random.choice("abc") for _ in g.values[name].shape) for name in (one, other)]
    letters = sorted(set("".join(terms)))
    out = "".join(g.random.sample(letters, g.random.randint(0, len(letters))))
    g.add("Einsum", one, other, equation=f"{terms[0]},{terms[1]}->{out}")


def indices(g: Graph, size: int, shape: tuple[int, ...] | None = None) -> str:
    if g.random.random() < 0.4 and shape is None:
        return g.constant(g.numbers.integers(0, size, g.random.choice([(), (1,), (2,)])))
    return g.pick(
        lambda value: (
            value.dtype == INT and value.max() < size and value.min() >= -size and shape in (None, value.shape)
        )
    )


def gather(g: Graph) -> None:
    name = g.any(1)
    axis = g.axis(name)
    g.add("Gather", name, indices(g, g.values[name].shape[axis]), axis=axis)


def embed(g: Graph) -> None:
    name = g.pick(lambda value: value.dtype == INT and np.abs(value).max() < 50)
    g.add("Gather", g.constant(g.data(FLOAT, [50, 2]), FLOAT), name)


def gather_elements(g: Graph) -> None:
    name = g.any(1)
    axis, value = g.axis(name), g.values[name]
    picked = g.pick(
        lambda one: one.dtype == INT and one.ndim == value.ndim and one.min() >= 0 and one.max() < value.shape[axis]
    )
    g.add("GatherElements", name, picked, axis=axis)


def gather_nd(g: Graph) -> None:
    name = g.any(1)
    picked = g.pick(lambda one: one.dtype == INT and one.ndim and one.shape[-1] <= g.values[name].ndim)
    g.add("GatherND", name, picked, batch_dims=g.random.choice([0, 0, 1]))


def cut(g: Graph) -> None:
    name = g.any(1)
    axis = g.axis(name)
    start = g.random.choice([0, 0, 1, -1, -(1 << 40)])
    end = g.random.choice([1, 2, -1, 1 << 40, -(1 << 40), g.values[name].shape[axis]])
    step = g.random.choice([1, 1, 1, 2, -1])
    g.add("Slice", name, *(g.constant([number]) for number in (start, end, axis, step)))


def join(g: Graph) -> None:
    one = g.any(1)
    axis, value = g.axis(one), g.values[one]
    other = g.pick(lambda each: each.dtype == value.dtype and each.ndim == value.ndim)
    g.add("Concat", one, other, axis=axis)


def split(g: Graph) -> None:
    name = g.any(1)
    axis = g.axis(name)
    size = g.values[name].shape[axis]
    first = g.random.randint(1, max(1, size - 1))
    g.add("Split", name, g.constant([first, size - first]), outputs=2, axis=axis)


def shape(g: Graph) -> None:
    g.add(g.random.choice(["Shape", "Shape", "Size"]), g.any(1))


def sizes(g: Graph, wanted: list[int]) -> str:
    """A vector of these sizes: constants, sizes of values, and perhaps a -1."""
    parts = []
    for size in wanted:
        known = [
            (name, axis) for name, value in g.values.items() for axis, own in enumerate(value.shape) if own == size
        ]
        if known and g.random.random() < 0.6:
            name, axis = g.random.choice(known)
            parts.append(g.add("Gather", g.add("Shape", name), g.constant([axis])))
        else:
            parts.append(g.constant([size]))
    if len(parts) > 1 and g.random.random() < 0.3:
        parts[g.random.randrange(len(parts))] = g.constant([-1])
    return g.add("Concat", *parts, axis=0) if len(parts) > 1 else parts[0]


def vector(g: Graph) -> str:
    return g.pick(lambda value: value.dtype == INT and value.ndim == 1 and value.size <= 5)


def reshape(g: Graph) -> None:
    name = g.any()
    total, wanted = g.values[name].size, []
    for _ in range(g.random.randint(0, 3)):
        wanted.append(g.random.choice([size for size in (1, 2, 3, 4, 6) if total % size == 0]))
        total //= wanted[-1]
    wanted.append(total)
    g.random.shuffle(wanted)
    way = g.random.random()
    if way < 0.2:
        g.add("Reshape", name, vector(g))
    elif way < 0.4:
        same = g.pick(lambda value: value.size == g.values[name].size)
        g.add("Reshape", name, g.add("Shape", same))
    else:
        g.add("Reshape", name, sizes(g, wanted))


def flatten(g: Graph) -> None:
    name = g.any(1)
    g.add("Flatten", name, axis=g.axis(name))


def squeeze(g: Graph) -> None:
    name = g.pick(lambda value: 1 in value.shape)
    single = [axis for axis, size in enumerate(g.values[name].shape) if size == 1]
    g.add("Squeeze", name, *([g.constant(g.random.sample(single, 1))] if g.random.random() < 0.85 else []))


def unsqueeze(g: Graph) -> None:
    name = g.any()
    g.add("Unsqueeze", name, g.constant([g.axis(name, 1)]))


def transpose(g: Graph) -> None:
    name = g.any(2)
    order = list(range(g.values[name].ndim))
    g.random.shuffle(order)
    g.add("Transpose", name, perm=order)


def repeat(g: Graph) -> None:
    name = g.any(1)
    g.add("Tile", name, sizes(g, [g.random.choice([1, 1, 2, 3]) for _ in g.values[name].shape]))


def expand(g: Graph) -> None:
    name = g.any()
    wanted = [size if size > 1 else g.random.choice([1, 2, 3]) for size in g.values[name].shape]
    g.add("Expand", name, sizes(g, [*g.random.choice([[], [], [3]]), *wanted] or [3]))


def fill(g: Graph) -> None:
    value = numpy_helper.from_array(np.array([g.random.choice([0, 1, 2])], g.random.choice([FLOAT, INT])))
    g.add("ConstantOfShape", sizes(g, [g.random.choice([1, 2, 3]) for _ in range(g.random.randint(1, 3))]), value=value)


def count(g: Graph) -> None:
    number = g.add("Gather", g.add("Shape", g.any(1)), g.constant(0))
    g.add("Range", g.constant(0), number, g.constant(1))


def places(g: Graph) -> None:
    """A row's number times a length, plus a place: into something that lies end to end."""
    name = g.any(2)
    sizes = g.add("Shape", name)
    axes = [g.random.choice([0, 0, 1, -1]), *(g.random.choice([1, 1, 0, -1]) for _ in range(2))]
    count, length, width = (g.add("Gather", sizes, g.constant(axis)) for axis in axes)
    numbers = g.add("Unsqueeze", g.add("Range", g.constant(0), count, g.constant(1)), g.constant([1]))
    own = g.add("Range", g.constant(0), width, g.constant(1))
    if g.random.random() < 0.3:
        own = g.add("Add", own, g.constant(g.random.choice([0, 1])))
    starts = g.add("Mul", numbers, length)
    g.add("Gather", g.add("Reshape", name, g.constant([-1])), g.add("Add", starts, own))


def cast(g: Graph) -> None:
    g.add("Cast", g.any(), to=g.random.choice([TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL]))


def pad(g: Graph) -> None:
    name = g.floats(1)
    g.add("Pad", name, g.constant([g.random.choice([0, 0, 0, 1]) for _ in range(2 * g.values[name].ndim)]))


def image(g: Graph) -> None:
    name = g.pick(lambda value: value.dtype == FLOAT and value.ndim in (3, 4))
    operator, shape = g.random.choice(IMAGE), g.values[name].shape
    ones = [1] * (len(shape) - 2)
    weights = {
        "InstanceNormalization": [shape[1:2]] * 2,
        "BatchNormalization": [shape[1:2]] * 4,
        "Conv": [(2, shape[1], *ones)],
    }
    given = [g.constant(np.abs(g.data(FLOAT, own)) + 1, FLOAT) for own in weights.get(operator, [])]
    attributes = {"kernel_shape": ones} if operator in ("MaxPool", "AveragePool") else {}
    g.add(operator, name, *given, **attributes)


def normalise(g: Graph) -> None:
    name = g.floats(1)
    axis = g.axis(name)
    g.add("LayerNormalization", name, g.constant(g.data(FLOAT, g.values[name].shape[axis:]), FLOAT), axis=axis)


def one_hot(g: Graph) -> None:
    name = g.pick(lambda value: value.dtype == INT)
    g.add("OneHot", name, g.constant([4]), g.constant([0, 1], FLOAT), axis=g.axis(name, 1))


def recurrent(g: Graph) -> None:
    name = g.pick(lambda value: value.dtype == FLOAT and value.ndim == 3)
    width = g.values[name].shape[2]
    weights = [g.constant(g.data(FLOAT, [1, 6, size]) / 8, FLOAT) for size in (width, 2)]
    g.add("GRU", name, *weights, outputs=2, hidden_size=2)


def branch(g: Graph) -> None:
    one = g.any()
    other = g.pick(lambda value: value.dtype == g.values[one].dtype)
    size = g.add("Gather", g.add("Shape", g.any(1)), g.constant(0))
    condition = g.add(g.random.choice(["Equal", "Greater"]), size, g.constant(g.random.choice([1, 2])))
    kind = KINDS[g.values[one].dtype]
    graphs = {
        f"{which}_branch": helper.make_graph(
            [helper.make_node("Identity", [name], [which])],
            which,
            [],
            [helper.make_tensor_value_info(which, kind, None)],
        )
        for which, name in (("then", one), ("else", other))
    }
    g.add("If", condition, **graphs)


def scan(g: Graph) -> None:
    name = g.floats(2)
    axis = g.random.randrange(g.values[name].ndim)
    start = g.constant(g.data(FLOAT, np.delete(g.values[name].shape, axis)), FLOAT)
    p, c, q, o = (helper.make_tensor_value_info(each, TensorProto.FLOAT, None) for each in "pcqo")
    nodes = [helper.make_node("Add", ["p", "c"], ["q"]), helper.make_node("Identity", ["q"], ["o"])]
    body = helper.make_graph(nodes, "b", [p, c], [q, o])
    g.add("Scan", start, name, outputs=2, body=body, num_scan_inputs=1, scan_input_axes=[axis])


def fused(g: Graph) -> None:
    turns = {"transA": g.random.choice([0, 1]), "transB": g.random.choice([0, 1])}
    g.add("FusedMatMul", g.floats(2), g.floats(2), domain="com.microsoft", **turns)


def table(g: Graph) -> None:
    g.add(
        "Normalizer",
        g.pick(lambda value: value.dtype == FLOAT and value.ndim in (1, 2)),
        domain="ai.onnx.ml",
        norm="L1",
    )


STEPS: list[Callable[[Graph], None]] = [
    *[unary, binary, binary, binary, where, reduce, reduce, extreme, along, cumulate, top, matmul, matmul, einsum],
    *[
        gather,
        gather,
        embed,
        gather_elements,
        gather_nd,
        cut,
        cut,
        join,
        split,
        shape,
        shape,
        reshape,
        reshape,
        reshape,
    ],
    *[
        reshape,
        flatten,
        squeeze,
        unsqueeze,
        transpose,
        transpose,
        repeat,
        expand,
        expand,
        fill,
        count,
        cast,
        pad,
        image,
    ],
    *[places, places, normalise, one_hot, recurrent, branch, scan, fused, table],
]

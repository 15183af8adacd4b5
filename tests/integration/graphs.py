"""Models that only tests need, and the reference: onnxruntime in the test's own process."""

import functools
import pathlib

import numpy as np
import onnx
from onnx import TensorProto, helper

from nexus_grpc.worker.onnx_runtime import ort
from tests.harness import MODELS

# Loop turns that take about a second (measured: 0.5 to 2 s on cloud cores). Tests that need precision measure it.
SLOW_SECOND = 800_000


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def save(folder: pathlib.Path, version: int, graph: onnx.GraphProto) -> None:
    model = _model(graph)
    path = folder / str(version) / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(model.SerializeToString())


def _floats(name: str, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def identity(repository: pathlib.Path) -> None:
    """`identity`: any FP32 matrix comes back."""
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([node], "identity", [_floats("x", ["n", "w"])], [_floats("y", ["n", "w"])])
    save(repository / "identity", 1, graph)


def tile(repository: pathlib.Path) -> None:
    """`tile`: x, `times` times over: a large answer to a small request."""
    times = helper.make_tensor_value_info("times", TensorProto.INT64, [1])
    node = helper.make_node("Tile", ["x", "times"], ["y"])
    save(repository / "tile", 1, helper.make_graph([node], "tile", [_floats("x", ["n"]), times], [_floats("y", ["m"])]))


def scale(repository: pathlib.Path) -> None:
    """`scale`: version 1 gives x × 1, version 2 gives x × 2; both are served."""
    for version in (1, 2):
        factor = helper.make_tensor("k", TensorProto.FLOAT, [1], [float(version)])
        node = helper.make_node("Mul", ["x", "k"], ["y"])
        graph = helper.make_graph([node], "scale", [_floats("x", ["n", 2])], [_floats("y", ["n", 2])], [factor])
        save(repository / "scale", version, graph)
    (repository / "scale" / "config.pbtxt").write_text("version_policy { all {} }")


def halves(repository: pathlib.Path) -> None:
    """`halves`: FP32 in; FP32, FP16, and FP32 again out."""
    nodes = [
        helper.make_node("Identity", ["x"], ["before"]),
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Neg", ["x"], ["after"]),
    ]
    half = helper.make_tensor_value_info("half", TensorProto.FLOAT16, ["n", 2])
    outputs = [_floats("before", ["n", 2]), half, _floats("after", ["n", 2])]
    save(repository / "halves", 1, helper.make_graph(nodes, "halves", [_floats("x", ["n", 2])], outputs))


def slow(repository: pathlib.Path) -> None:
    """`slow`: counts to its scalar input `turns`, one by one."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["condition"], ["again"]),
            helper.make_node("Add", ["sum", "one"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.INT64, []),
        ],
        [
            helper.make_tensor_value_info("again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.INT64, []),
        ],
        [helper.make_tensor("one", TensorProto.INT64, [], [1])],
    )
    constants = [
        helper.make_tensor("yes", TensorProto.BOOL, [], [1]),
        helper.make_tensor("zero", TensorProto.INT64, [], [0]),
    ]
    node = helper.make_node("Loop", ["turns", "yes", "zero"], ["count"], body=body)
    scalar = helper.make_tensor_value_info("turns", TensorProto.INT64, [])
    graph = helper.make_graph(
        [node], "slow", [scalar], [helper.make_tensor_value_info("count", TensorProto.INT64, [])], constants
    )
    save(repository / "slow", 1, graph)


# How ONNX Runtime says that it cannot run: a node whose input `bad`, [1], is 1 and not 0, and what it makes.
FAILURES = {
    "INVALID_ARGUMENT": (["Gather", "table", "bad"], {"table": [0.0]}),
    "RUNTIME_EXCEPTION": (["Reshape", "table", "size"], {"table": [0.0]}),
    "FAIL": (["ConstantOfShape", "size"], {}),
}
SIZE = {"RUNTIME_EXCEPTION": (1, 1), "FAIL": (1, -2)}
RANDOM_SEED = 3.0


@functools.cache
def _draws(count: int) -> list[float]:
    """What a RandomUniform node with RANDOM_SEED gives in one run after the other."""
    session = ort.InferenceSession(_model(_random_graph()).SerializeToString(), providers=["CPUExecutionProvider"])
    return [float(session.run(None, {})[0][0]) for _ in range(count)]


def _random_graph() -> onnx.GraphProto:
    node = helper.make_node("RandomUniform", [], ["drawn"], shape=[1], seed=RANDOM_SEED)
    return helper.make_graph([node], "random", [], [_floats("drawn", [1])])


def wearing(kind: str, runs: str) -> onnx.GraphProto:
    """x, FP32 [n, 2], comes back. Fails in those runs that are an F, and where the largest x is 3; `kind`: see
    FAILURES. It is the model that fails: its random numbers are the same in every session, and not the input's."""
    failing = [draw for draw, run in zip(_draws(len(runs)), runs, strict=True) if run == "F"]
    (operator, *inputs), constants = FAILURES[kind]
    plus, times = SIZE.get(kind, (0, 0))
    nodes = [
        *_random_graph().node,
        helper.make_node("Equal", ["drawn", "failing"], ["equal"]),
        helper.make_node("Cast", ["equal"], ["equals"], to=TensorProto.INT64),
        helper.make_node("ReduceMax", ["equals"], ["worn"], axes=[0]),
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Equal", ["largest", "three"], ["refused"]),
        helper.make_node("Cast", ["refused"], ["refuses"], to=TensorProto.INT64),
        helper.make_node("Max", ["worn", "refuses"], ["bad"]),
        helper.make_node("Mul", ["bad", "times"], ["more"]),
        helper.make_node("Add", ["more", "plus"], ["size"]),
        helper.make_node(operator, inputs, ["made"]),
        helper.make_node("ReduceSum", ["made"], ["nothing"], keepdims=0),
        helper.make_node("Add", ["x", "nothing"], ["y"]),
    ]
    tensors = [
        helper.make_tensor("failing", TensorProto.FLOAT, [len(failing) + 1], [*failing, -1.0]),
        helper.make_tensor("three", TensorProto.FLOAT, [], [3.0]),
        helper.make_tensor("times", TensorProto.INT64, [1], [times]),
        helper.make_tensor("plus", TensorProto.INT64, [1], [plus]),
        *(helper.make_tensor(name, TensorProto.FLOAT, [len(each)], each) for name, each in constants.items()),
    ]
    return helper.make_graph(nodes, "wearing", [_floats("x", ["n", 2])], [_floats("y", ["n", 2])], tensors)


def fragile(repository: pathlib.Path) -> None:
    """`fragile`: FP32 matrix, comes back. Version 2 fails in its second to fourth run; 1 stands by."""
    matrix = [_floats(name, ["n", 2]) for name in "xy"]
    plain = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "fragile", matrix[:1], matrix[1:])
    save(repository / "fragile", 1, plain)
    save(repository / "fragile", 2, wearing("INVALID_ARGUMENT", "PFFF"))
    standby = 'parameters { key: "fallback_version" value { string_value: "1" } }'
    (repository / "fragile" / "config.pbtxt").write_text(standby)


def ratio(repository: pathlib.Path) -> None:
    """`ratio`: probabilities that are x / 0: NaN for 0, infinite for others."""
    node = helper.make_node("Div", ["x", "zero"], ["probabilities"])
    zero = helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0])
    sides = [_floats(name, ["n", 3]) for name in ("x", "probabilities")]
    save(repository / "ratio", 1, helper.make_graph([node], "ratio", sides[:1], sides[1:], [zero]))


def append(repository: pathlib.Path) -> None:
    """`append`: `present` is `past`, of any length, and `x` behind it."""
    node = helper.make_node("Concat", ["past", "x"], ["present"], axis=1)
    inputs = [_floats("past", ["n", "p", 2]), _floats("x", ["n", 1, 2])]
    save(repository / "append", 1, helper.make_graph([node], "append", inputs, [_floats("present", ["n", "q", 2])]))


def noinput(repository: pathlib.Path) -> None:
    """`noinput`: takes nothing and gives [1, 2]."""
    value = helper.make_tensor("c", TensorProto.FLOAT, [2], [1.0, 2.0])
    node = helper.make_node("Constant", [], ["y"], value=value)
    save(repository / "noinput", 1, helper.make_graph([node], "noinput", [], [_floats("y", [2])]))


def addlens(repository: pathlib.Path) -> None:
    """`addlens`: a + b, whose lengths must agree, as those of ids and their mask; ONNX Runtime: RUNTIME_EXCEPTION."""
    a, b = _floats("a", ["batch", "n"]), _floats("b", ["batch", "m"])
    node = helper.make_node("Add", ["a", "b"], ["y"])
    graph = helper.make_graph([node], "add", [a, b], [_floats("y", ["batch", "k"])])
    save(repository / "addlens", 1, graph)


def table(repository: pathlib.Path, name: str, version: int, rows: int) -> None:
    """The numbers of x, FP32 [batch, 3], looked up in a table of so many; ONNX Runtime: INVALID_ARGUMENT of others."""
    nodes = [
        helper.make_node("Cast", ["x"], ["ids"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "ids"], ["y"], axis=0),
    ]
    x, y = _floats("x", ["batch", 3]), _floats("y", ["batch", 3])
    constant = helper.make_tensor("table", TensorProto.FLOAT, [rows], [float(each) for each in range(rows)])
    save(repository / name, version, helper.make_graph(nodes, "table", [x], [y], [constant]))


def add_test_models(repository: pathlib.Path) -> None:
    for build in (identity, scale, halves, slow, ratio, append, noinput):
        build(repository)


@functools.cache
def _session(name: str) -> ort.InferenceSession:
    return ort.InferenceSession(str(MODELS / name / "1" / "model.onnx"), providers=["CPUExecutionProvider"])


def reference(name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What onnxruntime itself answers, for a demo model."""
    session = _session(name)
    return dict(zip([node.name for node in session.get_outputs()], session.run(None, inputs), strict=True))

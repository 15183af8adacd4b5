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


def _save(folder: pathlib.Path, version: int, graph: onnx.GraphProto) -> None:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path = folder / str(version) / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(model.SerializeToString())


def _floats(name: str, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def identity(repository: pathlib.Path) -> None:
    """`identity`: any FP32 matrix comes back."""
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([node], "identity", [_floats("x", ["n", "w"])], [_floats("y", ["n", "w"])])
    _save(repository / "identity", 1, graph)


def tile(repository: pathlib.Path) -> None:
    """`tile`: x, `times` times over: a large answer to a small request."""
    times = helper.make_tensor_value_info("times", TensorProto.INT64, [1])
    node = helper.make_node("Tile", ["x", "times"], ["y"])
    _save(
        repository / "tile", 1, helper.make_graph([node], "tile", [_floats("x", ["n"]), times], [_floats("y", ["m"])])
    )


def scale(repository: pathlib.Path) -> None:
    """`scale`: version 1 gives x × 1, version 2 gives x × 2; both are served."""
    for version in (1, 2):
        factor = helper.make_tensor("k", TensorProto.FLOAT, [1], [float(version)])
        node = helper.make_node("Mul", ["x", "k"], ["y"])
        graph = helper.make_graph([node], "scale", [_floats("x", ["n", 2])], [_floats("y", ["n", 2])], [factor])
        _save(repository / "scale", version, graph)
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
    _save(repository / "halves", 1, helper.make_graph(nodes, "halves", [_floats("x", ["n", 2])], outputs))


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
    _save(repository / "slow", 1, graph)


def fragile(repository: pathlib.Path) -> None:
    """`fragile`: FP32 matrix, comes back. Version 2 fails unless the largest value is 4 or nothing; 1 stands by."""
    matrix = [_floats(name, ["n", 2]) for name in "xy"]
    plain = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "fragile", matrix[:1], matrix[1:])
    _save(repository / "fragile", 1, plain)
    nodes = [
        helper.make_node("Cast", ["x"], ["whole"], to=TensorProto.INT64),
        helper.make_node("ReduceMax", ["whole"], ["largest"], keepdims=0),
        helper.make_node("Unsqueeze", ["largest", "axes"], ["shape"]),
        helper.make_node("Reshape", ["four", "shape"], ["reshaped"]),
        helper.make_node("ReduceSum", ["reshaped"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [1], [0]),
        helper.make_tensor("four", TensorProto.FLOAT, [4], [0.0] * 4),
    ]
    _save(repository / "fragile", 2, helper.make_graph(nodes, "fragile", matrix[:1], matrix[1:], constants))
    standby = 'parameters { key: "fallback_version" value { string_value: "1" } }'
    (repository / "fragile" / "config.pbtxt").write_text(standby)


def ratio(repository: pathlib.Path) -> None:
    """`ratio`: probabilities that are x / 0: NaN for 0, infinite for others."""
    node = helper.make_node("Div", ["x", "zero"], ["probabilities"])
    zero = helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0])
    sides = [_floats(name, ["n", 3]) for name in ("x", "probabilities")]
    _save(repository / "ratio", 1, helper.make_graph([node], "ratio", sides[:1], sides[1:], [zero]))


def append(repository: pathlib.Path) -> None:
    """`append`: `present` is `past`, of any length, and `x` behind it."""
    node = helper.make_node("Concat", ["past", "x"], ["present"], axis=1)
    inputs = [_floats("past", ["n", "p", 2]), _floats("x", ["n", 1, 2])]
    _save(repository / "append", 1, helper.make_graph([node], "append", inputs, [_floats("present", ["n", "q", 2])]))


def noinput(repository: pathlib.Path) -> None:
    """`noinput`: takes nothing and gives [1, 2]."""
    value = helper.make_tensor("c", TensorProto.FLOAT, [2], [1.0, 2.0])
    node = helper.make_node("Constant", [], ["y"], value=value)
    _save(repository / "noinput", 1, helper.make_graph([node], "noinput", [], [_floats("y", [2])]))


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

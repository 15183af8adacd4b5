"""Models that are slow, stuck or deadly on purpose, decided by a request's values. Built with onnx, never stored."""

import pathlib

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

INT64_MIN = -(2**63)
# One turn of the loop multiplies matrices of this side: some 8 µs on one core.
_SIDE = 64
# Turns that take some milliseconds on the machines this was written on, and ones that never end.
TURNS_PER_MS = 130
TURNS_ENDLESS = 2**62


def _save(root: pathlib.Path, name: str, graph: onnx.GraphProto, max_batch_size: int) -> None:
    folder = root / name / "1"
    folder.mkdir(parents=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save_model(model, str(folder / "model.onnx"))
    config = f'name: "{name}"\nbackend: "onnxruntime"\nmax_batch_size: {max_batch_size}\n'
    (root / name / "config.pbtxt").write_text(config)


def _constant(name: str, value: object, dtype: type[np.generic] = np.int64) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, dtype=dtype), name)


def _int64(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.INT64, shape)


def spin_graph() -> onnx.GraphProto:
    """As counts_i64 (total = row sum, affine = 3 * counts + 7), after as many turns as counts[:, 3] at most says."""
    square = [_SIDE, _SIDE]
    floats = TensorProto.FLOAT
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["again"], ["again_after"]),
            helper.make_node("MatMul", ["carried", "rotation"], ["carried_after"]),
        ],
        "turn",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", floats, square),
        ],
        [
            helper.make_tensor_value_info("again_after", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried_after", floats, square),
        ],
    )
    nodes = [
        helper.make_node("Gather", ["counts", "last"], ["turns_by_row"], axis=1),
        helper.make_node("ReduceMax", ["turns_by_row"], ["turns"], keepdims=0),
        helper.make_node("Loop", ["turns", "always", "start"], ["turned"], body=body),
        # The loop's result is zero, whatever it turned: it only must not be optimised away.
        helper.make_node("ReduceMax", ["turned"], ["largest"], keepdims=0),
        helper.make_node("Cast", ["largest"], ["nothing"], to=TensorProto.INT64),
        helper.make_node("MatMul", ["counts", "ones"], ["sums"]),
        helper.make_node("Add", ["sums", "nothing"], ["total"]),
        helper.make_node("Mul", ["counts", "three"], ["scaled"]),
        helper.make_node("Add", ["scaled", "seven"], ["affine"]),
    ]
    constants = [
        _constant("last", 3),
        _constant("always", True, np.bool_),
        _constant("start", np.zeros(square), np.float32),
        _constant("rotation", np.eye(_SIDE), np.float32),
        _constant("ones", [[1]] * 4),
        _constant("three", 3),
        _constant("seven", 7),
    ]
    outputs = [_int64("total", "batch", 1), _int64("affine", "batch", 4)]
    return helper.make_graph(nodes, "spin", [_int64("counts", "batch", 4)], outputs, constants)


def divide_graph() -> onnx.GraphProto:
    """As counts_i64 where counts[:, 3] = 1, by which the sum is divided: INT64_MIN / -1 is a SIGFPE on x86."""
    nodes = [
        helper.make_node("MatMul", ["counts", "first_three"], ["sums"]),
        helper.make_node("MatMul", ["counts", "fourth"], ["divisor"]),
        helper.make_node("Div", ["sums", "divisor"], ["quotient"]),
        helper.make_node("Add", ["quotient", "divisor"], ["total"]),
        helper.make_node("Mul", ["counts", "three"], ["scaled"]),
        helper.make_node("Add", ["scaled", "seven"], ["affine"]),
    ]
    constants = [
        _constant("first_three", [[1], [1], [1], [0]]),
        _constant("fourth", [[0], [0], [0], [1]]),
        _constant("three", 3),
        _constant("seven", 7),
    ]
    outputs = [_int64("total", "batch", 1), _int64("affine", "batch", 4)]
    return helper.make_graph(nodes, "divide", [_int64("counts", "batch", 4)], outputs, constants)


def bomb_graph() -> onnx.GraphProto:
    """A graph that kills whoever loads it: ONNX Runtime computes the constant INT64_MIN / -1 while it optimises."""
    nodes = [
        helper.make_node("Div", ["smallest", "minus_one"], ["quotient"]),
        helper.make_node("Add", ["counts", "quotient"], ["total"]),
    ]
    constants = [_constant("smallest", [INT64_MIN]), _constant("minus_one", [-1])]
    counts, total = _int64("counts", "batch", 4), _int64("total", "batch", 4)
    return helper.make_graph(nodes, "bomb", [counts], [total], constants)


def build_repository(root: pathlib.Path) -> pathlib.Path:
    """`spin` is batched, `slow` is the same graph and is not, `divide` dies of one particular row."""
    _save(root, "spin", spin_graph(), 64)
    _save(root, "slow", spin_graph(), 0)
    _save(root, "divide", divide_graph(), 64)
    return root


def add_bomb(root: pathlib.Path) -> None:
    _save(root, "bomb", bomb_graph(), 64)

"""Hand-written arithmetic graphs: integers, several inputs, fixed dimensions and a scalar."""

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# Lets the script run by its path as well as with `python -m`.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples import common

TWO_INPUTS_CONFIG = """\
name: "two_inputs"
backend: "onnxruntime"
max_batch_size: 64
input [
  { name: "a" data_type: TYPE_FP32 dims: [ 3 ] },
  { name: "b" data_type: TYPE_FP32 dims: [ 3 ] }
]
output [
  { name: "sum" data_type: TYPE_FP32 dims: [ 3 ] },
  { name: "product" data_type: TYPE_FP32 dims: [ 3 ] }
]
dynamic_batching {
  preferred_batch_size: [ 16, 32 ]
  max_queue_delay_microseconds: 2000
}
"""


def _constant(name: str, value: object, dtype: type[np.generic]) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, dtype=dtype), name)


def counts_i64() -> common.Example:
    """total = the sum of each row, affine = 3 * counts + 7; int64 all through, so values past 2**53 stay exact."""
    nodes = [
        # Not ReduceSum: ONNX Runtime's CPU kernel adds int64 as doubles, which rounds past 2**53.
        helper.make_node("MatMul", ["counts", "ones"], ["total"], "total"),
        helper.make_node("Mul", ["counts", "scale"], ["scaled"], "scale"),
        helper.make_node("Add", ["scaled", "offset"], ["affine"], "offset"),
    ]
    constants = [_constant(name, value, np.int64) for name, value in (("ones", [[1]] * 4), ("scale", 3), ("offset", 7))]
    int64 = TensorProto.INT64
    model = common.graph_model(
        "counts_i64",
        "Row sums and 3 * counts + 7 over int64.",
        nodes,
        [common.tensor("counts", int64, [common.BATCH, 4])],
        [common.tensor("total", int64, [common.BATCH, 1]), common.tensor("affine", int64, [common.BATCH, 4])],
        constants,
    )
    return common.Example("counts_i64", model)


def two_inputs() -> common.Example:
    """sum = a + b, product = a * b."""
    shape: common.Shape = (common.BATCH, 3)
    model = common.graph_model(
        "two_inputs",
        "Elementwise sum and product of two inputs.",
        [
            helper.make_node("Add", ["a", "b"], ["sum"], "add"),
            helper.make_node("Mul", ["a", "b"], ["product"], "multiply"),
        ],
        [common.floats("a", shape), common.floats("b", shape)],
        [common.floats("sum", shape), common.floats("product", shape)],
    )
    return common.Example("two_inputs", model, files={"config.pbtxt": TWO_INPUTS_CONFIG})


def fixed_batch() -> common.Example:
    """y = 2 * x + 1, for exactly two rows of three."""
    model = common.graph_model(
        "fixed_batch",
        "2 * x + 1 with no free dimension.",
        [
            helper.make_node("Mul", ["x", "two"], ["doubled"], "double"),
            helper.make_node("Add", ["doubled", "one"], ["y"], "increment"),
        ],
        [common.floats("x", [2, 3])],
        [common.floats("y", [2, 3])],
        [_constant("two", 2, np.float32), _constant("one", 1, np.float32)],
    )
    return common.Example("fixed_batch", model)


def scalar() -> common.Example:
    """y = x * x, for a tensor without dimensions."""
    model = common.graph_model(
        "scalar",
        "The square of a scalar.",
        [helper.make_node("Mul", ["x", "x"], ["y"], "square")],
        [common.floats("x", [])],
        [common.floats("y", [])],
    )
    return common.Example("scalar", model)


BUILDERS: dict[str, common.Builder] = {
    "counts_i64": counts_i64,
    "two_inputs": two_inputs,
    "fixed_batch": fixed_batch,
    "scalar": scalar,
}

if __name__ == "__main__":
    common.main(__doc__, BUILDERS)

"""Model files that must not get into a server, each for a reason of its own; some of them take onnxruntime down."""

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
# 20,000 levels overflow the 8 MiB stack of onnxruntime 1.31, which builds trees recursively.
TREE_LEVELS = 50_000


def floats(name: str, shape: list[int | str] | None) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, FLOAT, shape)


def model_of(
    nodes: list[NodeProto], *, initializers: tuple[TensorProto, ...] = (), opset: int = 17, ir_version: int = 8
) -> ModelProto:
    """A model from x [n, 2] to y, FP32."""
    graph = helper.make_graph(nodes, "graph", [floats("x", ["n", 2])], [floats("y", None)], list(initializers))
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


def good() -> ModelProto:
    return model_of([helper.make_node("Relu", ["x"], ["y"])])


def custom_op() -> ModelProto:
    return model_of([helper.make_node("Frobnicate", ["x"], ["y"], domain="com.example")])


def future_opset() -> ModelProto:
    return model_of([helper.make_node("Relu", ["x"], ["y"])], opset=999)


def elsewhere(location: str = "../../secret.bin") -> TensorProto:
    """A tensor whose data lies in another file."""
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def external_data() -> ModelProto:
    return model_of([helper.make_node("Add", ["x", "w"], ["y"])], initializers=(elsewhere(),))


def dims_bomb() -> ModelProto:
    """A few bytes that declare 4 TiB."""
    bomb = TensorProto(name="w", data_type=FLOAT, dims=[1 << 20, 1 << 20], raw_data=b"\0" * 16)
    return model_of([helper.make_node("Add", ["x", "w"], ["y"])], initializers=(bomb,))


def crashes_the_loader() -> ModelProto:
    """A tree that is one long branch: valid, and onnxruntime dies of it with SIGSEGV."""
    inner, total = TREE_LEVELS - 1, 2 * TREE_LEVELS - 1
    node = helper.make_node(
        "TreeEnsembleRegressor",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        n_targets=1,
        nodes_nodeids=list(range(total)),
        nodes_treeids=[0] * total,
        nodes_featureids=[0] * total,
        nodes_values=[1.0] * total,
        nodes_modes=["BRANCH_LEQ"] * inner + ["LEAF"] * TREE_LEVELS,
        nodes_truenodeids=[*range(1, TREE_LEVELS), *[0] * TREE_LEVELS],
        nodes_falsenodeids=[*range(TREE_LEVELS, total), *[0] * TREE_LEVELS],
        target_ids=[0],
        target_nodeids=[total - 1],
        target_treeids=[0],
        target_weights=[1.0],
    )
    return model_of([node])


def never_ends(*, batchable: bool) -> ModelProto:
    """A loop of 2^62 turns, with a batch dimension or without one."""
    condition = helper.make_tensor_value_info("condition", TensorProto.BOOL, [])
    body = helper.make_graph(
        [helper.make_node("Identity", ["condition"], ["again"]), helper.make_node("Add", ["sum", "one"], ["next"])],
        "body",
        [helper.make_tensor_value_info("turn", INT64, []), condition, helper.make_tensor_value_info("sum", INT64, [])],
        [
            helper.make_tensor_value_info("again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", INT64, []),
        ],
        [helper.make_tensor("one", INT64, [], [1])],
    )
    constants = [
        helper.make_tensor("turns", INT64, [], [1 << 62]),
        helper.make_tensor("yes", TensorProto.BOOL, [], [1]),
        helper.make_tensor("zero", INT64, [], [0]),
    ]
    nodes = [
        helper.make_node("Loop", ["turns", "yes", "zero"], ["count"], body=body),
        helper.make_node("Cast", ["count"], ["offset"], to=FLOAT),
        helper.make_node("Add", ["x", "offset"], ["y"]),
    ]
    shape: list[int | str] = ["n", 2] if batchable else [1, 2]
    graph = helper.make_graph(nodes, "endless", [floats("x", shape)], [floats("y", shape)], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def eats_memory(elements: int) -> ModelProto:
    """A small file that makes a tensor of so many floats, which depends on the input and so cannot be folded."""
    nodes = [
        helper.make_node("ConstantOfShape", ["many"], ["zeros"]),
        helper.make_node("Add", ["zeros", "x"], ["sums"]),
        helper.make_node("ReduceSum", ["sums"], ["y"], keepdims=0),
    ]
    many = numpy_helper.from_array(np.array([elements // 2, 2], dtype=np.int64), "many")
    graph = helper.make_graph(nodes, "hungry", [floats("x", [1, 2])], [floats("y", [])], [many])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

"""Models that say which version they are: version N of one answers x + N."""

import pathlib

from onnx import TensorProto, helper, save_model


def add_version(repository: pathlib.Path, name: str, version: int) -> pathlib.Path:
    """Puts a version into a repository; returns its file. Input `x` FP32[-1, 1], output `y` = x + version."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])
    number = helper.make_tensor("number", TensorProto.FLOAT, [1], [float(version)])
    graph = helper.make_graph([helper.make_node("Add", ["x", "number"], ["y"])], "numbered", [x], [y], [number])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = repository / name / str(version) / "model.onnx"
    path.parent.mkdir(parents=True)
    save_model(model, path)
    return path

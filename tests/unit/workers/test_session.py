"""Opening and running model files."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from nexus_grpc.ipc.errors import InferenceFailed, ModelNotServable
from nexus_grpc.worker.session import as_served, available_providers, onnxruntime_version, open_session
from tests.unit.support import Graph, floats, one_node, spec

FLOAT = TensorProto.FLOAT


def zipmap(path: Path, **classes: object) -> str:
    """scores [batch, 2] → label (the larger one) and a map per row, as scikit-learn's classifiers are exported."""
    nodes = [
        helper.make_node("ArgMax", ["x"], ["output_label"], axis=1, keepdims=0),
        helper.make_node("ZipMap", ["x"], ["output_probability"], domain="ai.onnx.ml", **classes),
    ]
    graph = Graph(nodes, [("x", FLOAT, ["batch", 2])], [("output_label", TensorProto.INT64, ["batch"])])
    saved = graph.save(path)
    import onnx

    model = onnx.load(saved)
    key = TensorProto.STRING if "classlabels_strings" in classes else TensorProto.INT64
    entry = helper.make_map_type_proto(key, helper.make_tensor_type_proto(FLOAT, []))
    sequence = helper.make_sequence_type_proto(entry)
    model.graph.output.append(helper.make_value_info("output_probability", sequence))
    onnx.save(model, saved)
    return saved


def test_what_the_graph_says(tmp_path: Path) -> None:
    opened = open_session(one_node("Relu").save(tmp_path), "m", {}, 1)
    assert [(item.name, item.datatype.name, item.shape) for item in opened.inputs] == [("x", "FP32", (-1, 2))]
    assert [(item.name, item.datatype.name, item.shape) for item in opened.outputs] == [("y", "FP32", (-1, 2))]
    assert opened.batch_symbols == {"batch"}
    assert opened.run({"x": floats([-1, 2])}, False)[0].tolist() == [[0, 2]]


@pytest.mark.parametrize(
    "options",
    [
        {"enable_mem_arena": False},
        {"enable_mem_arena": False, "shrink_arena": True},
        {"shrink_arena": True},
        {"enable_mem_pattern": False},
        {"execution_mode": "parallel", "inter_op_thread_count": 2},
        {"execution_mode": "parallel"},
    ],
)
def test_how_a_session_may_be_opened_changes_no_answer(options: dict[str, object], tmp_path: Path) -> None:
    opened = open_session(one_node("Relu").save(tmp_path), "m", options, 2)
    for oversize in (False, True, False, False):
        assert opened.run({"x": floats([-1, 2])}, oversize)[0].tolist() == [[0, 2]]


def test_a_provider_that_is_not_there(tmp_path: Path) -> None:
    options = {"execution_providers": ["CPUExecutionProvider", "AbacusExecutionProvider"]}
    with pytest.raises(ModelNotServable, match=r"provider AbacusExecutionProvider, which .* available: .*CPU"):
        open_session(one_node("Relu").save(tmp_path), "m", options, 1)
    assert "CPUExecutionProvider" in available_providers()
    assert onnxruntime_version()


@pytest.mark.parametrize("content", [b"", b"this is no model", bytes(100)])
def test_a_file_that_is_no_model(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelNotServable, match="model 'm' cannot be loaded") as caught:
        open_session(str(path), "m", {}, 1)
    assert str(tmp_path) not in caught.value.message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelNotServable, match="cannot be loaded"):
        open_session(str(tmp_path / "model.onnx"), "m", {}, 1)


def test_a_type_that_cannot_be_served(tmp_path: Path) -> None:
    graph = Graph(
        [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT8E4M3FN)],
        [("x", TensorProto.FLOAT, ["batch", 2])],
        [("y", TensorProto.FLOAT8E4M3FN, ["batch", 2])],
    )
    with pytest.raises(ModelNotServable, match=r"float8e4m3fn\), which cannot be served"):
        open_session(graph.save(tmp_path), "m", {}, 1)


@pytest.mark.parametrize(
    ("classes", "labels"),
    [({"classlabels_strings": ["no", "yes"]}, ("no", "yes")), ({"classlabels_int64s": [7, 3]}, ("7", "3"))],
)
def test_a_zipmap_becomes_probabilities(classes: dict[str, object], labels: tuple[str, ...], tmp_path: Path) -> None:
    opened = open_session(zipmap(tmp_path, **classes), "m", {}, 1)
    label, probabilities = opened.outputs
    assert (label.name, label.datatype.name, label.shape) == ("label", "INT64", (-1,))
    assert (probabilities.name, probabilities.datatype.name) == ("probabilities", "FP32")
    assert sorted(probabilities.labels) == sorted(labels)
    assert probabilities.shape == (-1, 2)
    by_label = dict(zip(probabilities.labels, opened.run({"x": floats([0.25, 0.75])}, False)[1][0], strict=True))
    assert by_label == dict(zip(labels, [0.25, 0.75], strict=True))
    assert opened.run({"x": floats([0.25, 0.75], [1, 0])}, False)[1].shape == (2, 2)


def test_whose_fault_it_is_an_error_does_not_say(tmp_path: Path) -> None:
    opened = open_session(one_node("Relu").save(tmp_path), "m", {}, 1)
    with pytest.raises(InferenceFailed, match="INVALID_ARGUMENT"):
        opened.run({"x": floats([1, 2, 3])}, False)


def test_a_run_that_fails_says_so(tmp_path: Path) -> None:
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [7, 7])
    graph = Graph([node], [("x", FLOAT, ["batch", 2])], [("y", FLOAT, ["a", "b"])], [shape])
    opened = open_session(graph.save(tmp_path), "m", {}, 1)
    with pytest.raises(InferenceFailed):
        opened.run({"x": floats([1, 2])}, False)


@pytest.mark.parametrize(
    ("datatype", "output", "dtype", "shape"),
    [
        ("FP32", np.float64(1.5), "<f4", ()),
        ("FP32", np.array(1.5), "<f4", ()),
        ("INT64", [[1, 2]], "<i8", (1, 2)),
        ("BYTES", np.array(["a", "b"]), "O", (2,)),
        ("BOOL", np.array([True]), "?", (1,)),
        ("FP32", np.arange(6, dtype=np.float32).reshape(2, 3).T, "<f4", (3, 2)),
    ],
)
def test_outputs_get_the_dtype_that_was_promised(
    datatype: str, output: object, dtype: str, shape: tuple[int, ...]
) -> None:
    array = as_served(spec("y", datatype, -1), output)
    assert (array.dtype, array.shape) == (np.dtype(dtype), shape)
    assert array.flags.c_contiguous
    assert array.tolist() == np.asarray(output).tolist()

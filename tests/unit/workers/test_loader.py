"""From a model file to a Model: what is batched, what is refused, what is warmed up. On tiny ONNX models."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from nexus_grpc.ipc.errors import ModelNotServable
from nexus_grpc.model_config import parse_config
from nexus_grpc.pb.inference import model_config_pb2 as config_pb
from nexus_grpc.worker.loader import config_of, load_model, metadata_of
from tests.unit.support import POLICY, Graph, floats, load_order, one_node

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
AXIS_0 = numpy_helper.from_array(np.array(0, dtype=np.int64), "axis")
TEXT_MAP: dict[str, Any] = {"keys_strings": ["a"], "values_strings": ["A"], "domain": "ai.onnx.ml"}


def config(text: str) -> config_pb.ModelConfig:
    return parse_config(text, path="config.pbtxt")


def mean_over_rows() -> Graph:
    """y = x - mean over the batch: rows influence each other."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "m"], ["y"]),
    ]
    return Graph(nodes, [("x", FLOAT, ["batch", 2])], [("y", FLOAT, ["batch", 2])])


def sum_over_rows(kind: int, reverse: int) -> Graph:
    node = helper.make_node("CumSum", ["x", "axis"], ["y"], reverse=reverse)
    return Graph([node], [("x", kind, ["batch", 2])], [("y", kind, ["batch", 2])], [AXIS_0])


def two_inputs(first: str, second: str) -> Graph:
    node = helper.make_node("Add", ["x", "z"], ["y"])
    return Graph([node], [("x", FLOAT, [first, 2]), ("z", FLOAT, [second, 2])], [("y", FLOAT, [first, 2])])


# --- is the leading dimension a batch? ---


@pytest.mark.parametrize(
    "graph",
    [
        one_node("Relu"),
        one_node("Softmax", axis=1),
        one_node("Neg", INT64),
        one_node("Not", TensorProto.BOOL),
        one_node("LabelEncoder", STRING, **TEXT_MAP),
        two_inputs("batch", "batch"),
    ],
    ids=["relu", "softmax-1", "ints", "bools", "text", "two-inputs"],
)
def test_row_by_row_models_are_batched(graph: Graph, tmp_path: Path) -> None:
    model = load_model(load_order(graph.save(tmp_path)))
    assert (model.max_batch_size, model.batch_limit_is_strict) == (16, False)


@pytest.mark.parametrize(
    "graph",
    [
        one_node("Softmax", axis=0),
        mean_over_rows(),
        sum_over_rows(FLOAT, 0),
        sum_over_rows(INT64, 0),
        sum_over_rows(INT64, 1),
        two_inputs("rows", "others"),
        dataclasses.replace(one_node("Relu"), inputs=[("x", FLOAT, [4, 2])], outputs=[("y", FLOAT, [4, 2])]),
        Graph(
            [helper.make_node("ReduceSum", ["x", "axis"], ["y"], keepdims=0)],
            [("x", FLOAT, ["batch", 2])],
            [("y", FLOAT, ["columns"])],
            [numpy_helper.from_array(np.array([0], dtype=np.int64), "axis")],
        ),
        Graph([helper.make_node("Transpose", ["x"], ["y"])], [("x", FLOAT, ["a", "b"])], [("y", FLOAT, ["b", "a"])]),
        Graph([helper.make_node("NonZero", ["x"], ["y"])], [("x", FLOAT, ["n", 2])], [("y", INT64, ["d", "k"])]),
        one_node("RandomNormalLike"),
    ],
    ids=[
        "softmax-0",
        "minus-mean",
        "running-sum",
        "running-sum-of-ints",
        "running-sum-backwards",
        "two-symbols",
        "fixed",
        "sum-over-rows",
        "transpose",
        "data-dependent",
        "random",
    ],
)
def test_models_whose_rows_influence_each_other_are_not(graph: Graph, tmp_path: Path) -> None:
    assert load_model(load_order(graph.save(tmp_path))).max_batch_size == 0


def test_the_config_decides_where_it_says_something(tmp_path: Path) -> None:
    path = one_node("Relu").save(tmp_path)
    assert load_model(load_order(path, config("max_batch_size: 0"))).max_batch_size == 0
    limited = load_model(load_order(path, config("max_batch_size: 3")))
    assert (limited.max_batch_size, limited.batch_limit_is_strict) == (3, True)
    assert load_model(load_order(path, config('name: "m"'))).max_batch_size == 16


def test_a_loaded_model_runs(tmp_path: Path) -> None:
    model = load_model(load_order(one_node("Neg").save(tmp_path)))
    [output] = model.run({"x": floats([1, 2], [3, 4])}, False)
    assert output.tolist() == [[-1, -2], [-3, -4]]
    [again] = model.run({"x": floats([1, 2])}, True)
    assert again.tolist() == [[-1, -2]]


# --- config against graph ---


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            'input { name: "q" data_type: TYPE_FP32 dims: [2] }',
            "declares input 'q', which the model does not have: 'x'",
        ),
        ('output { name: "q" data_type: TYPE_FP32 dims: [2] }', "declares output 'q'"),
        ('input { name: "x" data_type: TYPE_INT8 dims: [2] }', "input 'x' is TYPE_INT8, the model has TYPE_FP32"),
        ('max_batch_size: 4 input { name: "x" data_type: TYPE_FP32 dims: [3] }', r"dims \[3\], the model has \[2\]"),
        ('max_batch_size: 4 output { name: "y" data_type: TYPE_FP32 dims: [2, 2] }', r"dims \[2, 2\]"),
    ],
)
def test_a_config_that_does_not_fit_the_graph(text: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ModelNotServable, match=complaint):
        load_model(load_order(one_node("Relu").save(tmp_path), config(text)))


@pytest.mark.parametrize(
    "text",
    [
        'max_batch_size: 4 input { name: "x" data_type: TYPE_FP32 dims: [2] }',
        'max_batch_size: 4 input { name: "x" data_type: TYPE_FP32 dims: [-1] }',
        'max_batch_size: 0 input { name: "x" data_type: TYPE_FP32 dims: [-1, 2] }',
        'input { name: "x" data_type: TYPE_FP32 dims: [2] } output { name: "y" data_type: TYPE_FP32 dims: [2] }',
    ],
)
def test_a_config_that_fits(text: str, tmp_path: Path) -> None:
    load_model(load_order(one_node("Relu").save(tmp_path), config(text)))


def test_batches_of_a_fixed_shape(tmp_path: Path) -> None:
    graph = dataclasses.replace(one_node("Relu"), inputs=[("x", FLOAT, [4, 2])], outputs=[("y", FLOAT, [4, 2])])
    with pytest.raises(ModelNotServable, match=r"'x' has the fixed shape \[4,2\]; set max_batch_size: 0"):
        load_model(load_order(graph.save(tmp_path), config("max_batch_size: 4")))


def test_needed_inputs_labels_and_queue_policy(tmp_path: Path) -> None:
    policy = {**POLICY, "max_queue_delay_ns": 5, "preferred_batch_sizes": [2, 4], "default_timeout_ns": 7}
    declared = config('input { name: "x" data_type: TYPE_FP32 dims: [2] optional: true }')
    order = load_order(one_node("Relu").save(tmp_path), declared, labels={"y": ("a", "b")}, policy=policy)
    model = load_model(order)
    assert not model.inputs[0].optional  # without it there is no run, whatever the config says
    assert model.outputs[0].labels == ("a", "b")
    assert (model.queue.max_queue_delay_ns, model.queue.preferred_batch_sizes) == (5, (2, 4))
    assert not model.queue.allow_timeout_override


# --- warm-up ---

WARMUP = (
    'max_batch_size: 4 model_warmup { name: "w" batch_size: 2 inputs { key: "x" value { data_type: %s dims: %s %s } } }'
)


@pytest.mark.parametrize("content", ["zero_data: true", "random_data: true", 'input_data_file: "values"'])
def test_warm_up(content: str, tmp_path: Path) -> None:
    values = tmp_path / "values"
    values.write_bytes(bytes(16))
    order = load_order(
        one_node("Relu").save(tmp_path),
        config(WARMUP % ("TYPE_FP32", "[2]", content)),
        warmup_files={"values": str(values)},
    )
    assert load_model(order).max_batch_size == 4


@pytest.mark.parametrize(
    ("dims", "content", "size", "complaint"),
    [
        ("[3]", "zero_data: true", 16, r"input 'x' is \[2,3\], the model has \[-1,2\]"),
        ("[2]", 'input_data_file: "values"', 15, "file 'values' of model 'm' has 15 bytes, expected 16"),
    ],
)
def test_warm_up_that_does_not_fit(dims: str, content: str, size: int, complaint: str, tmp_path: Path) -> None:
    values = tmp_path / "values"
    values.write_bytes(bytes(size))
    order = load_order(
        one_node("Relu").save(tmp_path),
        config(WARMUP % ("TYPE_FP32", dims, content)),
        warmup_files={"values": str(values)},
    )
    with pytest.raises(ModelNotServable, match=complaint):
        load_model(order)


def test_warm_up_of_an_unknown_input(tmp_path: Path) -> None:
    text = (WARMUP % ("TYPE_FP32", "[2]", "zero_data: true")).replace('"x"', '"q"')
    with pytest.raises(ModelNotServable, match="names input 'q'"):
        load_model(load_order(one_node("Relu").save(tmp_path), config(text)))


def test_warm_up_with_malformed_text(tmp_path: Path) -> None:
    values = tmp_path / "values"
    values.write_bytes(b"\xff")
    text = WARMUP % ("TYPE_STRING", "[2]", 'input_data_file: "values"')
    order = load_order(
        one_node("LabelEncoder", STRING, **TEXT_MAP).save(tmp_path), config(text), warmup_files={"values": str(values)}
    )
    with pytest.raises(ModelNotServable, match="warm-up 'w' of model 'm' failed: input 'x': BYTES"):
        load_model(order)


def test_warm_up_that_the_model_refuses(tmp_path: Path) -> None:
    table = numpy_helper.from_array(np.zeros(1, dtype=np.float32), "table")
    node = helper.make_node("Gather", ["table", "x"], ["y"])
    graph = Graph([node], [("x", INT64, ["batch", 2])], [("y", FLOAT, ["batch", 2])], [table])
    values = tmp_path / "values"
    values.write_bytes(np.full(4, 9, dtype=np.int64).tobytes())
    order = load_order(
        graph.save(tmp_path),
        config(WARMUP % ("TYPE_INT64", "[2]", 'input_data_file: "values"')),
        warmup_files={"values": str(values)},
    )
    with pytest.raises(ModelNotServable, match="warm-up 'w' of model 'm' failed"):
        load_model(order)


# --- what clients are told ---


def test_metadata_and_config_in_force(tmp_path: Path) -> None:
    order = load_order(one_node("Relu").save(tmp_path))
    model = load_model(order)
    metadata = metadata_of(model)
    assert (metadata.name, metadata.platform) == ("m", "onnxruntime_onnx")
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [("x", "FP32", [-1, 2])]
    in_force = config_of(order, model)
    assert in_force.max_batch_size == 16
    assert in_force.HasField("dynamic_batching")
    assert (in_force.backend, in_force.default_model_filename) == ("onnxruntime", "model.onnx")
    assert [(t.name, t.data_type, list(t.dims)) for t in in_force.output] == [("y", config_pb.TYPE_FP32, [2])]


def test_the_config_in_force_keeps_what_was_declared(tmp_path: Path) -> None:
    declared = config('max_batch_size: 0 output { name: "y" data_type: TYPE_FP32 dims: [-1, 2] label_filename: "l" }')
    order = load_order(one_node("Relu").save(tmp_path), declared)
    in_force = config_of(order, load_model(order))
    assert in_force.output[0].label_filename == "l"
    assert list(in_force.output[0].dims) == [-1, 2]
    assert not in_force.HasField("dynamic_batching")
    assert in_force.HasField("max_batch_size")


# --- batching: what is proved, what the trial says, what the owner says ---


def test_the_config_in_force_says_why_requests_are_batched(tmp_path: Path) -> None:
    def told(graph: Graph, text: str | None = None, **changes: Any) -> str:
        order = load_order(graph.save(tmp_path), config(text) if text else None, **changes)
        return config_of(order, load_model(order)).parameters["batching"].string_value

    assert told(one_node("Relu")) == "requests are batched: the graph proves that rows do not change each other"
    assert "node 'y' (Softmax): it works along the batch axis; if its rows" in told(one_node("Softmax", axis=0))
    assert told(one_node("Relu"), "max_batch_size: 4") == "as config.pbtxt says: max_batch_size 4"
    assert "different names" in told(two_inputs("rows", "others"))
    vetoed = told(one_node("Relu"), batching_veto="sample rows did this")
    assert vetoed.startswith("requests are not batched: sample rows did this; if its rows")


@pytest.mark.parametrize("words", ["", "max_batch_size: 16"], ids=["proved", "owner"])
@pytest.mark.parametrize("declared", [[1, 2], None], ids=["one row", "nothing"])
def test_what_an_output_declares_of_its_rows_is_not_believed(declared: list[int], words: str, tmp_path: Path) -> None:
    """Exporters of trees write 1."""
    graph = dataclasses.replace(one_node("Relu"), outputs=[("y", FLOAT, declared)])
    model = load_model(load_order(graph.save(tmp_path), config(words) if words else None))
    assert model.max_batch_size == 16
    assert model.outputs[0].shape == ((-1, 2))
    assert model.run({"x": np.ones((3, 2), np.float32)}, False)[0].shape == (3, 2)


def test_a_veto_of_the_trial_stands_against_the_proof_and_not_against_the_owner(tmp_path: Path) -> None:
    path = one_node("Relu").save(tmp_path)
    assert load_model(load_order(path, batching_veto="no")).max_batch_size == 0
    assert load_model(load_order(path, config("max_batch_size: 5"), batching_veto="no")).max_batch_size == 5

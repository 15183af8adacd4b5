"""config.pbtxt's reshape: clients see `dims`, the graph gets what it has."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from nexus_grpc.ipc.errors import InferenceFailed, ModelNotServable
from nexus_grpc.model_config import parse_config
from nexus_grpc.worker.loader import load_model, metadata_of
from nexus_grpc.worker.model import Model
from nexus_grpc.worker.reshape import Reshape
from tests.unit.support import Graph, floats, load_order, one_node

FLOAT = TensorProto.FLOAT
BATCHED = """
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 2, 1 ] reshape { shape: [ 2 ] } } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 1, 2, 1 ] reshape { shape: [ 2 ] } } ]
"""
SCALARS = """
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] reshape { shape: [ ] } } ]
"""


def load(path: str, text: str) -> Model:
    return load_model(load_order(path, parse_config(text, path="config.pbtxt")))


def test_clients_see_the_configuration_s_shape(tmp_path: Path) -> None:
    model = load(one_node("Neg").save(tmp_path), BATCHED)
    metadata = metadata_of(model)
    assert [list(tensor.shape) for tensor in (*metadata.inputs, *metadata.outputs)] == [[-1, 2, 1], [-1, 1, 2, 1]]
    (answer,) = model.run({"x": floats([[1], [2]], [[3], [4]])}, False)
    assert answer.tolist() == [[[[-1], [-2]]], [[[-3], [-4]]]]


def test_one_value_for_each_row(tmp_path: Path) -> None:
    """The usual case: the graph has no dimension but the batch's."""
    graph = Graph([helper.make_node("Neg", ["x"], ["y"])], [("x", FLOAT, ["n"])], [("y", FLOAT, ["n"])])
    model = load(graph.save(tmp_path), SCALARS)
    assert model.run({"x": floats([1], [2], [3])}, False)[0].tolist() == [-1, -2, -3]


def test_without_batches(tmp_path: Path) -> None:
    graph = Graph([helper.make_node("Neg", ["x"], ["y"])], [("x", FLOAT, [2, 2])], [("y", FLOAT, [2, 2])])
    text = 'input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] reshape { shape: [ 2, 2 ] } } ]'
    model = load(graph.save(tmp_path), text)
    assert model.run({"x": np.array([1, 2, 3, 4], np.float32)}, False)[0].tolist() == [[-1, -2], [-3, -4]]


def test_a_shape_that_is_not_the_graph_s(tmp_path: Path) -> None:
    text = 'max_batch_size: 8 input [ { name: "x" data_type: TYPE_FP32 dims: [ 3 ] reshape { shape: [ 1, 3 ] } } ]'
    with pytest.raises(ModelNotServable, match=r"'x' has reshape.shape \[1, 3\], the model has \[2\]"):
        load(one_node("Neg").save(tmp_path), text)


def test_an_output_of_another_shape_fails_alone(tmp_path: Path) -> None:
    """The graph says nothing of its output's rank."""
    nodes = [helper.make_node("Reshape", ["x", "s"], ["y"])]
    graph = Graph(nodes, [("x", FLOAT, ["n", 2]), ("s", TensorProto.INT64, ["k"])], [("y", FLOAT, ["a", "b"])])
    text = 'output [ { name: "y" data_type: TYPE_FP32 dims: [ 1, -1, -1 ] reshape { shape: [ -1, -1 ] } } ]'
    model = load(graph.save(tmp_path), text)
    feeds = {"x": floats([1, 2]), "s": np.array([1, 2], np.int64)}
    assert model.run(feeds, False)[0].tolist() == [[[1, 2]]]
    with pytest.raises(InferenceFailed, match="cannot be given the shape"):
        model.run({**feeds, "s": np.array([1, 2, 1], np.int64)}, False)


@given(st.lists(st.integers(1, 4), max_size=3), st.lists(st.integers(0, 4), max_size=2), st.integers(0, 2))
def test_back_is_back(fixed: list[int], any_size: list[int], kept: int) -> None:
    before = (*fixed, *(-1 for _ in any_size))
    after = (*(-1 for _ in any_size), int(np.prod(fixed, dtype=int)))
    array = np.arange(np.prod([3] * kept + fixed + any_size, dtype=int)).reshape([3] * kept + fixed + any_size)
    change = Reshape(kept, before, after)
    there = change(array)
    assert there.shape == (*[3] * kept, *any_size, after[-1])
    assert np.array_equal(change.back()(there), array)

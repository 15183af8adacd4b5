"""What is refused of a model file for its size, depth or length: bombs of dims, subgraphs, names and functions."""

import pytest
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from nexus_grpc.worker import scan as scanning
from nexus_grpc.worker.scan import CALLS_DEEP_MAX, DEPTH_MAX, NAME_MAX_CHARACTERS, RANK_MAX, scan
from tests.integration.bad_models import FLOAT, dims_bomb, floats, good, model_of
from tests.unit.workers.test_scan import RELU, refusal


def test_a_bomb_of_dims_is_refused() -> None:
    text = refusal(dims_bomb())
    assert "declares [1048576, 1048576], 4398046511104 bytes, and holds 16" in text


def test_negative_dims_are_refused() -> None:
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[-1, -4], raw_data=b"\0" * 16)
    assert "negative dimension" in refusal(model_of([RELU], initializers=(tensor,)))


def test_more_dimensions_than_numpy_has_are_refused() -> None:
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[2] * 1_000_000, raw_data=b"\0" * 16)
    assert f"has 1000000 dimensions, at most {RANK_MAX}" in refusal(model_of([RELU], initializers=(tensor,)))


def test_sparse_tensors_may_not_unfold_to_much() -> None:
    def sparse(*dims: int) -> ModelProto:
        model = good()
        item = model.graph.sparse_initializer.add(dims=dims)
        item.values.CopyFrom(helper.make_tensor("v", FLOAT, [1], [1.0]))
        item.indices.CopyFrom(helper.make_tensor("i", TensorProto.INT64, [1], [0]))
        return model

    scan(sparse(1000, 1000).SerializeToString())
    assert "declare 4398046511104 bytes once stored dense" in refusal(sparse(1 << 20, 1 << 20))


def test_an_input_that_no_request_can_carry_is_refused() -> None:
    model = good()
    model.graph.input[0].CopyFrom(floats("x", ["n", 1 << 20, 1 << 20]))
    assert "input 'x' has 4398046511104 bytes" in refusal(model)


def nested(levels: int) -> bytes:
    """Graphs in attributes in nodes in graphs, written by hand: protobuf's own writer gives up at some depth."""

    def field(number: int, content: bytes) -> bytes:
        length, prefix = len(content), bytes([number << 3 | 2])
        while length > 0x7F:
            prefix, length = prefix + bytes([length & 0x7F | 0x80]), length >> 7
        return prefix + bytes([length]) + content

    graph = GraphProto(name="leaf").SerializeToString()
    for _ in range(levels - 1):
        node = NodeProto(op_type="If", output=["b"]).SerializeToString()
        graph = field(1, node + field(5, field(6, graph)))  # GraphProto.node, NodeProto.attribute, AttributeProto.g
    return ModelProto(ir_version=8).SerializeToString() + field(7, graph)  # ModelProto.graph


def test_deep_subgraphs_are_refused() -> None:
    scan(nested(DEPTH_MAX))
    assert f"nested more than {DEPTH_MAX} deep" in refusal(nested(DEPTH_MAX + 1))
    # From here on protobuf itself gives up.
    assert "nested too deeply" in refusal(nested(200))


def test_long_names_are_refused_wherever_they_are() -> None:
    long = "n" * (NAME_MAX_CHARACTERS + 1)
    for rename in (
        lambda model: setattr(model.graph.node[0], "name", long),
        lambda model: setattr(model.graph.node[0], "op_type", long),
        lambda model: setattr(model.graph.input[0], "name", long),
        lambda model: model.graph.node[0].output.append(long),
        lambda model: setattr(model.graph.input[0].type.tensor_type.shape.dim[0], "dim_param", long),
        lambda model: setattr(model.opset_import.add(version=1), "domain", long),
        lambda model: model.graph.initializer.add(name=long, data_type=FLOAT, dims=[0]),
    ):
        model = good()
        rename(model)
        assert len(refusal(model)) < 600
    described = good()
    described.doc_string = described.graph.doc_string = "words " * 10_000
    described.metadata_props.add(key="notes", value="words " * 10_000)
    scan(described.SerializeToString())


def chain_of_functions(count: int, calls: int = 1) -> ModelProto:
    """F0 calls F1 `calls` times, that calls F2, and so on."""
    model = model_of([helper.make_node("F0", ["x"], ["y"], domain="pkg")])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("pkg", 1)]
    for number in range(count):
        last = number == count - 1
        body = [
            helper.make_node(
                "Relu" if last else f"F{number + 1}", [f"v{call}"], [f"v{call + 1}"], domain="" if last else "pkg"
            )
            for call in range(calls)
        ]
        model.functions.append(helper.make_function("pkg", f"F{number}", ["v0"], [f"v{calls}"], body, opsets))
    return model


def test_functions_that_unfold_without_end_are_refused() -> None:
    scan(chain_of_functions(5, calls=10).SerializeToString())
    assert "unfold to more than" in refusal(chain_of_functions(20, calls=10))


def test_functions_that_call_deeply_are_refused() -> None:
    scan(chain_of_functions(CALLS_DEEP_MAX - 1).SerializeToString())
    assert f"more than {CALLS_DEEP_MAX} deep" in refusal(chain_of_functions(5000))


def test_functions_that_call_themselves_are_refused() -> None:
    model = chain_of_functions(3)
    model.functions[2].node[0].op_type, model.functions[2].node[0].domain = "F1", "pkg"
    assert "calls itself" in refusal(model)


def test_two_functions_of_one_name_are_refused() -> None:
    model = chain_of_functions(2)
    model.functions.add().CopyFrom(model.functions[0])
    assert "two functions of one name" in refusal(model)


def test_too_many_nodes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = good()
    for _ in range(50):
        model.graph.node.add().CopyFrom(RELU)
    scan(model.SerializeToString())
    monkeypatch.setattr(scanning, "NODES_MAX", 50)
    assert "more than 50 nodes" in refusal(model)

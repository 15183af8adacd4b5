"""What is refused of a model file before onnxruntime sees it, and what is not."""

import contextlib
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from nexus_grpc.worker.known_ops import CONTRIB_OPS, IR_VERSION_MAX, OPSET_MAX
from nexus_grpc.worker.onnx_runtime import ort
from nexus_grpc.worker.scan import NotOnnx, ScanRefused, scan, scan_file
from tests.harness import MODELS
from tests.integration.bad_models import (
    FLOAT,
    custom_op,
    elsewhere,
    external_data,
    floats,
    future_opset,
    good,
    model_of,
)

RELU = helper.make_node("Relu", ["x"], ["y"])


def refusal(model: ModelProto | bytes) -> str:
    with pytest.raises(ScanRefused) as caught:
        scan(model if isinstance(model, bytes) else model.SerializeToString())
    return str(caught.value)


def attribute(node: NodeProto, name: str) -> AttributeProto:
    return node.attribute.add(name=name)


# --- what is fine ---


@pytest.mark.parametrize("path", sorted(MODELS.glob("*/*/model.onnx")), ids=lambda path: path.parts[-3])
def test_real_models_pass(path: Path) -> None:
    scan_file(str(path))


def test_functions_of_the_model_may_have_domains_of_their_own() -> None:
    model = model_of([helper.make_node("Twice", ["x"], ["y"], domain="pkg.mine")])
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    model.functions.append(helper.make_function("pkg.mine", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 17)]))
    scan(model.SerializeToString())
    model.functions[0].node[0].domain = "com.example"
    assert "function 'Twice': node 'Add' (Add) is a custom operator of domain 'com.example'" in refusal(model)


def test_data_may_lie_in_any_field_of_a_tensor() -> None:
    values: list[tuple[int, list[float]]] = [
        (FLOAT, [1.0, 2.0, 3.0]),
        (TensorProto.FLOAT16, [1.0, 2.0, 3.0]),
        (TensorProto.BFLOAT16, [1.0, 2.0, 3.0]),
        (TensorProto.DOUBLE, [1.0, 2.0, 3.0]),
        (TensorProto.INT8, [1, 2, 3]),
        (TensorProto.BOOL, [1, 0, 1]),
        (TensorProto.UINT32, [1, 2, 3]),
        (TensorProto.UINT64, [1, 2, 3]),
        (TensorProto.INT4, [1, 2, 3]),
        (TensorProto.UINT4, [1, 2, 3]),
        (TensorProto.COMPLEX64, [1j, 2j, 3j]),
        (TensorProto.COMPLEX128, [1j, 2j, 3j]),
    ]
    tensors = [helper.make_tensor(f"t{number}", kind, [3], items) for number, (kind, items) in enumerate(values)]
    tensors.append(helper.make_tensor("text", TensorProto.STRING, [2], [b"a", b"b"]))
    tensors.append(helper.make_tensor("empty", FLOAT, [0, 4], []))
    tensors.append(helper.make_tensor("raw", FLOAT, [2], b"\0" * 8, raw=True))
    scan(model_of([RELU], initializers=tuple(tensors)).SerializeToString())
    for tensor in tensors:
        short = TensorProto()
        short.CopyFrom(tensor)
        short.dims[0] = 1000 if short.name != "empty" else 2
        assert f"tensor '{tensor.name}' declares" in refusal(model_of([RELU], initializers=(short,)))


# --- what is no ONNX model ---


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"hello, this is text", "not an ONNX model"),
        (b"\x80\x04\x95" + b"pickle" * 20, "not an ONNX model"),
        (b"PK\x03\x04" + b"\0" * 100, "not an ONNX model"),
        (b"\0" * 4096, "not an ONNX model"),
        (ModelProto(ir_version=8, producer_name="nobody").SerializeToString(), "it has no graph"),
        (good().graph.SerializeToString(), "not an ONNX model"),
    ],
    ids=["empty", "text", "pickle", "zip", "zeros", "no-graph", "graph-only"],
)
def test_what_is_no_model(content: bytes, words: str) -> None:
    with pytest.raises(NotOnnx, match=words):
        scan(content)


def test_a_truncated_file_is_no_model_wherever_it_ends() -> None:
    content = (MODELS / "iris_forest" / "1" / "model.onnx").read_bytes()
    # The opset imports come last: a file that lacks one of them can be read, and onnxruntime refuses it.
    for length in range(1, len(content) - 40, 97):
        with pytest.raises(ScanRefused):
            scan(content[:length])


def test_garbage_raises_nothing_else() -> None:
    chance = random.Random(11)
    content = good().SerializeToString()
    for _ in range(3000):
        broken = bytearray(content)
        for _ in range(chance.randrange(1, 6)):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        with contextlib.suppress(ScanRefused):
            scan(bytes(broken))
    for _ in range(300):
        with pytest.raises(ScanRefused):
            scan(chance.randbytes(chance.randrange(1, 300)))


def test_a_file_over_protobufs_limit_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.touch()
    os.truncate(path, 3 << 30)  # sparse: it takes no room
    with pytest.raises(NotOnnx, match="2 GiB"):
        scan_file(str(path))


# --- external data ---


def in_attribute() -> ModelProto:
    node = helper.make_node("Constant", [], ["c"])
    tensor = attribute(node, "value")
    tensor.type = AttributeProto.TENSOR
    tensor.t.CopyFrom(elsewhere())
    return model_of([node, helper.make_node("Add", ["x", "c"], ["y"])])


def in_attribute_list() -> ModelProto:
    model = model_of([helper.make_node("Relu", ["x"], ["y"])])
    attribute(model.graph.node[0], "values").tensors.add().CopyFrom(elsewhere())
    return model


def in_sparse_values() -> ModelProto:
    model = good()
    sparse = model.graph.sparse_initializer.add(dims=[4])
    sparse.values.CopyFrom(elsewhere())
    sparse.indices.CopyFrom(helper.make_tensor("i", TensorProto.INT64, [2], [0, 1]))
    return model


def in_sparse_indices() -> ModelProto:
    model = good()
    sparse = model.graph.sparse_initializer.add(dims=[4])
    sparse.values.CopyFrom(helper.make_tensor("v", FLOAT, [2], [0, 1]))
    sparse.indices.CopyFrom(elsewhere())
    return model


def in_sparse_attribute() -> ModelProto:
    model = good()
    attribute(model.graph.node[0], "sparse_value").sparse_tensor.values.CopyFrom(elsewhere())
    return model


def _branch() -> GraphProto:
    return helper.make_graph([helper.make_node("Identity", ["w"], ["b"])], "branch", [], [floats("b", [2])])


def in_subgraph() -> ModelProto:
    bad = _branch()
    bad.initializer.append(elsewhere())
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [1])
    return model_of(
        [helper.make_node("If", ["yes"], ["y"], then_branch=_branch(), else_branch=bad)], initializers=(yes,)
    )


def in_graph_list() -> ModelProto:
    model = good()
    attribute(model.graph.node[0], "graphs").graphs.add().initializer.append(elsewhere())
    return model


def _function() -> tuple[ModelProto, FunctionProto]:
    model = model_of([helper.make_node("F", ["x"], ["y"], domain="pkg")])
    body = [helper.make_node("Relu", ["a"], ["b"])]
    model.functions.append(helper.make_function("pkg", "F", ["a"], ["b"], body, [helper.make_opsetid("", 17)]))
    return model, model.functions[0]


def in_function() -> ModelProto:
    model, function = _function()
    attribute(function.node[0], "value").t.CopyFrom(elsewhere())
    return model


def in_function_default() -> ModelProto:
    model, function = _function()
    function.attribute_proto.add(name="value").t.CopyFrom(elsewhere())
    return model


def in_training_initialization() -> ModelProto:
    model = good()
    model.training_info.add().initialization.initializer.append(elsewhere())
    return model


def in_training_algorithm() -> ModelProto:
    model = good()
    attribute(model.training_info.add().algorithm.node.add(op_type="Relu"), "value").t.CopyFrom(elsewhere())
    return model


def without_the_mark() -> ModelProto:
    tensor = elsewhere()
    tensor.ClearField("data_location")
    tensor.raw_data = b"\0" * 8
    return model_of([RELU], initializers=(tensor,))


@pytest.mark.parametrize(
    "build",
    [
        external_data,
        in_attribute,
        in_attribute_list,
        in_sparse_values,
        in_sparse_indices,
        in_sparse_attribute,
        in_subgraph,
        in_graph_list,
        in_function,
        in_function_default,
        in_training_initialization,
        in_training_algorithm,
        without_the_mark,
    ],
)
def test_external_data_is_refused_wherever_it_is(build: Callable[[], ModelProto]) -> None:
    model = build()
    text = refusal(model)
    assert "tensor 'w' has its data in another file ('../../secret.bin')" in text
    assert "save the model as one file" in text


@pytest.mark.parametrize("location", ["*/_ORT_MEM_ADDR_/*", "_ORT_MEM_ADDR_"])
def test_memory_addresses_are_refused(location: str) -> None:
    model = model_of([RELU], initializers=(elsewhere(location),))
    assert "names a memory address" in refusal(model)
    model = good()
    attribute(model.graph.node[0], "path").s = location.encode()
    assert "attribute 'path' names a memory address" in refusal(model)


# --- operators ---


@pytest.mark.parametrize("domain", ["com.example", "ai.onnx.preview.training", "com.microsoft.nchwc", "AI.ONNX", " "])
def test_operators_of_other_domains_are_refused(domain: str) -> None:
    text = refusal(model_of([helper.make_node("Relu", ["x"], ["y"], domain=domain)]))
    assert f"custom operator of domain '{domain}'" in text


def test_custom_operators_are_refused_in_subgraphs() -> None:
    inner = helper.make_graph(list(custom_op().graph.node), "inner", [], [floats("y", None)])
    text = refusal(model_of([helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner)]))
    assert text.startswith("subgraph 'inner': node 'Frobnicate' (Frobnicate) is a custom operator")


def test_contrib_operators() -> None:
    scan(model_of([helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")]).SerializeToString())
    text = refusal(model_of([helper.make_node("Snpe", ["x"], ["y"], domain="com.microsoft")]))
    assert "onnxruntime has no such operator in 'com.microsoft'" in text


@pytest.mark.parametrize("domain", ["com.microsoft", "", "com.example"])
def test_compiled_blobs_are_refused(domain: str) -> None:
    node = helper.make_node("EPContext", ["x"], ["y"], domain=domain, ep_cache_context="/etc/passwd", embed_mode=0)
    assert "compiled for other hardware" in refusal(model_of([node]))


# --- versions ---


def test_newer_opsets_and_ir_versions_are_refused() -> None:
    assert "opset 999 of domain 'ai.onnx'; this server knows 1 to 26" in refusal(future_opset())
    assert f"IR version {IR_VERSION_MAX + 1}" in refusal(model_of([RELU], ir_version=IR_VERSION_MAX + 1))
    model, function = _function()
    function.opset_import[0].version = 500
    assert "function 'F' uses opset 500" in refusal(model)
    alias = good()
    alias.opset_import[0].domain, alias.opset_import[0].version = "ai.onnx", 999
    assert "opset 999" in refusal(alias)


def loads(model: ModelProto) -> bool:
    try:
        ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception:
        return False
    return True


def test_the_table_is_that_of_the_installed_onnxruntime() -> None:
    """Fails when onnxruntime was upgraded: write down what it says now."""
    inner = ort.capi.onnxruntime_pybind11_state
    kernels = inner.get_all_opkernel_def()
    cpu = {
        kernel.op_name
        for kernel in kernels
        if (kernel.provider, kernel.domain) == ("CPUExecutionProvider", "com.microsoft")
    }
    assert cpu == CONTRIB_OPS
    for domain, newest in OPSET_MAX.items():
        for version, expected in ((newest, True), (newest + 1, False)):
            model = good()
            del model.opset_import[:]
            model.opset_import.add(domain=domain, version=version)
            if domain:
                model.opset_import.add(domain="", version=17)
            assert loads(model) is expected, (domain, version)
    assert loads(model_of([RELU], ir_version=IR_VERSION_MAX))
    assert not loads(model_of([RELU], ir_version=IR_VERSION_MAX + 1))


def test_a_function_does_not_hide_a_compiled_blob() -> None:
    model = model_of([helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft")])
    body = [helper.make_node("Relu", ["a"], ["b"])]
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("com.microsoft", "EPContext", ["a"], ["b"], body, opsets))
    assert "compiled for other hardware" in refusal(model)


def test_names_that_are_no_text_are_refused() -> None:
    content = good().SerializeToString()
    for name in (b"Relu", b"graph"):
        with pytest.raises(NotOnnx, match="is not UTF-8 text"):
            scan(content.replace(name, b"\xff" * len(name)))
    tensor = elsewhere("LOCATION").SerializeToString()
    model = model_of([RELU], initializers=(elsewhere("LOCATION"),)).SerializeToString()
    assert tensor in model
    assert r"another file ('\xff\xff" in refusal(model.replace(b"LOCATION", b"\xff" * 8))

"""Inputs of every kind that ONNX has: by gRPC raw and typed, by REST and by the command the answer is what onnxruntime
gives, or a message that says what to do."""

import functools
import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from nexus_grpc.client import Client as NexusClient
from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from tests.harness import NEXUS, Server, running_server
from tests.integration.client import Client, outputs_of, raw_request, refusal, typed_request
from tests.integration.rest import Answer, post

FLOAT, BFLOAT = TensorProto.FLOAT, TensorProto.BFLOAT16
ROW = np.array([[1, 2]], np.float32)
CONFIGS = {
    "any_rank_in_rows": 'max_batch_size: 8 input { name: "x" data_type: TYPE_FP32 dims: [2] }',
    "any_rank_reshaped": "max_batch_size: 8"
    ' input { name: "x" data_type: TYPE_FP32 dims: [2] reshape { shape: [1, 2] } }'
    ' output { name: "y" data_type: TYPE_FP32 dims: [2] reshape { shape: [1, 2] } }',
}


def value(name: str, kind: int = FLOAT, shape: Any = ("batch", 2)) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def graph(nodes: list[onnx.NodeProto], inputs: list[Any], outputs: list[Any], **constants: Any) -> onnx.GraphProto:
    held = [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in constants.items()]
    return helper.make_graph(nodes, "g", inputs, outputs, held)


def optional() -> onnx.GraphProto:
    """x + o, or x + x without o."""
    branches = {
        "then_branch": graph([helper.make_node("OptionalGetElement", ["o"], ["t"])], [], [value("t")]),
        "else_branch": graph([helper.make_node("Identity", ["x"], ["e"])], [], [value("e")]),
    }
    nodes = [
        helper.make_node("OptionalHasElement", ["o"], ["has"]),
        helper.make_node("If", ["has"], ["other"], **branches),
        helper.make_node("Add", ["x", "other"], ["y"]),
    ]
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(FLOAT, ["batch", 2]))
    return graph(nodes, [value("x"), helper.make_value_info("o", kind)], [value("y")])


def bfloats() -> onnx.GraphProto:
    """y = 2 x, and the same as float."""
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=FLOAT),
        helper.make_node("Mul", ["wide", "two"], ["double"]),
        helper.make_node("Cast", ["double"], ["y"], to=BFLOAT),
    ]
    return graph(nodes, [value("x", BFLOAT)], [value("y", BFLOAT), value("double")], two=2)


def models() -> dict[str, onnx.GraphProto]:
    double = helper.make_node("Mul", ["x", "two"], ["y"])
    any_rank = graph([double], [value("x", shape=None)], [value("y", shape=None)], two=2)
    constant = numpy_helper.from_array(np.array([1, 2], np.float32))
    scaled = [helper.make_node("Mul", ["x", "w"], ["y"])]
    return {
        "any_rank": any_rank,
        "any_rank_in_rows": any_rank,
        "any_rank_reshaped": any_rank,
        "any_rank_text": graph(
            [helper.make_node("Identity", ["x"], ["y"])],
            [value("x", TensorProto.STRING, None)],
            [value("y", TensorProto.STRING, None)],
        ),
        "no_input": graph([helper.make_node("Constant", [], ["y"], value=constant)], [], [value("y", shape=[2])]),
        "overridable": graph(scaled, [value("x"), value("w", shape=[2])], [value("y")], w=[2, 3]),
        "overridable_alone": graph(
            [helper.make_node("Neg", ["w"], ["y"])], [value("w", shape=[2])], [value("y", shape=[2])], w=[2, 3]
        ),
        "optional": optional(),
        "no_numbers": graph(
            [helper.make_node("Div", ["x", "zero"], ["probabilities"])], [value("x")], [value("probabilities")], zero=0
        ),
        "bfloats": bfloats(),
        "wide": graph(
            [helper.make_node("ConstantOfShape", ["n"], ["y"])],
            [value("n", TensorProto.INT64, [1])],
            [value("y", shape=["m"])],
        ),
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("kinds")
    for name, content in models().items():
        path = folder / "models" / name / "1" / "model.onnx"
        path.parent.mkdir(parents=True)
        model = helper.make_model(content, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        path.write_bytes(model.SerializeToString())
        if name in CONFIGS:
            (path.parents[1] / "config.pbtxt").write_text(CONFIGS[name])
    with running_server(folder, "--workers=1", repository=folder / "models", rest=True) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    connected = Client(server.address)
    yield connected
    connected.close()


@pytest.fixture(scope="module")
def rest(server: Server) -> "Rest":
    return functools.partial(post, server.rest_port)


Rest = Callable[[str, Any], Answer]


def predicted(server: Server, *arguments: str) -> Any:
    """What `nexus predict` prints."""
    command = [*NEXUS, "predict", "--address", server.address, "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["prediction"]


def v2(rest: Rest, model: str, inputs: dict[str, Any], datatype: str = "FP32") -> dict[str, Any]:
    """Each output's values."""
    tensors = [
        {"name": name, "datatype": datatype, "shape": list(array.shape), "data": array.ravel().tolist()}
        for name, array in inputs.items()
    ]
    answer = rest(f"/v2/models/{model}/infer", {"inputs": tensors})
    assert answer.status == 200, answer.json
    return {output["name"]: output["data"] for output in answer.json["outputs"]}


def both(client: Client, model: str, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The first output, asked for raw and typed."""
    raw = outputs_of(client.infer(raw_request(model, inputs)))
    typed = outputs_of(client.infer(typed_request(model, inputs)))
    return [next(iter(raw.values())), next(iter(typed.values()))]


@pytest.mark.parametrize("shape", [(), (2,), (1, 2), (2, 1, 3), (0,)], ids=str)
def test_an_input_of_any_rank(client: Client, rest: Rest, shape: tuple[int, ...]) -> None:
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    for y in both(client, "any_rank", {"x": x}):
        np.testing.assert_array_equal(y, 2 * x)
        assert y.shape == shape
    assert v2(rest, "any_rank", {"x": x})["y"] == (2 * x).ravel().tolist()


def test_features_for_an_input_of_any_rank(client: Client, rest: Rest, server: Server) -> None:
    answer = rest("/predict", {"model_id": "any_rank", "features": [1, 2, 3]})
    assert answer.json["prediction"] == [2, 4, 6]
    named = rest("/predict", {"model_id": "any_rank", "inputs": {"x": {"data": [[1], [2]]}}})
    assert named.json["prediction"] == [2, 4]
    assert predicted(server, "any_rank", "1,2") == [2, 4]
    assert v2(rest, "any_rank_text", {"x": np.array([["a"]])}, "BYTES") == {"y": ["a"]}


@pytest.mark.parametrize("model", ["any_rank_in_rows", "any_rank_reshaped"])
def test_config_says_what_a_row_is(client: Client, rest: Rest, server: Server, model: str) -> None:
    x = np.array([[1, 2], [3, 4]], np.float32)
    for y in both(client, model, {"x": x}):
        np.testing.assert_array_equal(y, 2 * x)
    assert predicted(server, model, "1,2") == [2, 4]
    vector = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}
    answer = rest(f"/v2/models/{model}/infer", {"inputs": [vector]})
    assert "expected shape [-1,2], got [2]" in answer.message


def test_a_model_without_inputs(client: Client, rest: Rest, server: Server) -> None:
    response = client.infer(pb.ModelInferRequest(model_name="no_input"))
    assert response.raw_output_contents == [np.array([1, 2], np.float32).tobytes()]
    for body in ({}, {"inputs": []}):
        answer = rest("/v2/models/no_input/infer", body)
        assert answer.json["outputs"][0]["data"] == [1, 2]
    assert rest("/predict", {"model_id": "no_input"}).json["prediction"] == [1, 2]
    assert predicted(server, "no_input") == [1, 2]
    refused = rest("/predict", {"model_id": "no_input", "features": [1]})
    assert refused.message == "model 'no_input' takes no input"


def test_an_initialiser_that_may_be_overridden(client: Client, rest: Rest, server: Server) -> None:
    w = np.array([10, 20], np.float32)
    x = np.repeat(ROW, 3, axis=0)
    for y in both(client, "overridable", {"x": x}):
        np.testing.assert_array_equal(y, x * [2, 3])
    for y in both(client, "overridable", {"x": x, "w": w}):
        np.testing.assert_array_equal(y, x * w)
    assert v2(rest, "overridable", {"w": w, "x": ROW})["y"] == [10, 40]
    assert predicted(server, "overridable", "1,2") == [2, 6]
    named = {"x": {"data": [1, 2]}, "w": {"data": [10, 20]}}
    assert rest("/predict", {"model_id": "overridable", "inputs": named}).json["prediction"] == [10, 40]
    assert both(client, "overridable_alone", {"w": w})[0].tolist() == [-10, -20]
    assert predicted(server, "overridable_alone") == [-2, -3]


def test_overridden_and_usual_requests_do_not_share_a_run(client: Client) -> None:
    requests = []
    for number in range(40):
        w = np.array([number, number], np.float32)
        requests.append(raw_request("overridable", {"x": ROW, "w": w} if number % 2 else {"x": ROW}))
    futures = [client.infer.multicallable.future(request, timeout=20) for request in requests]
    for number, future in enumerate(futures):
        expected = ROW * number if number % 2 else ROW * [2, 3]
        np.testing.assert_array_equal(outputs_of(future.result())["y"], expected)


def test_an_optional_input(client: Client, rest: Rest, server: Server) -> None:
    assert both(client, "optional", {"x": ROW})[1].tolist() == [[2, 4]]
    assert both(client, "optional", {"x": ROW, "o": 10 * ROW})[1].tolist() == [[11, 22]]
    assert v2(rest, "optional", {"x": ROW})["y"] == [2, 4]
    assert predicted(server, "optional", "1,2") == [2, 4]
    config = client.cold("ModelConfig", pb.ModelConfigRequest(name="optional")).config
    assert [(item.name, item.optional) for item in config.input] == [("x", False), ("o", True)]


@pytest.mark.parametrize(("count", "status"), [(10, 200), (40, 400)])
def test_an_answer_that_rest_cannot_carry_says_so(rest: Rest, count: int, status: int) -> None:
    """Each number is four characters; REST carries 64 MiB."""
    answer = rest("/v2/models/wide/infer", {"inputs": [tensor("n", "INT64", [1], [count * 500_000])]})
    assert answer.status == status
    if status == 400:
        assert "use gRPC" in answer.message
        assert rest("/predict", {"model_id": "no_input"}).status == 200


def tensor(name: str, datatype: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def test_probabilities_that_are_no_numbers_claim_nothing(rest: Rest) -> None:
    answer = rest("/predict", {"model_id": "no_numbers", "features": [0, 0]}).json
    assert answer["probabilities"] == ["NaN", "NaN"]
    assert not {"confidence", "predicted_class", "decision"} & answer.keys()
    assert "probability" not in rest("/api/v1/predict", {"model_name": "no_numbers", "features": [0, 1]}).json


def test_bfloat16_is_raw_two_bytes_each(client: Client, rest: Rest, server: Server) -> None:
    x = np.array([[1.5, -2], [0.25, 3]], ml_dtypes.bfloat16)
    request = pb.ModelInferRequest(model_name="bfloats", raw_input_contents=[x.tobytes()])
    request.inputs.add(name="x", datatype="BF16", shape=x.shape)
    response = client.infer(request)
    assert [(output.name, output.datatype) for output in response.outputs] == [("y", "BF16"), ("double", "FP32")]
    assert response.raw_output_contents[0] == (x * 2).astype(ml_dtypes.bfloat16).tobytes()
    assert response.raw_output_contents[1] == (x * 2).astype(np.float32).tobytes()
    assert v2(rest, "bfloats", {"x": x.astype(np.float32)}, "BF16") == {"y": [3, -4, 0.5, 6], "double": [3, -4, 0.5, 6]}
    assert rest("/predict", {"model_id": "bfloats", "features": [1.5, 1e39]}).status == 400
    assert predicted(server, "bfloats", "1.5,2") == [3, 4]
    assert client.cold("ModelMetadata", pb.ModelMetadataRequest(name="bfloats")).inputs[0].datatype == "BF16"
    with NexusClient(server.address) as ours:
        np.testing.assert_array_equal(ours.infer("bfloats", x)["y"], x * 2)
    typed = pb.ModelInferRequest(model_name="bfloats")
    typed.inputs.add(name="x", datatype="BF16", shape=[1, 2]).contents.fp32_contents.extend([1, 2])
    assert "BF16 travels in raw_input_contents only" in refusal(lambda: client.infer(typed)).message

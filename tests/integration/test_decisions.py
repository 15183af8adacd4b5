"""Decision policies through a real server: the class, the decision and the threshold in every answer that has them, and
configurations that make no sense refused by name."""

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from onnx import TensorProto, helper, numpy_helper, save_model

from nexus_grpc.pb.nexus.v1 import inference_pb2 as pb
from tests.harness import Server, running_server
from tests.integration.client import Client, raw_request
from tests.integration.rest import post
from tests.lifecycle import Admin

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
# Below is the largest FP32 number that does not reach it.
THRESHOLD = 0.41
BELOW = float(np.nextafter(np.float32(THRESHOLD), np.float32(0)))
POLICY = ("predicted_class", "decision", "threshold_used")
UNDECIDED = {"decision": "", "threshold_used": 0.0}

CONFIGS = {
    "plain": {},
    "named": {"labels": "fine, fraud"},
    "fraud": {
        "labels": "fine,fraud",
        "positive_class": "fraud",
        "decision_threshold": str(THRESHOLD),
        "decision_positive": "block",
        "decision_negative": "allow",
    },
    "first": {"positive_class": "0", "decision_threshold": "0.9"},
    "always": {"decision_threshold": "0"},
    "single": {"labels": "ham,spam", "decision_threshold": "0.8"},
    "three": {"labels": "cat,dog,wolf", "positive_class": "wolf", "decision_threshold": "0.2"},
    "from_file": {"positive_class": "spam", "decision_threshold": "0.5"},
}
BAD: dict[str, tuple[dict[str, str], str]] = {
    "too_high": (
        {"decision_threshold": "1.5"},
        'parameters.decision_threshold: is "1.5"; expected a number from 0 to 1',
    ),
    "no_number": ({"decision_threshold": "high"}, 'parameters.decision_threshold: is "high"; expected a number'),
    "unknown_class": (
        {"labels": "fine,fraud", "positive_class": "fruad", "decision_threshold": "0.5"},
        'parameters.positive_class: is "fruad"; expected one of the labels fine, fraud, or its number',
    ),
    "class_beyond": (
        {"positive_class": "2", "decision_threshold": "0.5"},
        "config.pbtxt of 'class_beyond': positive_class '2' is no class; there is: 0 to 1",
    ),
    "misspelt": (
        {"decision_treshold": "0.5"},
        'parameters: "decision_treshold" is not supported; did you mean "decision_threshold"?',
    ),
    "no_threshold": ({"decision_positive": "block"}, "parameters.decision_threshold: is missing"),
    "labels_beyond": (
        {"labels": "a,b,c"},
        "config.pbtxt of 'labels_beyond' has 3 labels, output 'probabilities' has 2 classes",
    ),
}


def _save(repository: pathlib.Path, name: str, nodes: list[Any], width: int, outputs: list[Any]) -> None:
    x = helper.make_tensor_value_info("x", FLOAT, ["n", width])
    one = numpy_helper.from_array(np.ones(1, np.float32), "one")
    graph = helper.make_graph(nodes, name, [x], outputs, [one])
    path = repository / name / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def add_classifier(repository: pathlib.Path, name: str, classes: int, parameters: dict[str, str]) -> None:
    """Gives back the probabilities that it is asked: of the second of two classes, of all of more, or of one alone."""
    probabilities = helper.make_tensor_value_info("probabilities", FLOAT, ["n", classes])
    label = helper.make_tensor_value_info("label", INT64, ["n"])
    if classes == 2:
        nodes = [
            helper.make_node("Sub", ["one", "x"], ["rest"]),
            helper.make_node("Concat", ["rest", "x"], ["probabilities"], axis=1),
        ]
    else:
        nodes = [helper.make_node("Identity", ["x"], ["probabilities"])]
    nodes.append(helper.make_node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0))
    _save(repository, name, nodes, 1 if classes == 2 else classes, [label, probabilities])
    lines = [f'parameters {{ key: "{key}" value {{ string_value: "{text}" }} }}' for key, text in parameters.items()]
    if name == "from_file":
        lines.append('output { name: "probabilities" data_type: TYPE_FP32 dims: [2] label_filename: "labels.txt" }')
        (repository / name / "labels.txt").write_text("ham\nspam\n")
    if lines:
        (repository / name / "config.pbtxt").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:  # type: ignore[override]
    repository = tmp_path_factory.mktemp("deciding")
    classes = {"single": 1, "three": 3}
    for name, parameters in {**CONFIGS, **{name: bad for name, (bad, _) in BAD.items()}}.items():
        add_classifier(repository, name, classes.get(name, 2), parameters)
    with running_server(repository.parent, repository=repository, rest=True) as running:
        yield running


def as_json(message: Any) -> Any:
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def predictions(server: Server, client: Client, model: str, *features: float) -> list[dict[str, Any]]:
    """One row by every way that answers with confidence and decision."""
    batch = pb.BatchPredictRequest(model_id=model, rows=[pb.FeatureRow(features=row) for row in (features,) * 2])
    by_rest = post(server.rest_port, "/predict", {"model_id": model, "features": features})
    assert by_rest.status == 200, by_rest
    by_batch = as_json(client.batch_predict(batch))["predictions"]
    stream = client.predict_stream(iter([pb.PredictRequest(model_id=model, features=features)]))
    by_grpc = [client.predict(pb.PredictRequest(model_id=model, features=features)), next(iter(stream)).response]
    return [by_rest.json, *by_batch, *map(as_json, by_grpc)]


@pytest.mark.parametrize(
    ("model", "features", "expected"),
    [
        ("fraud", [0.0], ("fine", "allow", THRESHOLD)),
        ("fraud", [BELOW], ("fine", "allow", THRESHOLD)),
        ("fraud", [THRESHOLD], ("fraud", "block", THRESHOLD)),
        ("fraud", [1.0], ("fraud", "block", THRESHOLD)),
        ("first", [0.1], ("0", "positive", 0.9)),
        ("first", [0.11], ("1", "negative", 0.9)),
        ("always", [0.0], ("1", "positive", 0.0)),
        ("single", [0.8], ("spam", "positive", 0.8)),
        ("single", [0.79], ("ham", "negative", 0.8)),
        ("three", [0.7, 0.1, 0.2], ("wolf", "positive", 0.2)),
        ("three", [0.4, 0.5, 0.1], ("dog", "negative", 0.2)),
        ("from_file", [0.6], ("spam", "positive", 0.5)),
        ("named", [0.6], ("fraud", "", 0.0)),
        ("named", [0.4], ("fine", "", 0.0)),
        ("plain", [0.6], ("1", "", 0.0)),
    ],
)
def test_every_way_says_what_is_decided(
    server: Server, client: Client, model: str, features: list[float], expected: tuple[str, str, float]
) -> None:
    given = np.array(features, np.float32)
    probabilities = [*(1 - given), *given] if len(given) == 1 and model != "single" else [*given]
    for answer in predictions(server, client, model, *features):
        said = {name: value for name, value in zip(POLICY, expected, strict=True) if name in answer}
        assert {name: answer[name] for name in said} == said
        # What JSON leaves out, messages have as nothing.
        assert len(said) == len(POLICY) or expected[1:] == ("", 0.0)
        assert answer["probabilities"] == pytest.approx(probabilities)
        assert answer["confidence"] == max(answer["probabilities"])
        assert answer["prediction"] == [int(np.argmax(answer["probabilities"]))], "the model's own output"


def test_a_batch_decides_row_by_row(client: Client) -> None:
    values = [0.0, BELOW, THRESHOLD, 0.9, 0.1]
    rows = [pb.FeatureRow(features=[value]) for value in values]
    answer = client.batch_predict(pb.BatchPredictRequest(model_id="fraud", rows=rows))
    assert [each.decision for each in answer.predictions] == ["allow", "allow", "block", "block", "allow"]
    assert [each.predicted_class for each in answer.predictions] == ["fine", "fine", "fraud", "fraud", "fine"]
    assert {each.threshold_used for each in answer.predictions} == {THRESHOLD}


def test_answers_that_have_no_room_for_a_decision_are_those_of_a_model_without(server: Server, client: Client) -> None:
    """Tensors stay tensors: ModelInfer, /v2, and the predecessors' own answers."""
    port, row = server.rest_port, [[0.41]]
    found = []
    for model in ("plain", "fraud"):
        response = client.infer(raw_request(model, {"x": np.array(row, np.float32)}))
        v2 = post(port, f"/v2/models/{model}/infer", {"inputs": [_tensor(row)]}).json
        v1 = post(port, "/v1/infer", {"model": model, "version": "v1", "input": {"x": [0.41]}}).json
        api = post(port, "/api/v1/predict", {"model_name": model, "features": [0.41]}).json
        assert [each["name"] for each in v2["outputs"]] == ["label", "probabilities"]
        assert v1["output"]["probabilities"] == pytest.approx([0.59, 0.41])
        assert (api["prediction"], api["probability"]) == (0, pytest.approx(0.59))
        assert not response.parameters
        found.append((list(response.raw_output_contents), v2["outputs"], v1.keys(), v1["output"], api.keys()))
    assert found[0] == found[1]


def _tensor(rows: list[list[float]]) -> dict[str, Any]:
    return {"name": "x", "shape": [len(rows), len(rows[0])], "datatype": "FP32", "data": rows}


def test_labels_name_the_classes_of_a_classification(client: Client) -> None:
    request = raw_request("fraud", {"x": np.array([[0.25]], np.float32)})
    output = request.outputs.add(name="probabilities")
    output.parameters["classification"].int64_param = 2
    answer = client.infer(request)
    [text] = answer.raw_output_contents
    assert b"0.750000:0:fine" in text
    assert b"0.250000:1:fraud" in text


@pytest.mark.parametrize("model", BAD)
def test_what_makes_no_sense_is_refused_by_name(server: Server, client: Client, model: str) -> None:
    with Admin(server.address) as admin:
        [version] = admin.models("Info", id=model).versions
    assert version.state == "UNAVAILABLE"
    assert BAD[model][1] in version.reason
    refused = post(server.rest_port, "/predict", {"model_id": model, "features": [0.5]})
    assert refused.status == 503, refused
    assert BAD[model][1] in refused.message


def test_what_makes_no_sense_costs_the_others_nothing(server: Server, client: Client) -> None:
    with Admin(server.address) as admin:
        ready = {entry.id for entry in admin.models("List").models if entry.version}
    assert ready == {*CONFIGS}
    for name in CONFIGS:
        features = [0.3, 0.3, 0.4] if name == "three" else [0.5]
        assert client.predict(pb.PredictRequest(model_id=name, features=features)).model_id == name

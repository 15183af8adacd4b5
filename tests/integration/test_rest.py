"""REST through the real Envoy: every route answers, and says the same as gRPC does."""

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format

from nexus_grpc.front.hot_methods import HTTP_STATUS_KEY
from nexus_grpc.pb.nexus.v1 import inference_pb2 as pb
from nexus_grpc.pb.nexus.v1 import models_pb2, system_pb2
from nexus_grpc.rest.http_rules import http_methods
from nexus_grpc.rest.planned import PLANNED
from tests.harness import Server
from tests.integration.client import Client, raw_request
from tests.integration.rest import IRIS, assert_error, call, call_twin, get, post

VARYING = {"latency_ms", "timestamp", "request_id", "batch_size"}
# What a gRPC message has where a field does not apply; JSON leaves the field out.
NOTHING: list[Any] = [[], {}, "", 0]
PREDICTIONS: list[dict[str, Any]] = [
    IRIS,
    {"model_id": "iris_forest", "features": [7.0, 3.2, 4.7, 1.4]},
    {"model_id": "scale", "model_version": "1", "features": [1, 2]},
    {"model_id": "counts_i64", "features": [1, 2, 3, 4]},
    {"model_id": "text_echo", "texts": ["größe \u2603"]},
    {"model_id": "two_inputs", "inputs": {"a": {"data": [1, 2, 3]}, "b": {"shape": [1, 3], "data": [[4, 5, 6]]}}},
    {"model_id": "diabetes_f64", "features": [0.1] * 10},
    {"model_id": "digits_cnn", "features": [1.5] * 64},
]


@pytest.fixture(scope="module")
def rest_client(rest_server: Server) -> Iterator[Client]:
    client = Client(rest_server.address)
    yield client
    client.close()


@pytest.fixture
def port(rest_server: Server) -> int:
    return rest_server.rest_port


def steady(answer: dict[str, Any]) -> dict[str, Any]:
    """What of a prediction does not depend on the moment."""
    return {key: value for key, value in answer.items() if key not in VARYING}


def as_json(message: Any) -> dict[str, Any]:
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


@pytest.mark.parametrize("body", PREDICTIONS, ids=lambda body: str(body["model_id"]))
def test_predict_says_the_same_on_every_path(
    port: int, rest_client: Client, server: Server, body: dict[str, Any]
) -> None:
    by_grpc = as_json(rest_client.predict(json_format.ParseDict(body, pb.PredictRequest())))
    by_rest = post(port, "/predict", body)
    assert by_rest.status == 200, by_rest
    assert by_rest.json.keys() <= {field.name for field in pb.PredictResponse.DESCRIPTOR.fields}
    by_grpc = {name: value for name, value in by_grpc.items() if value not in NOTHING or name in by_rest.json}
    assert steady(by_rest.json) == steady(by_grpc)
    _, by_twin = call_twin(server.address, "InferencePredict", json.dumps(body).encode())
    assert steady(by_twin) == steady(by_grpc)


def test_several_rows_by_predict(port: int) -> None:
    rows = [IRIS["features"], [7.0, 3.2, 4.7, 1.4], [6.3, 3.3, 6.0, 2.5]]
    alone = [post(port, "/predict", IRIS | {"features": row}).json for row in rows]
    answer = post(port, "/predict", IRIS | {"features": rows}).json
    assert answer["prediction"] == [each["prediction"][0] for each in alone] == [0, 1, 2]
    assert answer["predicted_class"] == [each["predicted_class"] for each in alone]
    for name in ("probabilities", "confidence"):
        np.testing.assert_allclose(answer[name], [each[name] for each in alone], rtol=1e-4)
    assert not {"decision", "threshold_used", "labels", "outputs"} & answer.keys()
    assert answer["batch_size"] == 3
    one = post(port, "/predict", {"model_id": "scale", "features": [[1, 2]]}).json
    assert one["prediction"] == [[2, 4]]
    mixed = post(port, "/predict", {"model_id": "ratio", "features": [[0, 0, 0], [1, 1, 1]]}).json
    assert mixed["probabilities"] == [["NaN"] * 3, ["Infinity"] * 3]


def test_predict_gives_all_outputs(port: int, rest_client: Client) -> None:
    outputs = {"half": [1.5, -2], "after": [-1.5, 2]}
    body: dict[str, Any] = {"model_id": "halves", "features": [1.5, -2]}
    assert post(port, "/predict", body).json["outputs"] == outputs
    by_grpc = rest_client.predict(json_format.ParseDict(body, pb.PredictRequest()))
    assert {name: list(values) for name, values in by_grpc.outputs.items()} == outputs
    answer = post(port, "/predict", body | {"features": [[1.5, -2], [0, "NaN"]]}).json
    assert answer["prediction"] == [[1.5, -2], [0, "NaN"]]
    assert answer["outputs"] == {"half": [[1.5, -2], [0, "NaN"]], "after": [[-1.5, 2], [0, "NaN"]]}
    both = {"a": {"data": [1, 2, 3]}, "b": {"data": [4, 5, 6]}}
    assert post(port, "/predict", {"model_id": "two_inputs", "inputs": both}).json.keys() >= {"prediction", "outputs"}


def test_timing_and_a_request_id_in_the_body(port: int) -> None:
    answer = post(port, "/predict", IRIS | {"nexus_timing": True, "request_id": "mine", "use_cache": True}).json
    assert answer["request_id"] == "mine"
    assert answer["timing"].keys() == {"queue_us", "batch_size", "infer_us", "total_us"}


def test_what_is_no_number_travels_as_text(port: int) -> None:
    answer = post(port, "/v2/models/scale/infer", {"inputs": [tensor("x", [1, 2], "FP32", [3e38, -3e38])]})
    assert answer.json["outputs"][0]["data"] == ["Infinity", "-Infinity"], answer


def tensor(name: str, shape: list[int], datatype: str, data: list[Any]) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def test_open_inference_by_rest_and_by_grpc(port: int, rest_client: Client) -> None:
    rows = np.array([[5.1, 3.5, 1.4, 0.2], [7.0, 3.2, 4.7, 1.4]], np.float32)
    body = {"id": "x-1", "inputs": [tensor("X", [2, 4], "FP32", rows.tolist())]}
    response = rest_client.infer(raw_request("iris", {"X": rows}))
    for path in ("/v2/models/iris/infer", "/v2/models/iris/versions/1/infer"):
        answer = post(port, path, body).json
        assert (answer["model_name"], answer["model_version"], answer["id"]) == ("iris", "1", "x-1")
        for output, typed, raw in zip(answer["outputs"], response.outputs, response.raw_output_contents, strict=True):
            assert (output["name"], output["datatype"], output["shape"]) == (typed.name, typed.datatype, [*typed.shape])
            dtype = {"INT64": "<i8", "FP32": "<f4"}[typed.datatype]
            assert np.array(output["data"], dtype).tobytes() == raw


def test_every_datatype_by_rest(port: int, rest_client: Client) -> None:
    """all_types gives back what it gets: the JSON must survive the round trip."""
    metadata = get(port, "/v2/models/all_types").json
    values = {"BOOL": [True, False], "BYTES": ["a", "größe"]}
    inputs = []
    for each in metadata["inputs"]:
        shape = [2 if dim == -1 else dim for dim in each["shape"]]
        count = int(np.prod(shape))
        data = (values.get(each["datatype"], [1, 2]) * count)[:count]
        inputs.append(tensor(each["name"], shape, each["datatype"], data))
    answer = post(port, "/v2/models/all_types/infer", {"inputs": inputs})
    assert answer.status == 200, answer
    assert len(answer.json["outputs"]) == len(metadata["outputs"])


def test_the_predecessors_routes(port: int) -> None:
    answer = post(port, "/api/v1/predict", {"model_name": "iris", "features": IRIS["features"], "use_cache": True}).json
    assert answer.keys() == {"prediction", "probability", "model_name", "timestamp", "from_cache", "latency_ms"}
    assert (answer["prediction"], answer["model_name"], answer["from_cache"]) == (0, "iris", False)
    batch = post(port, "/api/v1/batch_predict", {"model_name": "iris", "features_batch": [IRIS["features"]] * 3}).json
    assert [row["prediction"] for row in batch["predictions"]] == [0, 0, 0]
    assert batch["total_latency_ms"] > 0
    infer = post(port, "/v1/infer", {"model": "iris", "version": "v1", "input": {"X": IRIS["features"]}}).json
    assert infer["output"]["label"] == 0
    assert len(infer["output"]["probabilities"]) == 3
    assert get(port, "/api/v1/models/iris").json["status"] == "ready"


def test_models(port: int, rest_client: Client) -> None:
    listed = get(port, "/models").json
    assert listed["count"] == len(listed["models"])
    assert {"id": "iris", "name": "iris", "version": "1", "path": "iris/1/model.onnx"} in listed["models"]
    info = get(port, "/models/iris")
    assert info.json == get(port, "/models/info?id=iris").json
    assert info.json["inputs"] == [{"name": "X", "dtype": 1, "shape": [-1, 4], "datatype": "FP32"}]
    assert [output["dtype"] for output in info.json["outputs"]] == [7, 1]
    typed = call_typed(rest_client, "Models/Info", models_pb2.ModelInfoRequest(id="iris"), models_pb2.ModelInfo)
    assert as_json(typed) == info.json
    typed = call_typed(rest_client, "Models/List", models_pb2.ListModelsRequest(), models_pb2.ListModelsResponse)
    assert as_json(typed) == listed


def call_typed(client: Client, method: str, request: Any, answer: Any) -> Any:
    function = client.channel.unary_unary(f"/nexus.v1.{method}", type(request).SerializeToString, answer.FromString)
    return function(request, timeout=20)


def test_system(port: int, rest_client: Client) -> None:
    health = get(port, "/health").json
    assert (health["status"], health["workers"]) == ("ok", 1)
    assert health["uptime_seconds"] > 0
    assert get(port, "/ready").json == {"ready": True, "status": "ready"}
    typed = call_typed(rest_client, "System/Version", system_pb2.VersionRequest(), system_pb2.VersionResponse)
    assert get(port, "/admin/version").json == as_json(typed)
    assert get(port, "/v2/health/live").json == {"live": True}
    assert get(port, "/v2/health/ready").json == {"ready": True}
    assert get(port, "/v2").json["name"] == "nexus-grpc"
    assert get(port, "/v2/models/iris/ready").json == {"name": "iris", "ready": True}
    assert get(port, "/v2/models/iris/versions/1").json["platform"] == "onnxruntime_onnx"


@pytest.mark.parametrize(
    "path", ["/models/nobody", "/v2/models/nobody", "/v2/models/nobody/ready", "/api/v1/models/nobody"]
)
def test_unknown_models_are_404(port: int, path: str) -> None:
    answer = get(port, path)
    assert_error(answer, 404)
    assert answer.message == "Request for unknown model: 'nobody' is not found"
    assert answer.is_v2 or answer.json["error"]["details"][0]["reason"] == "UNKNOWN_MODEL"


def test_metrics(port: int) -> None:
    post(port, "/predict", IRIS | {"features": []})
    text = get(port, "/metrics").body.decode()
    assert re.search(r'http_requests_total\{endpoint="/predict",method="POST",status="400"\} [1-9]', text)
    assert 'nexus_process_info{index="0",pid=' in text
    summary = get(port, "/metrics/json").json
    iris = next(model for model in summary["models"] if model["model"] == "iris")
    assert iris["requests_total"] >= iris["errors_total"] >= 1
    assert iris["latency_ms"]["p99"] >= iris["latency_ms"]["p50"] > 0


def test_every_request_that_a_front_answers_is_counted(port: int, rest_server: Server) -> None:
    calls = {
        ("GET", "/models", "200"): lambda: get(port, "/models"),
        ("GET", "/models/{id}", "404"): lambda: get(port, "/models/nobody"),
        ("GET", "/health", "200"): lambda: call(port, "HEAD", "/health"),
        ("POST", "/v1/models/{id}/load", "400"): lambda: post(port, "/v1/models/iris/load", {"versoin": "1"}),
        ("POST", "/models/upload", "400"): lambda: post(
            port, "/models/upload", b"--b--\r\n", Content_Type="multipart/form-data; boundary=b"
        ),
        ("POST", "/predict", "404"): lambda: post(port, "/predict", IRIS | {"model_id": "nobody"}),
        ("POST", "/v1/infer", "200"): lambda: post(port, "/v1/infer", {"model": "iris", "input": {"X": [1, 2, 3, 4]}}),
    }

    def counts(verb: str, endpoint: str, status: str) -> tuple[float, float]:
        labels = {"method": verb, "endpoint": endpoint}
        total = rest_server.metric("http_requests_total", status=status, **labels)
        return total, rest_server.metric("http_request_duration_seconds_count", **labels)

    before = {labels: counts(*labels) for labels in calls}
    for (_, _, status), ask in calls.items():
        assert ask().status == int(status)
    for _ in range(100):
        now = {labels: counts(*labels) for labels in calls}
        if all(now[labels] == (total + 1, ended + 1) for labels, (total, ended) in before.items()):
            return
    raise AssertionError((before, now))


@pytest.mark.parametrize(("binding", "text"), PLANNED, ids=lambda value: str(getattr(value, "template", "")))
def test_what_is_planned_says_so(port: int, binding: Any, text: str) -> None:
    answer = call(
        port, binding.verb, binding.template.replace("{id}", "x"), {} if binding.verb in ("POST", "PUT") else None
    )
    assert_error(answer, 501)
    assert answer.message == text


def test_every_route_of_the_protos_is_routed(port: int) -> None:
    """None falls through to 404 "no such path": the twin is made from the same list."""
    for method in http_methods():
        for binding in method.bindings:
            path = re.sub(r"\{[a-z_]+\}", "no-such-model", binding.template)
            answer = call(port, binding.verb, path, {} if method.has_body else None)
            assert "no such path" not in answer.body.decode(), (binding, answer)


def test_the_request_id_is_taken_returned_and_logged(port: int, rest_server: Server) -> None:
    answer = post(port, "/predict", IRIS, X_Request_ID="abc-123", traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-01")
    assert answer.headers["x-request-id"] == answer.json["request_id"] == "abc-123"
    made = post(port, "/predict", IRIS)
    assert made.headers["x-request-id"] == made.json["request_id"] != ""
    malformed = post(port, "/predict", IRIS, X_Request_ID='a"b c')
    assert malformed.headers["x-request-id"] == malformed.json["request_id"] != 'a"b c'


@pytest.mark.parametrize("name", ["InferencePredict", "RestApiPredict", "RestApiBatchPredict", "RestInfer"])
def test_errors_of_the_twin_on_both_transports(server: Server, name: str) -> None:
    metadata, body = call_twin(server.address, name, b'{"bad"', **{"x-request-id": "t-1"})
    assert metadata[HTTP_STATUS_KEY] == "400"
    assert metadata["x-request-id"] == body["request_id"] == "t-1"
    assert body["error"]["code"] == "INVALID_ARGUMENT"


def test_rest_and_grpc_share_batches(port: int, rest_server: Server) -> None:
    """One model, one queue: what comes by REST is counted where gRPC's requests are."""
    before = rest_server.metric("nexus_batch_size_sum", model="scale", version="2")
    post(port, "/predict", {"model_id": "scale", "features": [1, 2]})
    post(port, "/v2/models/scale/infer", {"inputs": [tensor("x", [3, 2], "FP32", [1] * 6)]})
    for _ in range(100):
        if rest_server.metric("nexus_batch_size_sum", model="scale", version="2") == before + 4:
            return
    raise AssertionError("the rows were not counted")

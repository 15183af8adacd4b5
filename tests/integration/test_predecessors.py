"""The calls of the four systems that this server replaces, as their documentation prints them, and what it promises of
the answers: fields, headers, metrics. (Their fake parts, such as batch jobs and drift, are planned: rest/planned.py.)
"""

import base64
import io
import json
import pathlib
import re
import shlex
import subprocess
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tests.harness import MODELS, Server, copy_models, require_tool, running_server
from tests.integration.rest import call, get, post
from tests.lifecycle import wait_for

# --- model-nexus ---

UPLOAD = """curl -X POST http://localhost:8080/models/upload \\
  -F "file=@my_model.onnx" \\
  -F "id=my_classifier" \\
  -F "name=My Classifier" \\
  -F "version=v1.0.0" """
PREDICT = """curl -X POST http://localhost:8080/predict \\
  -H "Content-Type: application/json" \\
  -d '{"model_id": "my_classifier", "features": [5.1, 3.5, 1.4, 0.2]}'"""
PREDICT_FIRST = """curl -X POST http://localhost:8080/predict \\
  -H "Content-Type: application/json" \\
  -d '{"model_id": "iris_v1", "features": [5.1, 3.5, 1.4, 0.2]}'"""
# --- sentinel ---
SENTINEL = """curl -X POST http://localhost:8080/predict \\
-H 'Content-Type: application/json' \\
-d '{"features":[57007,-1.27,2.46,-2.85,2.32,-1.37,-0.95,-3.07,1.17,-2.27,
-4.88,2.26,-4.69,0.65,-6.17,0.59,-4.85,-6.54,-3.12,1.72,0.56,0.65,
0.08,-0.22,-0.52,0.22,0.76,0.63,0.25,0.01]}'"""
# --- distributed-ai-platform ---
INFER = """curl -X POST http://localhost:8080/v1/infer \\
-H "Authorization: Bearer demo-token" \\
-H "Content-Type: application/json" \\
-d '{
"model": "resnet18",
"version": "v1",
"input": {
"image": "base64_encoded_image_data"
}
}'"""
REGISTER = """curl -X POST http://localhost:8083/v1/models \\
-d '{
"name": "your-model",
"version": "v1",
"framework": "onnx",
"endpoint": "triton:8001"
}'"""


def curl(command: str, port: int, folder: pathlib.Path) -> tuple[int, dict[str, str], Any]:
    """(status, headers, JSON) of a command as it is printed, but for the port."""
    require_tool("curl")
    local = re.sub("localhost:[0-9]+", f"127.0.0.1:{port}", command.replace("\\\n", " "))
    words = shlex.split(local)
    done = subprocess.run([*words, "-s", "-i"], cwd=folder, capture_output=True, check=True, timeout=30)
    head, _, body = done.stdout.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"").partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(first.split()[1]), headers, json.loads(body)


def save(path: pathlib.Path, nodes: list[Any], x: list[Any], outputs: dict[str, Any], **constants: Any) -> None:
    """A model of one input of floats; `label` is an output of integers."""
    kept = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    described = [
        helper.make_tensor_value_info(name, TensorProto.INT64 if name == "label" else TensorProto.FLOAT, shape)
        for name, shape in outputs.items()
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)]
    graph = helper.make_graph(nodes, "g", inputs, described, kept)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.mkdir(parents=True)
    onnx.save_model(model, path / "model.onnx")


def parameters(**values: str) -> str:
    return "\n".join(f'parameters {{ key: "{k}" value {{ string_value: "{v}" }} }}' for k, v in values.items())


def add_fraud_model(repository: pathlib.Path) -> None:
    """Two versions in sentinel's folders; the probability of fraud is the sigmoid of the features' sum and a bias."""
    node = helper.make_node
    for version, bias in (("v1", -56940.0), ("v2", -57100.0)):
        nodes = [
            node("ReduceSum", ["x", "axis"], ["sum"], keepdims=1),
            node("Add", ["sum", "bias"], ["biased"]),
            node("Sigmoid", ["biased"], ["p"]),
            node("Sub", ["one", "p"], ["q"]),
            node("Concat", ["q", "p"], ["probabilities"], axis=1),
            node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0),
        ]
        outputs = {"label": ["n"], "probabilities": ["n", 2]}
        constants = {"axis": [1], "bias": np.float32(bias), "one": np.float32(1)}
        save(repository / "fraud" / version, nodes, ["n", 30], outputs, **constants)
    decide = {"decision_threshold": "0.41", "decision_positive": "block", "decision_negative": "allow"}
    (repository / "fraud" / "config.pbtxt").write_text(parameters(**decide))
    (repository / "fraud" / "current").symlink_to("v1")


@pytest.fixture(scope="module")
def nexus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with several models, one of which takes images."""
    folder = tmp_path_factory.mktemp("nexus")
    repository = folder / "models"
    for name in ("iris_v1", "iris_classifier"):
        copy_models(repository / name, "iris")
        (repository / name / "iris" / "1").rename(repository / name / "1")
        (repository / name / "iris").rmdir()
    nodes = [helper.make_node("ReduceMean", ["x"], ["mean"], axes=[2, 3], keepdims=0)]
    save(repository / "resnet18" / "1", nodes, ["n", 3, 4, 5], {"mean": ["n", 3]})
    (repository / "resnet18" / "config.pbtxt").write_text(parameters(image_scale="1", image_mean="100", image_std="2"))
    with running_server(folder, repository=repository, rest=True) as running:
        yield running


@pytest.fixture(scope="module")
def sentinel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with one model alone."""
    folder = tmp_path_factory.mktemp("sentinel")
    add_fraud_model(folder / "models")
    with running_server(folder, repository=folder / "models", rest=True) as running:
        # The link `current` is followed once the server is up.
        wait_for(lambda: get(running.rest_port, "/admin/version").json["models"][0]["current_version"] == "1")
        yield running


def test_model_nexus_first(nexus: Server, tmp_path: pathlib.Path) -> None:
    status, headers, answer = curl(PREDICT_FIRST, nexus.rest_port, tmp_path)
    assert status == 200
    assert answer.keys() >= {"model_id", "request_id", "prediction", "latency_ms", "timestamp"}
    assert (answer["model_id"], answer["prediction"]) == ("iris_v1", [0.0])
    assert headers["x-request-id"] == answer["request_id"]
    assert get(nexus.rest_port, "/health").json.keys() >= {"status", "timestamp"}
    listed = get(nexus.rest_port, "/models").json["models"]
    assert all({"id", "name", "version", "path"} <= each.keys() for each in listed)
    body = {"model_id": "iris_v1", "features": [5.1]}
    assert post(nexus.rest_port, "/predict", body).status == 400
    assert post(nexus.rest_port, "/predict", {**body, "model_id": "nobody"}).status == 404
    assert post(nexus.rest_port, "/predict", b"{").status == 400


def test_model_nexus_later(nexus: Server, tmp_path: pathlib.Path) -> None:
    (tmp_path / "my_model.onnx").write_bytes((MODELS / "iris" / "1" / "model.onnx").read_bytes())
    status, _, answer = curl(UPLOAD, nexus.rest_port, tmp_path)
    assert status == 201
    promised = {"id": "my_classifier", "name": "My Classifier", "version": "v1.0.0"}
    assert answer["model"].items() >= promised.items()
    assert answer["model"]["path"].endswith(".onnx")
    assert answer["info"]["inputs"][0].items() >= {"name": "X", "dtype": 1, "shape": [-1, 4]}.items()
    assert answer["info"]["outputs"][0]["dtype"] == 7
    status, _, predicted = curl(PREDICT, nexus.rest_port, tmp_path)
    assert (status, predicted["model_id"], predicted["prediction"]) == (200, "my_classifier", [0.0])
    listed = get(nexus.rest_port, "/models").json["models"]
    assert [each for each in listed if each.items() >= promised.items()]
    info = get(nexus.rest_port, "/models/info?id=my_classifier").json
    assert (
        info.items() >= {**promised, "inputs": answer["info"]["inputs"], "outputs": answer["info"]["outputs"]}.items()
    )
    assert curl(UPLOAD, nexus.rest_port, tmp_path)[0] == 409
    metrics = get(nexus.rest_port, "/metrics").body.decode()
    for sample in (
        'http_requests_total{endpoint="/models/upload",method="POST",status="201"}',
        'http_request_duration_seconds_bucket{endpoint="/predict",le="',
        'model_predictions_total{model_id="my_classifier",status="success"}',
        'model_inference_duration_seconds_count{model_id="my_classifier"}',
        "models_loaded ",
    ):
        assert sample in metrics


def test_sentinel(sentinel: Server, tmp_path: pathlib.Path) -> None:
    port = sentinel.rest_port
    status, _, answer = curl(SENTINEL, port, tmp_path)
    assert status == 200
    expected = {
        "fraud_probability": pytest.approx(1, abs=1e-3),
        "predicted_class": 1,
        "decision": "block",
        "threshold_used": 0.41,
        "batch_size": 1,
        "cache_hit": False,
        "model_version": "v1",
        "variant": "A",
    }
    assert {name: answer[name] for name in expected} == expected
    assert type(answer["predicted_class"]) is int
    assert answer["latency_us"] > 0
    assert get(port, "/health").status == 200
    assert b'inference_requests_total{model="fraud",version="1"}' in get(port, "/metrics/prom").body
    (shown,) = [each for each in get(port, "/metrics/json").json["models"] if each["version"] == "1"]
    assert 0 < shown["latency_ms"]["p50"] <= shown["latency_ms"]["p99"]


def test_sentinels_administration(sentinel: Server) -> None:
    """Without a model, as one is served; bodies as its table has them, empty ones among them."""
    port, features = sentinel.rest_port, {"features": [0.0] * 30}

    def change(path: str, body: Any = None) -> Any:
        answer = call(port, "POST", path, body)
        assert answer.status == 200, answer
        return answer.json

    def current() -> tuple[str, str]:
        (shown,) = get(port, "/admin/version").json["models"]
        return shown["current_version"], shown["candidate_version"]

    change("/admin/reload")
    assert current() == ("1", "")
    change("/admin/ab/setup", {"candidate_version": "v2"})
    assert current() == ("1", "2")
    assert change("/admin/ab/split", {"percent": 25})["percent"] == 25
    variants = {post(port, "/predict", features).json["variant"] for _ in range(100)}
    assert variants == {"A", "B"}
    status = get(port, "/admin/ab/status").json
    assert (status["active"], [each["variant"] for each in status["variants"]]) == (True, ["A", "B"])
    change("/admin/ab/abort")
    assert current() == ("1", "")
    change("/admin/ab/setup", {"candidate_version": "v2"})
    change("/admin/ab/promote")
    assert (current(), post(port, "/predict", features).json["model_version"]) == (("2", ""), "v2")


def image(kind: str, pixels: Any) -> str:
    if kind == "raw":
        return base64.b64encode(pixels.tobytes()).decode()
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, kind)
    return base64.b64encode(written.getvalue()).decode()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "raw"])
def test_distributed_ai_platform(nexus: Server, tmp_path: pathlib.Path, kind: str) -> None:
    """In a confined worker, by Pillow."""
    pixels = np.full((4, 5, 3), [110, 120, 130], np.uint8)
    command = INFER.replace("base64_encoded_image_data", image(kind, pixels))
    status, headers, answer = curl(command, nexus.rest_port, tmp_path)
    assert status == 200, answer
    assert answer.keys() == {"model", "version", "output", "request_id", "latency_ms"}
    assert answer["output"]["mean"] == pytest.approx([5, 10, 15], abs=1)
    assert headers["x-request-id"] == answer["request_id"]
    assert nexus.metric("inference_requests_total", model="resnet18") >= 1
    assert nexus.metric("inference_request_duration_seconds_count", model="resnet18") >= 1
    assert nexus.metric("inference_errors_total", model="resnet18") >= 0


def test_what_is_printed_is_no_image(nexus: Server, tmp_path: pathlib.Path) -> None:
    status, _, answer = curl(INFER, nexus.rest_port, tmp_path)
    assert status == 400
    assert "is no base64" in answer["error"]["message"]


def test_distributed_ai_platforms_registry(nexus: Server, tmp_path: pathlib.Path) -> None:
    """curl says that the body is a form's."""
    status, _, answer = curl(REGISTER, nexus.rest_port, tmp_path)
    assert status == 201, answer
    assert get(nexus.rest_port, "/v1/models/your-model").json["id"] == "your-model"


def test_realtime_ml_serving_api(nexus: Server) -> None:
    """As its Python client does it."""
    port, row = nexus.rest_port, [5.1, 3.5, 1.4, 0.2]
    body = {"model_name": "iris_classifier", "features": row, "use_cache": True}
    answer = post(port, "/api/v1/predict", body).json
    assert answer.keys() >= {"prediction", "probability", "model_name", "timestamp", "from_cache"}
    assert (answer["prediction"], answer["model_name"], answer["from_cache"]) == (0, "iris_classifier", False)
    assert 0.9 < answer["probability"] <= 1
    rows = [row, [6.2, 2.9, 4.3, 1.3], [7.3, 2.9, 6.3, 1.8]]
    batch = post(port, "/api/v1/batch_predict", {"model_name": "iris_classifier", "features_batch": rows}).json
    assert [each["prediction"] for each in batch["predictions"]] == [0, 1, 2]
    assert batch["total_latency_ms"] > 0
    info = get(port, "/api/v1/models/iris_classifier")
    assert (info.status, info.json["name"]) == (200, "iris_classifier")
    assert get(port, "/health").json.keys() >= {"status", "timestamp"}
    assert get(port, "/ready").status == 200

"""Metrics and log lines say exactly what happened, and no client can make them grow without bounds."""

import json
import pathlib
import re
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from nexus_grpc.pb.nexus.v1 import inference_pb2 as nexus_pb
from tests.conftest import TRANSPORTS
from tests.harness import Server, copy_models, running_server
from tests.integration.client import IRIS_ROW, Client, iris_request, raw_request, refusal
from tests.integration.rest import call_twin

LABELS = {
    "nexus_process_info": {"role", "index", "pid"},
    "nexus_process_resident_memory_bytes": {"role", "index"},
    "nexus_process_cpu_seconds": {"role", "index"},
    "nexus_late_replies": {"front"},
    "nexus_redispatched": {"front"},
    "nexus_poisoned": {"front"},
    "nexus_ring_full": {"front"},
    "nexus_cancelled": {"front"},
    "nexus_deadline_passed": {"front"},
    "nexus_oversize": {"front"},
    "nexus_in_flight": {"front"},
    "nexus_streams_open": {"front"},
    "nexus_ring_occupancy_bytes": {"direction", "worker"},
    "nexus_batches": {"worker"},
    "nexus_template_lookups": {"worker", "result"},
    "nexus_worker_restarts": {"worker"},
    "http_requests": {"method", "endpoint", "status"},
    "http_request_duration_seconds": {"method", "endpoint"},
    "inference_requests": {"model", "version"},
    "inference_errors": {"model", "version"},
    "inference_request_duration_seconds": {"model", "version"},
    "nexus_requests": {"method", "model", "version", "code"},
    "nexus_request_duration_seconds": {"model", "version"},
    "model_predictions": {"model_id", "status"},
    "nexus_stage_duration_seconds": {"stage", "model", "version"},
    "nexus_batch_size": {"model", "version"},
    "nexus_expired": {"model", "version"},
    "model_inference_duration_seconds": {"model_id"},
    "nexus_circuit_state": {"model", "version"},
    "nexus_circuit_opened": {"model", "version"},
    "nexus_refused": {"front", "reason"},
    "nexus_fallbacks": {"front"},
    "nexus_models_loaded": set(),
    "models_loaded": set(),
    "nexus_start_time_seconds": set(),
}


def requests_now(server: Server) -> dict[tuple[str, str, str, str], float]:
    """nexus_requests_total by (method, model, version, code)."""
    found = {}
    for family in text_string_to_metric_families(server.metrics()):
        if family.name == "nexus_requests":
            for sample in family.samples:
                labels = sample.labels
                found[labels["method"], labels["model"], labels["version"], labels["code"]] = sample.value
    return found


def counted(server: Server, expected: dict[Any, float]) -> dict[Any, float]:
    """What has been counted; waits for `expected`, as an answer is counted just after it is sent."""
    deadline = time.monotonic() + 5
    while (now := requests_now(server)) != expected and time.monotonic() < deadline:
        time.sleep(0.05)
    return now


# Nothing of them without an experiment or a shadow.
OF_EXPERIMENTS = {
    "nexus_variant_requests",
    "nexus_variant_duration_seconds",
    "nexus_shadow_compared",
    "nexus_shadow_disagreed",
    "nexus_shadow_errors",
    "nexus_shadow_dropped",
}


def test_names_and_labels(client: Client, server: Server) -> None:
    client.infer(iris_request())
    refusal(lambda: client.infer(b""))
    call_twin(server.address, "InferencePredict", b"{}")
    deadline = time.monotonic() + 5
    while "http_requests_total{" not in server.metrics() and time.monotonic() < deadline:
        time.sleep(0.05)
    families = {family.name: family for family in text_string_to_metric_families(server.metrics())}
    assert set(families) == set(LABELS) | OF_EXPERIMENTS
    for name, family in families.items():
        if name in OF_EXPERIMENTS:
            assert family.samples == []  # tests/integration/test_variant_metrics.py
            continue
        seen = {frozenset(sample.labels) - {"le"} for sample in family.samples}
        assert seen == {frozenset(LABELS[name])}, name
        assert family.documentation


@pytest.fixture
def own(transport: str, repository: pathlib.Path, tmp_path: pathlib.Path) -> Iterator[tuple[Server, Client]]:
    """A server nobody has asked anything yet: on the shared one, an earlier test's request may be counted late."""
    with running_server(tmp_path, f"--front-api={transport}", repository=repository) as server:
        client = Client(server.address)
        yield server, client
        client.close()


def test_requests_are_counted_exactly(own: tuple[Server, Client]) -> None:
    server, client = own
    for _ in range(7):
        client.infer(iris_request())
    for version in "1122211":
        request = nexus_pb.PredictRequest(model_id="scale", model_version=version, features=[1, 2])
        client.predict(request)
    for _ in range(3):
        refusal(lambda: client.predict(nexus_pb.PredictRequest(model_id="iris", features=[1])))
    row = nexus_pb.FeatureRow(features=IRIS_ROW)
    client.batch_predict(nexus_pb.BatchPredictRequest(model_id="iris", rows=[row] * 5))
    messages = [iris_request()] * 11 + [raw_request("iris", {"X": np.ones((1, 3), np.float32)})] * 2
    assert len(list(client.infer_stream(iter(messages)))) == 13
    assert (
        len(list(client.predict_stream(iter([nexus_pb.PredictRequest(model_id="iris", features=IRIS_ROW)] * 4)))) == 4
    )
    for number in range(6):
        refusal(lambda number=number: client.infer(pb.ModelInferRequest(model_name=f"nobody{number}")))
    expected = {
        ("ModelInfer", "iris", "1", "OK"): 7,
        ("Predict", "scale", "1", "OK"): 4,
        ("Predict", "scale", "2", "OK"): 3,
        ("Predict", "iris", "1", "INVALID_ARGUMENT"): 3,
        ("BatchPredict", "iris", "1", "OK"): 1,
        ("ModelStreamInfer", "iris", "1", "OK"): 11,
        ("ModelStreamInfer", "iris", "1", "INVALID_ARGUMENT"): 2,
        ("PredictStream", "iris", "1", "OK"): 4,
        ("ModelInfer", "(unknown)", "", "NOT_FOUND"): 6,
    }
    assert counted(server, expected) == expected
    assert "nobody" not in server.metrics()


def test_batches_and_stages_are_counted(client: Client, server: Server) -> None:
    def now() -> dict[str, float]:
        labels = {"model": "diabetes_f64", "version": "1"}
        names = ("nexus_batch_size_count", "nexus_batch_size_sum", "nexus_request_duration_seconds_count")
        values = {name: server.metric(name, **labels) for name in names}
        for stage in ("queue", "batch_assembly", "inference", "serialisation"):
            values[stage] = server.metric("nexus_stage_duration_seconds_count", stage=stage, **labels)
        return values

    before = now()
    for _ in range(5):
        client.infer(raw_request("diabetes_f64", {"X": np.ones((3, 10))}))
    expected = {name: value + (15 if name == "nexus_batch_size_sum" else 5) for name, value in before.items()}
    deadline = time.monotonic() + 5
    while now() != expected and time.monotonic() < deadline:
        time.sleep(0.05)
    assert now() == expected


def log_lines(server: Server) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.log_text().splitlines() if line.startswith("{")]


def request_lines(server: Server, **fields: str) -> list[dict[str, Any]]:
    """The lines of requests with these fields; waits up to a few seconds for the first."""
    deadline = time.monotonic() + 5
    while True:
        lines = [line for line in log_lines(server) if line["event"] == "request" and fields.items() <= line.items()]
        if lines or time.monotonic() > deadline:
            return lines
        time.sleep(0.05)


def test_log_lines(client: Client, server: Server) -> None:
    client.predict(nexus_pb.PredictRequest(model_id="iris", features=IRIS_ROW), metadata=[("x-request-id", "log-me")])
    (line,) = request_lines(server, request_id="log-me")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line["timestamp"])
    assert (line["level"], line["role"], line["index"]) == ("info", "front", 0)
    assert (line["model"], line["version"], line["code"]) == ("iris", "1", "OK")
    assert "PREDICT" in line["method"].upper()
    assert 0 < line["latency_us"] < 10_000_000
    refusal(lambda: client.infer(pb.ModelInferRequest(model_name="x"), metadata=[("x-request-id", "log-me-too")]))
    (line,) = request_lines(server, request_id="log-me-too")
    assert (line["level"], line["code"], line["model"]) == ("warning", "NOT_FOUND", "")
    serving = [line for line in log_lines(server) if line["event"] == "serving"]
    assert len(serving) == 1
    assert serving[0]["models"] == 18


@pytest.mark.parametrize("front_api", TRANSPORTS)
def test_sampling_leaves_out_successes_only(tmp_path: pathlib.Path, front_api: str) -> None:
    repository = copy_models(tmp_path / "models", "iris")
    options = ("--log-sample=0", f"--front-api={front_api}")
    with running_server(tmp_path, *options, repository=repository) as server:
        client = Client(server.address)
        for _ in range(50):
            client.infer(iris_request())
        refusal(lambda: client.infer(pb.ModelInferRequest(model_name="x"), metadata=[("x-request-id", "bad")]))
        assert len(request_lines(server, request_id="bad")) == 1
        assert not [line for line in log_lines(server) if line["event"] == "request" and line["code"] == "OK"]
        client.close()

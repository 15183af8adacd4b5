"""What surrounds inference: health, reflection, request ids, timings, deadlines, external clients."""

import concurrent.futures
import contextlib
import importlib
import json
import pathlib
import re
import subprocess
import threading
import time
from typing import Any

import grpc
import numpy as np
import pytest
from google.api import http_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from nexus_grpc.access.rules import RULES
from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from nexus_grpc.pb.nexus.v1 import inference_pb2 as nexus_pb
from tests.harness import ROOT, Server, require_tool
from tests.integration.client import IRIS_ROW, Client, assert_serves, iris_request, outputs_of, raw_request, refusal
from tests.integration.graphs import SLOW_SECOND

SERVING = health_pb2.HealthCheckResponse.SERVING
REFLECTIONS = ("grpc.reflection.v1", "grpc.reflection.v1alpha")
PROTO = ROOT / "proto"
# Every service of ours has rules, or nobody may call it; these are there by REST alone.
BY_REST = {"nexus.v1.Rest", "nexus.v1.V2Admin"}
OURS = {
    service
    for service in (path.split("/")[1] for path in RULES)
    if service.startswith(("inference.", "nexus.v1.")) and service not in BY_REST
}
PREDICT = nexus_pb.PredictRequest(model_id="iris", features=IRIS_ROW)


def slow_request(seconds: float, **fields: Any) -> pb.ModelInferRequest:
    return raw_request("slow", {"turns": np.array(int(seconds * SLOW_SECOND))}, **fields)


@pytest.mark.parametrize("service", ["", "iris", "scale", "inference.GRPCInferenceService", "nexus.v1.Inference"])
def test_health(client: Client, service: str) -> None:
    request = health_pb2.HealthCheckRequest(service=service)
    check = client.unary("/grpc.health.v1.Health/Check", health_pb2.HealthCheckResponse)
    assert check(request).status == SERVING
    watch = client.channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )(request, timeout=10)
    assert next(watch).status == SERVING
    watch.cancel()


def test_health_of_an_unknown_model(client: Client) -> None:
    check = client.unary("/grpc.health.v1.Health/Check", health_pb2.HealthCheckResponse)
    assert refusal(lambda: check(health_pb2.HealthCheckRequest(service="x"))).code == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("package", REFLECTIONS)
def test_reflection(client: Client, package: str) -> None:
    """v1 and v1alpha have the same messages."""
    ask = client.stream(f"/{package}.ServerReflection/ServerReflectionInfo", reflection_pb2.ServerReflectionResponse)
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="nexus.v1.Inference"),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="inference.GRPCInferenceService.ModelInfer"),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=f"{package}.ServerReflection"),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="no.Such"),
    ]
    services, *files, nothing = list(ask(iter(requests)))
    names = {service.name for service in services.list_services_response.service}
    assert names == {*OURS, "grpc.health.v1.Health", *(f"{package}.ServerReflection" for package in REFLECTIONS)}
    assert all(answer.file_descriptor_response.file_descriptor_proto for answer in files)
    assert nothing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


def test_every_service_is_found_and_has_a_health(client: Client) -> None:
    path = f"/{REFLECTIONS[0]}.ServerReflection/ServerReflectionInfo"
    ask = client.stream(path, reflection_pb2.ServerReflectionResponse)
    check = client.unary("/grpc.health.v1.Health/Check", health_pb2.HealthCheckResponse)
    listed = next(ask(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))).list_services_response.service
    for service in listed:
        [answer] = ask(iter([reflection_pb2.ServerReflectionRequest(file_containing_symbol=service.name)]))
        assert answer.file_descriptor_response.file_descriptor_proto, service.name
        status = check(health_pb2.HealthCheckRequest(service=service.name)).status
        assert status == health_pb2.HealthCheckResponse.SERVING, service.name


def grpcurl(server: Server, *arguments: str, data: str = "", check: bool = True) -> str:
    # -d @ reads standard input.
    options = ["-plaintext", "-max-time", "10", *(["-d", data] if data else [])]
    done = subprocess.run(
        [require_tool("grpcurl"), *options, server.address, *arguments], capture_output=True, text=True, timeout=20
    )
    assert (done.returncode == 0) is check, done.stderr
    return done.stdout + done.stderr


def test_grpcurl(server: Server) -> None:
    assert "nexus.v1.Inference" in grpcurl(server, "list").split()
    assert "nexus.v1.Inference.Predict" in grpcurl(server, "list", "nexus.v1.Inference").split()
    assert "rpc ModelInfer" in grpcurl(server, "describe", "inference.GRPCInferenceService")
    assert "double features = 3" in grpcurl(server, "describe", "nexus.v1.PredictRequest")
    data = json.dumps({"model_id": "iris", "features": IRIS_ROW})
    answer = json.loads(grpcurl(server, "nexus.v1.Inference/Predict", data=data))
    assert answer["prediction"] == [0]
    assert json.loads(grpcurl(server, "grpc.health.v1.Health/Check"))["status"] == "SERVING"
    failed = grpcurl(server, "nexus.v1.Inference/Predict", data='{"model_id": "x"}', check=False)
    assert "NotFound" in failed
    assert "UNKNOWN_MODEL" in failed


@pytest.mark.parametrize("file", sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto")))
def test_ghz_reads_every_proto(server: Server, file: str) -> None:
    google = pathlib.Path(http_pb2.__file__).parents[2]
    module = importlib.import_module("nexus_grpc.pb." + file.removesuffix(".proto").replace("/", ".") + "_pb2")
    descriptor = module.DESCRIPTOR
    options = descriptor.GetOptions()
    assert options.go_package
    assert options.java_package
    for service in descriptor.services_by_name.values():
        call = f"{service.full_name}.{service.methods[0].name}"
        command = [require_tool("ghz"), "--insecure", "--proto", PROTO / file, "--import-paths", f"{PROTO},{google}"]
        command += ["--call", call, "--data", "{}", "--total", "1", "--format", "json", server.address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["count"] == 1


@pytest.mark.parametrize("name", ["model_infer_32", "predict_32"])
def test_ghz(server: Server, name: str) -> None:
    command = [require_tool("ghz"), "--config", f"loadtest/ghz/{name}.json", "--duration", "0", "--total", "200"]
    command += ["--skipFirst", "0", "--format", "json", server.address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["count"] == 200
    assert report["statusCodeDistribution"] == {"OK": 200}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("abc-123", True),
        ("A/b:c.d_e+f=g@h", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("two words", False),
        ('quote"', False),
        ("", False),
    ],
)
def test_request_id(client: Client, given: str, kept: bool) -> None:
    answer, call = client.predict.multicallable.with_call(PREDICT, timeout=10, metadata=[("x-request-id", given)])
    returned = dict(call.initial_metadata())["x-request-id"]
    assert (returned == given) is kept
    assert returned
    assert answer.request_id == returned
    _, call = client.infer.multicallable.with_call(iris_request(), timeout=10, metadata=[("x-request-id", given)])
    assert (dict(call.initial_metadata())["x-request-id"] == given) is kept


def test_request_ids_are_unique(client: Client) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: client.predict(PREDICT), range(200)))
    assert len({answer.request_id for answer in answers}) == 200
    own = client.predict(nexus_pb.PredictRequest(model_id="iris", features=IRIS_ROW, request_id="my own: ü"))
    assert own.request_id == "my own: ü"
    failed = refusal(lambda: client.infer(pb.ModelInferRequest(model_name="x"), metadata=[("x-request-id", "seen")]))
    assert failed.initial["x-request-id"] == "seen"


def test_timing(client: Client) -> None:
    request = raw_request("iris", {"X": np.array([IRIS_ROW] * 3, np.float32)}, id="7")
    request.parameters["nexus_timing"].bool_param = True
    response = client.infer(request)
    timing = {name: value.int64_param for name, value in response.parameters.items()}
    assert set(timing) == {"nexus_queue_us", "nexus_batch_size", "nexus_infer_us", "nexus_total_us"}
    assert timing["nexus_batch_size"] == 3
    assert 0 < timing["nexus_infer_us"] <= timing["nexus_total_us"] < 10_000_000
    assert timing["nexus_queue_us"] <= timing["nexus_total_us"]
    assert response.id == "7"
    assert outputs_of(response)["label"].tolist() == [0, 0, 0]
    assert not client.infer(iris_request()).parameters
    predict = nexus_pb.PredictRequest(model_id="iris", features=IRIS_ROW, nexus_timing=True)
    answer = client.predict(predict)
    assert answer.timing.batch_size == answer.batch_size == 1
    assert 0 < answer.timing.infer_us <= answer.timing.total_us
    assert answer.latency_ms > 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", answer.timestamp)
    assert not client.predict(PREDICT).HasField("timing")


def test_deadline_during_a_run(client: Client) -> None:
    started = time.monotonic()
    assert refusal(lambda: client.infer(slow_request(1.5), timeout=0.3)).code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - started < 1
    assert_serves(client)


def test_deadline_in_the_queue(client: Client, server: Server) -> None:
    """Expired work is not run: twenty times a second of it would make the last request late. What cannot be in time by
    what the server knows is refused at once."""
    futures = [client.infer.multicallable.future(slow_request(1), timeout=0.4) for _ in range(20)]
    codes = {future.code() for future in futures}
    assert codes - {grpc.StatusCode.RESOURCE_EXHAUSTED} == {grpc.StatusCode.DEADLINE_EXCEEDED}
    started = time.monotonic()
    assert_serves(client)
    assert time.monotonic() - started < 8


@pytest.mark.timed
def test_the_servers_own_words_for_a_passed_deadline(client: Client, server: Server) -> None:
    """`timeout` in the request is the server's to enforce, so the answer comes from there, with details."""
    busy = client.infer.multicallable.future(slow_request(1), timeout=20)
    deadline = time.monotonic() + 5
    while not server.metric("nexus_in_flight") and time.monotonic() < deadline:
        time.sleep(0.01)
    request = slow_request(0.001)
    request.parameters["timeout"].int64_param = 20_000
    refused = refusal(lambda: client.infer(request))
    assert refused.code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert refused.reason == "DEADLINE_PASSED"
    assert "queued" in refused.message
    assert busy.result().outputs


def test_a_cancelled_request_does_not_hold_the_worker(client: Client, server: Server) -> None:
    assert_serves(client)  # what an earlier test cancelled is counted by now
    before = server.metric("nexus_cancelled_total")
    futures = [client.infer.multicallable.future(slow_request(0.5), timeout=120) for _ in range(30)]
    time.sleep(0.1)
    for future in futures:
        future.cancel()
    started = time.monotonic()
    assert_serves(client)
    assert time.monotonic() - started < 4
    deadline = time.monotonic() + 5
    while server.metric("nexus_cancelled_total") - before < 30 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server.metric("nexus_cancelled_total") - before == 30


def test_many_connections_open_and_close(server: Server) -> None:
    errors: list[BaseException] = []

    def visit() -> None:
        try:
            for _ in range(10):
                with contextlib.closing(Client(server.address)) as client:
                    assert_serves(client)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=visit) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    assert not errors

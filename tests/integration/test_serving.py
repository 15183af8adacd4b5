"""`nexus serve` as an operator meets it: start, stop, settings, broken models, processes."""

import json
import os
import pathlib
import signal
import subprocess
import time
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2

from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from tests.conftest import TRANSPORTS
from tests.harness import MODELS, NEXUS, Server, copy_models, free_port, running_server
from tests.integration.client import TIMEOUT_S, Client, assert_serves, outputs_of, raw_request, refusal

GENEROUS_START_S = 15.0


def run(*arguments: str, cwd: pathlib.Path | None = None, seconds: float = 30) -> subprocess.CompletedProcess[str]:
    variables = {key: value for key, value in os.environ.items() if not key.startswith("NEXUS_")}
    return subprocess.run(
        [*NEXUS, *arguments],
        capture_output=True,
        text=True,
        timeout=seconds,
        cwd=cwd,
        env=variables | {"COLUMNS": "200"},
    )


def mapped(pid: int) -> set[str]:
    """Which of the big libraries a process has mapped."""
    maps = pathlib.Path(f"/proc/{pid}/maps").read_text()
    return {name for name in ("cygrpc", "onnxruntime_pybind11") if name in maps}


@pytest.mark.parametrize(
    ("number", "front_api"),
    [(signal.SIGTERM, "auto"), pytest.param(signal.SIGTERM, "public", marks=pytest.mark.long), (signal.SIGINT, "auto")],
)
def test_start_and_stop(tmp_path: pathlib.Path, front_api: str, number: signal.Signals) -> None:
    started = time.monotonic()
    with running_server(tmp_path, f"--front-api={front_api}", "--log-format=console") as server:
        seconds = time.monotonic() - started
        print(f"ready after {seconds:.2f} s")
        assert seconds < GENEROUS_START_S
        deadline = time.monotonic() + 5
        while "Ctrl-C" not in server.log_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        banner = server.log_text()
        for words in (
            server.address,
            f"http://127.0.0.1:{server.metrics_port}/metrics",
            "iris",
            "ready",
            "X FP32[-1,4]",
        ):
            assert words in banner
        assert f"{server.address} nexus.v1.Inference/Predict" in banner
        children = [*server.children("front"), *server.children("worker")]
        assert len(children) >= 2
        server.process.send_signal(number)
        assert server.process.wait(20) == 0
        assert not any(child.is_running() and child.status() != "zombie" for child in children)


def test_a_second_start_fails_and_disturbs_nothing(server: Server, client: Client, tmp_path: pathlib.Path) -> None:
    for option, port in (("--grpc-port", server.port), ("--metrics-port", server.metrics_port)):
        ports = {"--grpc-port": free_port(), "--metrics-port": free_port(), "--rest-port": 0, option: port}
        options = [f"{name}={value}" for name, value in ports.items()]
        done = run("serve", f"--model-repository={MODELS}", *options, cwd=tmp_path)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert f":{port}" in line
        assert option in line
        assert "Traceback" not in done.stderr
    assert_serves(client)


def test_broken_models_do_not_hide_the_others(tmp_path: pathlib.Path) -> None:
    repository = copy_models(tmp_path / "models", "iris", "scalar", "diabetes_f64", "text_echo", "counts_i64")
    (repository / "scalar" / "1" / "model.onnx").write_bytes(os.urandom(500))
    (repository / "diabetes_f64" / "config.pbtxt").write_text("max_batch_size: 8\nmax_bach_size: 9\n")
    provider = 'parameters { key: "execution_providers" value { string_value: "NoSuchExecutionProvider" } }'
    (repository / "text_echo" / "config.pbtxt").write_text(provider)
    (repository / "counts_i64" / "config.pbtxt").write_text('input { name: "counts" data_type: TYPE_FP32 dims: 4 }')
    expected = {
        "scalar": "cannot be loaded",
        "diabetes_f64": 'diabetes_f64/config.pbtxt:2:1: field "max_bach_size" of ModelConfig is not supported',
        "text_echo": "execution provider NoSuchExecutionProvider",
        "counts_i64": "TYPE_FP32, the model has TYPE_INT64",
    }
    with running_server(tmp_path, repository=repository) as server:
        client = Client(server.address)
        index = {model.name: model for model in client.cold("RepositoryIndex", pb.RepositoryIndexRequest()).models}
        check = client.unary("/grpc.health.v1.Health/Check", health_pb2.HealthCheckResponse)
        lines = [json.loads(line) for line in server.log_text().splitlines() if line.startswith("{")]
        logged = {line["model"]: line["reason"] for line in lines if line["event"] == "model unavailable"}
        for name, reason in expected.items():
            assert index[name].state == "UNAVAILABLE"
            assert reason in index[name].reason
            assert reason in logged[name]
            assert (
                check(health_pb2.HealthCheckRequest(service=name)).status == health_pb2.HealthCheckResponse.NOT_SERVING
            )
            refused = refusal(lambda name=name: client.infer(pb.ModelInferRequest(model_name=name)))
            assert refused.code == grpc.StatusCode.UNAVAILABLE
            assert reason in refused.message
        assert index["iris"].state == "READY"
        assert check(health_pb2.HealthCheckRequest(service="iris")).status == health_pb2.HealthCheckResponse.SERVING
        ready = client.cold("RepositoryIndex", pb.RepositoryIndexRequest(ready=True)).models
        assert [model.name for model in ready] == ["iris"]
        assert str(tmp_path) not in " ".join(model.reason for model in index.values())
        assert_serves(client)
        client.close()


@pytest.mark.parametrize("front_api", TRANSPORTS)
def test_two_workers_and_two_fronts(tmp_path: pathlib.Path, front_api: str) -> None:
    options = ("--workers=2", "--fronts=2", f"--front-api={front_api}")
    with running_server(tmp_path, *options, repository=copy_models(tmp_path / "models", "iris")) as server:
        assert (len(server.children("front")), len(server.children("worker"))) == (2, 2)
        clients = [Client(server.address) for _ in range(16)]
        values = np.random.default_rng(1).uniform(0, 8, (16, 4)).astype(np.float32)
        for _ in range(5):
            pairs = list(zip(clients, values, strict=True))
            calls = [
                client.infer.multicallable.future(raw_request("iris", {"X": row[None]}), timeout=TIMEOUT_S)
                for client, row in pairs
            ]
            whole = outputs_of(clients[0].infer(raw_request("iris", {"X": values})))
            for index, call in enumerate(calls):
                assert outputs_of(call.result())["label"][0] == whole["label"][index]
        by_worker = [server.metric("nexus_batches_total", worker=str(index)) for index in range(2)]
        assert min(by_worker) > 0
        for client in clients:
            client.close()


def test_dedicated_workers_and_instances(tmp_path: pathlib.Path) -> None:
    """Two dedicated workers for iris besides two shared ones, of which scalar has one."""
    repository = copy_models(tmp_path / "models", "iris", "scalar", "text_echo")
    isolation = 'parameters { key: "isolation" value { string_value: "dedicated" } }'
    level = 'parameters { key: "graph_optimization_level" value { string_value: "basic" } }'
    threads = "".join(
        f'parameters {{ key: "{kind}_op_thread_count" value {{ string_value: "1" }} }}' for kind in ("intra", "inter")
    )
    (repository / "iris" / "config.pbtxt").write_text(f"instance_group {{ count: 2 }} {isolation} {level} {threads}")
    (repository / "scalar" / "config.pbtxt").write_text("instance_group { count: 1 kind: KIND_CPU }")
    warmup = (
        'model_warmup { name: "w" inputs { key: "text" value { data_type: TYPE_STRING dims: 1 zero_data: true } } }'
    )
    (repository / "text_echo" / "config.pbtxt").write_text(f"max_batch_size: 4 {warmup}")
    with running_server(tmp_path, "--workers=2", repository=repository) as server:
        assert len(server.children("worker")) == 4
        client = Client(server.address)
        for _ in range(8):
            assert_serves(client)
            client.infer(raw_request("scalar", {"x": np.array(1, np.float32)}))
        batches = [server.metric("nexus_batches_total", worker=str(index)) for index in range(4)]
        assert sorted(batches[:2]) == [0, 8]
        assert sum(batches[2:]) == 8
        assert min(batches[2:]) > 0
        config = client.cold("ModelConfig", pb.ModelConfigRequest(name="iris")).config
        assert config.parameters["graph_optimization_level"].string_value == "basic"
        assert config.instance_group[0].count == 2
        client.close()


def test_a_warm_up_that_fails_is_reported(tmp_path: pathlib.Path) -> None:
    repository = copy_models(tmp_path / "models", "iris", "scalar")
    warmup = 'model_warmup { name: "w" inputs { key: "Z" value { data_type: TYPE_FP32 dims: 4 zero_data: true } } }'
    (repository / "iris" / "config.pbtxt").write_text(f"max_batch_size: 4 {warmup}")
    with running_server(tmp_path, repository=repository) as server:
        client = Client(server.address)
        index = {model.name: model for model in client.cold("RepositoryIndex", pb.RepositoryIndexRequest()).models}
        assert "warm-up" in index["iris"].reason
        assert "'Z'" in index["iris"].reason
        client.close()


def test_settings_from_variables_and_file(tmp_path: pathlib.Path) -> None:
    (tmp_path / "nexus.toml").write_text('workers = 1\nfronts = 2\nlog_format = "console"\n')
    environment = {"NEXUS_WORKERS": "2", "NEXUS_MAX_MESSAGE_BYTES": "2KiB"}
    repository = copy_models(tmp_path / "models", "iris")
    with running_server(tmp_path, environment=environment, repository=repository) as server:
        assert (len(server.children("front")), len(server.children("worker"))) == (2, 2)
        assert not server.log_text().startswith("{")
        client = Client(server.address)
        refused = refusal(lambda: client.infer(raw_request("iris", {"X": np.ones((300, 4), np.float32)})))
        assert refused.code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert_serves(client)
        client.close()


def test_an_open_address_needs_a_word(tmp_path: pathlib.Path) -> None:
    done = run("serve", "--host=0.0.0.0", "--rest-port=0", cwd=tmp_path)
    assert done.returncode == 78
    assert "--insecure-allow-anonymous" in done.stderr
    done = run("serve", "--model-repository=nowhere", "--rest-port=0", f"--grpc-port={free_port()}", cwd=tmp_path)
    assert done.returncode == 78
    assert "nowhere does not exist" in done.stderr
    done = run("serve", "--model-repository=.", "--rest-port=0", "--cpus=0,8000", cwd=tmp_path)
    assert done.returncode == 78
    assert "there is no core 8000 for this server; it may use 0" in done.stderr
    repository = copy_models(tmp_path / "models", "iris")
    options = ("--host=0.0.0.0", "--insecure-allow-anonymous")
    with running_server(tmp_path, *options, repository=repository) as server:
        client = Client(server.address)
        assert_serves(client)
        client.close()


def test_processes_load_only_what_they_need(server: Server, client: Client) -> None:
    assert_serves(client)
    assert mapped(server.process.pid) == set()
    for front in server.children("front"):
        assert mapped(front.pid) == {"cygrpc"}
    cores = []
    for worker in server.children("worker"):
        assert mapped(worker.pid) == {"onnxruntime_pybind11"}
        cores.append(frozenset(worker.cpu_affinity()))
    assert cores
    assert len(cores) == 1 or len(set(cores)) > 1
    assert all(own <= os.sched_getaffinity(0) for own in cores)
    commands = [child.cmdline()[0] for child in (*server.children("front"), *server.children("worker"))]
    assert commands[0] == "nexus: front 0"
    assert "nexus: worker 0" in commands


def cli_json(*arguments: str) -> Any:
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_command_line(server: Server) -> None:
    address = f"--address={server.address}"
    models = cli_json("models", "list", address, "--json")["models"]
    [iris] = [each for each in models if each["name"] == "iris"]
    assert (iris["version"], iris["state"], iris["reason"], iris["active"]) == ("1", "READY", "", True)
    assert "iris" in run("models", "list", address).stdout
    info = cli_json("models", "info", "digits_cnn", address, "--json")
    assert info["config"]["max_batch_size"] == 32
    assert "probabilities" in run("models", "info", "digits_cnn", address).stdout
    answer = cli_json("predict", "iris", "5.1,3.5,1.4,0.2", address, "--json")
    assert answer["prediction"] == [0.0]
    assert "hello" in run("predict", "text_echo", "--text", "hello", address).stdout
    failed = run("predict", "nothing", "1", address)
    assert failed.returncode == 1
    assert "NOT_FOUND: Request for unknown model: 'nothing' is not found" in failed.stderr


def test_a_server_that_is_nice_loads_models(tmp_path: pathlib.Path) -> None:
    """Nicer than its threads that load: these may not become less nice."""
    with running_server(tmp_path, prefix=("nice", "-n", "19")) as server:
        client = Client(server.address)
        try:
            assert_serves(client)
        finally:
            client.close()


def test_doctor(server: Server, tmp_path: pathlib.Path) -> None:
    (tmp_path / "nexus.toml").write_text(
        f'model_repository = "{MODELS}"\ngrpc_port = {server.port}\nmetrics_port = {server.metrics_port}\n'
    )
    done = run("doctor", "--json", cwd=tmp_path)
    findings = json.loads(done.stdout)["findings"]
    port = next(finding for finding in findings if finding["check"] == f"port {server.port}")
    assert port["state"] == "warn"
    assert "in use" in port["found"]
    assert next(finding for finding in findings if finding["check"] == "grpcio internals")["state"] == "ok"

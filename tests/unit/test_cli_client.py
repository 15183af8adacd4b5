"""`nexus models` and `nexus predict` against a gRPC server on a real port, which answers from a script."""

import http.server
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import grpc
import pytest
import typer
from typer.testing import CliRunner

from nexus_grpc.cli.main import app
from nexus_grpc.cli.predict import OPTIONS, parse_features
from nexus_grpc.pb.inference import grpc_service_pb2 as oip
from nexus_grpc.pb.nexus.v1 import inference_pb2 as nexus
from nexus_grpc.pb.nexus.v1 import models_pb2
from tests.unit.cli_server import Server, nexus_command, scripted_server


@pytest.fixture
def server() -> Iterator[Server]:
    with scripted_server() as script:
        yield script


def iris_index() -> oip.RepositoryIndexResponse:
    answer = oip.RepositoryIndexResponse()
    answer.models.add(name="iris", version="1", state="READY")
    answer.models.add(name="broken", state="UNAVAILABLE", reason="[red]no[/red]\nsuch\x1b[2J file")
    return answer


def script_list(server: Server) -> None:
    records = models_pb2.ListRecordsResponse(count=1)
    record = records.models.add(id="iris", active_version="1")
    record.versions.add(version="1", state="READY", stage="production")
    record.versions.add(version="2", state="UNLOADED", reason="unloaded", version_name="1.0.0")
    server.answers |= {"RepositoryIndex": iris_index(), "ListRecords": records}


def test_models_list(server: Server) -> None:
    script_list(server)
    code, out, _ = nexus_command(server, "models", "list")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert ["iris", "1", "*", "READY", "production"] in lines
    assert ["iris", "2", "UNLOADED", "1.0.0", "none", "unloaded"] in lines
    # What the server says is shown as it is: no markup, no control characters.
    assert "[red]no[/red]\\nsuch\\x1b[2J file" in out


def test_models_list_json(server: Server) -> None:
    script_list(server)
    code, out, _ = nexus_command(server, "models", "list", "--json")
    assert code == 0
    models = json.loads(out)["models"]
    assert [(model["name"], model["version"], model["state"]) for model in models] == [
        ("broken", "", "UNAVAILABLE"),
        ("iris", "1", "READY"),
        ("iris", "2", "UNLOADED"),
    ]
    assert [model["active"] for model in models] == [False, True, False]


def test_models_list_of_an_empty_repository(server: Server) -> None:
    server.answers |= {
        "RepositoryIndex": oip.RepositoryIndexResponse(),
        "ListRecords": models_pb2.ListRecordsResponse(),
    }
    assert nexus_command(server, "models", "list")[:2] == (0, "The server's model repository is empty.\n")


def script_iris_info(server: Server) -> None:
    metadata = oip.ModelMetadataResponse(name="iris", versions=["1", "2"], platform="onnxruntime_onnx")
    metadata.inputs.add(name="X", datatype="FP32", shape=[-1, 4])
    metadata.outputs.add(name="label", datatype="INT64", shape=[-1])
    config = oip.ModelConfigResponse()
    config.config.name = "iris"
    config.config.max_batch_size = 64
    config.config.dynamic_batching.max_queue_delay_microseconds = 500
    config.config.parameters["isolation"].string_value = "shared"
    server.answers |= {"ModelMetadata": metadata, "ModelConfig": config}


def test_models_info(server: Server) -> None:
    script_iris_info(server)
    code, out, _ = nexus_command(server, "models", "info", "iris", "--version", "2")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert ["input", "X", "FP32", "[-1,", "4]"] in lines
    assert ["output", "label", "INT64", "[-1]"] in lines
    assert ["max_batch_size", "64"] in lines
    assert ["max_queue_delay", "500", "µs"] in lines
    assert ["isolation", "shared"] in lines
    assert oip.ModelMetadataRequest.FromString(server.requests[0]) == oip.ModelMetadataRequest(name="iris", version="2")


def test_models_info_json(server: Server) -> None:
    script_iris_info(server)
    code, out, _ = nexus_command(server, "models", "info", "iris", "--json")
    assert code == 0
    answer = json.loads(out)
    assert answer["metadata"]["inputs"] == [{"name": "X", "datatype": "FP32", "shape": ["-1", "4"]}]
    assert answer["config"]["max_batch_size"] == 64


@pytest.mark.parametrize(
    "features", [["5.1,3.5,1.4,0.2"], ["5.1", "3.5", "1.4", "0.2"], ["5.1, 3.5", "1.4,0.2"], ["5.1,3.5,1.4,", "2e-1"]]
)
def test_predict(server: Server, features: list[str]) -> None:
    server.answers["Predict"] = nexus.PredictResponse(
        model_id="iris",
        prediction=[0],
        probabilities=[0.97, 0.02, 0.01],
        confidence=0.97,
        model_version="1",
        latency_ms=0.25,
    )
    code, out, _ = nexus_command(server, "predict", "iris", *features)
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert ["prediction", "0"] in lines
    assert ["confidence", "0.9700"] in lines
    assert ["latency", "0.250", "ms"] in lines
    request = nexus.PredictRequest.FromString(server.requests[0])
    assert request == nexus.PredictRequest(model_id="iris", features=[5.1, 3.5, 1.4, 0.2])


def test_predict_with_negative_numbers(server: Server) -> None:
    server.answers["Predict"] = nexus.PredictResponse()
    assert nexus_command(server, "predict", "iris", "-1.5,2", "-3", "-1e5")[0] == 0
    assert list(nexus.PredictRequest.FromString(server.requests[0]).features) == [-1.5, 2, -3, -1e5]


def test_predict_text_as_json(server: Server) -> None:
    server.answers["Predict"] = nexus.PredictResponse(model_id="spam", labels=["ham"], model_version="3")
    arguments = ["predict", "spam", "--text", "buy, now", "--text", "", "--version", "3", "--json"]
    code, out, _ = nexus_command(server, *arguments)
    assert code == 0
    answer = json.loads(out)
    assert (answer["labels"], answer["prediction"], answer["cache_hit"]) == (["ham"], [], False)
    request = nexus.PredictRequest.FromString(server.requests[0])
    assert request == nexus.PredictRequest(model_id="spam", model_version="3", texts=["buy, now", ""])


@pytest.mark.parametrize(
    "arguments",
    [
        ["iris", "1,two"],
        ["iris", "1", "--jsom"],
        ["iris", "1", "--text", "a"],
        ["iris", "1", "--timeout", "0"],
    ],
)
def test_wrong_usage_of_predict(server: Server, arguments: list[str]) -> None:
    assert nexus_command(server, "predict", *arguments)[0] == 2
    assert server.requests == []


def test_parse_features_names_what_is_no_number() -> None:
    with pytest.raises(typer.BadParameter, match=r"'two' is not a number; expected such as .* --text 'two'"):
        parse_features(["1,two"])
    with pytest.raises(typer.BadParameter, match="there is no option --adress; did you mean --address"):
        parse_features(["1", "--adress", "x"])
    assert parse_features(["[-1,", "2.5]", "3"]) == [-1, 2.5, 3]


def test_the_options_that_predict_knows_of_are_its_own() -> None:
    shown = CliRunner().invoke(app, ["predict", "--help"]).stdout
    assert set(re.findall(r"--[a-z-]+", shown)) == set(OPTIONS)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("upload x", "nexus models upload"),
        ("create", "nexus keys create"),
        ("ramp", "nexus ab ramp"),
        ("serv", "serve"),
    ],
)
def test_a_command_that_is_in_a_group(words: str, meant: str) -> None:
    result = CliRunner().invoke(app, words.split())
    assert result.exit_code == 2
    assert meant in result.stderr


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://127.0.0.1:8001", "'http://127.0.0.1:8001' is a URL; expected HOST:PORT of the server's gRPC port"),
        ("127.0.0.1", "without a port it is 443; expected HOST:PORT"),
        ("nowhere.invalid:8001", "there is no machine called as in nowhere.invalid:8001"),
        ("", "the address is empty"),
    ],
)
def test_an_address_that_is_none(address: str, words: str) -> None:
    code, _, err = nexus_command(Server(address=address), "predict", "iris", "1")
    assert code == 1
    assert words in err


def test_a_port_that_speaks_no_grpc() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as site:
        thread = threading.Thread(target=site.serve_forever)
        thread.start()
        code, _, err = nexus_command(Server(address=f"127.0.0.1:{site.server_port}"), "models", "list")
        site.shutdown()
        thread.join()
    assert code == 1
    assert "speaks no gRPC; expected HOST:PORT of the server's gRPC port" in err


def test_health_of_a_service_that_is_not_there(server: Server) -> None:
    server.answers["Check"] = (grpc.StatusCode.NOT_FOUND, "")
    code, _, err = nexus_command(server, "health", "iris")
    assert code == 1
    assert "the server has no service 'iris'; expected a full name such as inference.GRPCInferenceService" in err


def test_a_forgotten_credential(server: Server) -> None:
    for status in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        server.answers["Predict"] = (status, "no")
        assert "(this command sends the one in NEXUS_API_KEY or" in nexus_command(server, "predict", "iris", "1")[2]


def test_an_error_of_the_server_is_one_line(server: Server) -> None:
    message = "Request for unknown model: 'x'\nis not found"
    server.answers["Predict"] = (grpc.StatusCode.NOT_FOUND, message)
    code, out, err = nexus_command(server, "predict", "x", "1")
    assert (code, out) == (1, "")
    assert err == "error: NOT_FOUND: Request for unknown model: 'x' is not found\n"


def test_a_server_that_is_not_ready_is_not_an_absent_one(server: Server) -> None:
    server.answers["Predict"] = (grpc.StatusCode.UNAVAILABLE, "model iris is loading")
    assert nexus_command(server, "predict", "iris", "1")[2] == "error: UNAVAILABLE: model iris is loading\n"


@pytest.mark.parametrize("command", [["models", "list"], ["models", "info", "iris"], ["predict", "iris", "1"]])
def test_no_server(command: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    code, out, err = nexus_command(Server(address=f"127.0.0.1:{port}"), *command)
    assert (code, out) == (1, "")
    assert err == f"error: no server at 127.0.0.1:{port}: start one with `make serve` or `nexus serve`\n"


def test_a_server_that_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        code, _, err = nexus_command(Server(address=address), "models", "list", "--timeout", "0.3")
    assert code == 1
    assert err.startswith("error: DEADLINE_EXCEEDED")


def test_ctrl_c_is_quiet() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        command = [sys.executable, "-m", "nexus_grpc.cli.main", "models", "list", "--address", address]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        # It has connected, so it waits for an answer.
        silent.settimeout(30)
        connection, _ = silent.accept()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        connection.close()
    assert (process.returncode, out, err) == (130, b"", b"")

"""What a person sees once the server serves."""

import base64
import json
import sys
from pathlib import Path

import pytest

from nexus_grpc import logs
from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from nexus_grpc.repository import ModelEntry, VersionEntry
from nexus_grpc.settings import load_settings
from nexus_grpc.supervisor.banner import MODELS_SHOWN_MAX, announce, clear_text, print_banner
from nexus_grpc.supervisor.catalogue import Catalogue, place


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    for name in ("NEXUS_CONFIG", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


def catalogue_of(*names: str) -> Catalogue:
    entries = [ModelEntry(name, Path(name), versions=(VersionEntry(1, Path(name)),)) for name in names]
    catalogue = Catalogue(place(entries, 1))
    for entry in entries:
        catalogue.add(entry, "1", entry.name)
    return catalogue


def loaded(catalogue: Catalogue, slot: int, shape: list[int], inputs: int = 1) -> None:
    metadata = pb.ModelMetadataResponse(name="m")
    for number in range(inputs):
        metadata.inputs.add(name=f"x{number}", datatype="FP32", shape=shape)
    metadata.outputs.add(name="y", datatype="INT64", shape=[-1])
    catalogue.loaded(slot, 0, base64.b64encode(metadata.SerializeToString()).decode(), "")


def shown(catalogue: Catalogue, capsys: pytest.CaptureFixture[str], **settings: object) -> str:
    print_banner(load_settings({"model_repository": ".", **settings}), catalogue, [[0, 1], [2]])
    return capsys.readouterr().out


def row(text: str, start: str) -> str:
    [line] = [line for line in text.splitlines() if line.startswith(start)]
    return " ".join(line.split())


def test_listeners_and_models(capsys: pytest.CaptureFixture[str]) -> None:
    catalogue = catalogue_of("good", "bad")
    loaded(catalogue, 1, [-1, 3])
    catalogue.failed(2, "no such operator")
    text = shown(catalogue, capsys, host="127.0.0.1", grpc_port=9001, metrics_port=9002)
    assert row(text, "gRPC") == "gRPC 127.0.0.1:9001"
    assert row(text, "metrics") == "metrics http://127.0.0.1:9002/metrics"
    assert row(text, "workers") == "workers 2 (cores 0,1; 2)"
    assert row(text, "good") == "good 1 ready x0 FP32[-1,3] y INT64[-1]"
    assert row(text, "bad") == "bad 1 unavailable no such operator"
    assert '{"model_id": "good", "features": [0.0, 0.0, 0.0]}' in text
    assert "nexus.v1.Inference/Predict" in text


def test_rest(capsys: pytest.CaptureFixture[str]) -> None:
    catalogue = catalogue_of("good")
    loaded(catalogue, 1, [-1, 1])
    text = shown(catalogue, capsys, rest_port=9003, rest_host="::1")
    assert row(text, "REST") == "REST http://[::1]:9003"
    assert "curl http://[::1]:9003/predict -H 'content-type: application/json' -d '{" in text
    assert """ -d '{"model_id": "good", "features": [0.0]}'\n""" in text
    text = shown(catalogue, capsys, rest_port=9003, rest_tls_certificate="a.pem", rest_tls_key="b.pem")
    assert row(text, "REST") == "REST https://127.0.0.1:9003"
    assert "curl https://127.0.0.1:9003/predict" in text


def test_rest_by_an_envoy_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    catalogue = catalogue_of("good")
    loaded(catalogue, 1, [-1, 1])
    text = shown(catalogue, capsys, envoy="external")
    assert row(text, "REST") == "REST http://127.0.0.1:8080 (by an Envoy of yours)"
    assert "nexus envoy bootstrap" in text


def test_rest_may_be_off(capsys: pytest.CaptureFixture[str]) -> None:
    catalogue = catalogue_of("good")
    loaded(catalogue, 1, [-1, 1])
    text = shown(catalogue, capsys, rest_port=0)
    assert row(text, "REST") == "REST off"
    assert "curl http" not in text


def test_metrics_may_be_off(capsys: pytest.CaptureFixture[str]) -> None:
    assert row(shown(catalogue_of("a"), capsys, metrics_port=0), "metrics") == "metrics off"


def test_no_example_for_models_with_several_inputs(capsys: pytest.CaptureFixture[str]) -> None:
    catalogue = catalogue_of("a")
    loaded(catalogue, 1, [-1, 3], inputs=6)
    text = shown(catalogue, capsys)
    assert "Try:" not in text
    assert "x3 FP32[-1,3]" in text
    assert "x5" not in text


def test_without_models_it_says_how_to_have_some(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(shown(catalogue_of(), capsys).split())
    assert "No models yet. Put one at NAME/1/model.onnx, or upload one:" in text
    assert "models upload FILE --id NAME" in text


def test_many_models_are_summed_up(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(catalogue_of(*[f"model{number:03}" for number in range(MODELS_SHOWN_MAX + 2)]), capsys)
    assert "… and 2 more" in text
    assert f"model{MODELS_SHOWN_MAX - 1:03}" in text
    assert f"model{MODELS_SHOWN_MAX:03}" not in text


@pytest.mark.parametrize(
    ("given", "addresses"),
    [
        ({}, []),
        ({"host": "0.0.0.0", "insecure_allow_anonymous": True}, []),
        ({"auth": "required"}, []),
        ({"auth": "required", "host": "0.0.0.0"}, ["0.0.0.0:8001", "0.0.0.0:8080"]),
        ({"auth": "required", "host": "0.0.0.0", "envoy": "external"}, ["0.0.0.0:8001"]),
        ({"auth": "optional", "rest_host": "::"}, ["[::]:8080"]),
    ],
)
def test_credentials_in_clear_text(given: dict[str, object], addresses: list[str]) -> None:
    assert clear_text(load_settings(given)) == addresses


def test_they_are_warned_of_once(capsys: pytest.CaptureFixture[str]) -> None:
    settings = load_settings({"model_repository": ".", "auth": "required", "host": "0.0.0.0", "log_format": "json"})
    logs.configure(settings.log_format, settings.log_level, "supervisor")
    announce(settings, catalogue_of(), [[0]], 0.1)
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    [warning] = [event for event in events if event["level"] == "warning"]
    assert warning["event"] == "credentials travel in clear text"
    assert warning["addresses"] == ["0.0.0.0:8001", "0.0.0.0:8080"]


def test_examples_have_the_credential_that_they_need(capsys: pytest.CaptureFixture[str]) -> None:
    catalogue = catalogue_of("iris")
    loaded(catalogue, 1, [-1, 4])
    assert "NEXUS_API_KEY" not in shown(catalogue, capsys, auth="optional")
    tls = {"grpc_tls_certificate": "c.pem", "grpc_tls_key": "k.pem"}
    text = shown(catalogue, capsys, auth="required", **tls)
    assert "keys create me --data-dir data)" in text
    assert row(text, "  curl ").count('-H "x-api-key: $NEXUS_API_KEY"') == 1
    assert row(text, "  grpcurl -H")
    assert "-plaintext" not in text
    assert "secret" not in shown(catalogue, capsys, auth="required", registry_url="postgresql://me:secret@host/db")


@pytest.mark.parametrize(
    ("argv0", "path", "command"),
    [
        ("{folder}/.venv/bin/nexus", "/usr/bin", ".venv/bin/nexus"),
        ("{folder}/.venv/bin/nexus", "{folder}/.venv/bin", "nexus"),
        ("/usr/lib/elsewhere/nexus", "/usr/bin", "/usr/lib/elsewhere/nexus"),
        ("{folder}/nexus_grpc/cli/main.py", "/usr/bin", ".venv/bin/nexus"),
    ],
)
def test_commands_are_told_as_this_shell_finds_them(
    argv0: str,
    path: str,
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """So that they can be pasted."""
    program = tmp_path / ".venv" / "bin" / "nexus"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [argv0.format(folder=tmp_path), "serve"])
    monkeypatch.setattr(sys, "executable", str(program.with_name("python")))
    monkeypatch.setenv("PATH", path.format(folder=tmp_path))
    catalogue = catalogue_of("good")
    loaded(catalogue, 1, [-1, 1])
    assert f"$({command} keys create me" in shown(catalogue, capsys, auth="required")


def test_an_environment_without_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["main.py", "serve"])
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    catalogue = catalogue_of("good")
    loaded(catalogue, 1, [-1, 1])
    assert f"$({tmp_path}/python -m nexus_grpc.cli.main keys create me" in shown(catalogue, capsys, auth="required")

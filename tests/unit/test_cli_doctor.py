"""`nexus doctor`: what it finds, and what it says to do."""

import json
import os
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nexus_grpc.cli.checks import (
    Finding,
    check_access,
    check_confinement,
    check_cpus,
    check_libraries,
    check_memory,
    check_models,
    check_open_files,
    check_platform,
    check_ports,
    check_variables,
    run_checks,
    satisfies,
)
from nexus_grpc.cli.main import app
from nexus_grpc.settings import load_settings


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("NEXUS_"):
            monkeypatch.delenv(name)


def states(findings: list[Finding]) -> list[str]:
    return [finding.state for finding in findings]


def test_json_has_every_check_and_the_exit_code_follows(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    answer = json.loads(result.stdout)
    checks = {finding["check"] for finding in answer["findings"]}
    assert {"settings", "platform", "cores", "memory", "/dev/shm", "open files", "grpcio internals", "models"} <= checks
    assert {"access", "confinement"} <= checks
    assert {finding["state"] for finding in answer["findings"]} <= {"ok", "warn", "fail"}
    # There is no model repository here.
    assert answer["failed"] >= 1
    assert result.exit_code == 1


def test_the_table_says_what_to_do() -> None:
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "does not exist; create it, or name another with --model-repository" in result.stdout
    assert " failed" in result.stdout.splitlines()[-1]


def test_broken_settings_are_findings_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUS_WORKERS", "many")
    monkeypatch.setenv("NEXUS_FRONTS", "0")
    findings = run_checks()
    broken = [finding for finding in findings if finding.check == "settings"]
    assert states(broken) == ["fail", "fail"]
    assert broken[0].found == "workers = 'many' (from NEXUS_WORKERS): expected a whole number"
    assert any(finding.check == "open files" for finding in findings)


def test_the_named_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text("grpc_port = 0\n")
    result = CliRunner().invoke(app, ["doctor", "--json", "--config", "other.toml"])
    assert "other.toml" in json.loads(result.stdout)["findings"][0]["found"]


def test_misspelt_variables() -> None:
    found = list(
        check_variables({"NEXUS_WORKER": "1", "NEXUS_WORKERS": "1", "NEXUS_CONFIG": "", "NEXUS_X": "", "A": ""})
    )
    advice = ["did you mean NEXUS_WORKERS?", "unset it"]
    assert [(finding.state, finding.advice) for finding in found] == [("warn", each) for each in advice]


def test_variables_of_the_commands_are_no_settings() -> None:
    names = ("NEXUS_API_KEY", "NEXUS_TOKEN", "NEXUS_TLS_CA", "NEXUS_TLS_CERTIFICATE", "NEXUS_TLS_KEY")
    assert list(check_variables(dict.fromkeys(names, "x"))) == []
    (finding,) = check_variables({"NEXUS_APIKEY": "secret"})
    assert finding.advice == "did you mean NEXUS_API_KEY?"
    assert "secret" not in repr(finding)


OPEN = {"host": "192.0.2.1", "auth": "required"}
GRPC_TLS = {"grpc_tls_certificate": "c.pem", "grpc_tls_key": "k.pem"}
REST_TLS = {"rest_tls_certificate": "c.pem", "rest_tls_key": "k.pem"}


@pytest.mark.parametrize(
    ("given", "state", "found"),
    [
        ({}, "ok", "--auth off, no TLS on the gRPC port"),
        ({"auth": "required"}, "ok", "--auth required, no TLS on the gRPC port"),
        (OPEN, "warn", "in clear text to 192.0.2.1:8001, 192.0.2.1:8080"),
        ({**OPEN, **GRPC_TLS}, "warn", "in clear text to 192.0.2.1:8080"),
        ({**OPEN, **REST_TLS}, "warn", "in clear text to 192.0.2.1:8001"),
        ({**OPEN, **GRPC_TLS, **REST_TLS}, "ok", "--auth required, TLS on the gRPC port"),
        ({**OPEN, **GRPC_TLS, "rest_port": 0, "tls_client_ca": "ca.pem"}, "ok", ", client certificates"),
        ({"auth": "optional", "rest_host": "::"}, "warn", "in clear text to [::]:8080"),
        ({"host": "0.0.0.0", "insecure_allow_anonymous": True}, "warn", "other machines may do anything"),
    ],
)
def test_access(given: dict[str, object], state: str, found: str) -> None:
    (finding,) = check_access(load_settings(given))
    assert (finding.check, finding.state) == ("access", state)
    assert finding.found.endswith(found)
    assert bool(finding.advice) == (state == "warn")


def test_confinement(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings({})
    (finding,) = check_confinement(settings)
    assert finding.check == "confinement"
    monkeypatch.setattr("nexus_grpc.cli.checks.missing_support", lambda: [])
    assert list(check_confinement(settings)) == [Finding("ok", "confinement", "seccomp and Landlock")]
    monkeypatch.setattr("nexus_grpc.cli.checks.missing_support", lambda: ["Landlock: Function not implemented"])
    (finding,) = check_confinement(settings)
    assert (finding.state, finding.found) == ("warn", "Landlock: Function not implemented")
    assert "SECURITY.md" in finding.advice


def test_platform_and_libraries_are_those_of_this_release() -> None:
    settings = load_settings({})
    assert states(list(check_platform(settings))) == ["ok"]
    (libraries,) = check_libraries(settings)
    assert libraries.state == "ok"
    assert "onnxruntime" in libraries.found
    assert "grpcio" in libraries.found


@pytest.mark.parametrize(
    ("version", "wanted", "answer"),
    [
        ("1.85.1", ">=1.85.1,<1.86", True),
        ("1.85.1", "<1.86,>=1.85.1", True),
        ("1.85.0", ">=1.85.1,<1.86", False),
        ("1.86.0", ">=1.85.1,<1.86", False),
        ("1.86", ">=1.85.1,<1.86.0", False),
        ("2.10", ">=2.9,<3", True),
        ("3.0.0rc1", ">=2.9,<3", False),
        ("26.1", ">=26.1.0", True),
        ("1", "", True),
    ],
)
def test_satisfies(version: str, wanted: str, answer: bool) -> None:
    assert satisfies(version, wanted) is answer


def test_cores_that_are_not_there() -> None:
    findings = list(check_cpus(load_settings({"cpus": "8191"})))
    assert findings[0].state == "fail"
    assert "[8191]" in findings[0].found


def test_more_workers_than_cores() -> None:
    findings = list(check_cpus(load_settings({"workers": 1024})))
    assert findings[-1].check == "workers"
    assert findings[-1].state == "warn"


def test_memory_for_the_rings() -> None:
    assert states(list(check_memory(load_settings({"workers": 1})))) == ["ok", "ok"]
    huge = load_settings({"workers": 1024, "fronts": 64, "ring_bytes": "1GiB"})
    assert states(list(check_memory(huge))) == ["fail", "ok"]


def test_open_files() -> None:
    (finding,) = check_open_files(load_settings({}))
    assert finding.state in ("ok", "warn")


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        (finding,) = check_ports(load_settings({"grpc_port": port, "rest_port": 0, "metrics_port": 0}))
    assert (finding.state, finding.check) == ("warn", f"port {port}")
    assert "--grpc-port" in finding.advice


def test_an_address_that_is_not_this_machines() -> None:
    settings = load_settings({"host": "192.0.2.1", "insecure_allow_anonymous": True, "rest_port": 0, "metrics_port": 0})
    assert states(list(check_ports(settings))) == ["fail"]


def test_models(tmp_path: Path) -> None:
    settings = load_settings({"model_repository": tmp_path})
    assert states(list(check_models(settings))) == ["warn"]
    (tmp_path / "iris/1").mkdir(parents=True)
    (tmp_path / "iris/1/model.onnx").write_bytes(b"onnx")
    assert states(list(check_models(settings))) == ["ok"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/config.pbtxt").write_text("bogus: 1")
    skipped, broken, fine = check_models(settings)
    assert (skipped.state, skipped.check) == ("warn", "folder empty")
    assert (broken.state, broken.check) == ("warn", "model broken")
    assert fine.found.startswith("1 in ")

"""Variables that begin with NEXUS_: which of them nobody reads, and what was meant."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nexus_grpc import variables
from nexus_grpc.cli.main import app
from nexus_grpc.settings import Settings, variable_name

SETTINGS = [variable_name(name) for name in Settings.model_fields]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("NEXUS_WORKER", "NEXUS_WORKERS"),
        ("NEXUS_GRPC_PROT", "NEXUS_GRPC_PORT"),
        ("NEXUS_MODEL_REPO", "NEXUS_MODEL_REPOSITORY"),
        ("NEXUS_ADRESS", "NEXUS_ADDRESS"),
        ("NEXUS_APIKEY", "NEXUS_API_KEY"),
        ("NEXUS_QQQQQQQQQQQQQQQQ", ""),
        ("NEXUS_GRPCC_PORT", "NEXUS_GRPC_PORT"),
    ],
)
def test_what_was_meant(name: str, meant: str) -> None:
    assert variables.unknown({name: "1", "PATH": "", "NEXU_X": ""}, SETTINGS) == {name: meant}
    said = variables.warning(name, meant)
    assert said.startswith(f"{name} is no setting and is ignored")
    assert ("did you mean" in said) == bool(meant)


def test_what_somebody_reads() -> None:
    known = [*SETTINGS, *variables.OF_COMMANDS, "NEXUS_CONFIG", "NEXUS_COMPILE"]
    assert variables.unknown(dict.fromkeys(known, "x"), SETTINGS) == {}


@pytest.mark.parametrize("service", ["NEXUS", "NEXUS_GRPC", "NEXUS_GRPC_CANARY_2"])
def test_what_kubernetes_sets_for_a_service(service: str) -> None:
    links = {
        f"{service}_SERVICE_HOST": "10.0.0.1",
        f"{service}_SERVICE_PORT": "8001",
        f"{service}_SERVICE_PORT_GRPC": "8001",
        f"{service}_PORT": "tcp://10.0.0.1:8001",
        f"{service}_PORT_8001_TCP": "tcp://10.0.0.1:8001",
        f"{service}_PORT_8001_TCP_PROTO": "tcp",
        f"{service}_PORT_8001_TCP_PORT": "8001",
        f"{service}_PORT_8001_TCP_ADDR": "10.0.0.1",
    }
    assert variables.unknown(links, SETTINGS) == {}


def test_commands_take_no_setting_for_a_misspelt_variable() -> None:
    assert variables.misspelt(dict.fromkeys([*SETTINGS, *variables.OF_COMMANDS, "NEXUS_CONFIG"], "")) == {}
    assert variables.misspelt({"NEXUS_ADRESS": ""}) == {"NEXUS_ADRESS": "NEXUS_ADDRESS"}


def test_a_command_goes_where_nexus_address_says() -> None:
    environment = {"NEXUS_ADDRESS": "127.0.0.1:9", "NEXUS_ADDRES": "secret"}
    result = CliRunner().invoke(app, ["predict", "iris", "1"], env=environment)
    assert result.exit_code == 1
    assert "no server at 127.0.0.1:9" in result.output
    assert "NEXUS_ADDRES is no setting and is ignored; did you mean NEXUS_ADDRESS?" in result.output
    assert "secret" not in result.output
    flag = CliRunner().invoke(app, ["predict", "iris", "1", "--address", "127.0.0.1:10"], env=environment)
    assert "no server at 127.0.0.1:10" in flag.output


def test_a_server_warns(tmp_path: Path) -> None:
    """Before it finds that there is no repository."""
    done = subprocess.run(
        [sys.executable, "-m", "nexus_grpc.cli.main", "serve", "--model-repository=nowhere", "--rest-port=0"],
        cwd=tmp_path,
        env={"NEXUS_WORKER": "secret", "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 78
    assert "NEXUS_WORKER is no setting and is ignored; did you mean NEXUS_WORKERS?" in done.stderr
    assert "secret" not in done.stderr

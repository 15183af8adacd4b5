"""`nexus serve` and the command as a whole: options from the settings, exit codes, quick help."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nexus_grpc.cli.main import app
from nexus_grpc.cli.serve import options_command
from nexus_grpc.settings import Settings, flag_name, variable_name


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("NEXUS_"):
            monkeypatch.delenv(name)


def given_by(*arguments: str) -> dict[str, Any]:
    """What the options say, by field name."""
    given: list[dict[str, Any]] = []
    result = CliRunner().invoke(options_command(given.append), list(arguments))
    assert result.exit_code == 0, result.output
    return given[0]


def test_help_shows_every_setting() -> None:
    result = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    words = result.output.replace("(", " ").replace(")", " ").replace(",", " ").split()
    for name in Settings.model_fields:
        assert flag_name(name) in words
        assert variable_name(name) in words
    assert "--config" in words
    assert "auto|json|console" in words


def test_only_what_was_given_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUS_WORKERS", "9")
    assert given_by() == {}
    assert given_by("--grpc-port", "9001", "--cpus=0-1", "--insecure-allow-anonymous", "--config", "x.toml") == {
        "grpc_port": "9001",
        "cpus": "0-1",
        "insecure_allow_anonymous": True,
        "config": "x.toml",
    }
    assert given_by("--no-insecure-allow-anonymous") == {"insecure_allow_anonymous": False}


def test_a_wrong_setting_is_one_line_and_78() -> None:
    result = CliRunner().invoke(app, ["serve", "--workers", "many", "--fronts", "0"])
    assert result.exit_code == 78
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "error: workers = 'many' (from --workers): expected a whole number",
        "error: fronts = '0' (from --fronts): expected greater than or equal to 1",
    ]


def test_a_public_address_needs_a_word_and_is_78() -> None:
    result = CliRunner().invoke(app, ["serve", "--host", "0.0.0.0"])
    assert result.exit_code == 78
    assert "--insecure-allow-anonymous" in result.stderr


@pytest.mark.parametrize("arguments", [["serve", "--bogus"], ["serve", "extra"], ["bogus"], ["--bogus"], []])
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output[:6]) == (0, "nexus ")


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from typer.testing import CliRunner; from nexus_grpc.cli.main import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "print([name for name in ('grpc', 'onnxruntime', 'numpy', 'pydantic_settings') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "[]\n"

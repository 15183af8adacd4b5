"""What README.md says about access control, tried: its commands, its file of issuers, its table of answers."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nexus_grpc.access.identity import Scope
from nexus_grpc.access.issuers import parse_trust
from nexus_grpc.cli.main import app
from nexus_grpc.ipc.errors import Code
from nexus_grpc.registry.open import open_registry
from nexus_grpc.rest.errors import http_status
from tests.clean import readme

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
SECTION = README[README.index("## Who may call") : README.index("## Settings")]


def block(kind: str) -> str:
    """The section's one block of a kind."""
    [found] = re.findall(rf"^```{kind}\n(.*?)^```$", SECTION, re.DOTALL | re.MULTILINE)
    return str(found)


def test_the_commands_do_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # As a server has left it.
    open_registry("", tmp_path / "data").close()
    lines = [shlex.split(line, comments=True) for line in block("sh").splitlines()]
    assert [line[:3] for line in lines if line[2] == "create"] == [["nexus", "keys", "create"]] * 3
    for line in lines:
        result = CliRunner().invoke(app, line[1:])
        assert result.exit_code == 0, result.output
    listed = CliRunner().invoke(app, ["keys", "list"]).stdout
    rows = {cells[1]: cells for cells in (line.split() for line in listed.splitlines()) if len(cells) > 1}
    assert rows["webshop"][-1] == "revoked"
    assert "fraud-*" in rows["fraud-team"]
    assert "600/min" in rows["fraud-team"]
    assert rows["deployer"][2] == "read,admin"


def test_every_block_says_what_it_is() -> None:
    """CI runs those that are commands, on a machine where nothing else is (tests/clean)."""
    languages = [language for language, _ in readme.blocks(ROOT / "README.md")]
    assert {"sh", "python"} <= set(languages)
    assert readme.first_commands(ROOT / "README.md") == [readme.SERVE, readme.TEST]


def test_the_file_of_issuers_is_one() -> None:
    trust = parse_trust(tomllib.loads(block("toml")), ROOT)
    [issuer], [certificate] = trust.issuers, trust.certificates
    assert issuer.scopes == {"ml:call": Scope.PREDICT, "ml:admin": Scope.READ | Scope.ADMIN}
    assert issuer.models_claim == "models"
    assert issuer.grant.rate_per_minute == 600
    assert certificate.grant.scopes == Scope.PREDICT


def test_the_table_of_answers() -> None:
    rows = re.findall(r"^\| (\d{3})[^|]*\| ([A-Z_]+)", SECTION, re.MULTILINE)
    assert len(rows) == 3
    for status, code in rows:
        assert http_status(Code[code]) == int(status)


def test_options_and_links_are_there() -> None:
    """Every option that the section names is one of a command; every link leads to a file."""
    helps = " ".join(
        CliRunner().invoke(app, [*command.split(), "--help"]).stdout
        for command in ("serve", "keys create", "keys list", "models list")
    )
    for option in set(re.findall(r"`(--[a-z-]+)", SECTION)):
        assert option in helps, option
    for link in re.findall(r"\]\(([^)#]+)\)", SECTION):
        assert (ROOT / link).exists(), link

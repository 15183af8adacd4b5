"""`nexus keys`: make, list, revoke; what is printed, and what never is."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from nexus_grpc.access.keys import recognise
from nexus_grpc.cli.keys import parse_rate
from nexus_grpc.cli.main import app
from nexus_grpc.registry.open import open_registry
from nexus_grpc.registry.store import Registry
from nexus_grpc.supervisor.data_folder import data_folder


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("NEXUS_"):
            monkeypatch.delenv(name)


def run(*arguments: str, expected: int = 0, **more: Any) -> Any:
    result = CliRunner().invoke(app, ["keys", *arguments], **more)
    assert result.exit_code == expected, result.output
    return result


@pytest.fixture
def registry(tmp_path: Path) -> Any:
    found: Registry = open_registry("", tmp_path / "data")
    yield found
    found.close()


def test_the_key_is_printed_alone_and_works(registry: Registry) -> None:
    """Standard output is the key, for $(…); what is said of it goes to standard error."""
    result = run("create", "webshop")
    text = result.stdout.strip()
    assert re.fullmatch(r"nxk_[0-9a-f]{12}_[A-Za-z0-9_-]{43}", text)
    assert "it is not shown again" in result.stderr
    assert text not in result.stderr
    (key,) = registry.list_keys()
    assert recognise({key.id: key}, text, key.created_at) == key
    assert key.created_by.startswith("cli:")
    shown = run("list").output + run("list", "--json").output
    assert text[17:] not in shown
    assert key.digest.hex() not in shown


def test_all_of_its_options(registry: Registry) -> None:
    words = ("--scopes", "read, admin", "--model", "fraud-*", "--model", "iris", "--rate", "10/s", "--burst", "50")
    made = json.loads(run("create", "a", *words, "--priority", "1", "--expires", "90d", "--json").stdout)
    (key,) = registry.list_keys()
    assert made.pop("key").startswith(f"nxk_{key.id}_")
    assert (made["scopes"], made["models"], made["state"]) == (["read", "admin"], ["fraud-*", "iris"], "active")
    assert (key.rate_per_minute, key.burst, key.priority) == (600.0, 50, 1)
    assert key.expires_at == key.created_at + 90 * 86_400
    (listed,) = json.loads(run("list", "--json").stdout)["keys"]
    assert listed == made
    line = run("list").stdout.splitlines()[3]
    assert line.split()[:5] == [key.id, "a", "read,admin", "fraud-*,iris", "600/min"]
    assert line.split()[-2:] == ["never", "active"]


@pytest.mark.parametrize("by", ["id", "name"])
def test_revoking(registry: Registry, by: str) -> None:
    run("create", "webshop")
    (key,) = registry.list_keys()
    wanted = getattr(key, by)
    assert "revoked" not in run("revoke", wanted, input="n\n", expected=1).stdout
    assert registry.list_keys() == [key]
    assert f"revoked {key.id} (webshop)\n" in run("revoke", wanted, input="y\n").stdout
    assert "revoked" in run("list").stdout
    assert "is revoked already" in run("revoke", key.id, "--yes", expected=1).stderr
    assert "no API key of that id or name" in run("revoke", "webshop", "--yes", expected=1).stderr
    # The name is free again.
    run("create", "webshop")
    assert json.loads(run("revoke", "webshop", "--yes", "--json").stdout)["state"] == "revoked"
    assert [row.action for row in registry.history()] == ["revoke_key", "create_key"] * 2


def test_a_key_that_is_pasted_as_its_name_is_not_shown(registry: Registry) -> None:
    text = run("create", "webshop").stdout.strip()
    assert text[17:] not in run("revoke", text, "--yes", expected=1).output
    assert text[17:] not in run("create", text, expected=1).output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["create", "a", "--scopes", "root"], 2, "'root' is no scope; expected predict, read, admin"),
        (["create", "a", "--scopes", ""], 2, "is no scope"),
        (["create", "a", "--rate", "fast"], 2, "'fast' is no rate; expected such as 600/min"),
        (["create", "a", "--rate", "0/s"], 2, "is no rate"),
        (["create", "a", "--expires", "soon"], 2, "no duration"),
        (["create", "a", "--priority", "10"], 2, "--priority"),
        (["create", "a", "--model", "../x"], 1, "no pattern of models' ids"),
        (["create", "a\nb"], 1, "no name for a key"),
        (["create", "taken"], 1, "there is a key called 'taken'"),
        (["create"], 2, "NAME"),
        (["revoke", "nobody", "--yes"], 1, "no API key of that id or name"),
        (["list", "--config", "none.toml"], 78, "no such file"),
        (["list", "--registry-url", "mysql://x"], 1, "expected postgresql://"),
        (["list", "--data-dir", "elsewhere"], 1, "there is no registry at"),
        (["revoke", "a", "--data-dir", "elsewhere"], 1, "Name the server's own by --data-dir"),
        (["create", "a", "--data-dir", "elsewhere"], 1, "elsewhere/registry.db: no server has been started with it"),
        (["create", "a", "--data-dir", "elsewhere", "--address", "x:1"], 2, "expected one of them"),
        (["create", "a", "--make-registry", "--address", "x:1"], 2, "expected one of them"),
    ],
)
def test_what_is_refused(registry: Registry, arguments: list[str], code: int, message: str) -> None:
    run("create", "taken")
    assert message in " ".join(run(*arguments, expected=code).stderr.split())
    assert len(registry.list_keys()) == 1
    assert not Path("elsewhere").exists()


def test_which_registry_it_is_is_said(registry: Registry, tmp_path: Path) -> None:
    place = f"the registry {tmp_path / 'data' / 'registry.db'}, which "
    said = [run(*words).stderr for words in (("create", "a"), ("list",), ("revoke", "a", "--yes"))]
    assert all(place + "no server seems to use now" in " ".join(each.split()) for each in said)
    with data_folder(tmp_path / "data"):
        assert place + "a running server uses" in " ".join(run("list").stderr.split())
    assert "no server seems to use" in " ".join(run("list", "--json").stderr.split())


def test_the_settings_are_the_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("nexus.toml").write_text('data_dir = "of-the-file"\n')
    for words in ((), ("--data-dir", "of-the-environment"), ("--data-dir", "of-the-flag")):
        run("create", "first", "--make-registry", *words)
        run("revoke", "first", "--yes", *words)
    run("create", "a")
    assert (Path("of-the-file") / "registry.db").exists()
    monkeypatch.setenv("NEXUS_DATA_DIR", "of-the-environment")
    run("create", "b")
    run("create", "c", "--data-dir", "of-the-flag")
    names = [
        [key["name"] for key in json.loads(run("list", "--json", "--data-dir", folder).stdout)["keys"][1:]]
        for folder in ("of-the-file", "of-the-environment", "of-the-flag")
    ]
    assert names == [["a"], ["b"], ["c"]]


def test_an_empty_list(registry: Registry) -> None:
    assert "There are no API keys. Make one: nexus keys create" in run("list").stdout
    assert json.loads(run("list", "--json").stdout) == {"keys": []}


def test_a_running_server_keeps_its_registry(registry: Registry) -> None:
    """A command in another process, while the registry is open here, as it is in a server."""
    before = registry.keys_epoch()
    done = subprocess.run(
        [sys.executable, "-m", "nexus_grpc.cli.main", "keys", "create", "webshop"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    assert done.stdout.startswith("nxk_")
    assert registry.keys_epoch() != before
    assert [key.name for key in registry.list_keys()] == ["webshop"]


@pytest.mark.parametrize(
    ("text", "per_minute"),
    [("600/min", 600), ("10/s", 600), ("1.5/sec", 90), ("120/h", 2), ("60 / minute", 60), ("1/hour", 1 / 60)],
)
def test_rates(text: str, per_minute: float) -> None:
    assert parse_rate(text) == pytest.approx(per_minute)
    for wrong in ("", "600", "/min", "-1/s", "1/day", "1e3/s", "٣/s"):
        with pytest.raises(typer.BadParameter):
            parse_rate(wrong)


def test_help_teaches() -> None:
    for command in ("create", "revoke"):
        assert f"nexus keys {command} webshop" in run(command, "--help").stdout

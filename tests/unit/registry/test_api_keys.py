"""API keys in a registry of either kind: kept, counted, revoked, audited; and how older registries get them."""

import concurrent.futures
import dataclasses
import json
import pathlib
import subprocess
import sys
import threading

import pytest

from nexus_grpc.access.identity import Scope
from nexus_grpc.access.keys import ApiKey, new_key
from nexus_grpc.ipc.errors import AlreadyExists, InvalidInput, StorageFailed
from nexus_grpc.registry.open import open_registry
from nexus_grpc.registry.records import Change, ModelRow, VersionRow
from nexus_grpc.registry.store import SCHEMA_VERSION, TABLES, Registry
from tests.postgres import Postgres
from tests.unit.registry.conftest import Place

NOW = 1_700_000_000.0
ROOT = pathlib.Path(__file__).resolve().parents[3]
FULL = new_key(
    "full",
    NOW,
    scopes=Scope.ADMIN | Scope.READ,
    models=("fraud-*", "iris"),
    rate_per_minute=0.5,
    burst=7,
    priority=0,
    created_by="cli:ada",
    expires_at=NOW + 0.25,
)[1]


def made(name: str, created_at: float = NOW) -> ApiKey:
    return new_key(name, created_at, created_by="cli:ada")[1]


def test_an_empty_one(registry: Registry) -> None:
    assert registry.list_keys() == []
    assert registry.keys_epoch() == registry.keys_epoch()


def test_keys_come_back_as_they_were_put_oldest_first(place: Place, registry: Registry) -> None:
    newer, older = made("newer", NOW + 1), made("older", NOW - 1)
    for key in (newer, FULL, older):
        registry.add_key(key)
    for each in (registry, place.open()):
        assert each.list_keys() == [older, FULL, newer]


def test_secrets_are_nowhere(place: Place, registry: Registry) -> None:
    text, key = new_key("webshop", NOW)
    registry.add_key(key)
    registry.revoke_key("webshop", "cli:ada", NOW)
    rows = place.sql("SELECT * FROM api_keys") + place.sql("SELECT * FROM audit")
    assert text[17:] not in str(rows)
    # The digest is in no line that people read.
    assert key.digest.hex() not in str(registry.history())


def test_changes_are_audited(registry: Registry) -> None:
    assert registry.add_key(FULL) == 1
    registry.revoke_key("full", "cli:bob", NOW + 5)
    revoke, create = registry.history()
    assert (create.actor, create.action, create.model) == ("cli:ada", "create_key", "")
    assert create.detail["key"] == FULL.id
    assert (create.detail["scopes"], create.detail["models"]) == (["read", "admin"], ["fraud-*", "iris"])
    assert (revoke.actor, revoke.action, revoke.detail) == ("cli:bob", "revoke_key", {"key": FULL.id, "name": "full"})


@pytest.mark.parametrize("by", ["id", "name"])
def test_revoking(registry: Registry, by: str) -> None:
    registry.add_key(FULL)
    assert registry.revoke_key(getattr(FULL, by), "cli:bob", NOW + 5) == dataclasses.replace(FULL, revoked_at=NOW + 5)
    (kept,) = registry.list_keys()
    assert kept.state(NOW) == "revoked"
    for wanted in (FULL.id, "full", "nobody", ""):
        with pytest.raises(InvalidInput, match=r"is revoked already|no API key of that id or name"):
            registry.revoke_key(wanted, "cli:bob", NOW + 6)
    assert registry.list_keys() == [kept]
    assert len(registry.history()) == 2


def test_a_name_is_one_keys_until_it_is_revoked(registry: Registry) -> None:
    first = made("webshop")
    registry.add_key(first)
    with pytest.raises(AlreadyExists, match="there is a key called 'webshop'; revoke it first"):
        registry.add_key(made("webshop"))
    registry.revoke_key(first.id, "t", NOW)
    second = made("webshop")
    registry.add_key(second)
    assert registry.revoke_key("webshop", "t", NOW).id == second.id


def test_of_two_at_once_one_gets_the_name(place: Place, registry: Registry) -> None:
    """Both looked before either wrote."""
    registry.add_key(FULL)
    with pytest.raises(StorageFailed, match="api_keys"):
        registry.apply(Change("t", "create_key", put_keys=(made("full"),)))
    barrier = threading.Barrier(4)

    def work(_: int) -> str:
        mine = place.open()
        barrier.wait(30)
        try:
            mine.add_key(made("webshop"))
        except (AlreadyExists, StorageFailed):
            return "refused"
        return "made"

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(work, range(4))) == ["made", "refused", "refused", "refused"]
    assert sorted(key.name for key in registry.list_keys()) == ["full", "webshop"]


def test_the_epoch_tells_of_other_processes_changes(place: Place, registry: Registry) -> None:
    program = (
        "import sys, pathlib; from nexus_grpc.registry.open import open_registry\n"
        "from nexus_grpc.access.keys import new_key\n"
        "registry = open_registry(sys.argv[1], pathlib.Path(sys.argv[2]), keeps_snapshot=False)\n"
        "if sys.argv[3] == 'add': registry.add_key(new_key('webshop', 1.0)[1])\n"
        "else: registry.revoke_key('webshop', 'other', 2.0)\n"
    )
    epochs = [registry.keys_epoch()]
    for what in ("add", "revoke"):
        subprocess.run(
            [sys.executable, "-c", program, place.url, str(place.folder), what], check=True, cwd=ROOT, timeout=60
        )
        epochs.append(registry.keys_epoch())
    assert len(set(epochs)) == 3
    assert [key.revoked_at for key in registry.list_keys()] == [2.0]


def test_the_epoch_counts_nothing_else(registry: Registry) -> None:
    registry.add_key(FULL)
    before = registry.keys_epoch()
    registry.apply(Change("t", "add", put_models=(ModelRow("m"),)))
    registry.save_statistics("m", {"a": 1})
    registry.note_used({FULL.id: NOW})
    with pytest.raises(InvalidInput):
        registry.revoke_key("nobody", "t", NOW)
    assert registry.keys_epoch() == before


def test_when_keys_were_used(registry: Registry) -> None:
    other = made("other", NOW + 1)
    registry.add_key(FULL)
    registry.add_key(other)
    registry.note_used({FULL.id: NOW + 2, "0123456789ab": NOW})
    registry.note_used({})
    # A server whose clock is behind takes nothing back.
    registry.note_used({FULL.id: NOW + 1, other.id: NOW + 3})
    assert [key.last_used_at for key in registry.list_keys()] == [NOW + 2, NOW + 3]
    registry.revoke_key("other", "t", NOW)
    assert registry.list_keys()[1].last_used_at == NOW + 3
    assert [row.action for row in registry.history()] == ["revoke_key", "create_key", "create_key"]


@pytest.mark.parametrize(
    "broken", ["digest = 'ab'", "digest = 'no'", "scopes = '[\"root\"]'", "models = '7'", "models = 'x'"]
)
def test_a_row_that_somebody_else_broke(place: Place, registry: Registry, broken: str) -> None:
    registry.add_key(FULL)
    place.sql(f"UPDATE api_keys SET {broken}")
    other = open_registry(place.url, place.folder, keeps_snapshot=False) if not place.url else None
    if other is None:
        # A connection reads all keys when it is made.
        with pytest.raises(StorageFailed, match="cannot be used"):
            open_registry(place.url, place.folder, keeps_snapshot=False)
        return
    with pytest.raises(StorageFailed, match="cannot be used"):
        other.list_keys()
    other.close()


# --- registries of before there were keys ---


def become_version_1(place: Place) -> None:
    """What version 1 of the schema made, by its own statements; the guards are the same ones."""
    registry = place.open()
    registry.apply(Change("ada", "upload", "iris", "1", {"size": 1}, (ModelRow("iris", "Iris"),)))
    registry.close()
    later = ("DROP TABLE api_keys", "DROP TABLE counters", "ALTER TABLE versions DROP COLUMN decided")
    for statement in (*later, "UPDATE schema_version SET version = 1"):
        place.sql(statement)
    (place.folder / "registry-snapshot.json").unlink(missing_ok=True)


def test_a_registry_of_version_1_gets_the_tables_and_keeps_the_rest(place: Place) -> None:
    become_version_1(place)
    registry = place.open()
    assert [tuple(row) for row in place.sql("SELECT version FROM schema_version")] == [(SCHEMA_VERSION,)]
    assert registry.models() == [ModelRow("iris", "Iris")]
    assert [row.action for row in registry.history()] == ["upload"]
    assert registry.add_key(FULL) == 2
    assert registry.list_keys() == place.open().list_keys() == [FULL]
    assert registry.keys_epoch() == 1
    with pytest.raises(Exception, match="append-only"):
        place.sql("DELETE FROM audit")


def test_many_openers_of_one_of_version_1(place: Place) -> None:
    """Only one of them makes the tables."""
    become_version_1(place)
    barrier = threading.Barrier(4)

    def work(_: int) -> int:
        barrier.wait(30)
        return len(place.open().list_keys())

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [0, 0, 0, 0]


def test_a_migration_that_fails_changes_nothing(place: Place) -> None:
    become_version_1(place)
    # In the way of the last table of version 2.
    place.sql("CREATE TABLE counters (something INTEGER)")
    with pytest.raises(StorageFailed, match="counters"):
        place.open()
    assert [tuple(row) for row in place.sql("SELECT version FROM schema_version")] == [(1,)]
    place.sql("DROP TABLE counters")
    assert place.open().list_keys() == []


def test_a_real_database_of_version_1(tmp_path: pathlib.Path) -> None:
    """Made by the statements as they were released, not by taking away what is new."""
    place = Place("", tmp_path)
    tmp_path.mkdir(exist_ok=True)
    for statement in TABLES[1]:
        place.sql(statement)
    place.sql("INSERT INTO schema_version (version) VALUES (1)")
    place.sql("INSERT INTO models VALUES ('iris', 'Iris', '', '{}', '', '', '{}')")
    place.sql("INSERT INTO versions VALUES ('iris', 1, '', 'none', '', 0, '{}', 'upload', '', '', 1, 'unloaded', '{}')")
    registry = place.open()
    assert registry.models() == [ModelRow("iris", "Iris")]
    assert registry.versions() == [VersionRow("iris", 1, source="upload", wanted="unloaded")]
    registry.add_key(FULL)
    assert registry.list_keys() == [FULL]
    registry.close()


# --- what only PostgreSQL does ---


def test_while_it_is_away_keys_are_known_and_stay_revoked(database: Place, postgres_server: Postgres) -> None:
    registry, command = database.open(), open_registry(database.url, database.folder, keeps_snapshot=False)
    first, second = made("first"), made("second", NOW + 1)
    for key in (first, second):
        command.add_key(key)
    command.revoke_key("first", "cli:ada", NOW + 5)
    expected = [dataclasses.replace(first, revoked_at=NOW + 5), second]
    # As the supervisor does when the epoch changed.
    assert registry.list_keys() == expected
    postgres_server.stop("immediate")
    for reader in (registry, database.open()):
        assert reader.list_keys() == expected
        with pytest.raises(StorageFailed):
            reader.add_key(made("third"))
        with pytest.raises(StorageFailed):
            reader.revoke_key("second", "t", NOW)
        with pytest.raises(StorageFailed):
            reader.keys_epoch()
        with pytest.raises(StorageFailed):
            reader.note_used({first.id: NOW})
    with pytest.raises(StorageFailed):
        command.list_keys()
    postgres_server.start()
    registry.revoke_key("second", "t", NOW)
    assert [key.state(NOW) for key in command.list_keys()] == ["revoked", "revoked"]
    command.close()


def test_a_command_leaves_no_snapshot(database: Place) -> None:
    registry = open_registry(database.url, database.folder, keeps_snapshot=False)
    registry.add_key(FULL)
    registry.close()
    assert not database.folder.exists()


def test_a_snapshot_of_before_there_were_keys(database: Place, postgres_server: Postgres) -> None:
    database.open().apply(Change("t", "add", put_models=(ModelRow("iris"),)))
    path = database.folder / "registry-snapshot.json"
    content = json.loads(path.read_text())
    del content["keys"]
    path.write_text(json.dumps(content))
    postgres_server.stop("immediate")
    registry = database.open()
    assert (registry.models(), registry.list_keys()) == ([ModelRow("iris")], [])


def test_two_connections_here_see_what_commands_do_one_after_the_other(tmp_path: pathlib.Path) -> None:
    """The server has two; the last of other processes to close must not take the log away under them."""
    main, watched = open_registry("", tmp_path), open_registry("", tmp_path, keeps_snapshot=False)
    program = (
        "import sys, pathlib; from nexus_grpc.access.keys import new_key\n"
        "from nexus_grpc.registry.open import open_registry\n"
        "r = open_registry('', pathlib.Path(sys.argv[1]))\n"
        "r.add_key(new_key(sys.argv[2], 1.0)[1]); r.close()"
    )
    for number in range(1, 5):
        epoch = watched.keys_epoch()
        subprocess.run([sys.executable, "-c", program, str(tmp_path), f"k{number}"], check=True, cwd=ROOT, timeout=60)
        assert watched.keys_epoch() > epoch
        assert len(main.list_keys()) == number
    main.close()
    watched.close()

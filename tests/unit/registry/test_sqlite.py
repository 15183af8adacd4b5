"""What only the SQLite file has: modes, damage, a folder that cannot be used."""

import os
import pathlib
import sqlite3
import stat

import pytest

from nexus_grpc.ipc.errors import StorageFailed
from nexus_grpc.registry.open import open_registry
from nexus_grpc.registry.records import Change, ModelRow
from nexus_grpc.registry.sqlite import SqliteRegistry

ADD = Change("ada", "add", "iris", put_models=(ModelRow("iris"),))


def test_only_its_owner_may_read_it(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "a" / "data"
    registry = SqliteRegistry(folder)
    registry.apply(ADD)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert files == {"registry.db": 0o600, "registry.db-wal": 0o600, "registry.db-shm": 0o600}
    registry.close()


def test_an_older_file_becomes_private(tmp_path: pathlib.Path) -> None:
    SqliteRegistry(tmp_path).close()
    os.chmod(tmp_path / "registry.db", 0o644)
    SqliteRegistry(tmp_path).close()
    assert stat.S_IMODE((tmp_path / "registry.db").stat().st_mode) == 0o600


def test_commits_are_on_the_disk(tmp_path: pathlib.Path) -> None:
    registry = SqliteRegistry(tmp_path)
    connection: sqlite3.Connection = registry._connection
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    registry.close()


@pytest.mark.parametrize("damage", ["not a database", "a page in the middle"])
def test_a_damaged_file_is_named_and_kept(tmp_path: pathlib.Path, damage: str) -> None:
    registry = SqliteRegistry(tmp_path)
    for number in range(300):
        registry.apply(Change("ada", "add", f"model-{number}", put_models=(ModelRow(f"model-{number}"),)))
    registry.close()
    path = tmp_path / "registry.db"
    content = bytearray(path.read_bytes())
    if damage == "not a database":
        content[:100] = b"x" * 100
    else:
        content[8192:12288] = b"\xa5" * 4096
    path.write_bytes(content)
    with pytest.raises(StorageFailed, match=r"registry\.db .*restore it from a backup, or move it away") as failure:
        open_registry("", tmp_path)
    assert failure.value.reason == "REGISTRY_FAILED"
    assert path.read_bytes() == bytes(content)


def test_a_folder_that_is_a_file(tmp_path: pathlib.Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(StorageFailed, match=r"data/registry\.db cannot be used: "):
        SqliteRegistry(tmp_path / "data")


def test_a_full_disk_changes_nothing(tmp_path: pathlib.Path) -> None:
    """SQLite's own limit on the file's size raises the error of a full disk."""
    registry = SqliteRegistry(tmp_path)
    registry.apply(ADD)
    connection: sqlite3.Connection = registry._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}").fetchall()
    big = Change("ada", "add", "big", put_models=(ModelRow("big", description="x" * 100_000),))
    with pytest.raises(StorageFailed, match="full"):
        registry.apply(big)
    assert [row.id for row in registry.models()] == ["iris"]
    assert [row.action for row in registry.history()] == ["add"]
    connection.execute("PRAGMA max_page_count = 1000000").fetchall()
    assert registry.apply(big) == 2
    registry.close()

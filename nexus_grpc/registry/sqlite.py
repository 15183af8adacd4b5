"""The registry in a SQLite file: the default. WAL, and every commit is on the disk when it returns."""

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nexus_grpc.ipc.errors import StorageFailed
from nexus_grpc.registry.store import SCHEMA_VERSION, TABLES, Execute, Registry, check_schema

FILE = "registry.db"
BUSY_SECONDS = 10.0
_APPEND_ONLY = tuple(
    f"CREATE TRIGGER IF NOT EXISTS audit_no_{verb.lower()} BEFORE {verb} ON audit"
    " BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
    for verb in ("UPDATE", "DELETE")
)


class _Execute(Execute):
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __call__(self, statement: str, values: Sequence[Any]) -> list[Sequence[Any]]:
        return self._connection.execute(statement, values).fetchall()


class SqliteRegistry(Registry):
    """Opens the file, or makes it. Raises StorageFailed when it cannot be used."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # SQLite gives the files beside it (-wal, -shm) the same permissions.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._connection = sqlite3.connect(
                self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._prepare()
        except (OSError, sqlite3.Error, ValueError) as error:
            raise self._failed(error) from None

    def _prepare(self) -> None:
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            self._connection.execute(f"PRAGMA {pragma}").fetchall()
        with self._transaction() as execute:
            for statement in (*TABLES, *_APPEND_ONLY):
                execute(statement, ())
            if check_schema(execute("SELECT version FROM schema_version", ())):
                execute("INSERT INTO schema_version (version) VALUES (?)", (SCHEMA_VERSION,))

    def _query(self, statement: str, values: Sequence[Any] = ()) -> list[Sequence[Any]]:
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._failed(error) from None

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Execute]:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield _Execute(self._connection)
            self._connection.execute("COMMIT")
        except BaseException as error:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise self._failed(error) from None
            raise

    def close(self) -> None:
        self._connection.close()

    def _failed(self, error: Exception) -> StorageFailed:
        reason = getattr(error, "strerror", None) or str(error)
        hint = "; restore it from a backup, or move it away to begin anew" if _is_broken(error) else ""
        return StorageFailed(f"the registry {self._path} cannot be used: {reason}{hint}", reason="REGISTRY_FAILED")


def _is_broken(error: Exception) -> bool:
    return isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)

"""The registry in a SQLite file: the default. WAL, and every commit is on the disk when it returns."""

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from nexus_grpc.ipc.errors import StorageFailed
from nexus_grpc.registry import rows
from nexus_grpc.registry.store import Execute, Registry

FILE = "registry.db"
BUSY_SECONDS = 10.0
_ABORT = "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
# Primary result codes, the low byte of sqlite_errorcode: https://sqlite.org/rescode.html
_BROKEN_CODES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class SqliteRegistry(Registry):
    """Opens the file, or makes it and the folder. Raises StorageFailed when it cannot be used.

    Args:
        makes: make one where there is none.
    """

    mark = "?"
    schema_query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'schema_version'"
    guards = (
        f"CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit {_ABORT}",
        f"CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit {_ABORT}",
        # INSERT OR REPLACE deletes without the trigger above.
        "CREATE TRIGGER audit_no_replace BEFORE INSERT ON audit"
        " WHEN EXISTS (SELECT 1 FROM audit WHERE sequence = NEW.sequence OR token = NEW.token)"
        f" {_ABORT}",
    )

    def __init__(self, folder: Path, *, makes: bool = True) -> None:
        self._path = folder / FILE
        self.place, self.makes = str(self._path.resolve()), makes
        if not self._path.exists():
            self.check_makes()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _keep_private(self._path)
            self._connection = sqlite3.connect(
                self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as error:
            raise self._failed(error) from None
        try:
            self._begin()
        except (sqlite3.Error, ValueError) as error:
            self.close()
            raise self._failed(error) from None
        except StorageFailed:
            self.close()
            raise

    def _begin(self) -> None:
        self._use_wal()
        self._connection.execute("PRAGMA synchronous = FULL").fetchall()
        found = self._connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            reason = found.splitlines()[-1]
            raise StorageFailed(f"the registry {self._path} is damaged: {reason}{_HINT}", reason="REGISTRY_FAILED")
        with self._transaction() as execute:
            self._prepare(execute)

    def _use_wal(self) -> None:
        """Turning it on needs the file for itself, and does not wait for that as other statements do."""
        until = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL").fetchall()
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
            time.sleep(0.01)

    def _query(self, statement: str, values: rows.Values = ()) -> list[rows.Values]:
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._failed(error) from None

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Execute]:
        def execute(statement: str, values: rows.Values) -> list[rows.Values]:
            return self._connection.execute(statement, values).fetchall()

        try:
            # IMMEDIATE: other writers are kept out from here on, not only from the first write.
            self._connection.execute("BEGIN IMMEDIATE")
            yield execute
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
        is_broken = getattr(error, "sqlite_errorcode", 0) & 0xFF in _BROKEN_CODES
        text = f"the registry {self._path} cannot be used: {reason}{_HINT if is_broken else ''}"
        return StorageFailed(text, reason="REGISTRY_FAILED")


_HINT = "; restore it from a backup, or move it away to begin anew"


def _keep_private(path: Path) -> None:
    """Make the file; its owner's alone, and so the files that SQLite puts beside it (-wal, -shm).

    One that is there is never opened here: closing a descriptor of a file takes away all of this process's locks on it,
    also those of another connection, whose changes other processes would then not see and could destroy.
    Source: https://sqlite.org/howtocorrupt.html 2.2
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        os.chmod(path, 0o600)

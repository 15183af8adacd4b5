"""The registry in PostgreSQL, by psycopg 3. A lost connection is made anew at the next call.

While the server is away reads are served from a snapshot in the data folder, so that models serve on; changes fail.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from nexus_grpc import logs
from nexus_grpc.ipc.errors import StorageFailed
from nexus_grpc.registry.store import SCHEMA_VERSION, TABLES, Execute, Registry, check_schema

SNAPSHOT = "registry-snapshot.json"
CONNECT_SECONDS = 5
STATEMENT_MS = 10_000
# An arbitrary number that all writers lock: changes come one after the other.
WRITERS_LOCK = 0x6E657875
_APPEND_ONLY = (
    "CREATE OR REPLACE FUNCTION nexus_append_only() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$",
    "CREATE OR REPLACE TRIGGER audit_append_only BEFORE UPDATE OR DELETE ON audit"
    " FOR EACH ROW EXECUTE FUNCTION nexus_append_only()",
    "CREATE OR REPLACE TRIGGER audit_no_truncate BEFORE TRUNCATE ON audit"
    " FOR EACH STATEMENT EXECUTE FUNCTION nexus_append_only()",
)


class _Execute(Execute):
    def __init__(self, cursor: "psycopg.Cursor[Any]") -> None:
        self._cursor = cursor

    def __call__(self, statement: str, values: Sequence[Any]) -> list[Sequence[Any]]:
        self._cursor.execute(statement.encode(), values)
        return self._cursor.fetchall() if self._cursor.description else []


class PostgresRegistry(Registry):
    """Raises StorageFailed when neither the server nor a snapshot is there.

    Args:
        url: postgresql://…; its password is never shown.
        folder: for the snapshot.
    """

    mark = "%s"

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self._snapshot_path = folder / SNAPSHOT
        self._connection: psycopg.Connection[Any] | None = None
        try:
            self._place = _place(url)
            self._connected()
        except StorageFailed:
            if not self._snapshot_path.exists():
                raise
            logs.logger().error("registry is away: serving what was known last", registry=self._place)
        else:
            self._write_snapshot()

    def _connected(self) -> "psycopg.Connection[Any]":
        if self._connection is not None and not self._connection.closed and not self._connection.broken:
            return self._connection
        try:
            self._connection = psycopg.connect(
                self._url,
                autocommit=True,
                connect_timeout=CONNECT_SECONDS,
                options=f"-c statement_timeout={STATEMENT_MS} -c lock_timeout={STATEMENT_MS}",
                keepalives_idle=10,
            )
            self._prepare()
        except (psycopg.Error, ValueError) as error:
            self.close()
            raise self._failed(error) from None
        return self._connection

    def _prepare(self) -> None:
        with self._transaction() as execute:
            for statement in (*TABLES, *_APPEND_ONLY):
                execute(statement, ())
            if check_schema(execute("SELECT version FROM schema_version", ())):
                execute("INSERT INTO schema_version (version) VALUES (%s)", (SCHEMA_VERSION,))

    def _query(self, statement: str, values: Sequence[Any] = ()) -> list[Sequence[Any]]:
        for is_last in (False, True):  # a connection that was lost shows at its first use
            try:
                cursor = self._connected().execute(statement.encode(), values)
                return cursor.fetchall()
            except psycopg.Error as error:
                if is_last or self._connection is None or not self._connection.broken:
                    raise self._failed(error) from None
        return []

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Execute]:
        connection = self._connection if self._connection is not None else self._connected()
        if connection.closed or connection.broken:
            connection = self._connected()
        try:
            with connection.transaction(), connection.cursor() as cursor:
                cursor.execute(b"SELECT pg_advisory_xact_lock(%s)", (WRITERS_LOCK,))
                yield _Execute(cursor)
        except psycopg.Error as error:
            raise self._failed(error) from None

    def apply(self, change: Any) -> int:
        try:
            sequence = super().apply(change)
        except StorageFailed:
            if self._connection is None or not self._connection.broken:
                raise
            # The connection was lost before anything was done: once more, on a new one.
            self._connected()
            sequence = super().apply(change)
        self._write_snapshot()
        return sequence

    # --- the snapshot ---

    def models(self) -> Any:
        try:
            return super().models()
        except StorageFailed:
            return self._from_snapshot("models", super().models)

    def versions(self) -> Any:
        try:
            return super().versions()
        except StorageFailed:
            return self._from_snapshot("versions", super().versions)

    def _from_snapshot(self, table: str, read: Any) -> Any:
        kept = _read_snapshot(self._snapshot_path)
        if kept is None:
            return read()
        self._query = lambda statement, values=(): kept[table]  # type: ignore[method-assign]
        try:
            return read()
        finally:
            del self._query

    def _write_snapshot(self) -> None:
        """What reads get while the server is away. That it cannot be written costs no change."""
        try:
            kept = {table: [list(row) for row in self._query(_select(table))] for table in ("models", "versions")}
            temporary = self._snapshot_path.with_suffix(".tmp")
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:
                json.dump(kept, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._snapshot_path)
        except (OSError, StorageFailed) as error:
            logs.logger().warning("the registry's snapshot cannot be written", reason=str(error))

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _failed(self, error: Exception) -> StorageFailed:
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        return StorageFailed(f"the registry at {self._place} cannot be used: {reason}", reason="REGISTRY_FAILED")


def _select(table: str) -> str:
    from nexus_grpc.registry import store

    columns = store.MODEL_COLUMNS if table == "models" else store.VERSION_COLUMNS
    order = "id" if table == "models" else "model, version"
    return f"SELECT {', '.join(columns)} FROM {table} ORDER BY {order}"


def _read_snapshot(path: Path) -> dict[str, Any] | None:
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return kept


def _place(url: str) -> str:
    """host:port/database, without the password. Raises StorageFailed when the URL is none."""
    try:
        parts = conninfo_to_dict(url)
    except psycopg.Error:
        raise StorageFailed("registry_url is not a PostgreSQL URL; expected postgresql://user@host/database") from None
    host, port = parts.get("host") or "localhost", parts.get("port") or 5432
    return f"postgresql://{host}:{port}/{parts.get('dbname') or ''}"

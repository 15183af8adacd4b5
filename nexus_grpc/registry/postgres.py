"""The registry in PostgreSQL, by psycopg 3. A lost connection is made anew at the next call.

While the server is away reads are served from a snapshot in the data folder, so that models serve on; changes fail.

A connection that is lost between a commit and its answer leaves open whether the change was made. Every change carries
a token into the audit log, by which the next connection finds out: at once, so that the change is made exactly once;
or, when the server stayed away and the caller was told that nothing changed, later, and the change is undone.
"""

import contextlib
import dataclasses
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict

from nexus_grpc import logs
from nexus_grpc.access.keys import ApiKey
from nexus_grpc.ipc.errors import StorageFailed
from nexus_grpc.registry import rows, snapshot
from nexus_grpc.registry.records import AuditRow, Change, ModelRow, VersionRow
from nexus_grpc.registry.snapshot import AUDIT_LINES_MAX, Snapshot
from nexus_grpc.registry.store import Execute, Registry, new_token

SNAPSHOT = "registry-snapshot.json"
CONNECT_SECONDS = 5
STATEMENT_MS = 5_000
# The server's own limits do not help when the server hangs, or its machine is gone.
CALL_SECONDS = 15.0
# An arbitrary number that all writers lock: changes come one after the other.
WRITERS_LOCK = 0x6E657875
# SQLSTATE classes that mean the session is over: connection exceptions, and the server's shutdowns.
# https://www.postgresql.org/docs/current/errcodes-appendix.html
LOST_CLASSES = ("08", "57P")
_HOST = re.compile(r"@?[^@#?\s]*")
_PORT = re.compile(r"[0-9,]*")

_Result = TypeVar("_Result")


class PostgresRegistry(Registry):
    """Raises StorageFailed when neither the server nor a snapshot is there.

    Args:
        url: postgresql://…; its password is never shown.
        folder: for the snapshot; made if missing. None = no snapshot: reads fail, too, while the server is away.
        makes: make the tables where there are none.
    """

    mark = "%s"
    schema_query = "SELECT 1 WHERE to_regclass('schema_version') IS NOT NULL"
    guards = (
        "CREATE OR REPLACE FUNCTION nexus_append_only() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$",
        "CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE ON audit"
        " FOR EACH ROW EXECUTE FUNCTION nexus_append_only()",
        "CREATE TRIGGER audit_no_truncate BEFORE TRUNCATE ON audit"
        " FOR EACH STATEMENT EXECUTE FUNCTION nexus_append_only()",
    )

    def __init__(self, url: str, folder: Path | None, *, makes: bool = True) -> None:
        self._url = url
        self._options, self.place = _checked(url)
        self.makes = makes
        self._path = folder / SNAPSHOT if folder is not None else None
        self._connection: psycopg.Connection[Any] | None = None
        # Whether the present transaction's COMMIT was sent and has no answer yet.
        self._is_committing = False
        # How to undo a change that failed for its caller, and may yet have been made; and that change's token.
        self._unsure: tuple[Change, str] | None = None
        self._is_away = False
        self._kept = Snapshot()
        found = None
        try:
            if self._path is not None:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                found = snapshot.load(self._path, self.place)
            self._kept = found or self._kept
            self._connected()
        except OSError as error:
            raise StorageFailed(f"data_dir: {folder} cannot be used: {error.strerror}") from None
        except StorageFailed as error:
            if found is None:
                raise
            self._away(error)

    # --- the connection ---

    def _connected(self) -> "psycopg.Connection[Any]":
        if self._connection is not None and not self._connection.closed:
            return self._connection
        try:
            self._connection = psycopg.connect(
                self._url,
                autocommit=True,
                connect_timeout=CONNECT_SECONDS,
                client_encoding="utf-8",
                options=self._options,
                # Notice a machine that is gone: https://www.postgresql.org/docs/current/libpq-connect.html
                keepalives_idle=10,
                keepalives_interval=2,
                keepalives_count=3,
            )
        except (psycopg.Error, OSError, UnicodeError) as error:
            raise self._failed(error) from None
        try:
            self._take_up(self._connection)
        except BaseException as error:
            self.close()
            if isinstance(error, ValueError):
                raise self._failed(error) from None
            raise
        self._is_away = False
        return self._connection

    def _take_up(self, connection: "psycopg.Connection[Any]") -> None:
        encoding = connection.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            raise ValueError(f"its encoding is {encoding}; expected a database made with ENCODING 'UTF8'")
        with self._transaction_on(connection) as execute:
            self._prepare(execute)
            if self._unsure is not None:
                undoing, token = self._unsure
                was_made = self._audited(execute, token) is not None
                self._write(execute, dataclasses.replace(undoing, audited=was_made), new_token())
        self._unsure = None
        self._kept = Snapshot(
            {row.id: row for row in super().models()},
            {(row.model, row.version): row for row in super().versions()},
            super().history("", AUDIT_LINES_MAX),
            dict(self._select(rows.statistics_row, ("model", "content"), "statistics")),
            {key.id: key for key in super().list_keys()},
        )
        self._save_snapshot()

    def _query(self, statement: str, values: rows.Values = ()) -> list[rows.Values]:
        connection = self._connected()
        try:
            with _cut_off_after(connection, CALL_SECONDS):
                return connection.execute(statement.encode(), values).fetchall()
        except psycopg.Error as error:
            raise self._given_up(error) from None

    def _transaction(self) -> contextlib.AbstractContextManager[Execute]:
        return self._transaction_on(self._connected())

    @contextlib.contextmanager
    def _transaction_on(self, connection: "psycopg.Connection[Any]") -> Iterator[Execute]:
        def execute(statement: str, values: rows.Values) -> list[rows.Values]:
            cursor.execute(statement.encode(), values)
            return cursor.fetchall() if cursor.description else []

        self._is_committing = False
        try:
            with (
                _cut_off_after(connection, CALL_SECONDS),
                connection.transaction(),
                connection.cursor() as cursor,
            ):
                cursor.execute(b"SELECT pg_advisory_xact_lock(%s)", (WRITERS_LOCK,))
                yield execute
                self._is_committing = True
            self._is_committing = False
        except psycopg.Error as error:
            raise self._given_up(error) from None

    def _given_up(self, error: psycopg.Error) -> StorageFailed:
        """Drops a connection that is no use any more."""
        state = error.sqlstate or ""
        is_lost = isinstance(error, psycopg.OperationalError) and (not state or state.startswith(LOST_CLASSES))
        if is_lost or self._connection is None or self._connection.closed:
            self.close()
        else:
            # The server is there and says that it did not commit.
            self._is_committing = False
        return self._failed(error)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _failed(self, error: Exception) -> StorageFailed:
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        return StorageFailed(f"the registry at {self.place} cannot be used: {reason}", reason="REGISTRY_FAILED")

    # --- writing ---

    def apply(self, change: Change) -> int:
        token = new_token()
        line = self._make_once(change, token)
        self._kept.apply(change, line)
        self._save_snapshot()
        return line.sequence if line is not None else 0

    def _make_once(self, change: Change, token: str) -> AuditRow | None:
        """Make a change; once more on a new connection when the old one was lost."""
        before, is_unsure = self._kept, False
        try:
            for is_last in (False, True):
                was_connected = self._connection is not None
                connection = self._connected()
                try:
                    with self._transaction_on(connection) as execute:
                        made = self._audited(execute, token) if is_last else None
                        return made or self._write(execute, change, token)
                except StorageFailed:
                    is_unsure = is_unsure or self._is_committing
                    if is_last or not was_connected or self._connection is not None:
                        raise
        except StorageFailed:
            if is_unsure:
                self._kept, self._unsure = before, (before.undoing(change), token)
            raise
        raise AssertionError("the last attempt returns or raises")

    def save_statistics(self, model: str, content: dict[str, Any]) -> None:
        self._twice(lambda: super(PostgresRegistry, self).save_statistics(model, content))
        self._kept.statistics[model] = content
        self._save_snapshot()

    # --- reading ---

    def models(self) -> list[ModelRow]:
        return self._or_kept(super().models, lambda: sorted(self._kept.models.values(), key=lambda row: row.id))

    def versions(self) -> list[VersionRow]:
        return self._or_kept(super().versions, lambda: [row for _, row in sorted(self._kept.versions.items())])

    def history(self, model: str = "", limit: int = 100) -> list[AuditRow]:
        read = super().history
        return self._or_kept(lambda: read(model, limit), lambda: self._kept.history(model, limit))

    def statistics(self, model: str) -> dict[str, Any]:
        read = super().statistics
        return self._or_kept(lambda: read(model), lambda: dict(self._kept.statistics.get(model, {})))

    def list_keys(self) -> list[ApiKey]:
        keys = self._or_kept(super().list_keys, lambda: list(self._kept.keys.values()))
        kept = {key.id: key for key in keys}
        if kept != self._kept.keys:
            # Another process (a command) changed them. Revoked keys must stay so while the database is away.
            self._kept.keys = kept
            self._save_snapshot()
        return keys

    def keys_epoch(self) -> int:
        # Not from the snapshot: while the database is away nothing can have changed there.
        return self._twice(super().keys_epoch)

    def note_used(self, used: Mapping[str, float]) -> None:
        self._twice(lambda: super(PostgresRegistry, self).note_used(used))

    def _or_kept(self, read: Callable[[], _Result], kept: Callable[[], _Result]) -> _Result:
        try:
            return self._twice(read)
        except StorageFailed as error:
            if self._path is None:
                raise
            self._away(error)
            return kept()

    def _twice(self, call: Callable[[], _Result]) -> _Result:
        """What may be done again, on a new connection if the old one was lost: that shows only when it is used."""
        was_connected = self._connection is not None
        try:
            return call()
        except StorageFailed:
            if not was_connected or self._connection is not None:
                raise
            return call()

    def _away(self, error: StorageFailed) -> None:
        if not self._is_away:
            logs.logger().error("registry is away: reading what was known last", reason=error.message)
        self._is_away = True

    def _save_snapshot(self) -> None:
        if self._path is None:
            return
        # That it cannot be written costs no change: the database has it.
        try:
            self._kept.save(self._path, self.place)
        except OSError as error:
            logs.logger().warning("registry snapshot cannot be written", path=str(self._path), reason=error.strerror)


@contextlib.contextmanager
def _cut_off_after(connection: "psycopg.Connection[Any]", seconds: float) -> Iterator[None]:
    """Ends the connection under a call that takes longer; the call then fails as for any lost connection."""
    try:
        # A descriptor of its own: the timer must not hit another connection that got the number.
        held = socket.socket(fileno=os.dup(connection.fileno()))
    except OSError as error:
        raise psycopg.OperationalError(str(error)) from None

    def cut_off() -> None:
        with contextlib.suppress(OSError):
            held.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut_off)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        held.close()


def _checked(url: str) -> tuple[str, str]:
    """(the server's options, host:port/database without the password). Raises StorageFailed when the URL is none."""
    try:
        parts = conninfo_to_dict(url)
    except psycopg.Error:
        # libpq's words would show parts of the password.
        raise StorageFailed("registry_url is not a PostgreSQL URL; expected postgresql://user@host/database") from None
    host, port = str(parts.get("host") or "localhost"), str(parts.get("port") or 5432)
    database = str(parts.get("dbname") or "")
    if not _HOST.fullmatch(host) or not _PORT.fullmatch(port) or "@" in database:
        # An @ or a / in a password ends it early, and the rest of it would be shown as a host, port or database.
        raise StorageFailed(
            "registry_url: host, port or database is not valid; in the password write @ as %40, / as %2F, : as %3A"
        )
    limits = f"-c statement_timeout={STATEMENT_MS} -c lock_timeout={STATEMENT_MS}"
    return f"{parts.get('options') or ''} {limits}".strip(), f"postgresql://{host}:{port}/{database}"

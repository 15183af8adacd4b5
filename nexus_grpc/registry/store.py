"""The registry over any SQL database: one set of statements, one transaction per change.

SQLite and PostgreSQL take the same statements but for the mark of a parameter; what else differs is in their modules.
"""

import abc
import contextlib
import datetime
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from nexus_grpc.access.keys import ApiKey
from nexus_grpc.ipc.errors import StorageFailed
from nexus_grpc.registry import api_keys, rows
from nexus_grpc.registry.records import AuditRow, Change, ModelRow, VersionRow

SCHEMA_VERSION = 3
_TABLES_1 = (
    "CREATE TABLE schema_version (version INTEGER NOT NULL)",
    "CREATE TABLE models (id TEXT PRIMARY KEY, name TEXT NOT NULL, description TEXT NOT NULL,"
    " labels TEXT NOT NULL, created_at TEXT NOT NULL, created_by TEXT NOT NULL, traffic TEXT NOT NULL)",
    "CREATE TABLE versions (model TEXT NOT NULL, version BIGINT NOT NULL, version_name TEXT NOT NULL,"
    " stage TEXT NOT NULL, sha256 TEXT NOT NULL, size_bytes BIGINT NOT NULL, labels TEXT NOT NULL,"
    " source TEXT NOT NULL, created_at TEXT NOT NULL, created_by TEXT NOT NULL, present INTEGER NOT NULL,"
    " wanted TEXT NOT NULL, info TEXT NOT NULL, PRIMARY KEY (model, version))",
    # `token` is random: it tells whether a change whose commit got no answer was made (see postgres.py).
    "CREATE TABLE audit (sequence BIGINT PRIMARY KEY, at TEXT NOT NULL, actor TEXT NOT NULL, action TEXT NOT NULL,"
    " model TEXT NOT NULL, version TEXT NOT NULL, detail TEXT NOT NULL, token TEXT NOT NULL UNIQUE)",
    "CREATE INDEX audit_by_model ON audit (model, sequence)",
    "CREATE TABLE statistics (model TEXT PRIMARY KEY, content TEXT NOT NULL)",
)
# What each version has that the one before has not: a new registry gets all, an older one what it lacks.
TABLES = {
    1: _TABLES_1,
    2: api_keys.KEY_TABLES,
    3: ("ALTER TABLE versions ADD COLUMN decided TEXT NOT NULL DEFAULT '{}'",),
}

Execute = Callable[[str, rows.Values], list[rows.Values]]
"""Runs a statement inside a transaction; returns its rows."""

_Row = TypeVar("_Row")


class Registry(abc.ABC):
    """What the server knows of models and did with them. One thread at a time; every method raises StorageFailed."""

    # The mark of a parameter in a statement.
    mark = "?"
    # Answers a row if there is a schema.
    schema_query = ""
    # What keeps the audit log append-only.
    guards: tuple[str, ...] = ()
    # Where it is, for people; without a password.
    place = ""
    # Whether it is made where there is none.
    makes = True

    @abc.abstractmethod
    def _query(self, statement: str, values: rows.Values = ()) -> list[rows.Values]:
        """Rows of a SELECT outside of a transaction."""

    @abc.abstractmethod
    def _transaction(self) -> contextlib.AbstractContextManager[Execute]:
        """A transaction that excludes other writers; committed at the end, undone by an exception."""

    @abc.abstractmethod
    def _failed(self, error: Exception) -> StorageFailed:
        """What people get to read of it."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of the database. May be called twice."""

    # --- reading ---

    def models(self) -> list[ModelRow]:
        """All models, by id."""
        found = self._select(rows.model_row, rows.MODEL_COLUMNS, "models")
        # Not ORDER BY: databases differ in how they compare text.
        return sorted(found, key=lambda row: row.id)

    def versions(self) -> list[VersionRow]:
        """All versions, by model and number."""
        found = self._select(rows.version_row, rows.VERSION_COLUMNS, "versions")
        return sorted(found, key=lambda row: (row.model, row.version))

    def history(self, model: str = "", limit: int = 100) -> list[AuditRow]:
        """The newest lines of the audit log, newest first; of one model if it is named."""
        where, values = (f" WHERE model = {self.mark}", (model,)) if model else ("", ())
        rest = f"audit{where} ORDER BY sequence DESC LIMIT {self.mark}"
        return self._select(rows.audit_row, rows.AUDIT_COLUMNS, rest, (*values, max(limit, 0)))

    def statistics(self, model: str) -> dict[str, Any]:
        """What was saved last; empty if nothing."""
        found = self._select(
            rows.statistics_row, ("model", "content"), f"statistics WHERE model = {self.mark}", (model,)
        )
        return found[0][1] if found else {}

    def list_keys(self) -> list[ApiKey]:
        """All API keys, revoked and expired ones included, oldest first."""
        found = self._select(api_keys.key_row, api_keys.KEY_COLUMNS, "api_keys")
        return sorted(found, key=lambda key: (key.created_at, key.id))

    def keys_epoch(self) -> int:
        """Another number after every change of the keys, whichever process made it. Cheap: one row is read."""
        (found,) = self._select(_number, ("value",), f"counters WHERE name = {self.mark}", (api_keys.COUNTER,)) or (0,)
        return found

    def _select(
        self, make: Callable[[rows.Values], _Row], columns: Sequence[str], rest: str, values: rows.Values = ()
    ) -> list[_Row]:
        rows.check_text(values)
        found = self._query(f"SELECT {', '.join(columns)} FROM {rest}", values)
        try:
            return [make(row) for row in found]
        except (TypeError, ValueError) as error:
            # Somebody else wrote into our tables.
            raise self._failed(error) from None

    # --- writing ---

    def apply(self, change: Change) -> int:
        """Make a change; return its sequence in the audit log (0 when it is not audited).

        Raises StorageFailed, and InvalidInput for text that cannot be stored; then nothing has changed.
        """
        with self._transaction() as execute:
            row = self._write(execute, change, new_token())
        return row.sequence if row is not None else 0

    def save_statistics(self, model: str, content: dict[str, Any]) -> None:
        """Keep an experiment's counts."""
        with self._transaction() as execute:
            self._put(execute, "statistics", ("model", "content"), ("model",), (model, rows.json_text(content)))

    def add_key(self, key: ApiKey) -> int:
        """Keep a new key; return its sequence in the audit log. Raises AlreadyExists for a name that is taken."""
        return self.apply(api_keys.creation(self.list_keys(), key))

    def revoke_key(self, wanted: str, actor: str, now: float) -> ApiKey:
        """Revoke the key with this id or name; return it. Raises InvalidInput if there is none."""
        key, change = api_keys.revocation(self.list_keys(), wanted, actor, now)
        self.apply(change)
        return key

    def note_used(self, used: Mapping[str, float]) -> None:
        """When keys, by id, were used last (seconds since 1970). Not audited, and no change of the keys' epoch."""
        if not used:
            return
        statement = (
            f"UPDATE api_keys SET last_used_at = {self.mark} WHERE id = {self.mark}"
            f" AND (last_used_at IS NULL OR last_used_at < {self.mark})"
        )
        with self._transaction() as execute:
            # In one order, so that no two servers wait for each other's rows.
            for id, at in sorted(used.items()):
                execute(statement, (at, id, at))

    def _write(self, execute: Execute, change: Change, token: str) -> AuditRow | None:
        for model in change.delete_models:
            for table, column in (("versions", "model"), ("models", "id"), ("statistics", "model")):
                execute(f"DELETE FROM {table} WHERE {column} = {self.mark}", (model,))
        for model, version in change.delete_versions:
            execute(f"DELETE FROM versions WHERE model = {self.mark} AND version = {self.mark}", (model, version))
        for row in change.put_models:
            self._put(execute, "models", rows.MODEL_COLUMNS, ("id",), rows.model_values(row))
        for each in change.put_versions:
            self._put(execute, "versions", rows.VERSION_COLUMNS, ("model", "version"), rows.version_values(each))
        if change.put_keys or change.delete_keys:
            self._write_keys(execute, change)
        return self._audit(execute, change, token) if change.audited else None

    def _write_keys(self, execute: Execute, change: Change) -> None:
        for id in change.delete_keys:
            execute(f"DELETE FROM api_keys WHERE id = {self.mark}", (id,))
        for key in change.put_keys:
            self._put(execute, "api_keys", api_keys.KEY_COLUMNS, ("id",), api_keys.key_values(key))
        execute(f"UPDATE counters SET value = value + 1 WHERE name = {self.mark}", (api_keys.COUNTER,))

    def _audit(self, execute: Execute, change: Change, token: str) -> AuditRow:
        # The transaction excludes other writers, so that numbers have no gaps and follow the order of the commits.
        sequence = int(execute("SELECT COALESCE(MAX(sequence), 0) + 1 FROM audit", ())[0][0])
        row = AuditRow(
            sequence, now_text(), change.actor, change.action, change.model, change.version, dict(change.detail)
        )
        self._insert(execute, "audit", (*rows.AUDIT_COLUMNS, "token"), (*rows.audit_values(row), token))
        return row

    def _audited(self, execute: Execute, token: str) -> AuditRow | None:
        """The line of the change with this token, if it was made."""
        statement = f"SELECT {', '.join(rows.AUDIT_COLUMNS)} FROM audit WHERE token = {self.mark}"
        found = execute(statement, (token,))
        return rows.audit_row(found[0]) if found else None

    def _put(
        self, execute: Execute, table: str, columns: Sequence[str], key: Sequence[str], values: rows.Values
    ) -> None:
        updates = ", ".join(f"{name} = excluded.{name}" for name in columns if name not in key)
        self._insert(execute, table, columns, values, f" ON CONFLICT ({', '.join(key)}) DO UPDATE SET {updates}")

    def _insert(
        self, execute: Execute, table: str, columns: Sequence[str], values: rows.Values, conflict: str = ""
    ) -> None:
        rows.check_text(values)
        marks = ", ".join([self.mark] * len(columns))
        execute(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks}){conflict}", values)

    # --- the schema ---

    def _prepare(self, execute: Execute) -> None:
        """Make the tables that are missing. Raises ValueError for a schema that this program does not know."""
        if not execute(self.schema_query, ()):
            self.check_makes()
            self._add_tables(execute, 0)
            for statement in self.guards:
                execute(statement, ())
            self._insert(execute, "schema_version", ("version",), (SCHEMA_VERSION,))
            return
        found = [int(row[0]) for row in execute("SELECT version FROM schema_version", ())]
        if len(found) == 1 and 0 < found[0] < SCHEMA_VERSION:
            self._add_tables(execute, found[0])
            execute(f"UPDATE schema_version SET version = {self.mark}", (SCHEMA_VERSION,))
        # Nothing is made or mended in a schema of this version: the account may have no right to.
        elif found != [SCHEMA_VERSION]:
            number = found[0] if found else "none"
            raise ValueError(
                f"its schema is version {number}, this server knows {SCHEMA_VERSION}; run the newer server that wrote"
                " it, or name another registry"
            )

    def check_makes(self) -> None:
        """There is no registry yet. Raises StorageFailed if none shall be made."""
        if not self.makes:
            raise StorageFailed(f"there is no registry at {self.place}", reason="NO_REGISTRY")

    def _add_tables(self, execute: Execute, present: int) -> None:
        for version in range(present + 1, SCHEMA_VERSION + 1):
            for statement in TABLES[version]:
                execute(statement, ())


def _number(values: rows.Values) -> int:
    return int(values[0])


def new_token() -> str:
    """Marks one change: 128 random bits."""
    return secrets.token_hex(16)


def now_text() -> str:
    """RFC 3339, UTC, to the millisecond."""
    return time_text(datetime.datetime.now(datetime.UTC))


def time_text(moment: datetime.datetime) -> str:
    """The same of another moment, which is in UTC."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")

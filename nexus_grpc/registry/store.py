"""The registry over any SQL database: one set of statements, one transaction per change.

SQLite and PostgreSQL take the same statements but for the mark of a parameter; what else differs is in their modules.
"""

import abc
import contextlib
import datetime
import json
from collections.abc import Sequence
from typing import Any

from nexus_grpc.registry.records import AuditRow, Change, ModelRow, VersionRow

SCHEMA_VERSION = 1
TABLES = (
    "CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS models (id TEXT PRIMARY KEY, name TEXT NOT NULL, description TEXT NOT NULL,"
    " labels TEXT NOT NULL, created_at TEXT NOT NULL, created_by TEXT NOT NULL, traffic TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS versions (model TEXT NOT NULL, version BIGINT NOT NULL, version_name TEXT NOT NULL,"
    " stage TEXT NOT NULL, sha256 TEXT NOT NULL, size_bytes BIGINT NOT NULL, labels TEXT NOT NULL,"
    " source TEXT NOT NULL, created_at TEXT NOT NULL, created_by TEXT NOT NULL, present INTEGER NOT NULL,"
    " wanted TEXT NOT NULL, info TEXT NOT NULL, PRIMARY KEY (model, version))",
    "CREATE TABLE IF NOT EXISTS audit (sequence BIGINT PRIMARY KEY, at TEXT NOT NULL, actor TEXT NOT NULL,"
    " action TEXT NOT NULL, model TEXT NOT NULL, version TEXT NOT NULL, detail TEXT NOT NULL)",
    "CREATE INDEX IF NOT EXISTS audit_by_model ON audit (model, sequence)",
    "CREATE TABLE IF NOT EXISTS statistics (model TEXT PRIMARY KEY, content TEXT NOT NULL)",
)
MODEL_COLUMNS = ("id", "name", "description", "labels", "created_at", "created_by", "traffic")
VERSION_COLUMNS = (
    "model", "version", "version_name", "stage", "sha256", "size_bytes", "labels", "source", "created_at", "created_by",
    "present", "wanted", "info",
)  # fmt: skip
_AUDIT_COLUMNS = ("sequence", "at", "actor", "action", "model", "version", "detail")


class Registry(abc.ABC):
    """What the server knows of models and did with them. One thread at a time. Every method raises StorageFailed."""

    mark = "?"

    @abc.abstractmethod
    def _query(self, statement: str, values: Sequence[Any] = ()) -> list[Sequence[Any]]:
        """Rows of a SELECT outside of a transaction."""

    @abc.abstractmethod
    def _transaction(self) -> contextlib.AbstractContextManager["Execute"]:
        """A transaction that excludes other writers; committed at the end, undone by an exception."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of the database. May be called twice."""

    def models(self) -> list[ModelRow]:
        """All models, by id."""
        rows = self._query(f"SELECT {', '.join(MODEL_COLUMNS)} FROM models ORDER BY id")
        return [
            ModelRow(id, name, description, json.loads(labels), created_at, created_by, json.loads(traffic))
            for id, name, description, labels, created_at, created_by, traffic in rows
        ]

    def versions(self) -> list[VersionRow]:
        """All versions, by model and number."""
        rows = self._query(f"SELECT {', '.join(VERSION_COLUMNS)} FROM versions ORDER BY model, version")
        return [_version_row(row) for row in rows]

    def history(self, model: str = "", limit: int = 100) -> list[AuditRow]:
        """The newest lines of the audit log, newest first; of one model if it is named."""
        where, values = (f" WHERE model = {self.mark}", (model,)) if model else ("", ())
        statement = f"SELECT {', '.join(_AUDIT_COLUMNS)} FROM audit{where} ORDER BY sequence DESC LIMIT {self.mark}"
        return [
            AuditRow(sequence, at, actor, action, of, version, json.loads(detail))
            for sequence, at, actor, action, of, version, detail in self._query(statement, (*values, limit))
        ]

    def apply(self, change: Change) -> int:
        """Make a change; return its sequence in the audit log (0 when it is not audited)."""
        with self._transaction() as execute:
            for model in change.delete_models:
                for table, column in (("versions", "model"), ("models", "id"), ("statistics", "model")):
                    execute(f"DELETE FROM {table} WHERE {column} = {self.mark}", (model,))
            for model, version in change.delete_versions:
                where = f"model = {self.mark} AND version = {self.mark}"
                execute(f"DELETE FROM versions WHERE {where}", (model, version))
            for row in change.put_models:
                self._put(execute, "models", MODEL_COLUMNS, ("id",), _model_values(row))
            for each in change.put_versions:
                self._put(execute, "versions", VERSION_COLUMNS, ("model", "version"), _version_values(each))
            return self._audit(execute, change) if change.audited else 0

    def _audit(self, execute: "Execute", change: Change) -> int:
        # The transaction excludes other writers, so that numbers have no gaps and follow the order of the commits.
        sequence = int(execute("SELECT COALESCE(MAX(sequence), 0) + 1 FROM audit", ())[0][0])
        values = (sequence, _now(), change.actor, change.action, change.model, change.version, _text(change.detail))
        marks = ", ".join([self.mark] * len(values))
        execute(f"INSERT INTO audit ({', '.join(_AUDIT_COLUMNS)}) VALUES ({marks})", values)
        return sequence

    def statistics(self, model: str) -> dict[str, Any]:
        """What was saved last; empty if nothing."""
        rows = self._query(f"SELECT content FROM statistics WHERE model = {self.mark}", (model,))
        content: dict[str, Any] = json.loads(rows[0][0]) if rows else {}
        return content

    def save_statistics(self, model: str, content: dict[str, Any]) -> None:
        """Keep an experiment's counts."""
        with self._transaction() as execute:
            self._put(execute, "statistics", ("model", "content"), ("model",), (model, _text(content)))

    def _put(
        self, execute: "Execute", table: str, columns: Sequence[str], key: Sequence[str], values: Sequence[Any]
    ) -> None:
        updates = ", ".join(f"{name} = excluded.{name}" for name in columns if name not in key)
        execute(
            f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join([self.mark] * len(columns))})"
            f" ON CONFLICT ({', '.join(key)}) DO UPDATE SET {updates}",
            values,
        )


class Execute(abc.ABC):
    """Runs a statement inside a transaction; returns its rows."""

    @abc.abstractmethod
    def __call__(self, statement: str, values: Sequence[Any]) -> list[Sequence[Any]]: ...


def check_schema(found: Sequence[Sequence[Any]]) -> bool:
    """Whether the schema's version is to be written. Raises ValueError for one that this program does not know."""
    if found and int(found[0][0]) > SCHEMA_VERSION:
        raise ValueError(
            f"it was written by a newer version of this server (schema {found[0][0]}, this one knows {SCHEMA_VERSION})"
        )
    return not found


def _version_row(row: Sequence[Any]) -> VersionRow:
    model, version, version_name, stage, sha256, size_bytes, labels, source, created_at, created_by, *rest = row
    present, wanted, info = rest
    return VersionRow(
        model, version, version_name, stage, sha256, size_bytes, json.loads(labels), source, created_at, created_by,
        bool(present), wanted, json.loads(info),
    )  # fmt: skip


def _model_values(row: ModelRow) -> tuple[Any, ...]:
    return (
        row.id, row.name, row.description, _text(row.labels), row.created_at, row.created_by, _text(row.traffic),
    )  # fmt: skip


def _version_values(row: VersionRow) -> tuple[Any, ...]:
    return (
        row.model, row.version, row.version_name, row.stage, row.sha256, row.size_bytes, _text(row.labels), row.source,
        row.created_at, row.created_by, int(row.present), row.wanted, _text(row.info),
    )  # fmt: skip


def _text(value: Any) -> str:
    # NUL can't be stored in PostgreSQL's text; ensure_ascii writes it as an escape.
    return json.dumps(dict(value), sort_keys=True)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

"""Records as the values of a table's columns, and back. Mappings are JSON text: one form for every database."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from nexus_grpc.ipc.errors import InvalidInput
from nexus_grpc.registry.records import AuditRow, ModelRow, VersionRow

MODEL_COLUMNS = ("id", "name", "description", "labels", "created_at", "created_by", "traffic")
VERSION_COLUMNS = (
    "model", "version", "version_name", "stage", "sha256", "size_bytes", "labels", "source", "created_at", "created_by",
    "present", "wanted", "info", "decided",
)  # fmt: skip
AUDIT_COLUMNS = ("sequence", "at", "actor", "action", "model", "version", "detail")
SHOWN_CHARACTERS = 40

Values = Sequence[Any]


def model_row(values: Values) -> ModelRow:
    """Raises ValueError or TypeError where a value is none of ours."""
    id, name, description, labels, created_at, created_by, traffic = values
    return ModelRow(id, name, description, json.loads(labels), created_at, created_by, json.loads(traffic))


def version_row(values: Values) -> VersionRow:
    """Raises ValueError or TypeError where a value is none of ours."""
    model, version, version_name, stage, sha256, size_bytes, labels, source, created_at, created_by, *rest = values
    # A snapshot of before there were decisions has none.
    present, wanted, info, decided = rest if len(rest) > 3 else (*rest, "{}")
    return VersionRow(
        model, version, version_name, stage, sha256, size_bytes, json.loads(labels), source, created_at, created_by,
        bool(present), wanted, json.loads(info), json.loads(decided),
    )  # fmt: skip


def audit_row(values: Values) -> AuditRow:
    """Raises ValueError or TypeError where a value is none of ours."""
    sequence, at, actor, action, model, version, detail = values
    return AuditRow(sequence, at, actor, action, model, version, json.loads(detail))


def statistics_row(values: Values) -> tuple[str, dict[str, Any]]:
    """(model, counts). Raises ValueError or TypeError where a value is none of ours."""
    model, content = values
    return model, dict(json.loads(content))


def model_values(row: ModelRow) -> tuple[Any, ...]:
    return (
        row.id, row.name, row.description, json_text(row.labels), row.created_at, row.created_by,
        json_text(row.traffic),
    )  # fmt: skip


def version_values(row: VersionRow) -> tuple[Any, ...]:
    return (
        row.model, row.version, row.version_name, row.stage, row.sha256, row.size_bytes, json_text(row.labels),
        row.source, row.created_at, row.created_by, int(row.present), row.wanted, json_text(row.info),
        json_text(row.decided),
    )  # fmt: skip


def audit_values(row: AuditRow) -> tuple[Any, ...]:
    return (row.sequence, row.at, row.actor, row.action, row.model, row.version, json_text(row.detail))


def json_text(value: Mapping[str, Any]) -> str:
    """In ASCII, which also escapes what a database's text cannot hold: NUL and lone surrogates."""
    return json.dumps(dict(value), sort_keys=True)


def check_text(values: Values) -> None:
    """Raises InvalidInput for text that not every database takes: SQLite stores NUL, PostgreSQL refuses it."""
    for value in values:
        if isinstance(value, str) and ("\0" in value or not _is_unicode(value)):
            raise InvalidInput(
                f"{value[:SHOWN_CHARACTERS]!a} cannot be stored: it has a NUL character or half of a surrogate"
                " pair; leave that out"
            )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

"""What the registry held last, in a file: served while the database is away."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from nexus_grpc.access.keys import ApiKey
from nexus_grpc.registry import api_keys, rows
from nexus_grpc.registry.records import AuditRow, Change, ModelRow, VersionRow

AUDIT_LINES_MAX = 100


@dataclasses.dataclass(slots=True)
class Snapshot:
    """A copy of the tables. `audit` has the newest lines only, newest first."""

    models: dict[str, ModelRow] = dataclasses.field(default_factory=dict)
    versions: dict[tuple[str, int], VersionRow] = dataclasses.field(default_factory=dict)
    audit: list[AuditRow] = dataclasses.field(default_factory=list)
    statistics: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    keys: dict[str, ApiKey] = dataclasses.field(default_factory=dict)

    def history(self, model: str, limit: int) -> list[AuditRow]:
        return [row for row in self.audit if model in ("", row.model)][: max(limit, 0)]

    def apply(self, change: Change, line: AuditRow | None) -> None:
        """Follow a change that was committed."""
        gone = set(change.delete_models)
        for id in gone:
            self.models.pop(id, None)
            self.statistics.pop(id, None)
        dropped = {*change.delete_versions, *(key for key in self.versions if key[0] in gone)}
        for key in dropped:
            self.versions.pop(key, None)
        self.models.update({row.id: row for row in change.put_models})
        self.versions.update({(row.model, row.version): row for row in change.put_versions})
        for id in change.delete_keys:
            self.keys.pop(id, None)
        self.keys.update({key.id: key for key in change.put_keys})
        if line is not None:
            self.audit = [line, *self.audit][:AUDIT_LINES_MAX]

    def undoing(self, change: Change) -> Change:
        """The change that brings back, from what is here, all that `change` touched."""
        models = {*change.delete_models, *(row.id for row in change.put_models)}
        touched = {*change.delete_versions, *((row.model, row.version) for row in change.put_versions)}
        touched |= {key for key in self.versions if key[0] in change.delete_models}
        # Deleting a model takes its versions: those that are to stay are put after it.
        unknown = models - set(self.models)
        keys = {*change.delete_keys, *(key.id for key in change.put_keys)}
        touched |= {key for key in self.versions if key[0] in unknown}
        return Change(
            actor="registry",
            action="undo",
            model=change.model,
            version=change.version,
            detail={"undone": change.action, "why": "the connection was lost before its commit was confirmed"},
            put_models=tuple(self.models[id] for id in sorted(models & set(self.models))),
            put_versions=tuple(self.versions[key] for key in sorted(touched & set(self.versions))),
            delete_versions=tuple(sorted(touched - set(self.versions))),
            delete_models=tuple(sorted(unknown)),
            put_keys=tuple(self.keys[id] for id in sorted(keys & set(self.keys))),
            delete_keys=tuple(sorted(keys - set(self.keys))),
        )

    def save(self, path: Path, place: str) -> None:
        """Write it, whole or not at all. Raises OSError.

        Args:
            place: which database it is of.
        """
        content = {
            "registry": place,
            "models": [rows.model_values(row) for row in self.models.values()],
            "versions": [rows.version_values(row) for row in self.versions.values()],
            "audit": [rows.audit_values(row) for row in self.audit],
            "statistics": self.statistics,
            # With the secrets' digests: without them nobody could call while the database is away.
            "keys": [api_keys.key_values(key) for key in self.keys.values()],
        }
        temporary = path.with_name(path.name + ".tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


def load(path: Path, place: str) -> Snapshot | None:
    """What was saved of this database; None if nothing, or nothing that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["registry"] != place:
            return None
        models = [rows.model_row(values) for values in content["models"]]
        versions = [rows.version_row(values) for values in content["versions"]]
        # A snapshot of before there were keys has none.
        keys = [api_keys.key_row(values) for values in content.get("keys", [])]
        return Snapshot(
            {row.id: row for row in models},
            {(row.model, row.version): row for row in versions},
            [rows.audit_row(values) for values in content["audit"]],
            dict(content["statistics"]),
            {key.id: key for key in keys},
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None

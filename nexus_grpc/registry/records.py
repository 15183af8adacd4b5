"""What the registry holds: models, their versions, and what was done to them. API keys are access/keys.py's."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from nexus_grpc.access.keys import ApiKey


@dataclasses.dataclass(frozen=True, slots=True)
class VersionRow:
    """One version of one model.

    Attributes:
        version_name: what its uploader called it; empty when that was its number.
        stage: none, staging, production or archived.
        sha256: of the file, as hexadecimal digits; empty while unknown.
        source: repository (found there), upload, or register (a record without a file).
        created_at: RFC 3339, UTC.
        present: whether its file is there.
        wanted: auto (what the version policy says), loaded or unloaded.
        info: its inputs and outputs, as in model_info.json.
        decided: who wanted it loaded or unloaded (`by`), when (`at`, RFC 3339), and by which operation (`how`).
    """

    model: str
    version: int
    version_name: str = ""
    stage: str = "none"
    sha256: str = ""
    size_bytes: int = 0
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    source: str = "repository"
    created_at: str = ""
    created_by: str = ""
    present: bool = True
    wanted: str = "auto"
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    decided: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class ModelRow:
    """One model. `traffic` is its traffic policy as JSON (nexus_grpc/traffic/policy.py)."""

    id: str
    name: str = ""
    description: str = ""
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    created_at: str = ""
    created_by: str = ""
    traffic: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class AuditRow:
    """One line of the audit log. `sequence` counts from 1 without gaps, in the order of the changes."""

    sequence: int
    at: str
    actor: str
    action: str
    model: str
    version: str
    detail: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """What happens together or not at all, and its line in the audit log (none if not `audited`).

    Rows replace those of the same key. A deleted model takes its versions with it; deletions come first.
    """

    actor: str
    action: str
    model: str = ""
    version: str = ""
    detail: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    put_models: tuple[ModelRow, ...] = ()
    put_versions: tuple[VersionRow, ...] = ()
    delete_versions: tuple[tuple[str, int], ...] = ()
    delete_models: tuple[str, ...] = ()
    put_keys: tuple[ApiKey, ...] = ()
    # Revoking keeps the row; this is for undoing.
    delete_keys: tuple[str, ...] = ()
    audited: bool = True

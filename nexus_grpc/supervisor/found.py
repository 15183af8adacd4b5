"""Records follow files: each file that is found gets a record, and a record whose file is gone says so."""

import asyncio
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nexus_grpc.ipc.errors import StorageFailed
from nexus_grpc.registry.records import VersionRow
from nexus_grpc.registry.store import now_text
from nexus_grpc.supervisor import storage
from nexus_grpc.supervisor.lifecycle import Lifecycle
from nexus_grpc.supervisor.model_state import ModelState

ACTOR = "repository"


def seen(state: ModelState) -> Sequence[tuple[int, str]]:
    """The versions' files, and what changes when they do."""
    return [(number, state.fingerprint(number)) for number in sorted(state.present)]


def unrecorded(state: ModelState) -> bool:
    """Whether `record` has something to do."""
    return bool(_new(state) or _gone(state))


class Unread(StorageFailed):
    """Some of a model's files cannot be read; all the others are recorded."""


async def record(life: Lifecycle, state: ModelState, actor: str) -> None:
    """All that can be read is recorded. Raises Unread, then, or StorageFailed: the registry is away."""
    rows, unread = [], []
    for number in _new(state):
        try:
            rows.append(await asyncio.to_thread(_found_row, state, number))
        except OSError as error:
            unread.append(f"version {number} ({error.strerror or error})")
    gone = _gone(state)
    if rows or gone:
        versions = [str(row.version) for row in rows]
        detail = {"found": versions, "missing": [str(row.version) for row in gone]}
        rows += [dataclasses.replace(row, present=False) for row in gone]
        await life.commit(state, "found" if versions else "missing", actor, rows=rows, detail=detail)
    if unread:
        raise Unread(f"model '{state.name}': the file of {', '.join(unread)} cannot be read")


def _new(state: ModelState) -> list[int]:
    known = {number for number, row in state.rows.items() if row.present and row.sha256}
    return sorted(state.present - known)


def _gone(state: ModelState) -> list[VersionRow]:
    return [row for number, row in state.rows.items() if number not in state.present and row.present]


def _found_row(state: ModelState, number: int) -> VersionRow:
    path, known = Path(state.path_of(number)), state.rows.get(number)
    facts: dict[str, Any] = {
        "sha256": storage.file_sha256(path),
        "size_bytes": path.stat().st_size,
        "present": True,
    }
    if known is not None:
        return dataclasses.replace(known, **facts)
    return VersionRow(state.name, number, source="repository", created_at=now_text(), created_by=ACTOR, **facts)

"""What people may do to models: load, unload, activate, roll back, delete, describe. Arguments and results are the JSON
forms of the messages in proto/nexus/v1/models.proto and proto/inference.

Each holds the model's lock from its check to its end, so that what one does is done before the next begins; the audit
log has them in that order.
"""

import asyncio
import dataclasses
import json
from collections.abc import Collection
from typing import Any

from nexus_grpc.ipc.errors import (
    AlreadyExists,
    InvalidInput,
    ModelNotServable,
    StateConflict,
    UnknownModel,
)
from nexus_grpc.ipc.model_names import check_model_name
from nexus_grpc.registry.records import AuditRow, ModelRow, VersionRow
from nexus_grpc.registry.store import now_text
from nexus_grpc.supervisor import model_state, storage
from nexus_grpc.supervisor.lifecycle import Lifecycle
from nexus_grpc.supervisor.model_state import ModelState
from nexus_grpc.supervisor.records import info_of, record_of
from nexus_grpc.traffic import policy, residency

Arguments = dict[str, Any]
HISTORY_DEFAULT, HISTORY_MAX = 100, 10_000
STAGES = ("none", "staging", "production", "archived")
LABELS_MAX = 64


class ModelOperations:
    """One method per operation: (arguments, actor) → result. Each raises NexusError and changes nothing then."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle

    # --- loading and unloading ---

    async def load(self, arguments: Arguments, actor: str) -> dict[str, Any]:
        life, name, version = self._lifecycle, arguments["id"], arguments["version"]
        async with life.hold(name, new=True) as state:
            numbers = await self._to_load(state, version)
            # A model that was unloaded comes back with all that its traffic names, or not at all.
            reopened = policy.reopen(state.traffic)
            others = self._needed(state, reopened) - set(numbers) if state.traffic.closed else set()
        asked = bool(version) or life.settings.model_control == "explicit"
        async with life.prepared(name, *numbers, *sorted(others), anew=True):
            await life.complete(name)
            async with life.hold(name) as state:
                self._check_present(state, numbers)
                mark = residency.LOADED if asked else residency.AUTO
                rows = [self._row(state, number, actor, mark, "load") for number in numbers]
                traffic = policy.reopen(state.traffic) if state.traffic.closed else None
                await life.commit(state, "load", actor, version=version, rows=rows, traffic=traffic)
                await life.settle(state)
        await life.complete(name)
        return info_of(state, life.catalogue)

    async def _to_load(self, state: ModelState, version: str) -> list[int]:
        """The versions that are meant, of what is in the repository now."""
        known_before = state.is_known
        skipped = await self._lifecycle.rescan(state)
        if state.entry is None:
            if skipped:
                raise ModelNotServable(f"the folder {state.name} of the repository is no model: {skipped}")
            if not known_before:
                raise self._lifecycle.looks.unknown(state.name)
            raise UnknownModel(f"model '{state.name}' is not in the repository")
        if state.entry.error and not version and not state.entry.versions:
            raise ModelNotServable(f"model '{state.name}': {state.entry.error}")
        return [state.number_of(version)] if version else [each.version for each in state.entry.versions]

    def _check_present(self, state: ModelState, numbers: list[int]) -> None:
        """Somebody may have deleted a version while it was being loaded. Raises UnknownModel."""
        for number in numbers:
            state.path_of(number)

    def _needed(self, state: ModelState, traffic: policy.ModelTraffic) -> frozenset[int]:
        """The versions that must be in memory for this traffic."""
        return residency.needed(self._would_be(state, traffic))

    def _would_be(self, state: ModelState, traffic: policy.ModelTraffic) -> residency.Record:
        return dataclasses.replace(model_state.record(state, self._lifecycle.catalogue), traffic=traffic)

    def _row(self, state: ModelState, number: int, actor: str, wanted: str = "", how: str = "") -> VersionRow:
        """A version's record; with `wanted`, as somebody decides it now."""
        known = state.rows.get(number)
        if known is None:
            known = VersionRow(state.name, number, source="repository", created_at=now_text(), created_by=actor)
        decided = {"by": actor, "at": now_text(), "how": how}
        return dataclasses.replace(known, wanted=wanted, decided=decided) if wanted else known

    async def unload(self, arguments: Arguments, actor: str) -> dict[str, Any]:
        life = self._lifecycle
        async with life.hold(arguments["id"]) as state:
            version = arguments["version"]
            if version:
                numbers = [state.number_of(version)]
                self._check_unused(state, numbers[0], "unload")
                traffic = policy.forgetting(state.traffic, numbers)
            else:
                numbers = sorted(state.present | set(state.rows))
                if state.traffic.experiment is not None:
                    raise StateConflict(f"an experiment runs on model '{state.name}': abort or promote it first")
                traffic = policy.close(state.traffic, actor, now_text())
            rows = [self._row(state, number, actor, residency.UNLOADED, "unload") for number in numbers]
            await life.commit(state, "unload", actor, version=version, rows=rows, traffic=traffic)
            await life.settle(state)
            return info_of(state, life.catalogue)

    def _check_unused(self, state: ModelState, number: int, verb: str) -> None:
        """A version that takes traffic is protected. Raises StateConflict or UnknownModel."""
        if number not in state.present and number not in state.rows:
            raise state.unknown_version(number)
        record = model_state.record(state, self._lifecycle.catalogue)
        if number == record.fallback and number in residency.protected(record):
            raise StateConflict(
                f"version {number} of model '{state.name}' stands by for the others: take fallback_version out of"
                f" config.pbtxt before you {verb} it; or {verb} the whole model"
            )
        if number in residency.protected(record) or number == self._lifecycle.serving(state):
            raise StateConflict(
                f"version {number} of model '{state.name}' takes traffic: activate another one (or end the experiment"
                f" or shadow) before you {verb} it; or {verb} the whole model"
            )

    # --- which version answers ---

    async def activate(self, arguments: Arguments, actor: str) -> dict[str, Any]:
        life, name = self._lifecycle, arguments["id"]
        async with life.hold(name, new=True) as state:
            number, looked = None, False
            if arguments["version"]:
                if looked := state.entry is None:
                    await self._to_load(state, arguments["version"])
                number = state.number_of(arguments["version"])
            else:
                life.find(name)
            target = number if number is not None else self._newest(state)
            looked |= state.traffic.closed is not None
            others = self._needed(state, policy.activate(state.traffic, None, number)) - {target}
        async with life.prepared(name, target, *sorted(others)), life.hold(name) as state:
            self._check_present(state, [target])
            traffic = policy.activate(state.traffic, life.serving(state), number)
            await life.commit(state, "activate", actor, version=str(number or ""), traffic=traffic)
            await life.settle(state)
        if looked:  # else nothing is missing that is not being loaded already
            await life.complete(name)
        return info_of(state, life.catalogue)

    def _newest(self, state: ModelState) -> int:
        """Who answers when nobody is chosen. Raises StateConflict."""
        record = self._would_be(state, policy.activate(state.traffic, None, None))
        found = residency.answering(record, record.present - record.failed)
        if found is None:
            raise StateConflict(
                f"no version of model '{state.name}' may answer unless it is chosen: activate one by its number, or"
                " load one first"
            )
        return found

    async def rollback(self, arguments: Arguments, actor: str) -> dict[str, Any]:
        life, name = self._lifecycle, arguments["id"]
        state = life.find(name)
        was_closed, after = state.traffic.closed is not None, self._rolled_back(state)
        target = after.primary
        assert target is not None
        others = self._needed(state, after) - {target}
        async with life.prepared(name, target, *sorted(others)), life.hold(name) as state:
            traffic = self._rolled_back(state)
            if traffic.primary != target:
                raise StateConflict(f"model '{state.name}' was changed meanwhile; look at it and try again")
            detail = {"from": str(life.serving(state) or ""), "to": str(target)}
            await life.commit(state, "rollback", actor, version=str(target), traffic=traffic, detail=detail)
            await life.settle(state)
        if was_closed:
            await life.complete(name)
        return info_of(state, life.catalogue)

    def _rolled_back(self, state: ModelState) -> policy.ModelTraffic:
        """To the last that still has a file. Raises StateConflict."""
        gone = set(state.traffic.earlier) - state.present
        return policy.rollback(policy.without(state.traffic, gone), self._lifecycle.serving(state))

    # --- deleting ---

    async def delete(self, arguments: Arguments, actor: str) -> dict[str, Any]:
        life = self._lifecycle
        async with life.hold(arguments["id"]) as state:
            version = arguments["version"]
            numbers = [state.number_of(version)] if version else sorted(state.present | set(state.rows))
            if version:
                self._check_unused(state, numbers[0], "delete")
            elif life.serving(state) is not None or state.traffic.experiment is not None:
                raise StateConflict(f"model '{state.name}' is serving: unload it before you delete it")
            traffic = policy.without(state.traffic, numbers)
            if traffic.primary in numbers:  # its file was gone already: who stands in for it was nobody's choice
                traffic = dataclasses.replace(traffic, primary=life.serving(state))
            gone = {"delete_versions": numbers, "traffic": traffic}
            await life.commit(state, "delete", actor, version=version, **(gone if version else {"delete": True}))
            await self.remove_files(state, numbers[0] if version else None)
            await life.rescan(state)
            await life.settle(state)
        await life.complete(state.name)
        return {"id": state.name, "versions": [str(number) for number in numbers]}

    async def remove_files(self, state: ModelState, number: int | None) -> None:
        """Raises StorageFailed: the record is gone then, and the files stay (and are found again)."""
        repository = self._lifecycle.settings.model_repository
        if state.entry is not None:
            await asyncio.to_thread(storage.remove, repository, state.name, number)

    # --- records ---

    async def history(self, arguments: Arguments, actor: str) -> dict[str, Any]:
        limit = arguments["limit"] or HISTORY_DEFAULT
        if not 0 < limit <= HISTORY_MAX:
            raise InvalidInput(f"limit is {limit}; expected 1 to {HISTORY_MAX}", field="limit")
        life = self._lifecycle
        rows: list[AuditRow] = await life.registry_call(life.registry.history, arguments["id"], limit)
        if arguments["id"] and not rows:
            life.find(arguments["id"])
        return {"entries": [_history_entry(row) for row in rows]}

    async def list_records(self, arguments: Arguments, actor: str) -> dict[str, Any]:
        states = [s for s in self._lifecycle.states.values() if s.entry is not None or s.row is not None]
        found = [record_of(state, self._lifecycle.catalogue) for state in sorted(states, key=lambda state: state.name)]
        return {"models": found, "count": len(found)}

    async def get_record(self, arguments: Arguments, actor: str) -> dict[str, Any]:
        return record_of(self._lifecycle.find(arguments["id"]), self._lifecycle.catalogue)

    async def register(self, arguments: Arguments, actor: str) -> dict[str, Any]:
        name = arguments["id"] or arguments["name"]
        check_model_name(name)
        if arguments["framework"] not in ("", "onnx"):
            raise InvalidInput('framework: expected "onnx" or nothing', field="framework")
        _check_stage(arguments["stage"] or "none")
        _check_labels(arguments["labels"])
        async with self._lifecycle.hold(name, new=True) as state:
            with self._lifecycle.looks.names.claim(name):
                return await self._register(state, arguments, actor)

    async def _register(self, state: ModelState, arguments: Arguments, actor: str) -> dict[str, Any]:
        life, version = self._lifecycle, arguments["version"]
        if (state.row is not None or state.entry is not None) and not version:
            raise AlreadyExists(f"model '{state.name}' is registered already; change its record, or add a version")
        labels = {**arguments["labels"], **({"endpoint": arguments["endpoint"]} if arguments["endpoint"] else {})}
        rows = []
        if version:
            number, version_name = next_number(state, version)
            if number in state.rows or number in state.present:
                raise AlreadyExists(f"model '{state.name}' has version {number} already")
            stage = arguments["stage"] or "none"
            rows = [
                VersionRow(
                    state.name, number, version_name, stage, labels=labels, source="register",
                    created_at=now_text(), created_by=actor, present=False,
                )
            ]  # fmt: skip
        row = state.row or ModelRow(
            state.name, arguments["name"] or state.name, arguments["description"], labels, now_text(), actor
        )
        await life.commit(state, "register", actor, version=version, row=row, rows=rows)
        return record_of(state, life.catalogue)

    async def update_record(self, arguments: Arguments, actor: str) -> dict[str, Any]:
        life = self._lifecycle
        _check_labels(arguments["labels"])
        async with life.hold(arguments["id"]) as state:
            if arguments["version"]:
                rows, row = [self._updated_version(state, arguments, actor)], None
            elif arguments["stage"]:
                raise InvalidInput("a stage is a version's: name the version", field="version")
            else:
                rows, row = [], self._updated_model(state, arguments, actor)
            detail = {key: value for key, value in arguments.items() if value and key not in ("id", "version")}
            await life.commit(state, "update", actor, version=arguments["version"], row=row, rows=rows, detail=detail)
            return record_of(state, life.catalogue)

    def _updated_version(self, state: ModelState, arguments: Arguments, actor: str) -> VersionRow:
        number = state.number_of(arguments["version"])
        if number not in state.rows and number not in state.present:
            raise state.unknown_version(number)
        known = self._row(state, number, actor)
        stage = arguments["stage"] or known.stage
        _check_stage(stage)
        return dataclasses.replace(known, stage=stage, labels=arguments["labels"] or known.labels)

    def _updated_model(self, state: ModelState, arguments: Arguments, actor: str) -> ModelRow:
        known = state.row or ModelRow(state.name, created_at=now_text(), created_by=actor)
        given = {key: arguments[key] for key in ("name", "description", "labels") if arguments[key]}
        return dataclasses.replace(known, **given)

    # --- Triton's, and sentinel's reload ---

    async def repository_load(self, arguments: Arguments, actor: str) -> dict[str, Any]:
        await self.load({"id": arguments["model_name"], "version": ""}, actor)
        return {}

    async def repository_unload(self, arguments: Arguments, actor: str) -> dict[str, Any]:
        await self.unload({"id": arguments["model_name"], "version": ""}, actor)
        return {}


def next_number(state: ModelState, version: str, taken: Collection[int] = ()) -> tuple[int, str]:
    """(number, name) of a version to be added: "2" and "v2" are that number, another name gets the next free one.

    Args:
        taken: what is no version, and stands in the place of one.
    """
    if any(version and row.version_name == version for row in state.rows.values()):
        raise AlreadyExists(f"model '{state.name}' has version '{version}' already; its content is not changed")
    try:
        if version:
            number = state.number_of(version)
            return number, "" if version == str(number) else version
    except InvalidInput:
        if len(version) > 64 or not version.isprintable():
            raise InvalidInput("a version's name may have 64 printable characters", field="version") from None
    return max([*state.present, *state.rows, *taken, 0]) + 1, version


def _check_stage(stage: str) -> None:
    if stage not in STAGES:
        raise InvalidInput(f'stage is "{stage}"; expected one of {", ".join(STAGES)}', field="stage")


def _check_labels(labels: dict[str, str]) -> None:
    if len(labels) > LABELS_MAX or any(len(key) > 128 or len(value) > 1024 for key, value in labels.items()):
        raise InvalidInput(f"at most {LABELS_MAX} labels, names of 128 and values of 1024 characters", field="labels")


def _history_entry(row: AuditRow) -> dict[str, Any]:
    return {
        "sequence": row.sequence,
        "at": row.at,
        "actor": row.actor,
        "action": row.action,
        "model": row.model,
        "version": row.version,
        "detail": json.dumps(dict(row.detail), ensure_ascii=False, sort_keys=True) if row.detail else "",
    }

"""An upload, once its file is here: trial, files in place, registry, load. Any failure leaves things as they were."""

import asyncio
import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Any

from nexus_grpc import logs
from nexus_grpc.configuration import ConfigurationError
from nexus_grpc.ipc.errors import AlreadyExists, ModelNotServable, NexusError, StateConflict, StorageFailed
from nexus_grpc.ipc.model_names import check_model_name
from nexus_grpc.registry.records import ModelRow, VersionRow
from nexus_grpc.registry.store import now_text
from nexus_grpc.repository import ModelEntry
from nexus_grpc.supervisor import inactive, storage
from nexus_grpc.supervisor.lifecycle import Lifecycle
from nexus_grpc.supervisor.model_operations import next_number
from nexus_grpc.supervisor.model_state import ModelState
from nexus_grpc.supervisor.reasons import STORE_ONLY
from nexus_grpc.supervisor.records import states_of
from nexus_grpc.supervisor.trial import Trial, try_model
from nexus_grpc.traffic import policy, residency
from nexus_grpc.version_folders import MODEL_FILE

# The records of the model and of the version; None for one that was not there.
Before = tuple[ModelRow | None, VersionRow | None]


class Uploads:
    """`receive` is the operation Models.Upload."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle

    async def receive(self, arguments: dict[str, Any], actor: str) -> dict[str, Any]:
        """Take over a staged file (arguments: see front/upload.py). Raises NexusError; the staged file is gone then."""
        staged = Path(arguments["staged"])
        header = arguments["header"]
        try:
            check_model_name(header["id"])
            return await self._receive(staged, arguments, actor)
        finally:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(os.unlink, staged)

    async def _receive(self, staged: Path, arguments: dict[str, Any], actor: str) -> dict[str, Any]:
        life, header = self._lifecycle, arguments["header"]
        name, settings = header["id"], life.settings
        async with life.hold(name, new=True) as state:
            number, _ = await self._number(state, header)
            _check_store_only(state, number, header)
            life.looks.names.check(name)
            entry = state.entry or ModelEntry(name, settings.model_repository / name)
        trial = await try_model(str(staged), name, str(number), entry, settings)
        async with life.hold(name, new=True) as state:
            # Again: another upload may have been faster.
            number, version_name = await self._number(state, header)
            _check_store_only(state, number, header)
            before = state.row, state.rows.get(number)
            row = self._row(state, number, version_name, arguments, trial, actor)
            with life.looks.names.claim(name):
                await self._commit(state, staged, row, header, actor)
            # It has passed its trial: loading needs no second one.
            state.tried[state.fingerprint(row.version)] = trial.findings
            if header["store_only"]:
                await life.settle(state)
        if header["store_only"]:
            await life.complete(name)
        else:
            await self._load(row, before, actor)
        return self._answer(life.find(name), row, trial)

    async def _number(self, state: ModelState, header: dict[str, Any]) -> tuple[int, str]:
        """The version's number and name. Raises AlreadyExists, InvalidInput or StorageFailed."""
        await self._rescan(state)
        repository = self._lifecycle.settings.model_repository
        taken = await asyncio.to_thread(storage.taken_numbers, repository, state.name)
        number, version_name = next_number(state, header["version"], taken)
        if number in state.present:
            raise AlreadyExists(f"model '{state.name}' has version {number} already; upload it as another version")
        return number, version_name

    def _row(
        self, state: ModelState, number: int, version_name: str, arguments: dict[str, Any], trial: Trial, actor: str
    ) -> VersionRow:
        header, known = arguments["header"], state.rows.get(number)
        is_explicit = self._lifecycle.settings.model_control == "explicit"
        return VersionRow(
            model=state.name,
            version=number,
            version_name=version_name or (known.version_name if known else ""),
            stage=known.stage if known else "none",
            sha256=arguments["sha256"],
            size_bytes=arguments["size_bytes"],
            labels={**(known.labels if known else {}), **header["labels"]},
            source="upload",
            created_at=now_text(),
            created_by=actor,
            wanted=_wanted(header["store_only"], is_explicit),
            info={"inputs": trial.inputs, "outputs": trial.outputs},
            decided={"by": actor, "at": now_text(), "how": STORE_ONLY} if header["store_only"] else {},
        )

    async def _commit(
        self, state: ModelState, staged: Path, row: VersionRow, header: dict[str, Any], actor: str
    ) -> None:
        """Files first, then the registry; without the registry the files go again."""
        life, repository = self._lifecycle, self._lifecycle.settings.model_repository
        info = {
            "id": state.name,
            "name": header["name"] or state.name,
            "version": str(row.version),
            "version_name": row.version_name,
            "sha256": row.sha256,
            "size_bytes": row.size_bytes,
            "created_at": row.created_at,
            **row.info,
        }
        name = _file_name(state)
        await asyncio.to_thread(storage.commit, repository, staged, state.name, row.version, info, name)
        try:
            # Before the registry: once that has it, nothing is read or written that could still fail.
            await self._rescan(state)
            if row.version not in state.present:
                raise _unreadable(state)
            known = state.row or ModelRow(state.name, state.name, "", {}, row.created_at, actor)
            known = dataclasses.replace(known, name=header["name"] or known.name)
            detail = {"sha256": row.sha256, "size_bytes": row.size_bytes, "version_name": row.version_name}
            version = str(row.version)
            await life.commit(state, "upload", actor, version=version, row=known, rows=[row], detail=detail)
        except Exception:
            await self._take_back(state, row.version)
            raise

    async def _take_back(self, state: ModelState, number: int) -> None:
        """The files."""
        await asyncio.to_thread(storage.uncommit, self._lifecycle.settings.model_repository, state.name, number)
        with contextlib.suppress(StorageFailed):
            await self._rescan(state)

    async def _rescan(self, state: ModelState) -> None:
        """Raises StorageFailed."""
        try:
            await self._lifecycle.rescan(state)
        except (ConfigurationError, OSError) as error:
            logs.logger().error("cannot read the model repository", reason=str(error))
            raise StorageFailed("the model repository cannot be read; nothing was changed") from None

    async def _load(self, row: VersionRow, before: Before, actor: str) -> None:
        """What passed its trial and cannot be loaded all the same is taken back."""
        life, name, number = self._lifecycle, row.model, row.version
        failed = await self._reopen(row, actor) or await life.bring_about(name, retry=True)
        if number not in failed:
            return
        error: NexusError = failed[number]
        async with life.hold(name) as state:
            try:
                await self._forget(state, row, before, actor, error.message)
            except StorageFailed as failure:
                # The next look at the files will say that this one is missing.
                logs.logger().error("the record of an upload stays", model=name, version=number, reason=str(failure))
            await self._take_back(state, number)
            await life.settle(state)
        raise error

    async def _reopen(self, row: VersionRow, actor: str) -> dict[int, NexusError]:
        """Who uploads a version to a model that was unloaded wants it to answer. Returns why it cannot."""
        life, state = self._lifecycle, self._lifecycle.find(row.model)
        if state.traffic.closed is None:
            return {}
        others = (policy.versions(state.traffic) - {row.version}) & state.present
        try:
            async with life.prepared(row.model, row.version, *sorted(others)), life.hold(row.model) as state:
                traffic = policy.reopen(state.traffic)
                await life.commit(state, "load", actor, version=str(row.version), traffic=traffic)
        except NexusError as error:
            return {row.version: error}
        return {}

    async def _forget(self, state: ModelState, row: VersionRow, before: Before, actor: str, reason: str) -> None:
        """The records are as before; but what others wrote meanwhile stays. Raises StorageFailed."""
        model, version = before
        is_ours = model is None and set(state.rows) <= {row.version}
        await self._lifecycle.commit(
            state,
            "upload_undone",
            actor,
            version=str(row.version),
            row=dataclasses.replace(state.row, name=model.name)
            if model is not None and state.row is not None
            else None,
            rows=[version] if version is not None else [],
            delete_versions=[row.version] if version is None and not is_ours else [],
            delete=version is None and is_ours,
            detail={"reason": reason},
        )

    def _answer(self, state: ModelState, row: VersionRow, trial: Trial) -> dict[str, Any]:
        number = self._lifecycle.serving(state)
        note = inactive.note(state, row.version, number)
        if note:
            logs.logger().info("an uploaded version waits", model=state.name, version=str(row.version), note=note)
        return {
            "model": {
                "id": state.name,
                "name": state.row.name if state.row is not None else state.name,
                "version": str(row.version),
                "path": f"{state.name}/{row.version}/{_file_name(state)}",
                "version_name": row.version_name,
                "sha256": row.sha256,
                "size_bytes": row.size_bytes,
            },
            "info": {"inputs": trial.inputs, "outputs": trial.outputs},
            "state": states_of(state, self._lifecycle.catalogue)[row.version][0],
            "active": number == row.version,
            "note": note,
        }


def _file_name(state: ModelState) -> str:
    config = state.entry.config if state.entry is not None else None
    return (config.default_model_filename if config is not None else "") or MODEL_FILE


def _unreadable(state: ModelState) -> ModelNotServable:
    reason = (state.entry.error if state.entry is not None else "") or "its folder cannot be read; see the server's log"
    return ModelNotServable(f"model '{state.name}' takes no uploads as it is: {reason}")


def _check_store_only(state: ModelState, number: int, header: dict[str, Any]) -> None:
    """Raises StateConflict for a version that would answer as soon as its file is there."""
    traffic = state.traffic
    if header["store_only"] and traffic.closed is None and number in policy.versions(traffic):
        raise StateConflict(
            f"version {number} of model '{state.name}' is to answer as soon as its file is there: upload it without"
            " store_only, or activate another version first"
        )


def _wanted(store_only: bool, explicit: bool) -> str:
    if store_only:
        return residency.UNLOADED
    return residency.LOADED if explicit else residency.AUTO

"""Looking at the repository: what came, changed or went by hand is taken up; and records follow files, both ways."""

import asyncio
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nexus_grpc import logs
from nexus_grpc.configuration import ConfigurationError
from nexus_grpc.ipc.errors import NexusError, UnknownModel
from nexus_grpc.registry.records import VersionRow
from nexus_grpc.registry.store import now_text
from nexus_grpc.repository import ModelEntry
from nexus_grpc.supervisor import model_state, storage
from nexus_grpc.supervisor.lifecycle import Lifecycle
from nexus_grpc.supervisor.model_state import ModelState
from nexus_grpc.traffic import policy

# A file that changed less long ago may still be being copied.
SETTLED_SECONDS = 1.5
ACTOR = "repository"


class Poll:
    """`run` polls for ever; `reload` is the operation System.Reload."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._log = logs.logger()
        # The repository's files as they were when all of them had been looked at.
        self._seen: frozenset[storage.FileFacts] = frozenset()
        # Whether the last look left a model for the next one.
        self._left = False

    async def run(self) -> None:
        """First the records; then, with --model-control poll, the repository every poll_seconds."""
        await self._guarded(self._record_all)
        while self._lifecycle.settings.model_control == "poll":
            await asyncio.sleep(self._lifecycle.settings.poll_seconds)
            await self._guarded(self._look_if_changed)

    async def _look_if_changed(self) -> None:
        """A look costs something for each model: where no file has changed, there is nothing to see."""
        repository = self._lifecycle.settings.model_repository
        found = await asyncio.to_thread(storage.repository_fingerprint, repository)
        if found == self._seen:
            return
        self._seen, self._left = frozenset(), False
        await self.look(settled=True)
        if not self._left:
            self._seen = found

    async def _guarded(self, work: Any) -> None:
        try:
            await work()
        except (NexusError, ConfigurationError, OSError) as error:
            self._log.error("cannot take up the repository", reason=str(error))

    async def reload(self, arguments: dict[str, Any], actor: str) -> dict[str, Any]:
        """Read everything, or one model, again now; `current` links count."""
        life, name = self._lifecycle, arguments["model"]
        try:
            failed = await self.look(settled=False, only=name, actor=actor, relink=True)
        except ConfigurationError as error:
            raise UnknownModel(error.message) from None
        if name:
            life.find(name)
        if failed:
            raise next(iter(failed.values()))
        states = [state for state in life.states.values() if not name or state.name == name]
        return {"models": [_active(state, life) for state in sorted(states, key=lambda s: s.name)]}

    async def look(
        self, *, settled: bool, only: str = "", actor: str = ACTOR, relink: bool = False
    ) -> dict[str, NexusError]:
        """Compare the repository with what is known, and take up the differences.

        Args:
            settled: leave files alone that changed just now.
            relink: `current` links count, also unchanged ones.
        """
        life = self._lifecycle
        entries = {entry.name: entry for entry in (await life.looks.look()).entries}
        failed: dict[str, NexusError] = {}
        looks = []
        for name in sorted(set(entries) | set(life.states)):
            if only in ("", name):
                entry, state = entries.get(name), life.states.get(name)
                is_changing = state is not None and state.lock.locked()
                if settled and (is_changing or not await asyncio.to_thread(_is_settled, entry)):
                    self._left = True  # the next look will do
                    continue
                looks.append(self._take_up(name, actor, relink))
        # At once: a model whose load takes long, or hangs, holds up none of the others.
        for each in await asyncio.gather(*looks):
            failed.update(each)
        return failed

    async def _take_up(self, name: str, actor: str, relink: bool) -> dict[str, NexusError]:
        life = self._lifecycle
        async with life.hold(name, new=True) as state:
            # Read again under the lock: what was seen before may be an operation's half-way state.
            before = _seen(state)
            await life.rescan(state)
            link = await self._current(state)
            followed = link is not None and (relink or link != state.current) and link != state.traffic.primary
            state.current = link
            if _seen(state) == before and not self._differs(state) and not followed:
                return {}
            if state.is_known:
                await self._record(state, actor)
        failed = await life.bring_about(name, retry=relink)
        if followed and link is not None:
            await self._follow(name, link, actor)
        return {f"{name} {number}": error for number, error in failed.items()}

    def _differs(self, state: ModelState) -> bool:
        """Whether files changed under versions in memory, or failed ones may do now."""
        have = model_state.loaded(self._lifecycle.catalogue, state.name)
        known = {number: version.fingerprint for number, version in have.items()}
        failed = {number: fingerprint for number, (fingerprint, _) in state.failures.items()}
        gone = any(number not in state.present for number in have)
        changed = any(known[number] != state.fingerprint(number) for number in state.present & set(known))
        mended = any(failed[number] != state.fingerprint(number) for number in state.present & set(failed))
        return changed or gone or mended

    async def _current(self, state: ModelState) -> int | None:
        if state.entry is None:
            return None
        repository = self._lifecycle.settings.model_repository
        return await asyncio.to_thread(storage.read_current, repository, state.name)

    async def _follow(self, name: str, number: int, actor: str) -> None:
        life = self._lifecycle
        async with life.prepared(name, number), life.hold(name) as state:
            traffic = policy.activate(state.traffic, life.serving(state), number)
            detail = {"by": "current"}
            await life.commit(state, "activate", actor, version=str(number), traffic=traffic, detail=detail)
            await life.settle(state)

    # --- records ---

    async def _record_all(self) -> None:
        for state in list(self._lifecycle.states.values()):
            async with self._lifecycle.hold(state.name, new=True):
                state.current = await self._current(state)
                followed = state.current if state.traffic.primary is None else None
                await self._record(state, ACTOR)
            if followed is not None and followed in state.present and followed != self._lifecycle.serving(state):
                await self._follow(state.name, followed, ACTOR)

    async def _record(self, state: ModelState, actor: str) -> None:
        """Each file gets a record; a record whose file is gone says so."""
        rows = []
        for number in sorted(state.present):
            known = state.rows.get(number)
            if known is None or not known.present or not known.sha256:
                rows.append(await asyncio.to_thread(_found_row, state, number, known))
        gone = [row for number, row in state.rows.items() if number not in state.present and row.present]
        rows += [dataclasses.replace(row, present=False) for row in gone]
        if rows:
            versions = [str(row.version) for row in rows if row.present]
            detail = {"found": versions, "missing": [str(row.version) for row in gone]}
            await self._lifecycle.commit(state, "found" if versions else "missing", actor, rows=rows, detail=detail)


def _active(state: ModelState, life: Lifecycle) -> dict[str, str]:
    experiment = state.traffic.experiment
    return {
        "model": state.name,
        "current_version": str(life.serving(state) or ""),
        "candidate_version": str(experiment.arms[1].version) if experiment is not None else "",
    }


def _seen(state: ModelState) -> Sequence[tuple[int, str]]:
    return [(number, state.fingerprint(number)) for number in sorted(state.present)]


def _is_settled(entry: ModelEntry | None) -> bool:
    if entry is None:
        return True
    now_s = time.time()
    paths = [each.path for each in entry.present]
    return all(not 0 <= now_s - path.stat().st_mtime < SETTLED_SECONDS for path in paths if path.exists())


def _found_row(state: ModelState, number: int, known: VersionRow | None) -> VersionRow:
    path = Path(state.path_of(number))
    facts: dict[str, Any] = {
        "sha256": storage.file_sha256(path),
        "size_bytes": path.stat().st_size,
        "present": True,
    }
    if known is not None:
        return dataclasses.replace(known, **facts)
    return VersionRow(state.name, number, source="repository", created_at=now_text(), created_by=ACTOR, **facts)

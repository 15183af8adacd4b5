"""Brings memory and routing in line with what the repository holds and the registry says; models do not wait for each
other.

    prepared()   load what the change needs, beside what serves, without the model's lock
    hold()       then, with the lock: check, commit() to the registry, settle(): publish the routing table,
                 and unload what nobody wants any more

A version that cannot be loaded leaves what serves as it is. State in the registry comes first, memory follows: after a
crash the next start does what was committed.
"""

import asyncio
import contextlib
import dataclasses
import os
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Any

from nexus_grpc import logs
from nexus_grpc.ipc.errors import NexusError, StorageFailed
from nexus_grpc.ipc.model_names import is_model_name
from nexus_grpc.registry.records import Change, ModelRow, VersionRow
from nexus_grpc.registry.store import Registry, now_text
from nexus_grpc.repository import Contents, Skipped, scan_model
from nexus_grpc.settings import Settings
from nexus_grpc.supervisor import model_state, told
from nexus_grpc.supervisor.apart import apart
from nexus_grpc.supervisor.catalogue import LOADING, UNAVAILABLE, Catalogue, Version
from nexus_grpc.supervisor.deployment import Deployment
from nexus_grpc.supervisor.loading import Loading
from nexus_grpc.supervisor.looks import Looks
from nexus_grpc.supervisor.model_state import ModelState
from nexus_grpc.traffic.policy import EARLIER_MAX, ModelTraffic


class Lifecycle:
    """All models' states. Coroutines run on the event loop; the disk and the registry are asked in threads."""

    def __init__(self, settings: Settings, catalogue: Catalogue, registry: Registry) -> None:
        self._settings = settings
        self._catalogue = catalogue
        self._registry = registry
        self._registry_lock = asyncio.Lock()
        self._log = logs.logger()
        self.states: dict[str, ModelState] = {}
        self.loading = Loading(settings, catalogue, self._show)
        self.looks = Looks(settings.model_repository, self.states)

    # --- starting ---

    def begin(self, contents: Contents) -> None:
        """Take up what the registry and the repository hold; put what is wanted into the catalogue. Nothing is loaded.

        Args:
            contents: of the repository, without models whose names are taken (Contents.beside).

        Raises StorageFailed when the registry cannot be read.
        """
        for row in self._registry.models():
            state = self._state(row.id)
            state.row = row
            with apart("a model's traffic cannot be read; its newest version answers", model=row.id):
                state.traffic = ModelTraffic.from_json(row.traffic) if row.traffic else ModelTraffic()
        for version in self._registry.versions():
            self._state(version.model).rows[version.version] = version
        self.looks.report(contents)
        for entry in contents.entries:
            self._state(entry.name).entry = entry
        for state in list(self.states.values()):
            with apart("a model cannot be taken up", model=state.name):
                self._place(state)

    def _state(self, name: str) -> ModelState:
        return self.states.setdefault(name, ModelState(name))

    def _place(self, state: ModelState) -> None:
        """At the start: what is wanted, and the arms of a running experiment, become LOADING."""
        for number in sorted(self.loading.wanted(state)):
            try:
                self.loading.add(state, number)
            except NexusError as error:
                state.failures[number] = ("", error.message)
        self._add_arms(state, model_state.all_of(self._catalogue, state.name))
        self._show(state)

    def _show(self, state: ModelState) -> None:
        if state.entry is not None:
            self._catalogue.show(state.entry, model_state.not_in_memory(state, self._catalogue))
        else:
            self._catalogue.forget(state.name)

    async def after_start(self) -> None:
        """Once the workers have loaded what they could: a model without any ready version falls back on older ones."""
        for state in list(self.states.values()):
            with apart("a model cannot be taken up", model=state.name):
                await self._after_start(state)

    async def _after_start(self, state: ModelState) -> None:
        async with state.lock:
            self._note_failures(state)
            if model_state.choose(state, self._catalogue) is None and self.loading.wanted(state):
                await self._fall_back(state)
            state.chosen = model_state.choose(state, self._catalogue)
            self._update_shadow(state)
            self._show(state)

    async def _fall_back(self, state: ModelState) -> None:
        for number in sorted(state.present - self.loading.wanted(state), reverse=True):
            row = state.rows.get(number)
            if row is not None and row.wanted == "unloaded":
                continue
            with contextlib.suppress(NexusError):
                await self.loading.ensure(state, number)
                self._log.warning("an older version serves", model=state.name, version=str(number))
                return

    def _note_failures(self, state: ModelState) -> None:
        """Versions that no worker could load leave the catalogue; why is kept."""
        for version in list(self._catalogue.of_model(state.name)):
            if version.state == UNAVAILABLE:
                state.failures[version.number] = (version.fingerprint, version.reason)
                self._catalogue.drop(version)

    # --- the routing table ---

    def table(self) -> dict[str, Any]:
        """What fronts get."""
        arms = [version for version in self._catalogue.versions if version.variant and not version.retiring]
        catalogue = [version.as_message() for version in (*self._catalogue.listed, *arms)]
        known = [state for state in self.states.values() if state.entry is not None]
        traffic = {state.name: model_state.routing(state, self._catalogue) for state in known}
        return {"catalogue": catalogue, "traffic": traffic}

    # --- the registry ---

    async def commit(
        self,
        state: ModelState,
        action: str,
        actor: str,
        *,
        version: str = "",
        detail: Mapping[str, Any] | None = None,
        row: ModelRow | None = None,
        rows: Iterable[VersionRow] = (),
        delete_versions: Iterable[int] = (),
        delete: bool = False,
        traffic: ModelTraffic | None = None,
        audited: bool = True,
    ) -> None:
        """One change, with its line in the audit log, or nothing at all. Raises StorageFailed."""
        rows, gone = tuple(rows), tuple(delete_versions)
        row = row or state.row or ModelRow(state.name, created_at=now_text(), created_by=actor)
        if traffic is not None:
            row = dataclasses.replace(row, traffic=traffic.to_json())
        change = Change(
            actor=actor,
            action=action,
            model=state.name,
            version=version,
            detail=dict(detail or {}),
            put_models=() if delete else (row,),
            put_versions=rows,
            delete_versions=tuple((state.name, number) for number in gone),
            delete_models=(state.name,) if delete else (),
            audited=audited,
        )
        async with self._registry_lock:
            await asyncio.to_thread(self._registry.apply, change)
        told.changed(change)
        state.row = None if delete else row
        state.rows.update({each.version: each for each in rows})
        for number in list(state.rows) if delete else gone:
            state.rows.pop(number, None)
        if traffic is not None or delete:
            state.traffic = traffic or ModelTraffic()

    async def registry_call(self, function: Any, *arguments: Any) -> Any:
        """Call one of the registry's methods in a thread."""
        async with self._registry_lock:
            return await asyncio.to_thread(function, *arguments)

    @property
    def registry(self) -> Registry:
        return self._registry

    # --- taking a model in hand ---

    def find(self, name: str) -> ModelState:
        """For looking at it. Raises UnknownModel."""
        state = self.states.get(name)
        if state is None or not state.is_known:
            raise self.looks.unknown(name)
        return state

    @contextlib.asynccontextmanager
    async def hold(self, name: str, *, new: bool = False) -> AsyncIterator[ModelState]:
        """For changing it: its lock is held for the `with`. Raises UnknownModel.

        Args:
            new: it need not be known yet.
        """
        if not (is_model_name(name) if new else name in self.states):
            raise self.looks.unknown(name)
        state = self._state(name)
        with self._in_use(state):
            async with state.lock:
                if not new:
                    self.find(name)
                yield state

    @contextlib.contextmanager
    def _in_use(self, state: ModelState) -> Iterator[None]:
        """Everybody who has a model in hand has the same state of it: it is forgotten only by the last one."""
        state.users += 1
        try:
            yield
        finally:
            state.users -= 1
            if not state.users and not state.is_known and not state.rows:
                self.states.pop(state.name, None)

    @contextlib.asynccontextmanager
    async def prepared(self, name: str, *numbers: int, anew: bool = False) -> AsyncIterator[None]:
        """Versions are in memory, and stay there, for the `with`. Raises NexusError when one cannot be loaded.

        Args:
            anew: those whose file has changed are loaded again.
        """
        state = self.find(name)
        with self._in_use(state):
            try:
                with _pinned(state, numbers):
                    for number in numbers:
                        await self.loading.ensure(state, number, anew=anew)
                    yield
            except NexusError:
                # The change is off: what was loaded for it goes again.
                async with state.lock:
                    await self.settle(state)
                raise

    async def rescan(self, state: ModelState) -> str:
        """Read a model's folder again. One that became broken, with its files there, goes on as it was.

        Returns why its folder is no model; nothing if it is one, or there is none. Raises AlreadyExists when the folder
        is a newcomer whose name is taken.
        """
        found = await asyncio.to_thread(scan_model, self._settings.model_repository, state.name)
        if isinstance(found, Skipped):
            state.entry = None
            return found.reason
        if found is not None:
            self.looks.names.check(state.name)
        broken = found is not None and found.error is not None and not found.present
        in_memory = model_state.loaded(self._catalogue, state.name).values()
        if broken and found is not None and state.present and any(os.path.exists(each.path) for each in in_memory):
            self._log.error("model cannot be read; it serves on as it was", model=state.name, reason=found.error)
            return ""
        state.entry = found
        return ""

    # --- bringing it about ---

    async def bring_about(self, name: str, *, retry: bool = False) -> dict[int, NexusError]:
        """Load what is wanted and missing, then settle. The lock must not be held.

        Args:
            retry: also what could not be loaded before, though its files are the same.

        Returns what could not be loaded, and why.
        """
        state = self._state(name)
        failed: dict[int, NexusError] = {}
        missing = self.loading.missing(state, retry=retry)
        with self._in_use(state), _pinned(state, missing):
            for number in missing:
                try:
                    await self.loading.ensure(state, number, anew=True)
                except NexusError as error:
                    failed[number] = error
            async with state.lock:
                await self.settle(state)
        return failed

    async def settle(self, state: ModelState) -> None:
        """Route as registry and repository say, to what is in memory; unload the rest. The lock must be held."""
        self._add_arms(state, model_state.loaded(self._catalogue, state.name))
        await self._load_arms(state)
        await self._choose(state)
        self._update_shadow(state)
        self._show(state)
        await self.deployment.publish()
        await self._retire(state)
        self._show(state)

    def _add_arms(self, state: ModelState, ready: Mapping[int, Version]) -> None:
        """A slot for each arm of the running experiment that has none over its version as it is now."""
        experiment = state.traffic.experiment
        for arm in experiment.arms if experiment is not None else ():
            base = ready.get(arm.version)
            if base is not None and not any(a.variant == arm.variant and a.of == base.slot for a in self._arms(state)):
                self._catalogue.add_arm(base, arm.variant)

    def _arms(self, state: ModelState) -> list[Version]:
        return [arm for arm in self._catalogue.arms_of(state.name) if not arm.retiring]

    async def _load_arms(self, state: ModelState) -> None:
        for arm in self._arms(state):
            if arm.state == LOADING and not arm.pending:
                await self.deployment.load(arm)

    async def _choose(self, state: ModelState) -> None:
        """When another version answers from now on, the one before stays for a while, and is what a rollback goes back
        to."""
        before, state.chosen = state.chosen, model_state.choose(state, self._catalogue)
        if state.chosen == before:
            return
        told.answers(state.name, before, state.chosen)
        if before is None or state.chosen is None:
            return
        if self._settings.keep_previous_seconds:
            state.lingering[before] = time.monotonic() + self._settings.keep_previous_seconds
        if state.traffic.primary is None:
            earlier = (*(each for each in state.traffic.earlier if each != before), before)[-EARLIER_MAX:]
            traffic = dataclasses.replace(state.traffic, earlier=earlier)
            # The change itself is committed: without this one a restart forgets what a rollback would go back to.
            with contextlib.suppress(StorageFailed):
                await self.commit(state, "", "", traffic=traffic, audited=False)

    async def _retire(self, state: ModelState) -> None:
        """Take out what nobody wants: arms of what is over, versions replaced, unloaded or no longer kept."""
        experiment = state.traffic.experiment
        wanted_arms = {arm.variant: arm.version for arm in experiment.arms} if experiment is not None else {}
        ready = model_state.loaded(self._catalogue, state.name)
        for arm in self._arms(state):
            base = ready.get(wanted_arms.get(arm.variant, -1))
            if base is None or base.slot != arm.of:
                await self.deployment.unload(arm)
        keep = self.loading.wanted(state) | {state.chosen} | self._kept_for_rollback(state) | set(+state.pinned)
        for version in model_state.in_memory(self._catalogue, state.name):
            replaced = ready.get(version.number) is not version
            if replaced or version.number not in keep:
                await self.deployment.unload(version)

    def _kept_for_rollback(self, state: ModelState) -> set[int]:
        now_s = time.monotonic()
        state.lingering = {number: until for number, until in state.lingering.items() if until > now_s}
        return set(state.lingering)

    def _update_shadow(self, state: ModelState) -> None:
        """Shadowed are the version that answers and its arms: no others, and none that answered before."""
        shadow = state.traffic.shadow
        ready = model_state.loaded(self._catalogue, state.name)
        number = model_state.serving(state, self._catalogue)
        candidate = ready.get(shadow.version) if shadow is not None else None
        wanted = (candidate.slot, shadow.basis_points) if candidate is not None and shadow is not None else (0, 0)
        slot = ready[number].slot if number is not None else -1
        for version in (*self._catalogue.of_model(state.name), *self._catalogue.arms_of(state.name)):
            is_shadowed = slot in (version.slot, version.of) and not version.retiring
            self.deployment.shadow(version.slot, *(wanted if is_shadowed else (0, 0)))

    async def tick(self) -> None:
        """Versions whose time for a rollback is over are unloaded."""
        now_s = time.monotonic()
        for state in list(self.states.values()):
            if any(until <= now_s for until in state.lingering.values()) and not state.lock.locked():
                with apart("old versions of a model cannot be unloaded", model=state.name):
                    async with state.lock:
                        await self._retire(state)
                        self._show(state)
                        await self.deployment.publish()

    @property
    def deployment(self) -> Deployment:
        return self.loading.deployment

    def serving(self, state: ModelState) -> int | None:
        return model_state.serving(state, self._catalogue)

    @property
    def catalogue(self) -> Catalogue:
        return self._catalogue

    @property
    def settings(self) -> Settings:
        return self._settings


@contextlib.contextmanager
def _pinned(state: ModelState, numbers: Sequence[int]) -> Iterator[None]:
    state.pinned.update(numbers)
    try:
        yield
    finally:
        state.pinned.subtract(numbers)

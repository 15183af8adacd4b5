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
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Any

from nexus_grpc import logs
from nexus_grpc.ipc.errors import NexusError, StateConflict
from nexus_grpc.ipc.model_names import is_model_name
from nexus_grpc.registry.records import Change, ModelRow, VersionRow
from nexus_grpc.registry.store import Registry, now_text
from nexus_grpc.repository import Contents, Skipped, scan_model
from nexus_grpc.settings import Settings
from nexus_grpc.supervisor import model_state, told
from nexus_grpc.supervisor.apart import apart
from nexus_grpc.supervisor.catalogue import UNAVAILABLE, Catalogue, Version
from nexus_grpc.supervisor.deployment import Deployment
from nexus_grpc.supervisor.loading import Loading
from nexus_grpc.supervisor.looks import Looks
from nexus_grpc.supervisor.model_state import ModelState
from nexus_grpc.supervisor.readiness import Readiness
from nexus_grpc.supervisor.said import Said
from nexus_grpc.supervisor.settling import Settling
from nexus_grpc.traffic import links, policy, residency
from nexus_grpc.traffic.policy import ModelTraffic


class Lifecycle:
    """All models' states. Coroutines run on the event loop; the disk and the registry are asked in threads."""

    def __init__(self, settings: Settings, catalogue: Catalogue, registry: Registry) -> None:
        self._settings = settings
        self._catalogue = catalogue
        self._registry = registry
        self._registry_lock = asyncio.Lock()
        self._log = logs.logger()
        self._said = Said()
        self.states: dict[str, ModelState] = {}
        self.loading = Loading(settings, catalogue, self._show)
        self.settling = Settling(catalogue, self.loading, self._show, self.commit)
        self.readiness = Readiness(self.states, catalogue, settings.load_model)
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
        self.readiness.begin()
        for state in list(self.states.values()):
            with apart("a model cannot be taken up", model=state.name):
                self._place(state)

    def _state(self, name: str) -> ModelState:
        settings = self._settings
        on_request = settings.model_control == "explicit" and not {name, "*"} & set(settings.load_model)
        return self.states.setdefault(name, ModelState(name, on_request, settings.keep_previous_seconds))

    def _place(self, state: ModelState) -> None:
        """At the start: what is wanted, and the arms of a running experiment, become LOADING."""
        for number in sorted(self.loading.wanted(state)):
            try:
                self.loading.add(state, number)
            except NexusError as error:
                state.failures[number] = (state.fingerprint(number), error.message)
        self.settling.add_arms(state, model_state.all_of(self._catalogue, state.name))
        self._show(state)

    def _show(self, state: ModelState) -> None:
        if state.entry is not None:
            self._catalogue.show(state.entry, model_state.not_in_memory(state, self._catalogue))
        else:
            self._catalogue.forget(state.name)

    async def after_start(self) -> None:
        """Once the workers have loaded what they could: where that was not all, others stand in for what is missing."""
        for state in list(self.states.values()):
            with apart("a model cannot be taken up", model=state.name):
                await self._after_start(state)

    async def _after_start(self, state: ModelState) -> None:
        async with state.lock:
            for version in list(self._catalogue.of_model(state.name)):
                if version.state == UNAVAILABLE:
                    self._note_failure(state, version)
                    self._catalogue.drop(version)
            if not self.is_lacking(state):
                state.chosen = model_state.choose(state, self._catalogue)
                self.settling.update_shadow(state)
                self._show(state)
                return
        await self.bring_about(state.name)

    def _note_failure(self, state: ModelState, version: Version) -> None:
        """It leaves the catalogue; why is kept."""
        state.failures[version.number] = (version.fingerprint, version.reason)
        self._log.error("model version is down", model=state.name, version=version.version, reason=version.reason)

    def is_lacking(self, state: ModelState) -> bool:
        """Whether something is to be loaded, perhaps anew, that nobody loads yet, or traffic names what cannot be."""
        return bool(set(self.loading.missing(state, retry=False)) - state.loading or self.settling.dead(state))

    # --- the routing table ---

    def table(self) -> dict[str, Any]:
        """What fronts get."""
        arms = [version for version in self._catalogue.versions if version.variant and not version.retiring]
        catalogue = [version.as_message() for version in (*self._catalogue.listed, *arms)]
        known = [state for state in self.states.values() if state.entry is not None]
        traffic = {state.name: model_state.routing(state, self._catalogue) for state in known}
        down = self.readiness.down() if self._settings.strict_readiness else {}
        return {"catalogue": catalogue, "traffic": traffic, "down": down}

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
        """One change, with its line in the audit log, or nothing at all.

        Whatever gets more traffic by it must be in memory (and was pinned: see `prepared`).

        Raises StorageFailed, or StateConflict: a version is not in memory.
        """
        rows, gone = tuple(rows), tuple(delete_versions)
        row = row or state.row or ModelRow(state.name, created_at=now_text(), created_by=actor)
        if traffic is not None:
            # For a version that lost its file another one stands in.
            self._check_ready(state, residency.entrusted(state.traffic, traffic) & state.present)
            rows = rows if traffic.closed is not None else _unmarked(state, traffic.primary, rows)
            if traffic.primary != state.traffic.primary and state.current != policy.LINK_UNSEEN:
                # Who says which version answers has the last word over a link that said so before.
                traffic = links.noted(traffic, state.current)
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

    def _check_ready(self, state: ModelState, numbers: Iterable[int]) -> None:
        """Raises StateConflict."""
        missing = sorted(set(numbers) - set(model_state.loaded(self._catalogue, state.name)))
        if missing:
            why = state.why_failed(missing[0]) or "load it first"
            raise StateConflict(f"version {missing[0]} of model '{state.name}' is not in memory: {why}")

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
        """Versions are in memory, and stay there, for the `with`. Raises NexusError when one cannot be loaded; then
        nothing has changed.

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
            if self._said.is_news(state.name, found.error or ""):
                self._log.error("model cannot be read; it serves on as it was", model=state.name, reason=found.error)
            return ""
        self._said.is_news(state.name, "")
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
        tried: set[int] = set()
        with self._in_use(state), contextlib.ExitStack() as pins:
            async with state.lock:
                for version in self._down(state):
                    self._note_failure(state, version)
                    await self.deployment.unload(version)
            # Another round where something failed: others may be wanted in its place.
            while missing := [each for each in self.loading.missing(state, retry=retry) if each not in tried]:
                pins.enter_context(_pinned(state, missing))
                tried.update(missing)
                failed.update(await self._load_all(state, missing))
            async with state.lock:
                await self.settling.mend(state)
                await self.settle(state)
        return failed

    async def complete(self, name: str) -> None:
        """The same where something is missing. What an operation needed is there: this is for what its look at the
        files brought to light. The lock must not be held."""
        state = self.states.get(name)
        if state is not None and self.is_lacking(state):
            await self.bring_about(name)

    async def _load_all(self, state: ModelState, numbers: Iterable[int]) -> dict[int, NexusError]:
        failed: dict[int, NexusError] = {}
        for number in numbers:
            try:
                await self.loading.ensure(state, number, anew=True)
            except NexusError as error:
                failed[number] = error
        return failed

    async def settle(self, state: ModelState) -> None:
        """Route as registry and repository say, to what is in memory; unload the rest. The lock must be held."""
        await self.settling.settle(state)

    async def tick(self) -> None:
        """Versions whose time for a rollback is over are unloaded; for those that went down others stand in."""
        for state in list(self.states.values()):
            if not state.lock.locked() and not state.loading:
                with apart("old versions of a model cannot be unloaded", model=state.name):
                    await self._tick(state)

    async def _tick(self, state: ModelState) -> None:
        if self._down(state):
            await self.bring_about(state.name)
        elif state.traffic.left and self.settling.unwanted(state):
            async with state.lock:
                await self.settling.retire(state)

    def _down(self, state: ModelState) -> list[Version]:
        """What was in memory and is not any more, as its worker could not load it again."""
        found = [each for each in self._catalogue.of_model(state.name) if each.state == UNAVAILABLE]
        return [each for each in found if not each.retiring and each.number not in state.loading]

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


def _unmarked(state: ModelState, primary: int | None, rows: Iterable[VersionRow]) -> tuple[VersionRow, ...]:
    """With the row of a version that is made to answer: nobody has it unloaded any more."""
    changed = {row.version: row for row in rows}
    row = changed.get(primary or 0) or state.rows.get(primary or 0)
    if row is not None and row.wanted == residency.UNLOADED:
        changed[row.version] = dataclasses.replace(row, wanted=residency.AUTO, decided={})
    return tuple(changed.values())


@contextlib.contextmanager
def _pinned(state: ModelState, numbers: Sequence[int]) -> Iterator[None]:
    state.pinned.update(numbers)
    try:
        yield
    finally:
        state.pinned.subtract(numbers)

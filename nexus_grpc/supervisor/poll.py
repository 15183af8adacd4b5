"""Looking at the repository: what came, changed or went by hand is taken up; and records follow files, both ways.

Each model is looked at for itself: one that fails holds up none of the others, and is tried again by the next look.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from nexus_grpc import logs
from nexus_grpc.configuration import ConfigurationError
from nexus_grpc.ipc.errors import Code, ModelNotServable, NexusError, UnknownModel
from nexus_grpc.repository import Contents, ModelEntry
from nexus_grpc.supervisor import found, model_state, storage
from nexus_grpc.supervisor.apart import apart, why
from nexus_grpc.supervisor.lifecycle import Lifecycle
from nexus_grpc.supervisor.model_state import ModelState
from nexus_grpc.supervisor.said import Said
from nexus_grpc.traffic import links, policy
from nexus_grpc.version_folders import version_folder

# A file that changed less long ago may still be being copied.
SETTLED_SECONDS = 1.5
ACTOR = found.ACTOR

Failures = dict[str, NexusError]
"""What could not be loaded of a model, by version; by "" what went wrong with the model itself."""


class Poll:
    """`run` polls for ever; `reload` is the operation System.Reload."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._log = logs.logger()
        # The repository's files as they were when all of them had been looked at.
        self._seen: frozenset[storage.FileFacts] = frozenset()
        # Whether the last look left a model for the next one.
        self._left = False
        self._said = Said()

    async def run(self) -> None:
        """First the records; then, with --model-control poll, the repository every poll_seconds."""
        await self._record_all()
        while self._lifecycle.settings.model_control == "poll":
            await asyncio.sleep(self._lifecycle.settings.poll_seconds)
            await self._guarded(self._look_if_changed)

    async def _look_if_changed(self) -> None:
        """A look costs something for each model: where no file has changed, there is nothing to see."""
        repository = self._lifecycle.settings.model_repository
        seen = await asyncio.to_thread(storage.repository_fingerprint, repository)
        if seen == self._seen:
            return
        self._seen, self._left = frozenset(), False
        await self.look(settled=True)
        if not self._left:
            self._seen = seen

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        """Whatever happens, there is a next time; what stays wrong is said once."""
        try:
            await work()
        except Exception as error:
            if self._said.is_news("", str(error)):
                self._log.error("cannot take up the repository", **why(error))
        else:
            self._said.is_news("", "")

    async def reload(self, arguments: dict[str, Any], actor: str) -> dict[str, Any]:
        """Read everything, or one model, again now.

        All models: each is done for itself, and the answer has what became of each. One: raises what went wrong.
        """
        life, name = self._lifecycle, arguments["model"]
        try:
            contents = await life.looks.look()
        except ConfigurationError as error:
            raise UnknownModel(error.message) from None
        failed = await self._look_at(contents, only=name, settled=False, actor=actor, asked=True)
        if name:
            self._check_one(name, contents, failed)
        states = sorted((s for s in life.states.values() if not name or s.name == name), key=lambda s: s.name)
        results = [row for state in states for row in _results(state, failed.get(state.name, {}))]
        if not name:
            results += [_result(each.name, "skipped", each.reason) for each in contents.skipped]
        return {"models": [_active(state, life) for state in states], "results": results}

    def _check_one(self, name: str, contents: Contents, failed: dict[str, Failures]) -> None:
        """Raises NexusError when the one model that was asked for is none, or was not done."""
        for each in contents.skipped:
            if each.name == name and name not in self._lifecycle.states:
                raise ModelNotServable(f"the folder {name} of the repository is no model: {each.reason}")
        state = self._lifecycle.find(name)
        for error in failed.get(name, {}).values():
            raise error
        if state.entry is not None and state.entry.error and not state.entry.versions:
            raise ModelNotServable(f"model '{name}': {state.entry.error}")

    async def look(
        self, *, settled: bool, only: str = "", actor: str = ACTOR, asked: bool = False
    ) -> dict[str, Failures]:
        """Compare the repository with what is known, and take up the differences.

        Args:
            settled: leave files alone that changed just now.
            asked: somebody waits for it: what could not be done before is tried again.

        Returns what went wrong, by model. Raises ConfigurationError when the repository cannot be read at all.
        """
        contents = await self._lifecycle.looks.look()
        return await self._look_at(contents, settled=settled, only=only, actor=actor, asked=asked)

    async def _look_at(
        self, contents: Contents, *, settled: bool, only: str, actor: str, asked: bool
    ) -> dict[str, Failures]:
        entries = {entry.name: entry for entry in contents.entries}
        names = [name for name in sorted(set(entries) | set(self._lifecycle.states)) if only in ("", name)]

        async def one(name: str) -> Failures | None:
            if settled and await self._is_busy(name, entries.get(name)):
                self._left = True  # the next look will do
                return None
            return await self._take_up(name, actor, asked)

        # At once: a model whose load takes long, or hangs, holds up none of the others.
        ends = await asyncio.gather(*(self._for_itself(name, one) for name in names))
        return {name: failures for name, failures in zip(names, ends, strict=True) if failures}

    async def _for_itself(self, name: str, work: Callable[[str], Awaitable[Failures | None]]) -> Failures:
        """A model's failure, whatever it is, is its own. Of one that was not looked at (None) nothing new is known."""
        try:
            failures = await work(name)
        except Exception as error:
            self._left = True
            if self._said.is_news(name, str(error)):
                self._log.error("cannot take up a model", model=name, **why(error))
            return {"": _as_ours(name, error)}
        if failures is not None:
            self._said.is_news(name, "")
        return failures or {}

    async def _is_busy(self, name: str, entry: ModelEntry | None) -> bool:
        """Whether it is being changed, by an operation or by hand."""
        state = self._lifecycle.states.get(name)
        return (state is not None and state.lock.locked()) or not await asyncio.to_thread(_is_settled, entry)

    async def _take_up(self, name: str, actor: str, asked: bool) -> Failures:
        life = self._lifecycle
        async with life.hold(name, new=True) as state:
            # Read again under the lock: what was seen before may be an operation's half-way state.
            before, known_broken = found.seen(state), model_state.broken_ones(state)
            await life.rescan(state)
            self._say_what_broke(state, known_broken)
            link = state.current = await self._current(state)
            followed = self._is_followed(state, link, asked)
            is_same = (found.seen(state), model_state.broken_ones(state)) == (before, known_broken)
            is_same = is_same and not self._differs(state) and not found.unrecorded(state)
            tries_again = asked and bool(state.failures)
            if is_same and not followed and not tries_again and link == state.traffic.link:
                return {}
            unread = await self._record(state, actor) if state.is_known else None
        failed = await life.bring_about(name, retry=asked)
        if followed and link is not None:
            await self._follow(name, link, actor)
        if unread is not None:
            raise unread
        return {str(number): error for number, error in failed.items()}

    def _is_followed(self, state: ModelState, link: int | None, asked: bool) -> bool:
        """Whether the `current` link says something new: it leads elsewhere than when it was last followed. One that
        stayed as it was has been said already, and whoever promoted or activated since said so later.

        Args:
            asked: somebody waits for the answer: also if it leads to nothing, so that he hears of it.
        """
        if not links.is_news(state.traffic, link):
            return False
        return asked or (link in state.present and not state.why_failed(link or 0))

    async def _note_link(self, state: ModelState) -> None:
        """A link that says nothing new is taken into account; what is news stays so until it was followed."""
        traffic = links.noted(state.traffic, state.current)
        if traffic != state.traffic and state.present and not links.is_news(state.traffic, state.current):
            await self._lifecycle.commit(state, "", "", traffic=traffic, audited=False)

    def _say_what_broke(self, state: ModelState, known: Sequence[tuple[str, str, str]]) -> None:
        for each in model_state.broken_ones(state):
            if each not in known:
                self._log.error("model unavailable", model=state.name, version=each[0], reason=each[2])

    async def _record(self, state: ModelState, actor: str) -> found.Unread | None:
        """Files and link, as they are now. A file that cannot be read keeps no other version from being taken up.

        Raises StorageFailed.
        """
        unread = None
        try:
            await found.record(self._lifecycle, state, actor)
        except found.Unread as error:
            unread = error
        await self._note_link(state)
        return unread

    def _differs(self, state: ModelState) -> bool:
        """Whether files changed under versions in memory, or failed ones may do now."""
        have = model_state.loaded(self._lifecycle.catalogue, state.name)
        known = {number: version.fingerprint for number, version in have.items()}
        failed = {number: fingerprint for number, (fingerprint, _) in state.failures.items()}
        gone = any(number not in state.present for number in have)
        changed = any(known[number] != state.fingerprint(number) for number in state.present & set(known))
        mended = any(failed[number] != state.fingerprint(number) for number in state.present & set(failed))
        return changed or gone or mended or self._lifecycle.is_lacking(state)

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

    async def _record_all(self) -> None:
        for state in list(self._lifecycle.states.values()):
            with apart("cannot record what the repository has of a model", model=state.name):
                await self._record_first(state)

    async def _record_first(self, state: ModelState) -> None:
        async with self._lifecycle.hold(state.name, new=True):
            link = state.current = await self._current(state)
            followed = self._is_followed(state, link, False)
            unread = await self._record(state, ACTOR)
        if followed and link is not None:
            await self._follow(state.name, link, ACTOR)
        if unread is not None:
            raise unread


def _active(state: ModelState, life: Lifecycle) -> dict[str, str]:
    experiment = state.traffic.experiment
    return {
        "model": state.name,
        "current_version": str(life.serving(state) or ""),
        "candidate_version": str(experiment.arms[1].version) if experiment is not None else "",
    }


def _results(state: ModelState, failures: Failures) -> list[dict[str, str]]:
    """What became of a model: each failure, or that it is done."""
    rows = [_result(state.name, "failed", error.message, version) for version, error in sorted(failures.items())]
    rows += [_result(state.name, "failed", reason, version) for version, _, reason in model_state.broken_ones(state)]
    if not rows and state.entry is not None and state.entry.error:
        rows.append(_result(state.name, "failed", state.entry.error))
    return rows or [_result(state.name, "done")]


def _result(name: str, outcome: str, reason: str = "", version: str = "") -> dict[str, str]:
    return {"model": name, "version": version, "outcome": outcome, "reason": reason}


def _as_ours(name: str, error: Exception) -> NexusError:
    """For clients: an error of ours as it is, any other without its words."""
    if isinstance(error, NexusError):
        return error
    if isinstance(error, (ConfigurationError, OSError)):
        return ModelNotServable(f"model '{name}' cannot be read; see the server's log")
    bug = NexusError(f"internal error while model '{name}' was taken up; see the server's log", reason="INTERNAL")
    bug.code = Code.INTERNAL
    return bug


def _is_settled(entry: ModelEntry | None) -> bool:
    """Raises OSError."""
    if entry is None:
        return True
    now_s = time.time()
    paths = [each.path for each in entry.present]
    if entry.error is not None:
        # A folder into which a file may just be on its way.
        paths += [entry.path, *(version_folder(entry.path, version) for version in entry.broken)]
    return all(not 0 <= now_s - path.stat().st_mtime < SETTLED_SECONDS for path in paths if path.exists())

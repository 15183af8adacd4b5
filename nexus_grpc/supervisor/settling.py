"""Routes a model's traffic to what is in memory, and takes out what nobody wants any more: the end of every change.

What is wanted, and who answers, is residency.py's decision; here it is brought about. Nothing is loaded.
"""

import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping

from nexus_grpc import logs
from nexus_grpc.ipc.errors import StorageFailed
from nexus_grpc.supervisor import model_state, told
from nexus_grpc.supervisor.apart import apart
from nexus_grpc.supervisor.catalogue import LOADING, Catalogue, Version
from nexus_grpc.supervisor.loading import Loading
from nexus_grpc.supervisor.model_state import ModelState
from nexus_grpc.traffic import policy, residency

SERVER_ACTOR = "server"


class Settling:
    """Each method needs the model's lock, but for add_arms and dead.

    Args:
        show: called when what is known of a model's versions has changed.
        commit: Lifecycle.commit.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        loading: Loading,
        show: Callable[[ModelState], None],
        commit: Callable[..., Awaitable[None]],
    ) -> None:
        self._catalogue = catalogue
        self._loading = loading
        self._show = show
        self._commit = commit
        self._log = logs.logger()

    async def settle(self, state: ModelState) -> None:
        """Route as registry and repository say, to what is in memory; unload the rest. The lock must be held."""
        self.add_arms(state, model_state.loaded(self._catalogue, state.name))
        await self._load_arms(state)
        await self._choose(state)
        self.update_shadow(state)
        self._show(state)
        await self._loading.deployment.publish()
        await self.retire(state)

    def add_arms(self, state: ModelState, ready: Mapping[int, Version]) -> None:
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
                await self._loading.deployment.load(arm)

    async def _choose(self, state: ModelState) -> None:
        """When another version answers from now on, the one before stays for a while, and is what a rollback goes back
        to."""
        before, state.chosen = state.chosen, model_state.choose(state, self._catalogue)
        if state.chosen != before:
            told.answers(state.name, before, state.chosen)
        if before is None or state.chosen is None or state.chosen == before or before not in state.present:
            return
        traffic = policy.replaced(state.traffic, before, state.chosen, time.time())
        # The change itself is committed: without this one a restart forgets what a rollback would go back to.
        with contextlib.suppress(StorageFailed):
            await self._commit(state, "", "", traffic=traffic, audited=False)

    async def retire(self, state: ModelState) -> None:
        """Take out what nobody wants: arms of what is over, versions replaced, unloaded or no longer kept."""
        for arm in self._idle_arms(state):
            await self._loading.deployment.unload(arm)
        ready = model_state.loaded(self._catalogue, state.name)
        unwanted = self.unwanted(state)
        for version in unwanted:
            await self._loading.deployment.unload(version)
            self._log_unloaded(state, version, ready)
        self._show(state)
        if unwanted:
            # Fronts show them as what they are now.
            await self._loading.deployment.publish()

    def _idle_arms(self, state: ModelState) -> list[Version]:
        experiment = state.traffic.experiment
        wanted = {arm.variant: arm.version for arm in experiment.arms} if experiment is not None else {}
        ready = model_state.loaded(self._catalogue, state.name)
        bases = {arm: ready.get(wanted.get(arm.variant, -1)) for arm in self._arms(state)}
        return [arm for arm, base in bases.items() if base is None or base.slot != arm.of]

    def unwanted(self, state: ModelState) -> list[Version]:
        ready = model_state.loaded(self._catalogue, state.name)
        keep = self._loading.wanted(state) | {state.chosen} | set(+state.pinned)
        found = model_state.in_memory(self._catalogue, state.name)
        return [each for each in found if ready.get(each.number) is not each or each.number not in keep]

    def _log_unloaded(self, state: ModelState, version: Version, ready: Mapping[int, Version]) -> None:
        reason = "its file was replaced"
        if ready.get(version.number) is version:
            reasons = {number: why for number, _, why in model_state.not_in_memory(state, self._catalogue)}
            reason = reasons.get(version.version, "its file is gone")
        self._log.info("model version unloaded", model=state.name, version=version.version, reason=reason)

    def update_shadow(self, state: ModelState) -> None:
        """Shadowed are the version that answers and its arms: no others, and none that answered before."""
        shadow = state.traffic.shadow
        ready = model_state.loaded(self._catalogue, state.name)
        number = model_state.serving(state, self._catalogue)
        candidate = ready.get(shadow.version) if shadow is not None else None
        wanted = (candidate.slot, shadow.basis_points) if candidate is not None and shadow is not None else (0, 0)
        slot = ready[number].slot if number is not None else -1
        for version in (*self._catalogue.of_model(state.name), *self._catalogue.arms_of(state.name)):
            is_shadowed = slot in (version.slot, version.of) and not version.retiring
            self._loading.deployment.shadow(version.slot, *(wanted if is_shadowed else (0, 0)))

    def dead(self, state: ModelState) -> dict[int, str]:
        """Why versions of an experiment or shadow cannot be in memory. Of a model without any file nothing is said: it
        may come back as it was."""
        ready, found = model_state.loaded(self._catalogue, state.name), {}
        wanting = residency.mendable(state.traffic) if state.present else frozenset()
        for number in sorted(wanting):
            if number not in state.present:
                found[number] = "has no file any more"
            elif number not in ready and (why := state.why_failed(number)):
                found[number] = f"cannot be loaded: {why}"
        return found

    async def mend(self, state: ModelState) -> None:
        """What lost a version goes back to what is left. The lock must be held."""
        traffic = residency.mended(state.traffic, self.dead(state))
        if traffic == state.traffic:
            return
        ended = state.traffic.experiment is not None and traffic.experiment is None
        reason = traffic.last_outcome
        self._log.error("experiment ended" if ended else "shadow ended", model=state.name, reason=reason)
        action, detail = ("abort", {"reason": reason}) if ended else ("shadow", {"percent": 0, "reason": reason})
        # Without the registry it is done again by the next look, or start; routing does without the version meanwhile.
        with apart("the end of an experiment cannot be recorded", model=state.name):
            await self._commit(state, action, SERVER_ACTOR, traffic=traffic, detail=detail)

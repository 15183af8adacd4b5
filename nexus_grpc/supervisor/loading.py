"""Gets versions into memory, beside what is there. Nobody is sent to them yet; that is lifecycle.py's decision.

Never under a model's lock: a load may take a minute, and who promotes, aborts or rolls back does not wait for it.
"""

from collections.abc import Callable

from nexus_grpc import logs
from nexus_grpc.ipc.errors import NexusError
from nexus_grpc.settings import Settings
from nexus_grpc.supervisor import model_state
from nexus_grpc.supervisor.catalogue import UNAVAILABLE, Catalogue, Version
from nexus_grpc.supervisor.deployment import Deployment
from nexus_grpc.supervisor.model_state import ModelState
from nexus_grpc.supervisor.trial import try_model
from nexus_grpc.traffic import residency


class Loading:
    """One load at a time for each model.

    Args:
        show: called when what is known of a model's versions has changed.
        deployment: set before the first coroutine runs.
    """

    def __init__(self, settings: Settings, catalogue: Catalogue, show: Callable[[ModelState], None]) -> None:
        self._settings = settings
        self._catalogue = catalogue
        self._show = show
        self._log = logs.logger()
        self.deployment: Deployment

    def wanted(self, state: ModelState) -> frozenset[int]:
        """The versions that are to be in memory."""
        return residency.wanted(model_state.record(state, self._catalogue))

    def missing(self, state: ModelState, *, retry: bool) -> list[int]:
        """Wanted versions that are not in memory as their files are now; those known to fail only with `retry`."""
        have = model_state.loaded(self._catalogue, state.name)
        found = []
        for number in sorted(self.wanted(state)):
            is_there = number in have and have[number].fingerprint == state.fingerprint(number)
            if not is_there and (retry or not state.why_failed(number)):
                found.append(number)
        return found

    async def ensure(self, state: ModelState, number: int, *, anew: bool = False) -> None:
        """Return when the version is in memory. Raises NexusError: it cannot be loaded.

        Args:
            anew: load it also when it is there, if its file has changed since.
        """
        if self._is_there(state, number, anew):
            return
        async with state.load_lock:
            # Another may have loaded it meanwhile.
            if not self._is_there(state, number, anew):
                await self._load(state, number)

    def _is_there(self, state: ModelState, number: int, anew: bool) -> bool:
        have = model_state.loaded(self._catalogue, state.name).get(number)
        return have is not None and not (anew and have.fingerprint != state.fingerprint(number))

    def add(self, state: ModelState, number: int) -> Version:
        """Give a version a slot. Raises UnknownModel or ModelNotServable."""
        path = state.path_of(number)
        assert state.entry is not None
        name = state.name_of(number)
        version = self._catalogue.add(state.entry, str(number), path, state.fingerprint(number), name)
        # Nothing for what lay there when the server started, and was not tried.
        version.findings = state.tried.get(version.fingerprint, version.findings)
        return version

    async def _load(self, state: ModelState, number: int) -> None:
        state.path_of(number)
        fingerprint = state.fingerprint(number)
        state.loading.add(number)
        self._show(state)
        # It may take long: people can see that it is under way.
        await self.deployment.publish()
        version: Version | None = None
        try:
            await self._trial(state, number, fingerprint)
            version = self.add(state, number)
            await self.deployment.load(version)
        except NexusError as error:
            state.failures[number] = (fingerprint, error.message)
            if version is not None:
                # Some workers may hold it.
                version.state = UNAVAILABLE
                await self.deployment.unload(version)
            self._log.error("model version cannot be loaded", model=state.name, version=number, reason=error.message)
            raise
        finally:
            state.loading.discard(number)
            self._show(state)
        state.failures.pop(number, None)
        self._log.info("model version loaded", model=state.name, version=str(number))

    async def _trial(self, state: ModelState, number: int, fingerprint: str) -> None:
        """What has never been loaded here is loaded in a process of its own first: it may crash or hang."""
        if fingerprint in state.tried:
            return
        assert state.entry is not None
        trial = await try_model(state.path_of(number), state.name, str(number), state.entry, self._settings)
        state.tried[fingerprint] = trial.findings

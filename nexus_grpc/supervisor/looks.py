"""Looks at the whole repository: which models are there beside those we know, and what is skipped, said once."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

from nexus_grpc import logs
from nexus_grpc.ipc.errors import UnknownModel
from nexus_grpc.ipc.similar import Similar
from nexus_grpc.repository import Contents, read_repository
from nexus_grpc.supervisor.model_state import ModelState
from nexus_grpc.supervisor.name_claims import NameClaims
from nexus_grpc.supervisor.said import Said


class Looks:
    """One for each server.

    Args:
        repository: the folder.
        states: the models that the server has in hand, by name.
    """

    def __init__(self, repository: Path, states: Mapping[str, ModelState]) -> None:
        self._repository = repository
        self._states = states
        self._said = Said()
        self._noted = Said()
        self._log = logs.logger()
        self.names = NameClaims(self._known)
        # Made anew when the names are others: asking for wrong names costs little, however often.
        self._similar: tuple[set[str], Similar] = (set(), Similar(()))

    def _known(self) -> set[str]:
        return {state.name for state in self._states.values() if state.is_known}

    def unknown(self, name: str) -> UnknownModel:
        """The error for a name that no model has, with the model that was probably meant."""
        known = self._known()
        if known != self._similar[0]:
            self._similar = known, Similar(known)
        meant = "" if name in known else self._similar[1].to(name)
        return UnknownModel(f"Request for unknown model: '{name}' is not found", meant=meant)

    async def look(self) -> Contents:
        """What is there now. Raises ConfigurationError when the repository cannot be read at all."""
        contents = (await asyncio.to_thread(read_repository, self._repository)).beside(self._known())
        self.report(contents)
        return contents

    def report(self, contents: Contents) -> None:
        """Say what is skipped, and what of a configuration has no effect, unless that was said before."""
        for name, reason in self._said.news({each.name: each.reason for each in contents.skipped}).items():
            self._log.warning("skipped in the model repository", folder=name, reason=reason)
        notes = {entry.name: "; ".join(entry.notes) for entry in contents.entries if entry.notes}
        for name, text in self._noted.news(notes).items():
            self._log.info("config.pbtxt says what has no effect here", model=name, notes=text)

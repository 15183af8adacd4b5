"""Looks at the whole repository: which models are there beside those we know, and what is skipped, said once."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

from nexus_grpc import logs
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

    def _known(self) -> set[str]:
        return {state.name for state in self._states.values() if state.is_known}

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

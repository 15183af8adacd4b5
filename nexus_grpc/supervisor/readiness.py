"""Which models that were asked for at the start are down: what --strict-readiness looks at."""

from collections.abc import Mapping

from nexus_grpc.supervisor import model_state
from nexus_grpc.supervisor.catalogue import Catalogue
from nexus_grpc.supervisor.model_state import ModelState
from nexus_grpc.traffic import residency


class Readiness:
    """Of one server.

    Args:
        states: the models that the server has in hand, by name.
        named: the models that --load-model names.
    """

    def __init__(self, states: Mapping[str, ModelState], catalogue: Catalogue, named: tuple[str, ...]) -> None:
        self._states = states
        self._catalogue = catalogue
        self._named = frozenset(named) - {"*"}
        self._asked: set[str] = set(self._named)

    def begin(self) -> None:
        """What is there at the start was asked for, but for what is loaded on request only."""
        self._asked |= {state.name for state in self._states.values() if state.entry and not state.on_request}

    def down(self) -> dict[str, str]:
        """Why, by model. What somebody unloaded or deleted, or only stored, is wanted by nobody."""
        found = {}
        for name in sorted(self._asked):
            state = self._states.get(name)
            if state is None or state.entry is None:
                if name in self._named:
                    found[name] = "it is not in the repository"
            elif model_state.serving(state, self._catalogue) is None and not _is_unwanted(
                model_state.record(state, self._catalogue)
            ):
                reasons = [reason for _, _, reason in model_state.not_in_memory(state, self._catalogue) if reason]
                found[name] = reasons[-1] if reasons else "no version of it is ready"
        return found


def _is_unwanted(record: residency.Record) -> bool:
    return record.traffic.closed is not None or (bool(record.present) and record.present <= record.refused)

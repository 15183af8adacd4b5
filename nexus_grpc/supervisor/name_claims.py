"""Which names are free: none that differs by case only from a model that there is, or that is just being made.

Checks and claims do not wait, so of two that make a model at once one is first.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator

from nexus_grpc.ipc.errors import AlreadyExists
from nexus_grpc.ipc.model_names import newcomers, taken_text


class NameClaims:
    """Who makes a model claims its name until it is known.

    Args:
        known: the names of the models there are.
    """

    def __init__(self, known: Callable[[], Collection[str]]) -> None:
        self._known = known
        self._claimed: list[str] = []

    def check(self, name: str) -> None:
        """Raises AlreadyExists when a new model may not be called so."""
        holder = newcomers([name], {*self._known(), *self._claimed}).get(name)
        if holder is not None:
            raise AlreadyExists(f"the name {taken_text(name, holder)}", reason="NAME_TAKEN", field="id")

    @contextlib.contextmanager
    def claim(self, name: str) -> Iterator[None]:
        """For the `with`. Raises AlreadyExists."""
        self.check(name)
        self._claimed.append(name)
        try:
            yield
        finally:
            self._claimed.remove(name)

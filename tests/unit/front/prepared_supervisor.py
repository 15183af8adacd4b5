"""A supervisor that answers fronts' calls as a test prepares it."""

from typing import Any


class Supervisor:
    """A `Supervised`: notes what is asked, and gives or raises what is prepared."""

    def __init__(self) -> None:
        self.result: dict[str, Any] | Exception = {}
        self.asked: list[tuple[str, dict[str, Any], str]] = []

    def __call__(self, operation: str, arguments: dict[str, Any], actor: str, timeout_s: float) -> dict[str, Any]:
        self.asked.append((operation, arguments, actor))
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

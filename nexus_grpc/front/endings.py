"""Requests that have ended, on their way into the statistics, the log and what learns from them.

They are written down many at once: code that runs now and then runs cold, and costs several times as much. Used under
the dispatcher's turn.
"""

from collections.abc import Callable

from nexus_grpc.front.flight import Flight
from nexus_grpc.front.routes import Route, RouteTable
from nexus_grpc.ipc.stats import FrontStats, FrontWord

Finished = Callable[[Flight, int, int], None]
# What a refusal counts as, by its reason; others have a count of their own.
_REFUSALS = {
    "OVERLOADED": FrontWord.RING_FULL,
    "LOAD_SHED": FrontWord.LOAD_SHED,
    "DEADLINE_TOO_SHORT": FrontWord.DEADLINE_TOO_SHORT,
    "CONCURRENCY_LIMIT": FrontWord.CONCURRENCY_LIMIT,
    "CIRCUIT_OPEN": FrontWord.CIRCUIT_OPEN,
    "RATE_LIMITED": FrontWord.RATE_LIMITED,
}


class Endings:
    """Args:
    sampled: whether a request that ended with this code is to be logged.
    finished: called with (flight, code, total_ns) for those, after the answer.

    Attributes:
        waiting: flight, code, total_ns of what is not written down yet.
    """

    def __init__(
        self, stats: FrontStats, routes: RouteTable, sampled: Callable[[int], bool], finished: Finished
    ) -> None:
        self.waiting: list[tuple[Flight, int, int]] = []
        self._stats = stats
        self._routes = routes
        self._sampled = sampled
        self._finished = finished

    def refused(self, reason: str) -> None:
        """Count a refusal by its reason (NexusError.reason)."""
        word = _REFUSALS.get(reason)
        if word is not None:
            self._stats.count(word)

    def settle(self) -> None:
        """Write them down."""
        completed, sampled = self._stats.completed, self._sampled
        for flight, code, total_ns in self.waiting:
            completed(flight.slot, flight.method, code, total_ns)
            gate = flight.gate
            if isinstance(gate, Route):
                gate.ended(code, flight.arrived_ns, total_ns)
            if self._routes.measures:
                self._routes.observe(flight, total_ns)
            if sampled(code):
                self._finished(flight, code, total_ns)
        self.waiting.clear()

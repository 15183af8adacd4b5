"""Requests that have ended, on their way into the statistics, the log and what learns from them.

They are written down many at once: code that runs now and then runs cold, and costs several times as much. Used under
the dispatcher's turn.
"""

from collections.abc import Callable

from nexus_grpc.front.callers import caller_of
from nexus_grpc.front.flight import Flight
from nexus_grpc.front.protection import is_doubtful
from nexus_grpc.front.routes import Route, RouteTable
from nexus_grpc.ipc.record import Blame
from nexus_grpc.ipc.stats import FrontStats, FrontWord

# An ending is a code, and above it whose fault it is; 0 = well.
_BLAME_BITS = 8
_CODE_MASK = (1 << _BLAME_BITS) - 1
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


def ending_of(code: int, blame: Blame) -> int:
    return code | blame << _BLAME_BITS


def _tell_failed(gate: Route, flight: Flight, code: int, blame: Blame, total_ns: int) -> None:
    caller = caller_of(flight) if is_doubtful(code, blame) else 0
    gate.failed(code, blame, caller, flight.arrived_ns, total_ns)


class Endings:
    """Args:
    sampled: whether a request that ended with this code is to be logged.
    finished: called with (flight, code, total_ns) for those, after the answer.

    Attributes:
        waiting: flight, ending, total_ns of what is not written down yet.
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
        for flight, ending, total_ns in self.waiting:
            code = ending & _CODE_MASK
            completed(flight.slot, flight.method, code, total_ns)
            gate = flight.gate
            if isinstance(gate, Route):
                if ending:
                    _tell_failed(gate, flight, code, Blame(ending >> _BLAME_BITS), total_ns)
                else:
                    gate.answered(flight.arrived_ns, total_ns)
            if self._routes.measures:
                self._routes.observe(flight, total_ns)
            if sampled(code):
                self._finished(flight, code, total_ns)
        self.waiting.clear()

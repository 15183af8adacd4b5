"""What keeps requests from where they would do harm: a ceiling per model, a circuit per model version and its workers,
a fallback version, and admission by queueing time per worker. The mechanisms are in nexus_grpc/limits/.

Each front decides by itself: it sees what it has in flight and what failed for it. A ceiling is shared out among them.
"""

import dataclasses
import time
from collections.abc import Sequence

from nexus_grpc.front.flight import Flight
from nexus_grpc.front.link import WorkerLink
from nexus_grpc.ipc.errors import Code, ModelUnavailable, Overloaded
from nexus_grpc.ipc.record import Blame
from nexus_grpc.limits.admission import ADMITTED, Admission, overloaded
from nexus_grpc.limits.circuit import Circuit, CircuitPolicy

# How urgent a call is, 0 (refused last) to 9 (first), by the caller itself.
PRIORITY_KEY = "x-nexus-priority"
PRIORITY_DEFAULT = 5
_PRIORITIES = {str(number): number for number in range(10)}
# Tells that another version answered than the one that should have, which this names.
FALLBACK_KEY = "x-nexus-fallback-for"
# By the fault of the model, its workers or what was asked, where it is not known whose. The load says nothing of that.
FAULTS = frozenset(map(int, (Code.UNKNOWN, Code.INTERNAL, Code.UNAVAILABLE, Code.DATA_LOSS)))
# Never opens: for routes that were made without a policy.
NO_CIRCUIT = CircuitPolicy(failures=0.0)


def is_doubtful(code: int, blame: Blame) -> bool:
    """Whether a failure may be the model's fault, but need not: a crash, an error of ours."""
    return blame is Blame.NOBODY and code in FAULTS


class Ceiling:
    """How many requests a model may have in flight, and how many it has; all its versions share one."""

    __slots__ = ("in_flight", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_flight = 0


@dataclasses.dataclass(frozen=True, slots=True)
class ProtectionPolicy:
    """The settings, for one front.

    Attributes:
        circuit: when a model version is left alone.
        max_in_flight: of models that do not say otherwise, over all fronts; 0 = any number.
        target_ns: of admission; 0 = none.
        fronts: how many share a ceiling.
    """

    circuit: CircuitPolicy = NO_CIRCUIT
    max_in_flight: int = 0
    target_ns: int = 0
    fronts: int = 1

    def admission(self) -> Admission:
        """For one worker's queue."""
        return Admission(self.target_ns)

    def ceiling_of(self, configured: int) -> int:
        """This front's part of a model's ceiling, at least 1; 0 = none. `configured`: config.pbtxt's, 0 = not there."""
        return -(-(configured or self.max_in_flight) // self.fronts)


def priority_of(flight: Flight) -> int:
    """What the caller's credential says; the call itself may say that it is less urgent, and, where there are no
    credentials, how urgent it is. Anything but a digit counts as not said."""
    identity = flight.identity
    least = identity.priority if identity is not None else 0
    for key, value in flight.metadata:
        if key == PRIORITY_KEY and isinstance(value, str):
            return max(least, _PRIORITIES.get(value, PRIORITY_DEFAULT))
    return least if identity is not None else PRIORITY_DEFAULT


def admitting(flight: Flight, first: WorkerLink, links: Sequence[WorkerLink]) -> WorkerLink:
    """The worker that takes one more: `first`, or another where that would not be in time. Raises Overloaded."""
    priority, now_ns = priority_of(flight), time.monotonic_ns()
    verdict = _verdict(flight, first, priority, now_ns)
    if verdict == ADMITTED:
        return first
    for link in links:
        if link is not first and _verdict(flight, link, priority, now_ns) == ADMITTED:
            return link
    raise overloaded(verdict, first.admission.expected_ns(_oldest_ns(first), now_ns))


def _verdict(flight: Flight, link: WorkerLink, priority: int, now_ns: int) -> int:
    return link.admission.verdict(priority, flight.slot, _oldest_ns(link), flight.deadline_ns, now_ns)


def _oldest_ns(link: WorkerLink) -> int:
    for flight in link.flights.values():
        return flight.arrived_ns
    return 0


def at_ceiling(name: str, ceiling: Ceiling) -> Overloaded:
    """The error of a request over a model's ceiling."""
    return Overloaded(
        f"model '{name}' has the {ceiling.limit} requests in flight that it may have; try again later",
        reason="CONCURRENCY_LIMIT",
    )


def circuit_open(name: str, version: str, circuit: Circuit, now_ns: int) -> ModelUnavailable:
    """The error of a request that an open circuit does not let through."""
    seconds = circuit.retry_after_s(now_ns)
    when = f"in {seconds:.3g} s" if seconds else "soon"
    return ModelUnavailable(
        f"model '{name}' version {version} keeps failing and is left alone for now; it is tried again {when}",
        reason="CIRCUIT_OPEN",
        retry_after_s=seconds,
    )

"""A request between its arrival and its answer."""

import abc
from collections.abc import Iterable

from nexus_grpc.access.identity import Identity
from nexus_grpc.ipc.errors import NexusError
from nexus_grpc.ipc.rich_errors import status_bytes

Metadata = Iterable[tuple[str, str | bytes]]


class Flight(abc.ABC):
    """One request in flight. The transport (completion queue, public API, stream) says how it is answered.

    Attributes:
        request_id: ASCII.
        identity: who calls; None where the server asks for no credentials.
        metadata: the call's headers.
        headers: what its answer carries besides the request id.
        gate: the route that is to be told how it ended; None until it was let through.
        message: the client's bytes, kept until the answer so that a request can be dispatched again.
        deadline_ns, arrived_ns: CLOCK_MONOTONIC; deadline 0 = none.
        slot: model-version slot, 0 until routed.
        sequence: of its current record in `link`'s ring.
        strikes: how many workers died while they were executing it.
        oversize_bytes: what it counts against the limit on large messages.
        watched: whether the transport has been asked to report the client's going away.
    """

    __slots__ = (
        "arrived_ns",
        "deadline_ns",
        "gate",
        "headers",
        "identity",
        "link",
        "message",
        "metadata",
        "method",
        "oversize_bytes",
        "request_id",
        "route",
        "sequence",
        "slot",
        "strikes",
        "watched",
    )

    def __init__(self, method: int, request_id: bytes, deadline_ns: int, arrived_ns: int) -> None:
        self.method = method
        self.request_id = request_id
        self.deadline_ns = deadline_ns
        self.arrived_ns = arrived_ns
        self.message = b""
        self.metadata: Metadata = ()
        self.headers: tuple[tuple[str, str], ...] = ()
        self.identity: Identity | None = None
        self.slot = 0
        self.sequence = 0
        self.strikes = 0
        self.watched = False
        self.oversize_bytes = 0
        self.link: object = None
        self.route: object = None
        self.gate: object = None

    @abc.abstractmethod
    def succeed(self, payload: bytes) -> None:
        """Send the answer."""

    @abc.abstractmethod
    def fail(self, code: int, message: str, details: bytes) -> None:
        """Send an error; `details` is a serialised google.rpc.Status, possibly empty."""

    @abc.abstractmethod
    def peer(self) -> str:
        """The other end of its connection, as gRPC writes it."""

    @abc.abstractmethod
    def watch(self) -> None:
        """Ask to be told (Dispatcher.cancel) when the client goes away. Called once the request is no longer young."""


def fail_with(flight: Flight, error: NexusError) -> None:
    """Answer a flight with one of our errors."""
    flight.fail(int(error.code), error.message, status_bytes(error))

"""Requests without a live worker, until one comes back: bounded, oldest first. Used under the dispatcher's turn."""

import collections

from nexus_grpc.front.flight import Flight
from nexus_grpc.ipc.errors import DeadlinePassed, ModelUnavailable, NexusError


class WaitingRoom:
    """Args:
    places: requests that may wait.
    patience_ns: how long one waits that has no deadline.
    """

    def __init__(self, places: int, patience_ns: int) -> None:
        self._flights: collections.deque[Flight] = collections.deque()
        self._places = places
        self._patience_ns = patience_ns

    def __len__(self) -> int:
        return len(self._flights)

    def admit(self, flight: Flight) -> bool:
        """False when there is no place."""
        if len(self._flights) >= self._places:
            return False
        flight.link = None
        self._flights.append(flight)
        return True

    def leave(self, flight: Flight) -> bool:
        """Whether it was waiting; now it is not."""
        if flight not in self._flights:
            return False
        self._flights.remove(flight)
        return True

    def all_out(self) -> collections.deque[Flight]:
        """Everybody, oldest first; nobody is left."""
        out, self._flights = self._flights, collections.deque()
        return out

    def overdue(self, now_ns: int) -> list[tuple[Flight, NexusError]]:
        """Takes out those who have waited for too long, with what to tell them; watches the clients of the others."""
        out: list[tuple[Flight, NexusError]] = []
        for flight in list(self._flights):
            if flight.deadline_ns and flight.deadline_ns <= now_ns:
                error: NexusError = DeadlinePassed("the deadline passed while no worker was there for the model")
            elif not flight.deadline_ns and flight.arrived_ns + self._patience_ns <= now_ns:
                error = ModelUnavailable("no worker came back for the model; try again later")
            else:
                if not flight.watched:
                    flight.watched = True
                    flight.watch()
                continue
            self._flights.remove(flight)
            out.append((flight, error))
        return out

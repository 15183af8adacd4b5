"""The heart of a front: routes a request to a worker, matches answers to requests, and misses none.

Threads. Any thread may submit(). Everything else happens on the egress thread, which runs run(): it takes answers from
the rings, runs commands from other threads, sweeps deadlines, and finishes every flight, so that the statistics page
has one writer and a flight one finisher. `flights.pop` decides races: who pops a flight answers it.
"""

import collections
import ctypes
import itertools
import threading
import time
from collections.abc import Callable

from nexus_grpc.front.flight import Flight, fail_with
from nexus_grpc.front.link import WorkerLink
from nexus_grpc.front.routes import Route, RouteTable
from nexus_grpc.ipc.errors import (
    Code,
    DeadlinePassed,
    InferenceFailed,
    ModelUnavailable,
    NexusError,
    Overloaded,
)
from nexus_grpc.ipc.oversize import HandOverError
from nexus_grpc.ipc.record import OVERSIZE
from nexus_grpc.ipc.ring import RingCorrupted, Sleeper, ring_by_hand
from nexus_grpc.ipc.stats import FrontStats, FrontWord

# Answers taken from one ring before the next ring's turn.
POLL_MAX = 256
# Asleep at most this long: bounds a lost wake-up.
SLEEP_MAX_MS = 100.0
# How often flights are looked at for passed deadlines and vanished clients, while there are any.
SWEEP_NS = 5_000_000
# A request this old is worth watching for its client's going away; younger ones are mostly answered by now.
WATCH_AFTER_NS = 5_000_000
# A request that was being executed by this many workers when they died is to blame for it.
STRIKES_MAX = 2
# A sending thread that chose a link just before it was retired is done with it long before this.
RETIRED_FOR_NS = 2_000_000_000
_malloc_trim = ctypes.CDLL(None).malloc_trim

Finished = Callable[[Flight, int, int], None]


class Dispatcher:
    """Built once; run() is the egress thread.

    Args:
        bell: this front's doorbell.
        finished: called with (flight, code, total_ns) after each answer, for logging.
        in_flight_bytes_max: bytes of oversize messages in flight at once.
        respawn_wait_ns: how long a request without a deadline waits for a worker to come back.
    """

    def __init__(
        self,
        bell: int,
        stats: FrontStats,
        finished: Finished,
        in_flight_bytes_max: int,
        waiting_max: int,
        respawn_wait_ns: int,
    ) -> None:
        self.routes = RouteTable()
        self._bell = bell
        self._sleeper = Sleeper(bell)
        self._stats = stats
        self._finished = finished
        self._links: tuple[WorkerLink, ...] = ()
        # Links of dead workers, with the time when no thread can be using them any more.
        self._retired: collections.deque[tuple[int, WorkerLink]] = collections.deque()
        self._commands: collections.deque[Callable[[], None]] = collections.deque()
        # Flights without a live worker, oldest first, until one comes back.
        self._waiting: collections.deque[Flight] = collections.deque()
        self._waiting_max = waiting_max
        self._respawn_wait_ns = respawn_wait_ns
        self._oversize_lock = threading.Lock()
        self._oversize_bytes = 0
        self._oversize_bytes_max = in_flight_bytes_max
        self._oversize_ended = False
        self._next_sweep_ns = 0
        self._running = True

    # --- any thread ---

    def submit(self, flight: Flight) -> None:
        """Route a flight and put it into a worker's ring; refuse it at once when that cannot be."""
        try:
            route = self.routes.find(flight.message)
            flight.route = route
            flight.slot = route.slot
            link = route.pick()
            if link is None:
                self.command(lambda: self._wait_for_worker(flight))
            elif link.is_oversize(len(flight.message)):
                self._send_oversize(link, flight)
            elif not link.send_nowait(flight):
                self._not_sent(link, flight, _overloaded(route))
        except NexusError as error:
            self.refuse(flight, error)

    def refuse(self, flight: Flight, error: NexusError) -> None:
        """Answer a flight that is in no link with an error, soon."""
        self.command(lambda: self._refuse(flight, error))

    def command(self, command: Callable[[], None]) -> None:
        """Have the egress thread do something, soon."""
        self._commands.append(command)
        ring_by_hand(self._bell)

    def cancel(self, flight: Flight) -> None:
        """The client went away (any thread)."""
        self.command(lambda: self._cancel(flight))

    def in_flight(self) -> int:
        return sum(len(link.flights) for link in self._links) + len(self._waiting)

    def _not_sent(self, link: WorkerLink, flight: Flight, refusal: Overloaded) -> None:
        """A link is full, or its worker died while we were choosing it: only the first is an error."""
        if not link.retired:
            raise refusal
        self.command(lambda: self._wait_for_worker(flight))

    def _send_oversize(self, link: WorkerLink, flight: Flight) -> None:
        size = len(flight.message)
        with self._oversize_lock:
            if self._oversize_bytes and self._oversize_bytes + size > self._oversize_bytes_max:
                raise Overloaded(f"{self._oversize_bytes} bytes of large messages are in flight; try again later")
            self._oversize_bytes += size
            flight.oversize_bytes = size
        if not link.send_nowait(flight):
            self._not_sent(link, flight, Overloaded("there is no room for another large message; try again later"))

    # --- the egress thread ---

    def run(self) -> None:
        while self._running:
            while self._commands:
                self._commands.popleft()()
            taken = 0
            for link in self._links:
                taken += self._take_answers(link)
            now_ns = time.monotonic_ns()
            if now_ns >= self._next_sweep_ns:
                self._sweep(now_ns)
            if not taken and not self._commands:
                busy = self._waiting or any(link.flights for link in self._links)
                timeout_ms = SWEEP_NS / 1e6 if busy else SLEEP_MAX_MS
                self._sleeper.wait([link.responses for link in self._links], timeout_ms)

    def stop(self) -> None:
        self.command(self._stop)

    def _stop(self) -> None:
        self._running = False

    def _take_answers(self, link: WorkerLink) -> int:
        try:
            records = link.responses.poll_nowait(POLL_MAX)
        except RingCorrupted:
            # The worker is broken. The supervisor notices its silence; until then nothing more is read from it.
            self._drop_link(link)
            return 0
        flights = link.flights
        for (_, code, flags, message_length, sequence), payload in records:
            flight = flights.pop(sequence, None)
            if flight is None:
                self._stats.count(FrontWord.LATE_REPLIES)
                self._drop_late(link, sequence, flags)
            elif code == 0 and not flags:
                flight.succeed(payload)
                self._account(flight, 0)
            else:
                self._finish_odd(link, flight, code, flags, payload, message_length)
        return len(records)

    def _finish_odd(
        self, link: WorkerLink, flight: Flight, code: int, flags: int, payload: bytes, message_length: int
    ) -> None:
        """An answer that is an error, or came by memfd."""
        if flags & OVERSIZE:
            try:
                mapping = link.take_oversize(flight.sequence)
            except HandOverError as error:
                self._refuse(flight, InferenceFailed(str(error)))
                return
            payload = mapping[:]
            mapping.close()
            self._oversize_ended = True
            self._stats.count(FrontWord.OVERSIZE)
        if code == 0:
            flight.succeed(payload)
        elif not payload:
            fail_with(flight, Overloaded("the answer is too large to be handed over now; try again later"))
        else:
            message = payload[:message_length].decode("utf-8", "replace")
            flight.fail(code, message, payload[message_length:])
        self._account(flight, code if 0 <= code <= Code.UNAUTHENTICATED else int(Code.UNKNOWN))

    def _drop_late(self, link: WorkerLink, sequence: int, flags: int) -> None:
        if flags & OVERSIZE:
            try:
                link.take_oversize(sequence).close()
            except HandOverError:
                pass  # nothing came, nothing to give back

    def _account(self, flight: Flight, code: int) -> None:
        total_ns = time.monotonic_ns() - flight.arrived_ns
        self._stats.completed(flight.slot, flight.method, code, total_ns)
        if flight.oversize_bytes:
            with self._oversize_lock:
                self._oversize_bytes -= flight.oversize_bytes
            self._oversize_ended = True
        self._finished(flight, code, total_ns)
        flight.message = b""

    def _refuse(self, flight: Flight, error: NexusError) -> None:
        if error.code == Code.RESOURCE_EXHAUSTED:
            self._stats.count(FrontWord.RING_FULL)
        fail_with(flight, error)
        self._account(flight, int(error.code))

    def _cancel(self, flight: Flight) -> None:
        link = flight.link
        if isinstance(link, WorkerLink) and link.flights.pop(flight.sequence, None) is flight:
            link.mark_cancelled(flight.sequence)
        elif flight in self._waiting:
            self._waiting.remove(flight)
        else:
            return
        self._stats.count(FrontWord.CANCELLED)
        self._account(flight, int(Code.CANCELLED))

    # --- sweeping ---

    def _sweep(self, now_ns: int) -> None:
        """Answer what is past its deadline, watch what has become old."""
        self._next_sweep_ns = now_ns + SWEEP_NS
        old_ns = now_ns - WATCH_AFTER_NS
        for link in self._links:
            for flight in list(link.flights.values()) if link.flights else ():
                if flight.deadline_ns and flight.deadline_ns <= now_ns:
                    self._expire(link, flight)
                elif not flight.watched and flight.arrived_ns <= old_ns:
                    flight.watched = True
                    flight.watch()
        self._sweep_waiting(now_ns)
        self._stats.gauge(FrontWord.IN_FLIGHT, self.in_flight())
        while self._retired and self._retired[0][0] <= now_ns:
            self._retired.popleft()[1].close()
        if self._oversize_ended:
            self._oversize_ended = False
            _malloc_trim(0)

    def _expire(self, link: WorkerLink, flight: Flight) -> None:
        if link.flights.pop(flight.sequence, None) is not flight:
            return
        link.mark_cancelled(flight.sequence)
        self._stats.count(FrontWord.DEADLINE_PASSED)
        self._refuse(flight, DeadlinePassed("the deadline passed before the model answered"))

    def _sweep_waiting(self, now_ns: int) -> None:
        for flight in list(self._waiting):
            if flight.deadline_ns and flight.deadline_ns <= now_ns:
                self._waiting.remove(flight)
                self._stats.count(FrontWord.DEADLINE_PASSED)
                self._refuse(flight, DeadlinePassed("the deadline passed while no worker was there for the model"))
            elif not flight.deadline_ns and flight.arrived_ns + self._respawn_wait_ns <= now_ns:
                self._waiting.remove(flight)
                self._refuse(flight, ModelUnavailable("no worker came back for the model; try again later"))
            elif not flight.watched:
                flight.watched = True
                flight.watch()

    # --- workers come and go ---

    def attach(self, link: WorkerLink) -> None:
        """A worker is ready: route to it, and send it what has waited."""
        self._links = (*self._links, link)
        self.relink()
        waiting, self._waiting = self._waiting, collections.deque()
        for flight in waiting:
            self._dispatch_again(flight)

    def relink(self) -> None:
        """Give every route the live links of its workers (after a new table or a new link)."""
        for route in self.routes.routes.values():
            route.links = tuple(link for link in self._links if link.worker in route.workers)

    def worker_down(self, worker: int, generation: int) -> None:
        """A worker died: take the answers it still published, then send its other requests elsewhere."""
        for link in self._links:
            if link.worker == worker and link.generation == generation:
                while self._take_answers(link):
                    pass
                self._drop_link(link)

    def _drop_link(self, link: WorkerLink) -> None:
        if link not in self._links:
            return
        self._links = tuple(other for other in self._links if other is not link)
        self.relink()
        executing = link.executing()
        for flight in link.retire():
            if flight.sequence in executing:
                flight.strikes += 1
            self._redispatch(flight)
        self._retired.append((time.monotonic_ns() + RETIRED_FOR_NS, link))

    def _redispatch(self, flight: Flight) -> None:
        """Predictions are pure: run it again, unless it is what kills the workers (docs/decisions/0003)."""
        if flight.strikes >= STRIKES_MAX:
            self._stats.count(FrontWord.POISONED)
            name = flight.route.name if isinstance(flight.route, Route) else ""
            self._refuse(
                flight,
                InferenceFailed(
                    f"the request was being executed by {STRIKES_MAX} workers of model '{name}' when they died",
                    reason="WORKER_CRASHED",
                ),
            )
            return
        self._stats.count(FrontWord.REDISPATCHED)
        self._dispatch_again(flight)

    def _dispatch_again(self, flight: Flight) -> None:
        route = self.routes.routes.get(flight.slot)
        link = route.pick() if route is not None else None
        if link is None:
            self._wait_for_worker(flight)
        elif not link.send_nowait(flight):
            self._refuse(flight, _overloaded(route))

    def _wait_for_worker(self, flight: Flight) -> None:
        """Keep a flight until a worker for it is attached."""
        flight.link = None
        route = self.routes.routes.get(flight.slot)
        if route is None:
            self._refuse(flight, ModelUnavailable("the model was unloaded; try again"))
        elif route.links:  # attached in the meantime
            self._dispatch_again(flight)
        elif len(self._waiting) >= self._waiting_max:
            self._refuse(flight, _overloaded(route))
        else:
            self._waiting.append(flight)


def _overloaded(route: Route | None) -> Overloaded:
    name = route.name if route is not None else ""
    return Overloaded(f"model '{name}' has all the requests in flight that it can take; try again later")


class RequestIds:
    """Makes request ids: UUID-shaped (version 8: vendor-specific), a random prefix per process and a counter."""

    def __init__(self, random_bytes: bytes) -> None:
        digits = random_bytes.hex()
        self._prefix = f"{digits[:8]}-{digits[8:12]}-8{digits[12:15]}-a{digits[15:18]}-"
        self._counter = itertools.count(1)

    def next(self) -> str:
        return f"{self._prefix}{next(self._counter):012x}"

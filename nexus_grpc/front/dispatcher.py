"""The heart of a front: routes a request to a worker, matches answers to requests, and misses none.

The turn. All that changes the dispatcher's state happens under one lock, `turn`, and is written as if there were one
thread. Two threads share it: the transport's, which takes the turn when calls arrive and keeps it while there is
anything to do (requests in, answers out, chores), and the egress thread (run), which sleeps on the doorbell and takes
the turn for answers that come while no call does. Under load the transport's thread does everything and the egress
thread sleeps: two threads handing the interpreter to each other cost more than the work itself (docs/decisions/0001).
Other threads leave a command.
"""

import collections
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

from nexus_grpc.front.endings import Endings, ending_of
from nexus_grpc.front.flight import Flight, fail_with
from nexus_grpc.front.guard import Guard
from nexus_grpc.front.large_messages import LargeMessages, too_large_for_rest
from nexus_grpc.front.lingering import Lingering
from nexus_grpc.front.link import ANSWERS_PUBLISHED, ANSWERS_RELEASED, WorkerLink
from nexus_grpc.front.protection import admitting, at_ceiling
from nexus_grpc.front.routes import Route, RouteTable
from nexus_grpc.front.waiting import WaitingRoom
from nexus_grpc.ipc.errors import Code, DeadlinePassed, InferenceFailed, NexusError, Overloaded
from nexus_grpc.ipc.oversize import HandOverError
from nexus_grpc.ipc.record import BLAME_SHIFT, OVERSIZE, Blame, is_http
from nexus_grpc.ipc.ring import RingConsumer, RingCorrupted, Sleeper, ring_by_hand
from nexus_grpc.ipc.stats import FrontStats, FrontWord
from nexus_grpc.ipc.wire import HTTP_ANSWER_MAX_BYTES

# Answers taken from one ring before anything else gets its turn.
POLL_MAX = 256
# Asleep at most this long: bounds a lost wake-up.
SLEEP_MAX_MS = 100.0
# How often flights are looked at for passed deadlines and vanished clients, while there are any.
SWEEP_NS = 5_000_000
SWEEP_MS = SWEEP_NS / 1e6
# A request this old is worth watching for its client's going away; younger ones are mostly answered by now.
WATCH_AFTER_NS = 100_000_000
# A request that was being executed by this many workers when they died is to blame for it.
STRIKES_MAX = 2
# Flights that may wait to be written into the statistics while there is work.
SETTLE_EVERY = 64


class Dispatcher:
    """Built once; run() is the egress thread. Methods need the turn unless they say otherwise.

    Args:
        bell: this front's doorbell.
        endings: writes down what has ended.
        broken: called with (worker, generation) when a worker writes what cannot be.
        in_flight_bytes_max: bytes of oversize messages in flight at once.
        waiting: where requests wait for a worker to come back.
        routes: the table to route by.
    """

    def __init__(
        self,
        bell: int,
        stats: FrontStats,
        endings: Endings,
        broken: Callable[[int, int], None],
        in_flight_bytes_max: int,
        waiting: WaitingRoom,
        routes: RouteTable,
    ) -> None:
        self.turn = threading.Lock()
        self.routes = routes
        self.guard: Guard | None = None  # where there are credentials or rates
        # When the next sweep is due (CLOCK_MONOTONIC).
        self.next_sweep_ns = 0
        self.streams_open = 0
        self.commands: collections.deque[Callable[[], None]] = collections.deque()
        self._bell = bell
        self._sleeper = Sleeper(bell)
        self._stats = stats
        self._endings = endings
        self._broken = broken
        self._links: tuple[WorkerLink, ...] = ()
        self._rings: tuple[RingConsumer, ...] = ()
        self._waiting = waiting
        self._large = LargeMessages(in_flight_bytes_max)
        self._lingering = Lingering()
        self._running = True

    # --- any thread, without the turn ---

    def command(self, command: Callable[[], None]) -> None:
        """Have whoever holds the turn do something, soon."""
        self.commands.append(command)
        ring_by_hand(self._bell)

    def stop(self) -> None:
        self.command(lambda: setattr(self, "_running", False))

    def run(self) -> None:
        """The egress thread: sleep until rung, then take the turn."""
        while self._running:
            self._sleeper.sleep(SWEEP_MS if self.in_flight() else SLEEP_MAX_MS)
            with self.turn:
                self.work()
                self.end()

    # --- a turn ---

    def begin(self) -> None:
        """For a turn that lasts: from here to end() producers need not ring. (They ring once per sleep anyway, so a
        short turn can do without; it must then end() only if it began.)"""
        self._sleeper.unpark(self._rings)

    def end(self) -> None:
        """Before the turn is given up: have the producers ring again, and miss nothing that came before they knew."""
        while not self._sleeper.park(self._rings):
            self.take_answers()
        self._endings.settle()

    def work(self) -> int:
        """Everything but arrivals, once: commands, answers, sweep. Returns how much there was."""
        done = len(self.commands)
        for _ in range(done):
            self.commands.popleft()()
        done += self.take_answers()
        now_ns = time.monotonic_ns()
        if now_ns >= self.next_sweep_ns:
            self.sweep(now_ns)
        return done

    def linger(self) -> bool:
        """With nothing to do: whether to look again, as answers are due any moment (lingering.py)."""
        return self.in_flight() > 0 and self._lingering.again()

    # --- requests ---

    def submit(self, flight: Flight) -> None:
        """Route a flight and put it into a worker's ring; refuse it at once when that cannot be."""
        try:
            route = self.routes.find(flight.message)
            if route.split is not None:
                route = route.split.choose(flight)
            if self.guard is not None:
                self.guard.check(flight, route.name)
            flight.route = route
            flight.slot = route.slot
            if route.ceiling is not None or route.circuit.open:
                route = self._through_gate(flight, route)
            flight.gate = route
            links = route.links
            link = links[0] if len(links) == 1 else route.pick()
            if link is None:
                return self._wait_for_worker(flight)
            admission = link.admission
            if admission.backlog.total_ns >= (admission.pass_ns if flight.deadline_ns else admission.free_ns):
                link = admitting(flight, link, links)
            if len(flight.message) > link.message_inline_max:
                self._large.admit(flight)
            if not link.send_nowait(flight):
                raise _overloaded(route)
        except NexusError as error:
            self.refuse(flight, error if self.guard is None else self.guard.refusal(flight, error))

    def _through_gate(self, flight: Flight, route: Route) -> Route:
        """Where a request goes whose model has a ceiling, or keeps failing. Raises Overloaded or ModelUnavailable."""
        if route.circuit.open:
            now_ns = time.monotonic_ns()
            chosen = route.or_fallback(flight, now_ns)
            if chosen is not route:
                self._stats.count(FrontWord.FALLBACKS)
                flight.route, flight.slot = chosen, chosen.slot
            route = chosen
        ceiling = route.ceiling
        if ceiling is not None:
            if ceiling.in_flight >= ceiling.limit:
                self._endings.settle()  # those that have ended count no more
            if ceiling.in_flight >= ceiling.limit:
                route.circuit.dropped(flight.arrived_ns)
                raise at_ceiling(route.name, ceiling)
            ceiling.in_flight += 1
        return route

    def refuse(self, flight: Flight, error: NexusError) -> None:
        """Answer a flight with an error."""
        self._endings.refused(error.reason)
        fail_with(flight, error)
        self._account(flight, int(error.code), error.blame)

    def cancel(self, flight: Flight) -> None:
        """The client went away."""
        link = flight.link
        if isinstance(link, WorkerLink) and link.flights.get(flight.sequence) is flight:
            link.take(flight.sequence)
            link.mark_cancelled(flight.sequence)
        elif not self._waiting.leave(flight):
            return
        # The core ends a call at its deadline; seen from here that looks like a client that went away.
        late = 0 < flight.deadline_ns <= time.monotonic_ns()
        self._stats.count(FrontWord.DEADLINE_PASSED if late else FrontWord.CANCELLED)
        if late:
            self._account(flight, int(Code.DEADLINE_EXCEEDED), Blame.NOBODY)
        else:
            self._account(flight, int(Code.CANCELLED), Blame.CALLER)

    def in_flight(self) -> int:
        return sum([len(link.flights) for link in self._links]) + len(self._waiting)

    # --- answers ---

    def take_answers(self) -> int:
        """Answer what the workers have published; return how many."""
        taken = 0
        for link in self._links:
            words = link.answer_words
            if words[ANSWERS_PUBLISHED] != words[ANSWERS_RELEASED]:
                taken += self._take_from(link)
        return taken

    def _take_from(self, link: WorkerLink) -> int:
        try:
            records = link.responses.poll_nowait(POLL_MAX)
        except RingCorrupted:
            # The worker is broken: nothing more is read from it, and the supervisor ends it.
            self._broken(link.worker, link.generation)
            self._drop_link(link)
            return 1
        self._lingering.answered()
        now_ns, ended = time.monotonic_ns(), self._endings.waiting
        newest_ns = answered = slot = 0
        for (_, code, flags, message_length, sequence), payload in records:
            flight = link.take(sequence)
            if flight is None:
                self._stats.count(FrontWord.LATE_REPLIES)
                self._drop_late(link, sequence, flags)
                continue
            answered += 1
            if flight.arrived_ns > newest_ns:
                newest_ns, slot = flight.arrived_ns, flight.slot
            if code == 0 and not flags:
                flight.succeed(payload)
                if flight.oversize_bytes:
                    self._large.release(flight)
                ended.append((flight, 0, now_ns - flight.arrived_ns))
            else:
                self._finish_odd(link, flight, code, flags, payload, message_length)
        if answered:
            link.admission.answered(slot, now_ns - newest_ns, answered, now_ns)
        if len(ended) >= SETTLE_EVERY:
            self._endings.settle()
        return len(records)

    def _finish_odd(
        self, link: WorkerLink, flight: Flight, code: int, flags: int, payload: bytes, message_length: int
    ) -> None:
        """An answer that is an error, or came by memfd."""
        code = code if code <= Code.UNAUTHENTICATED else int(Code.UNKNOWN)
        if flags & OVERSIZE:
            try:
                mapping = link.take_oversize(flight.sequence)
            except HandOverError as error:
                return self.refuse(flight, InferenceFailed(str(error)))
            payload = mapping[:]
            mapping.close()
            self._large.answered()
            self._stats.count(FrontWord.OVERSIZE)
            if len(payload) > HTTP_ANSWER_MAX_BYTES and is_http(flight.method):
                return self.refuse(flight, too_large_for_rest(len(payload)))
        if code == 0:
            flight.succeed(payload)
        elif not payload:
            fail_with(flight, Overloaded("the answer is too large to be handed over now; try again later"))
        else:
            message = payload[:message_length].decode("utf-8", "replace")
            flight.fail(code, message, payload[message_length:])
        self._account(flight, code, Blame(flags >> BLAME_SHIFT & 3) if code else Blame.NOBODY)

    def _drop_late(self, link: WorkerLink, sequence: int, flags: int) -> None:
        if flags & OVERSIZE:
            with contextlib.suppress(HandOverError):  # nothing came, nothing to give back
                link.take_oversize(sequence).close()

    def _account(self, flight: Flight, code: int, blame: Blame) -> None:
        """Every flight ends here, or beside a success in _take_from, once."""
        if flight.oversize_bytes:
            self._large.release(flight)
        ending = ending_of(code, blame)
        self._endings.waiting.append((flight, ending, time.monotonic_ns() - flight.arrived_ns))

    # --- sweeping ---

    def sweep(self, now_ns: int) -> None:
        """Answer what is past its deadline, watch what has become old."""
        self.next_sweep_ns = now_ns + SWEEP_NS
        old_ns = now_ns - WATCH_AFTER_NS
        for link in self._links:
            for flight in list(link.flights.values()) if link.flights else ():
                if flight.deadline_ns and flight.deadline_ns <= now_ns:
                    self._expire(link, flight)
                elif not flight.watched and flight.arrived_ns <= old_ns:
                    flight.watched = True
                    flight.watch()
        for flight, error in self._waiting.overdue(now_ns):
            if error.code == Code.DEADLINE_EXCEEDED:
                self._stats.count(FrontWord.DEADLINE_PASSED)
            self.refuse(flight, error)
        self._stats.gauge(FrontWord.IN_FLIGHT, self.in_flight())
        self._stats.gauge(FrontWord.STREAMS_OPEN, self.streams_open)
        self._endings.settle()
        self._large.trim()

    def _expire(self, link: WorkerLink, flight: Flight) -> None:
        link.take(flight.sequence)
        link.mark_cancelled(flight.sequence)
        self._stats.count(FrontWord.DEADLINE_PASSED)
        self.refuse(flight, DeadlinePassed("the deadline passed before the model answered"))

    # --- workers come and go ---

    def attach(self, link: WorkerLink) -> None:
        """A worker is ready: route to it, and send it what has waited."""
        self._set_links((*self._links, link))
        self._send_waiting()

    def _send_waiting(self) -> None:
        for flight in self._waiting.all_out():
            self._dispatch_again(flight)

    def replace_routes(self, catalogue: list[dict[str, Any]], traffic: dict[str, Any]) -> None:
        """Take over the supervisor's table. What ended before counts for the slots' earlier owners."""
        self._endings.settle()
        for slot in self.routes.replace(catalogue, traffic):
            self._stats.reset(slot)
        self.relink()
        # A table made while a worker was away does not name it: what waited finds it in this one.
        self._send_waiting()

    def relink(self) -> None:
        """Give every route the live links of its workers (after a new table or a new link)."""
        for route in self.routes.routes.values():
            route.links = tuple([link for link in self._links if link.worker in route.workers])

    def _set_links(self, links: tuple[WorkerLink, ...]) -> None:
        self._links = links
        self._rings = tuple([link.responses for link in links])
        self.relink()

    def worker_down(self, worker: int, generation: int) -> None:
        """A worker died: take the answers it still published, then send its other requests elsewhere."""
        for link in self._links:
            if link.worker == worker and link.generation == generation:
                while link in self._links and self._take_from(link):
                    pass
                self._drop_link(link)

    def _drop_link(self, link: WorkerLink) -> None:
        if link not in self._links:
            return
        self._set_links(tuple([other for other in self._links if other is not link]))
        executing = link.executing()
        flights = list(link.flights.values())
        link.flights.clear()
        link.close()
        for flight in flights:
            if flight.sequence in executing:
                flight.strikes += 1
            self._redispatch(flight)

    def _redispatch(self, flight: Flight) -> None:
        """Predictions are pure: run it again, unless it is what kills the workers (docs/decisions/0003)."""
        if flight.strikes < STRIKES_MAX:
            self._stats.count(FrontWord.REDISPATCHED)
            self._dispatch_again(flight)
            return
        self._stats.count(FrontWord.POISONED)
        name = flight.route.name if isinstance(flight.route, Route) else ""
        message = f"the request was being executed by {STRIKES_MAX} workers of model '{name}' when they died"
        self.refuse(flight, InferenceFailed(message, reason="WORKER_CRASHED"))

    def _dispatch_again(self, flight: Flight) -> None:
        try:
            route = self.routes.again(flight)
        except NexusError as error:
            return self.refuse(flight, error)
        link = route.pick()
        if link is None:
            return self._wait_for_worker(flight)
        link.admission.resumed(time.monotonic_ns())
        if not link.send_nowait(flight):
            self.refuse(flight, _overloaded(route))

    def _wait_for_worker(self, flight: Flight) -> None:
        """Keep a flight until a worker for it is attached."""
        if not self._waiting.admit(flight):
            self.refuse(flight, _overloaded(flight.route if isinstance(flight.route, Route) else None))


def _overloaded(route: Route | None) -> Overloaded:
    name = route.name if route is not None else ""
    return Overloaded(f"model '{name}' has all the requests in flight that it can take; try again later")

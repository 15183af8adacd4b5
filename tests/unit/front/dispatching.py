"""A dispatcher on real rings whose turn belongs to the test, which also plays the workers."""

import os
import time
from collections.abc import Callable

from nexus_grpc.front.dispatcher import Dispatcher
from nexus_grpc.front.endings import Endings
from nexus_grpc.front.flight import Flight
from nexus_grpc.front.protection import ProtectionPolicy
from nexus_grpc.front.routes import RouteTable
from nexus_grpc.front.waiting import WaitingRoom
from nexus_grpc.ipc.ring import new_bell
from nexus_grpc.ipc.stats import FrontStats, PageKind, create_page, open_page, read_front
from nexus_grpc.limits.circuit import State
from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from tests.unit.support import Pair, RecordedFlight, entry

SECOND_NS = 10**9
MESSAGE = pb.ModelInferRequest(model_name="m", id="x").SerializeToString()


class Front:
    """A dispatcher whose turn belongs to the test."""

    def __init__(
        self,
        workers: int = 1,
        waiting_max: int = 2,
        large_max: int = 50_000,
        in_flight_max: int = 5,
        policy: ProtectionPolicy = ProtectionPolicy(),  # noqa: B008 - it cannot change
    ) -> None:
        page = create_page(PageKind.FRONT)
        self.page = open_page(page)
        os.close(page)
        self.finished: list[tuple[RecordedFlight, int]] = []
        self.on_finished: Callable[[], None] = lambda: None
        self.broken: list[tuple[int, int]] = []
        stats = FrontStats(self.page)
        self.policy = policy
        routes = RouteTable(
            policy, lambda slot, _name, _version, state: stats.circuit(slot, state, state == State.OPEN)
        )
        self.dispatcher = Dispatcher(
            new_bell(),
            stats,
            Endings(stats, routes, lambda code: True, self._finished),
            lambda worker, generation: self.broken.append((worker, generation)),
            large_max,
            WaitingRoom(waiting_max, SECOND_NS),
            routes,
        )
        self.in_flight_max = in_flight_max
        self.dispatcher.routes.replace([entry("m", workers=range(workers))])
        self.dispatcher.relink()

    def _finished(self, flight: Flight, code: int, _total_ns: int) -> None:
        assert isinstance(flight, RecordedFlight)
        self.finished.append((flight, code))
        self.on_finished()

    def attach(self, worker: int = 0, generation: int = 0) -> Pair:
        pair = Pair(worker, generation, in_flight_max=self.in_flight_max)
        pair.front.admission = self.policy.admission()
        self.dispatcher.attach(pair.front)
        return pair

    def turn(self) -> None:
        """Everything there is to do, as whoever holds the turn does it."""
        self.dispatcher.begin()
        self.dispatcher.work()
        self.dispatcher.end()

    def submit(self, message: bytes = MESSAGE, deadline_ns: int = 0) -> RecordedFlight:
        flight = RecordedFlight(message, deadline_ns, time.monotonic_ns())
        self.dispatcher.submit(flight)
        return flight

    @property
    def counted(self) -> "object":
        return read_front(self.page)

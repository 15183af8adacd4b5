"""A client that behaves: requests by gRPC, by REST and of a cold method, at a steady rate, each verified and timed.

Requests are due at fixed times, whatever came of the ones before, and are timed from then: a server that stalls is seen
to (the wrong way to measure this is known as coordinated omission).
"""

import contextlib
import dataclasses
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self

import grpc

from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from tests.chaos.ledger import OK, ask, channel_to, stub_of
from tests.chaos.rest_ledger import RestClient

MODEL = "counts_i64"
DEADLINE_SECONDS = 10.0
GRPC, REST, COLD = "gRPC", "REST", "cold"
PER_SECOND = {GRPC: 50, REST: 50, COLD: 20}
# Of each kind. One alone would have to wait for each answer before it asks again: a slow one would delay the next.
CLIENTS = 4


@dataclasses.dataclass(frozen=True)
class Sample:
    """One request: when it was due, how long after that it had its answer, and what was wrong with it, if anything."""

    due_s: float
    seconds: float
    wrong: str


@dataclasses.dataclass(frozen=True)
class Figures:
    """Of the requests that were due in a time."""

    count: int
    p50_ms: float
    p99_ms: float
    worst_ms: float
    wrong: tuple[str, ...]

    def __str__(self) -> str:
        return f"p50 {self.p50_ms:.1f} ms, p99 {self.p99_ms:.1f} ms, worst {self.worst_ms:.1f} ms of {self.count}"


def figures_of(samples: Sequence[Sample]) -> Figures:
    taken = sorted(sample.seconds * 1e3 for sample in samples)
    assert taken, "nothing was asked"

    def quantile(share: float) -> float:
        return taken[math.ceil(share * len(taken)) - 1]

    wrong = tuple(sample.wrong for sample in samples if sample.wrong)
    return Figures(len(taken), quantile(0.5), quantile(0.99), taken[-1], wrong)


class SteadyClient:
    """Asks in each way, from some threads with a connection of their own, until it is left."""

    def __init__(self, address: str, rest_port: int) -> None:
        self._samples: dict[str, list[list[Sample]]] = {kind: [] for kind in PER_SECOND}
        self._address, self._rest_port = address, rest_port
        self._stopping = threading.Event()
        self._began_s = time.monotonic() + 0.1
        self._threads = []
        for kind, run in ((GRPC, self._by_grpc), (REST, self._by_rest), (COLD, self._cold)):
            for index in range(CLIENTS):
                self._samples[kind].append([])
                self._threads.append(threading.Thread(target=run, args=(index,), daemon=True))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(2 * DEADLINE_SECONDS)

    def watch(self, seconds: float) -> dict[str, Figures]:
        """Let it go on for a while; what came of the requests of that time, once they all have ended."""
        with self.watching() as figures:
            time.sleep(seconds)
        return figures

    @contextlib.contextmanager
    def watching(self) -> Iterator[dict[str, Figures]]:
        """The figures, filled in when the block has ended."""
        began_s = time.monotonic()
        figures: dict[str, Figures] = {}
        yield figures
        ended_s = time.monotonic()
        for kind in PER_SECOND:
            samples = self._until(kind, ended_s)
            figures[kind] = figures_of([sample for sample in samples if began_s <= sample.due_s < ended_s])

    def _until(self, kind: str, moment_s: float) -> list[Sample]:
        """All samples, once each client has one that was due after this moment: those before it have ended."""
        limit_s = time.monotonic() + 3 * DEADLINE_SECONDS
        for samples in self._samples[kind]:
            while not samples or samples[-1].due_s < moment_s:
                assert time.monotonic() < limit_s, f"{kind}: requests without any end"
                time.sleep(0.01)
        return [sample for samples in self._samples[kind] for sample in list(samples)]

    def _by_grpc(self, client: int) -> None:
        with channel_to(self._address) as channel:
            stub = stub_of(channel)

            def one(number: int) -> str:
                entry = ask(stub, MODEL, number, timeout=DEADLINE_SECONDS)
                return "" if entry.code is OK and entry.right else str(entry)

            self._ask_on(GRPC, client, one)

    def _by_rest(self, client: int) -> None:
        with contextlib.closing(RestClient(self._rest_port, DEADLINE_SECONDS)) as http:

            def one(number: int) -> str:
                entry = http.ask(MODEL, number)
                return "" if entry.right else str(entry)

            self._ask_on(REST, client, one)

    def _cold(self, client: int) -> None:
        with channel_to(self._address) as channel:
            stub = stub_of(channel)

            def one(_: int) -> str:
                try:
                    return (
                        "" if stub.ServerReady(pb.ServerReadyRequest(), timeout=DEADLINE_SECONDS).ready else "not ready"
                    )
                except grpc.RpcError as error:
                    return f"{error.code()}: {error.details()}"

            self._ask_on(COLD, client, one)

    def _ask_on(self, kind: str, client: int, one: Callable[[int], str]) -> None:
        number = client
        while not self._stopping.is_set():
            number += CLIENTS
            due_s = self._began_s + number / PER_SECOND[kind]
            self._stopping.wait(max(0.0, due_s - time.monotonic()))
            wrong = one(number)
            self._samples[kind][client].append(Sample(due_s, time.monotonic() - due_s, wrong))

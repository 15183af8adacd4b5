"""A request ledger: every request sent gets exactly one terminal status, and an answer shows whose it is.

All models used here answer total = the sum of each row and affine = 3 * counts + 7; each request's values are its own,
so that a lost, doubled, swapped or torn answer shows.
"""

import collections
import dataclasses
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

import grpc
import numpy as np

from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from nexus_grpc.pb.inference import grpc_service_pb2_grpc as services

OK, INTERNAL = grpc.StatusCode.OK, grpc.StatusCode.INTERNAL
UNAVAILABLE, CANCELLED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED
DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED = grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED
JOIN_SECONDS = 30.0

_OPTIONS = [
    # Each channel its own connection, and soon back after a server's restart.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 300),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]


@dataclasses.dataclass(frozen=True)
class Entry:
    """How one request ended. `right` is about the answer's content, and False without one."""

    number: int
    code: grpc.StatusCode
    right: bool
    sent_s: float
    seconds: float
    details: str = ""
    reason: str = ""


def channel_to(address: str) -> grpc.Channel:
    return grpc.insecure_channel(address, options=_OPTIONS)


def stub_of(channel: grpc.Channel) -> services.GRPCInferenceServiceStub:
    return services.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]


def rows_of(number: int, last: int) -> np.ndarray:
    """The values of request `number`: one to three rows of [unique, unique, unique, last]."""
    rows = [[number * 1_000_003 + row, -number * 31 - row, number << 20, last] for row in range(1 + number % 3)]
    return np.array(rows, np.int64)


def request_of(model: str, number: int, counts: np.ndarray) -> pb.ModelInferRequest:
    tensor = pb.ModelInferRequest.InferInputTensor(name="counts", datatype="INT64", shape=counts.shape)
    return pb.ModelInferRequest(
        model_name=model, id=str(number), inputs=[tensor], raw_input_contents=[counts.astype("<i8").tobytes()]
    )


def is_right(answer: pb.ModelInferResponse, number: int, counts: np.ndarray) -> bool:
    """Whether an answer is the one to this request, to the last bit."""
    expected = {"total": counts.sum(axis=1, keepdims=True), "affine": 3 * counts + 7}
    found = {
        tensor.name: np.frombuffer(content, "<i8").reshape(tensor.shape)
        for tensor, content in zip(answer.outputs, answer.raw_output_contents, strict=True)
    }
    same = [name in found and np.array_equal(found[name], array) for name, array in expected.items()]
    return answer.id == str(number) and len(found) == len(expected) and all(same)


def error_reason(error: grpc.RpcError) -> str:
    """google.rpc.ErrorInfo.reason of an error, empty when there is none."""
    from google.rpc import error_details_pb2, status_pb2

    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    return str(info.reason)
    return ""


def ask(
    stub: services.GRPCInferenceServiceStub,
    model: str,
    number: int,
    *,
    last: int = 0,
    counts: np.ndarray | None = None,
    timeout: float = 20.0,
) -> Entry:
    """Send one request and write down how it ended."""
    counts = rows_of(number, last) if counts is None else counts
    request = request_of(model, number, counts)
    sent_s = time.monotonic()
    try:
        answer = stub.ModelInfer(request, timeout=timeout)
    except grpc.RpcError as error:
        seconds = time.monotonic() - sent_s
        return Entry(number, error.code(), False, sent_s, seconds, error.details() or "", error_reason(error))
    seconds = time.monotonic() - sent_s
    return Entry(number, OK, is_right(answer, number, counts), sent_s, seconds)


def ask_all(address: str, model: str, numbers: range, *, last: int = 0, timeout: float = 20.0) -> list[Entry]:
    """Send requests at the same time, each from a thread of its own."""
    entries: list[Entry] = []
    with channel_to(address) as channel:
        stub = stub_of(channel)

        def one(number: int) -> None:
            entries.append(ask(stub, model, number, last=last, timeout=timeout))

        threads = [threading.Thread(target=one, args=(number,), daemon=True) for number in numbers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout + 5)
    assert sorted(entry.number for entry in entries) == list(numbers)
    return entries


class Ledger:
    """Clients that ask until told to stop. Use as a context manager; check() afterwards.

    Args:
        clients: how many requests are in flight.
        last: the last column of each row: how many turns `spin` and `slow` take, the divisor of `divide`.
        pause: seconds between an answer and the client's next request, so that tests share their machine.
    """

    def __init__(
        self,
        address: str,
        model: str = "counts_i64",
        *,
        clients: int = 16,
        last: int = 1,
        timeout: float = 20.0,
        pause: float = 0.005,
        channels: int = 4,
    ) -> None:
        self.entries: list[Entry] = []
        self._model, self._last, self._timeout, self._pause = model, last, timeout, pause
        self._numbers = itertools.count(1)
        self._sent: list[int] = []
        self._stopping = threading.Event()
        self._channels = [channel_to(address) for _ in range(channels)]
        self._threads = [threading.Thread(target=self._ask_on, args=(i,), daemon=True) for i in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _ask_on(self, client: int) -> None:
        stub = stub_of(self._channels[client % len(self._channels)])
        while not self._stopping.is_set():
            number = next(self._numbers)
            self._sent.append(number)
            self.entries.append(ask(stub, self._model, number, last=self._last, timeout=self._timeout))
            self._stopping.wait(self._pause)

    def stop(self) -> None:
        """Ask no more and wait for the answers that are due."""
        self._stopping.set()
        deadline = time.monotonic() + JOIN_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        for channel in self._channels:
            channel.close()
        assert not any(thread.is_alive() for thread in self._threads), "requests without any terminal status"

    def wait_for(self, count: int, seconds: float = 20.0) -> None:
        """Until so many more requests have succeeded: load goes on."""
        target = self.succeeded() + count
        wait_until(lambda: self.succeeded() >= target, seconds, f"{count} more successes")

    def succeeded(self) -> int:
        return sum(entry.code is OK for entry in list(self.entries))

    def others(self) -> list[Entry]:
        """Those that did not succeed."""
        return [entry for entry in self.entries if entry.code is not OK]

    def check(self, *allowed: grpc.StatusCode) -> None:
        """Each request has one status, OK or one of `allowed`, and each answer is right."""
        assert sorted(entry.number for entry in self.entries) == sorted(self._sent)
        assert len(set(self._sent)) == len(self._sent)
        wrong = [entry for entry in self.entries if entry.code is OK and not entry.right]
        assert not wrong, f"wrong answers: {wrong[:5]}"
        failed = [entry for entry in self.others() if entry.code not in allowed]
        counts = collections.Counter(entry.code for entry in self.entries)
        assert not failed, f"{counts}: {failed[:5]}"
        assert self.succeeded(), "nothing succeeded at all"


def poll(seconds: float, interval: float = 0.02) -> Iterator[None]:
    """Turns of a loop until time is up."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield
        time.sleep(interval)


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> float:
    """Until condition() is true; returns the seconds that took. Fails when time is up."""
    started_s = time.monotonic()
    for _ in poll(seconds):
        if condition():
            return time.monotonic() - started_s
    raise AssertionError(f"not within {seconds} s: {what}")

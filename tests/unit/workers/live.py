"""A whole worker inside the test: the real Worker on threads of its own, the supervisor's end of its control channel
and a front's end of its rings. Its models are real ONNX Runtime sessions."""

import contextlib
import dataclasses
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from nexus_grpc.front.link import WorkerLink
from nexus_grpc.ipc.control import ChannelClosed, ControlChannel, encode_frame
from nexus_grpc.ipc.oversize import new_side_sockets
from nexus_grpc.ipc.record import BLAME_SHIFT, Blame, Method
from nexus_grpc.ipc.ring import new_bell
from nexus_grpc.ipc.segment import create_segment
from nexus_grpc.ipc.snapshots import ModelSnapshot
from nexus_grpc.ipc.stats import PageKind, create_page, open_page, read_model
from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from nexus_grpc.worker.model import Model, Run
from nexus_grpc.worker.tensors import Array
from nexus_grpc.worker.worker import Worker
from tests.unit.support import POLICY, RING_BYTES, Graph, RecordedFlight

FLOAT = TensorProto.FLOAT
WAIT_S = 20.0


def times(folder: Path, factor: float, columns: int = 2) -> str:
    """y = x × factor, [batch, columns]: an answer says which model it is of."""
    constant = helper.make_tensor("k", FLOAT, [1], [factor])
    shape: list[int | str] = ["batch", columns]
    graph = Graph(
        [helper.make_node("Mul", ["x", "k"], ["y"])], [("x", FLOAT, shape)], [("y", FLOAT, shape)], [constant]
    )
    folder.mkdir(parents=True, exist_ok=True)
    return graph.save(folder)


def wait_for(condition: Callable[[], Any]) -> Any:
    """Until it is true; what it gave."""
    deadline = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {WAIT_S} s"
        time.sleep(0.001)
    return found


@dataclasses.dataclass(frozen=True)
class Answer:
    """A ModelInfer answer, or (code, message) of an error."""

    values: list[list[float]]
    variant: str
    code: int = 0
    message: str = ""
    blame: Blame = Blame.NOBODY


class LiveWorker:
    """`report()` is the next message to the supervisor; requests go through ask(), or send_row() and answers()."""

    def __init__(self) -> None:
        self._blames: dict[int, Blame] = {}
        page = create_page(PageKind.WORKER)
        self.page = open_page(page)
        self._bell, self._front_bell = new_bell(), new_bell()
        self._socket, its_socket = socket.socketpair()
        self._socket.settimeout(WAIT_S)
        self._its_socket = its_socket
        self._channel = ControlChannel(self._socket)
        self._worker = Worker(ControlChannel(its_socket), {"generation": 1, "cpus": [0]}, [page, self._bell])
        self.loop = self._worker._loop
        self._threads = [
            threading.Thread(target=_until_closed, args=(work,), daemon=True)
            for work in (self._worker.run, self._worker.control)
        ]
        loader = threading.Thread(target=_until_closed, args=(self._worker.load_gently,), daemon=True)
        for thread in (*self._threads, loader):
            thread.start()
        assert self.report()["type"] == "started"
        self._attach()

    def _attach(self) -> None:
        segment = create_segment(RING_BYTES, 1)
        mine, its = new_side_sockets()
        frame = encode_frame({"type": "attach", "worker": 0, "front": 0, "generation": 1}, 3)
        passed = [os.dup(segment), os.dup(self._front_bell), its.detach()]
        socket.send_fds(self._socket, [frame], passed)
        for descriptor in passed:
            os.close(descriptor)
        self._link = WorkerLink(0, 1, segment, os.dup(self._bell), mine.detach(), 1000)

    def close(self) -> None:
        self.tell("detach", front=0)
        self.tell("stop")
        self._threads[0].join(WAIT_S)
        self._link.close()
        self._socket.shutdown(socket.SHUT_RDWR)
        self._threads[1].join(WAIT_S)
        for end in (self._socket, self._its_socket):
            end.close()
        for bell in (self._bell, self._front_bell):
            os.close(bell)
        assert not any(thread.is_alive() for thread in self._threads)

    # --- the supervisor's side ---

    def tell(self, kind: str, **fields: Any) -> None:
        self._channel.send({"type": kind, **fields})

    def report(self) -> dict[str, Any]:
        return self._channel.receive()[0]

    def load(
        self,
        slot: int,
        path: str,
        incarnation: int = 0,
        max_batch_size: int = 16,
        sample_runs: bool = False,
        **policy: Any,
    ) -> dict[str, Any]:
        """Load version `slot` of model m; what the worker reports."""
        self.tell(
            "load",
            slot=slot,
            incarnation=incarnation,
            name="m",
            version=str(slot),
            path=path,
            config=None,
            policy=POLICY | policy,
            labels={},
            warmup_files={},
            default_max_batch_size=max_batch_size,
            sample_runs=sample_runs,
        )
        return self.report()

    def alias(self, slot: int, of: int, variant: str = "B", incarnation: int = 0) -> dict[str, Any]:
        self.tell("alias", slot=slot, of=of, variant=variant, incarnation=incarnation)
        return self.report()

    def unload(self, slot: int) -> dict[str, Any]:
        self.tell("unload", slot=slot)
        return self.report()

    def shadow(self, slot: int, candidate: int, basis_points: int = 10_000) -> None:
        """Returns when the worker has obeyed."""
        self.tell("shadow", slot=slot, candidate=candidate, basis_points=basis_points)
        self.unload(255)  # is answered after it, and empties nothing

    def gate(self, slot: int) -> "Gate":
        """From now on the model's runs wait to be let through."""
        model = self.model(slot)
        model.run = gate = Gate(model.run)
        return gate

    def model(self, slot: int) -> Model:
        model = self.loop.batcher.model_of(slot)
        assert model is not None
        return model

    def counts(self, slot: int) -> ModelSnapshot:
        return read_model(self.page, slot)

    def wait_counts(self, slot: int, condition: Callable[[ModelSnapshot], bool]) -> ModelSnapshot:
        """The slot's counts once they are as wanted (a worker writes them when it has nothing better to do)."""
        wait_for(lambda: condition(self.counts(slot)))
        return self.counts(slot)

    # --- the front's side ---

    def send_row(self, slot: int, *row: float, version: str = "") -> RecordedFlight:
        request = pb.ModelInferRequest(model_name="m", model_version=version)
        request.inputs.add(name="x", datatype="FP32", shape=[1, len(row)])
        request.raw_input_contents.append(np.array(row, "<f4").tobytes())
        flight = RecordedFlight(request.SerializeToString(), 0, time.monotonic_ns(), Method.MODEL_INFER)
        flight.slot = slot
        assert self._link.send_nowait(flight)
        return flight

    def take_answers(self) -> None:
        """Give the flights what has come for them."""
        for (_, code, flags, message_length, sequence), payload in self._link.responses.poll_nowait(1000):
            flight = self._link.take(sequence)
            self._blames[id(flight)] = Blame(flags >> BLAME_SHIFT)
            if code:
                flight.fail(code, payload[:message_length].decode(), payload[message_length:])
            else:
                flight.succeed(payload)

    def answer(self, flight: RecordedFlight) -> Answer:
        def arrived() -> bool:
            self.take_answers()
            return bool(flight.outcomes)

        wait_for(arrived)
        [(code, message, payload)] = flight.outcomes
        if code:
            return Answer([], "", code, message, self._blames[id(flight)])
        response = pb.ModelInferResponse.FromString(payload)
        values = np.frombuffer(response.raw_output_contents[0], "<f4").reshape(response.outputs[0].shape)
        return Answer(values.tolist(), response.parameters["nexus_variant"].string_param)

    def ask(self, slot: int, *row: float, version: str = "") -> Answer:
        return self.answer(self.send_row(slot, *row, version=version))


class Gate:
    """Lets a model's runs through one by one."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._entered, self._permits = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, feeds: dict[str, Array], oversize: bool) -> list[Array]:
        self._entered.release()
        assert self._permits.acquire(timeout=WAIT_S)
        return self._run(feeds, oversize)

    def wait_entered(self) -> None:
        """Until the next run stands before the gate."""
        assert self._entered.acquire(timeout=WAIT_S)

    def let_through(self, count: int) -> None:
        self._permits.release(count)


def _until_closed(work: Callable[[], None]) -> None:
    with contextlib.suppress(ChannelClosed):
        work()


@pytest.fixture
def worker() -> Iterator[LiveWorker]:
    live = LiveWorker()
    yield live
    live.close()

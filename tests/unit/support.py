"""What the unit, property and fuzz tests share: real rings between a front's and a worker's end, tiny models."""

import dataclasses
import gc
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from nexus_grpc.front.flight import Flight
from nexus_grpc.front.link import WorkerLink
from nexus_grpc.ipc import segment
from nexus_grpc.ipc.oversize import new_side_sockets
from nexus_grpc.ipc.record import REQUEST_HEADER
from nexus_grpc.ipc.ring import RingConsumer, RingProducer, new_bell
from nexus_grpc.pb.inference import model_config_pb2 as config_pb
from nexus_grpc.worker.link import FrontLink
from nexus_grpc.worker.loader import LoadOrder
from nexus_grpc.worker.model import Model, QueuePolicy, TensorSpec
from nexus_grpc.worker.requests import Request
from nexus_grpc.worker.tensors import BY_NAME, Array

ROOT = Path(__file__).resolve().parents[2]
RING_BYTES = 64 << 10
REQUEST_WORDS = {
    "published": segment.REQUEST_PUBLISHED_WORD,
    "released": segment.REQUEST_RELEASED_WORD,
    "parked": segment.REQUEST_PARKED_WORD,
}


def open_descriptors() -> set[str]:
    """The numbers of this process's open file descriptors, once they have settled.

    gRPC's core closes what earlier tests opened from threads of its own, at a time of its own.
    """
    gc.collect()  # what earlier tests left must not be closed between two looks
    found = _listed_descriptors()
    for _ in range(100):
        time.sleep(0.01)
        before, found = found, _listed_descriptors()
        if before == found:
            break
    return found


def _listed_descriptors() -> set[str]:
    found = os.listdir("/proc/self/fd")
    return {number for number in found if os.path.lexists(f"/proc/self/fd/{number}")}


def drain_bell(bell: int) -> int:
    """How often a doorbell was rung since the last look."""
    try:
        return os.eventfd_read(bell)
    except BlockingIOError:
        return 0


def ring_ends(mapped: segment.Segment, bell: int = -1) -> tuple[RingProducer, RingConsumer]:
    """Both ends of a segment's request ring."""
    producer = RingProducer(mapped.words, mapped.request, bell=bell, **REQUEST_WORDS)
    return producer, RingConsumer(mapped.words, mapped.request, REQUEST_HEADER, **REQUEST_WORDS)


def new_segment(ring_bytes: int, generation: int = 0) -> segment.Segment:
    """A fresh segment, mapped; its memory goes with the mapping."""
    descriptor = segment.create_segment(ring_bytes, generation)
    try:
        return segment.map_segment(descriptor)
    finally:
        os.close(descriptor)


class Pair:
    """A front's link to a worker and the worker's link to that front, as the supervisor joins them."""

    def __init__(
        self, worker: int = 0, generation: int = 0, ring_bytes: int = RING_BYTES, in_flight_max: int = 1000
    ) -> None:
        descriptor = segment.create_segment(ring_bytes, generation)
        self.words = segment.map_segment(descriptor).words
        self.front_bell, self.worker_bell = new_bell(), new_bell()
        front_side, worker_side = new_side_sockets()
        self.back = FrontLink(0, os.dup(descriptor), os.dup(self.front_bell), worker_side.detach())
        self.front = WorkerLink(
            worker, generation, descriptor, os.dup(self.worker_bell), front_side.detach(), in_flight_max
        )

    def requests(self) -> list[tuple[tuple[int, ...], bytes]]:
        """What the front has sent since the last look."""
        return self.back.requests.poll_nowait(1000)

    def sequences(self) -> list[int]:
        return [fields[4] for fields, _ in self.requests()]

    def reply(self, sequence: int, payload: bytes) -> None:
        self.back.reply(sequence, payload)
        self.back.publish()


class RecordedFlight(Flight):
    """A flight that writes down how it ended."""

    __slots__ = ("address", "outcomes", "watches")

    def __init__(self, message: bytes = b"", deadline_ns: int = 0, arrived_ns: int = 0, method: int = 0) -> None:
        super().__init__(method, b"an-id", deadline_ns, arrived_ns)
        self.address = "ipv4:127.0.0.1:5000"
        self.message = message
        self.outcomes: list[tuple[int, str, bytes]] = []
        self.watches = 0

    def succeed(self, payload: bytes) -> None:
        self.outcomes.append((0, "", payload))

    def fail(self, code: int, message: str, details: bytes) -> None:
        self.outcomes.append((code, message, details))

    def peer(self) -> str:
        return self.address

    def watch(self) -> None:
        self.watches += 1

    @property
    def code(self) -> int | None:
        """The status it ended with; None while it is in flight."""
        return self.outcomes[0][0] if self.outcomes else None


def entry(
    name: str,
    version: str = "1",
    slot: int = 1,
    state: str = "READY",
    reason: str = "",
    workers: Sequence[int] = (0,),
) -> dict[str, Any]:
    """One model version of the catalogue that the supervisor sends to fronts."""
    return {
        "name": name,
        "version": version,
        "slot": slot,
        "state": state,
        "reason": reason,
        "workers": list(workers),
        "metadata": "",
        "config": "",
    }


def spec(name: str, datatype: str, *shape: int, optional: bool = False) -> TensorSpec:
    return TensorSpec(name, BY_NAME[datatype], shape, optional)


def refuse_to_run(feeds: dict[str, Array], oversize: bool) -> list[Array]:
    raise AssertionError("this model is not run")


def model_of(
    *inputs: TensorSpec,
    outputs: Sequence[TensorSpec] = (),
    max_batch_size: int = 8,
    strict: bool = False,
    name: str = "m",
    slot: int = 1,
    queue: QueuePolicy | None = None,
) -> Model:
    """A Model without a session."""
    return Model(
        slot=slot,
        name=name,
        version="1",
        inputs=inputs or (spec("x", "FP32", -1, 2),),
        outputs=tuple(outputs) or (spec("y", "FP32", -1, 2),),
        max_batch_size=max_batch_size,
        batch_limit_is_strict=strict,
        queue=queue or QueuePolicy(),
        run=refuse_to_run,
    )


def waiting_request(
    sequence: int, rows: int = 1, signature: Any = (("x", (2,)),), isolated: bool = False, arrived_ns: int = 0
) -> Request:
    """A decoded request as the batcher sees it."""
    request = Request(None, sequence, 0, arrived_ns, b"")
    request.rows, request.signature, request.isolated = rows, signature, isolated
    return request


# --- ONNX models ---


@dataclasses.dataclass(frozen=True, slots=True)
class Graph:
    """A graph to be written: values are (name, TensorProto type, shape)."""

    nodes: Sequence[onnx.NodeProto]
    inputs: Sequence[tuple[str, int, Sequence[int | str] | None]]
    outputs: Sequence[tuple[str, int, Sequence[int | str] | None]]
    constants: Iterable[onnx.TensorProto] = ()

    def save(self, folder: Path) -> str:
        """Write it as model.onnx and return the path."""
        values = [
            [
                helper.make_tensor_value_info(name, kind, None if shape is None else list(shape))
                for name, kind, shape in tensors
            ]
            for tensors in (self.inputs, self.outputs)
        ]
        graph = helper.make_graph(self.nodes, "g", *values, initializer=list(self.constants))
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
        path = folder / "model.onnx"
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
        return str(path)


def one_node(
    operator: str, kind: int = TensorProto.FLOAT, columns: int = 2, domain: str = "", **attributes: Any
) -> Graph:
    """x [batch, columns] → operator → y, of the same type and shape."""
    node = helper.make_node(operator, ["x"], ["y"], domain=domain, **attributes)
    return Graph([node], [("x", kind, ["batch", columns])], [("y", kind, ["batch", columns])])


POLICY: dict[str, Any] = {
    "max_queue_delay_ns": 0,
    "preferred_batch_sizes": (),
    "max_queue_size": 0,
    "priority_levels": 0,
    "default_priority": 0,
    "default_timeout_ns": 0,
    "allow_timeout_override": False,
    "session": {},
}


def load_order(path: str, config: config_pb.ModelConfig | None = None, **changes: Any) -> LoadOrder:
    """An order for slot 1, version 1 of model `m`, one core, batches of up to 16 rows."""
    order = LoadOrder(
        slot=1,
        name="m",
        version="1",
        path=path,
        config=config,
        policy=POLICY,
        labels={},
        warmup_files={},
        default_max_batch_size=16,
        cores=1,
    )
    return dataclasses.replace(order, **changes)


def floats(*rows: Sequence[float]) -> Array:
    return np.array(rows, dtype=np.float32)

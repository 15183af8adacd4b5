"""A request inside a worker: what was asked, decoded, and how its answer is to look."""

from typing import Any, Protocol

from .results import BatchResult
from .tensors import Piece

# Per model input: (dtype name, shape without the batch dimension). Requests with equal signatures share a batch.
Signature = tuple[tuple[str, tuple[int, ...]], ...]


class Timings:
    """Stage times of one request's batch, in microseconds, for `nexus_timing`."""

    __slots__ = ("batch_size", "infer_us", "queue_us", "total_us")

    def __init__(self, queue_us: int, batch_size: int, infer_us: int, total_us: int) -> None:
        self.queue_us = queue_us
        self.batch_size = batch_size
        self.infer_us = infer_us
        self.total_us = total_us


class Clock:
    """When a batch started, was assembled, inferred and answered (CLOCK_MONOTONIC nanoseconds)."""

    __slots__ = ("answered_ns", "assembled_ns", "inferred_ns", "started_ns")

    def __init__(self, started_ns: int, assembled_ns: int, inferred_ns: int) -> None:
        self.started_ns = started_ns
        self.assembled_ns = assembled_ns
        self.inferred_ns = inferred_ns
        self.answered_ns = inferred_ns

    @property
    def assembly_ns(self) -> int:
        return self.assembled_ns - self.started_ns

    @property
    def inference_ns(self) -> int:
        return self.inferred_ns - self.assembled_ns

    @property
    def output_ns(self) -> int:
        return self.answered_ns - self.inferred_ns

    def timings(self, arrived_ns: int, batch_size: int) -> Timings:
        """As one of the batch's requests saw them."""
        return Timings(
            (self.started_ns - arrived_ns) // 1000,
            batch_size,
            (self.inferred_ns - self.assembled_ns) // 1000,
            (self.inferred_ns - arrived_ns) // 1000,
        )


class Form(Protocol):
    """How an answer is to look: built by a decoder, shared by all requests that match one template."""

    def pieces(self, tensors: list[bytes]) -> list[Piece]:
        """The tensor fields of a message that matched the template, as pieces. Raises InvalidInput."""

    def encode(self, result: BatchResult, first: int, last: int, timings: Timings, request_id: bytes) -> bytes:
        """The serialised answer for rows first…last of the batch."""

    def encode_all(self, result: BatchResult, count: int) -> list[bytes] | None:
        """The answers to a batch of `count` requests, all of this form; None when they must be encoded one by one."""


class Decoded:
    """What a decoder makes of a message.

    `templatable`: the message's tensor fields stand in the order of `pieces`, one field each.
    """

    __slots__ = ("form", "pieces", "priority", "rows", "signature", "templatable", "timeout_ns")

    def __init__(
        self,
        signature: Signature,
        rows: int,
        pieces: list[Piece],
        form: Form,
        templatable: bool,
        timeout_ns: int = 0,
    ) -> None:
        self.signature = signature
        self.rows = rows
        self.pieces = pieces
        self.form = form
        self.templatable = templatable
        self.timeout_ns = timeout_ns
        # Its level in the model's queue, where that has levels: 1 goes first.
        self.priority = 0


class Request:
    """One record, decoded, waiting for its batch. Times are CLOCK_MONOTONIC nanoseconds, 0 = no deadline."""

    __slots__ = (
        "arrived_ns",
        "deadline_ns",
        "form",
        "isolated",
        "link",
        "oversize",
        "pieces",
        "priority",
        "request_id",
        "rows",
        "sequence",
        "signature",
    )

    def __init__(self, link: Any, sequence: int, deadline_ns: int, arrived_ns: int, request_id: bytes) -> None:
        self.link = link
        self.sequence = sequence
        self.deadline_ns = deadline_ns
        self.arrived_ns = arrived_ns
        self.request_id = request_id
        self.isolated = False
        self.oversize = False
        self.priority = 0
        self.signature: Signature = ()
        self.rows = 0
        self.pieces: list[Piece] = []
        self.form: Any = None

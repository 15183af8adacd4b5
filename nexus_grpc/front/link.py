"""A front's side of one worker: rings, side socket, cancel table, and the flights that wait for its answers."""

import mmap
import os
import socket

from nexus_grpc.front.flight import Flight
from nexus_grpc.ipc.ends import request_producer, response_consumer
from nexus_grpc.ipc.oversize import hand_over_nowait, take_over
from nexus_grpc.ipc.record import (
    ALIGNMENT,
    ISOLATED,
    OVERSIZE,
    REQUEST_HEADER,
    REQUEST_HEADER_BYTES,
    REQUEST_ID_MAX_BYTES,
)
from nexus_grpc.ipc.segment import (
    CANCELLED_WORD,
    EXECUTING_COUNT_WORD,
    EXECUTING_WORD,
    RESPONSE_PUBLISHED_WORD,
    RESPONSE_RELEASED_WORD,
    TABLE_ENTRIES,
    map_segment,
)
from nexus_grpc.limits.admission import Admission

_pack_header = REQUEST_HEADER.pack_into
# Where WorkerLink.answer_words has the two cursors of the response ring.
ANSWERS_PUBLISHED, ANSWERS_RELEASED = 0, RESPONSE_RELEASED_WORD - RESPONSE_PUBLISHED_WORD


class WorkerLink:
    """Used by whoever holds the dispatcher's turn, so that the rings have one producer and one consumer."""

    def __init__(
        self,
        worker: int,
        generation: int,
        segment_fd: int,
        bell: int,
        side_fd: int,
        in_flight_max: int,
        admission: Admission | None = None,
    ) -> None:
        segment = map_segment(segment_fd)
        os.close(segment_fd)
        self.worker = worker
        self.generation = generation
        # Its first and its last word tell whether there are answers (see ANSWERS_PUBLISHED).
        self.answer_words = segment.words[RESPONSE_PUBLISHED_WORD : RESPONSE_RELEASED_WORD + 1]
        self.flights: dict[int, Flight] = {}
        self.admission = admission or Admission(0)
        self._bell = bell
        self._side = socket.socket(fileno=side_fd)
        self._words = segment.words
        self._sequence = 0
        self._in_flight_max = in_flight_max
        self._requests = request_producer(segment, bell)
        # Larger messages travel by memfd.
        self.message_inline_max = self._requests.inline_max - REQUEST_HEADER_BYTES - REQUEST_ID_MAX_BYTES
        self.responses = response_consumer(segment)

    def close(self) -> None:
        self._side.close()
        os.close(self._bell)

    def send_nowait(self, flight: Flight) -> bool:
        """Put a flight's record into the ring. False when the worker has all it may have; nothing is changed then."""
        flights = self.flights
        if len(flights) >= self._in_flight_max:
            return False
        content = request_id = flight.request_id
        flags = ISOLATED if flight.strikes else 0
        message = flight.message
        if len(message) <= self.message_inline_max:
            content = request_id + message
        elif self._hand_over(request_id, message):
            flags |= OVERSIZE
        else:
            return False
        ring = self._requests
        length = len(content)
        position = ring.claim_nowait(REQUEST_HEADER_BYTES + length)
        if position < 0:
            return False
        self._sequence = flight.sequence = sequence = self._sequence + 1
        payload = ring.payload
        _pack_header(
            payload, position, length, flight.method, flags, len(request_id), sequence,
            flight.deadline_ns, flight.arrived_ns, flight.slot, 0,
        )  # fmt: skip
        start = position + REQUEST_HEADER_BYTES
        payload[start : start + length] = content
        flight.link = self
        flights[sequence] = flight
        self.admission.backlog.sent(flight.slot, flight.arrived_ns)
        ring.publish_and_wake()
        return True

    def take(self, sequence: int) -> Flight | None:
        """The request of this sequence, which is no longer the worker's; None when it is not, or no more."""
        flight = self.flights.pop(sequence, None)
        if flight is not None:
            self.admission.backlog.gone(flight.slot)
        return flight

    def _hand_over(self, request_id: bytes, message: bytes) -> bool:
        """Send a large message ahead of its record, if there is room for the record."""
        if self._requests.free_bytes() < REQUEST_HEADER_BYTES + len(request_id) + ALIGNMENT:
            return False
        return hand_over_nowait(self._side, self._sequence + 1, (message,))

    def take_oversize(self, sequence: int) -> mmap.mmap:
        """The answer announced by an OVERSIZE record. Raises HandOverError."""
        return take_over(self._side, sequence)

    def mark_cancelled(self, sequence: int) -> None:
        """Tell the worker to skip a queued request."""
        self._words[CANCELLED_WORD + sequence % TABLE_ENTRIES] = sequence

    def executing(self) -> set[int]:
        """The sequences the worker was running (read after its death)."""
        count = min(int(self._words[EXECUTING_COUNT_WORD]), TABLE_ENTRIES)
        return set(self._words[EXECUTING_WORD : EXECUTING_WORD + count].tolist())

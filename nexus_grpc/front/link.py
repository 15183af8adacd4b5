"""A front's side of one worker: rings, side socket, cancel table, and the flights that wait for its answers."""

import mmap
import os
import socket
import threading

from nexus_grpc.front.flight import Flight
from nexus_grpc.ipc.oversize import hand_over_nowait, take_over
from nexus_grpc.ipc.record import ISOLATED, OVERSIZE, REQUEST_HEADER, REQUEST_HEADER_BYTES, RESPONSE_HEADER
from nexus_grpc.ipc.ring import RingConsumer, RingProducer
from nexus_grpc.ipc.segment import (
    CANCELLED_WORD,
    EXECUTING_COUNT_WORD,
    EXECUTING_WORD,
    REQUEST_PARKED_WORD,
    REQUEST_PUBLISHED_WORD,
    REQUEST_RELEASED_WORD,
    RESPONSE_PARKED_WORD,
    RESPONSE_PUBLISHED_WORD,
    RESPONSE_RELEASED_WORD,
    TABLE_ENTRIES,
    map_segment,
)


class WorkerLink:
    """Any thread may send; only the egress thread takes answers.

    `lock` makes the sending threads one producer, and its release is the fence between publish and wake (ring.py).
    """

    def __init__(
        self, worker: int, generation: int, segment_fd: int, bell: int, side_fd: int, in_flight_max: int
    ) -> None:
        segment = map_segment(segment_fd)
        os.close(segment_fd)
        self.worker = worker
        self.generation = generation
        self.retired = False
        self.flights: dict[int, Flight] = {}
        self._bell = bell
        self._side = socket.socket(fileno=side_fd)
        self._words = segment.words
        self._lock = threading.Lock()
        self._sequence = 0
        self._in_flight_max = in_flight_max
        self._requests = RingProducer(
            segment.words,
            segment.request,
            published=REQUEST_PUBLISHED_WORD,
            released=REQUEST_RELEASED_WORD,
            parked=REQUEST_PARKED_WORD,
            bell=bell,
        )
        self.responses = RingConsumer(
            segment.words,
            segment.response,
            RESPONSE_HEADER,
            published=RESPONSE_PUBLISHED_WORD,
            released=RESPONSE_RELEASED_WORD,
            parked=RESPONSE_PARKED_WORD,
        )

    def retire(self) -> list[Flight]:
        """Take no more requests; return those that are unanswered. close() must wait until no thread can be sending."""
        with self._lock:
            self.retired = True
            flights = list(self.flights.values())
            self.flights.clear()
        return flights

    def close(self) -> None:
        self._side.close()
        os.close(self._bell)

    def send_nowait(self, flight: Flight) -> bool:
        """Put a flight's record into the ring. False when the worker has all it may have; nothing is changed then."""
        message = flight.message
        request_id = flight.request_id.encode()
        ring = self._requests
        with self._lock:
            if self.retired or len(self.flights) >= self._in_flight_max:
                return False
            sequence = self._sequence + 1
            length = len(request_id) + len(message)
            flags = ISOLATED if flight.strikes else 0
            if REQUEST_HEADER_BYTES + length > ring.inline_max:
                return self._send_oversize(flight, request_id, sequence, flags)
            position = ring.claim_nowait(REQUEST_HEADER_BYTES + length)
            if position < 0:
                return False
            self._write_header(position, length, flight, len(request_id), sequence, flags)
            start = position + REQUEST_HEADER_BYTES
            ring.payload[start : start + length] = request_id + message
            self._publish(flight, sequence)
        ring.wake()
        return True

    def _send_oversize(self, flight: Flight, request_id: bytes, sequence: int, flags: int) -> bool:
        ring = self._requests
        length = len(request_id)
        if ring.free_bytes() < 2 * (REQUEST_HEADER_BYTES + length):
            return False
        if not hand_over_nowait(self._side, sequence, (flight.message,)):
            return False
        position = ring.claim_nowait(REQUEST_HEADER_BYTES + length)
        assert position >= 0, "room was checked under the lock"
        self._write_header(position, length, flight, length, sequence, flags | OVERSIZE)
        start = position + REQUEST_HEADER_BYTES
        ring.payload[start : start + length] = request_id
        self._publish(flight, sequence)
        ring.wake()
        return True

    def _write_header(self, position: int, length: int, flight: Flight, id_length: int, sequence: int, flags: int) -> None:
        REQUEST_HEADER.pack_into(
            self._requests.payload,
            position,
            length,
            flight.method,
            flags,
            id_length,
            sequence,
            flight.deadline_ns,
            flight.arrived_ns,
            flight.slot,
            0,
        )

    def _publish(self, flight: Flight, sequence: int) -> None:
        """The flight must be known before its answer can come."""
        self._sequence = sequence
        flight.sequence = sequence
        flight.link = self
        self.flights[sequence] = flight
        self._requests.publish()

    def is_oversize(self, message_bytes: int) -> bool:
        """Whether a message of this size travels by memfd."""
        return message_bytes + REQUEST_HEADER_BYTES + 256 > self._requests.inline_max

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

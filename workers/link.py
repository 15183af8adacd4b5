"""A worker's side of one front: rings, side socket, executing table, and replies that found the ring full."""

import array
import collections
import mmap
import os
import socket

from nexus_grpc.ipc.ends import request_consumer, response_producer
from nexus_grpc.ipc.errors import Code, NexusError, Overloaded
from nexus_grpc.ipc.oversize import HandOverError, hand_over_nowait, take_over
from nexus_grpc.ipc.record import (
    BLAME_SHIFT,
    ERROR_MESSAGE_MAX_BYTES,
    OVERSIZE,
    RESPONSE_HEADER,
    RESPONSE_HEADER_BYTES,
)
from nexus_grpc.ipc.rich_errors import status_bytes
from nexus_grpc.ipc.segment import (
    CANCELLED_WORD,
    EXECUTING_COUNT_WORD,
    EXECUTING_WORD,
    TABLE_ENTRIES,
    map_segment,
)

Reply = tuple[int, int, int, bytes, int]


class FrontLink:
    """Owned by the worker's loop thread. `bell` is the front's doorbell."""

    def __init__(self, front: int, segment_fd: int, bell: int, side_fd: int) -> None:
        segment = map_segment(segment_fd)
        os.close(segment_fd)
        self.front = front
        self._bell = bell
        self._side = socket.socket(fileno=side_fd)
        self._words = segment.words
        self._cancelled = segment.words[CANCELLED_WORD : CANCELLED_WORD + TABLE_ENTRIES]
        self.requests = request_consumer(segment)
        self._responses = response_producer(segment, bell)
        self._waiting: collections.deque[Reply] = collections.deque()
        self.unpublished = False

    def close(self) -> None:
        self._side.close()
        os.close(self._bell)

    @property
    def has_waiting(self) -> bool:
        """Whether replies wait for room in the ring."""
        return bool(self._waiting)

    def occupancy_bytes(self) -> tuple[int, int]:
        """Bytes in the request ring and in the response ring."""
        return self.requests.occupancy_bytes(), self._responses.occupancy_bytes()

    def take_oversize(self, sequence: int) -> mmap.mmap:
        """The message announced by an OVERSIZE record. Raises HandOverError."""
        return take_over(self._side, sequence)

    def is_cancelled(self, sequence: int) -> bool:
        """Whether the front wants no answer to it any more."""
        return self._cancelled[sequence % TABLE_ENTRIES] == sequence

    def mark_executing(self, sequences: list[int]) -> None:
        """Write down what is about to run, so that the front knows what a crash may be blamed on."""
        words, count = self._words, len(sequences)
        words[EXECUTING_WORD : EXECUTING_WORD + count] = memoryview(array.array("Q", sequences))
        words[EXECUTING_COUNT_WORD] = count

    def clear_executing(self) -> None:
        self._words[EXECUTING_COUNT_WORD] = 0

    def reply(self, sequence: int, payload: bytes) -> None:
        """Queue an answer; publish() makes it visible."""
        self._send(sequence, int(Code.OK), 0, payload, 0)

    def reply_all(self, sequences: list[int], payloads: list[bytes]) -> None:
        """reply() to many."""
        ring, room_max = self._responses, self._responses.inline_max - RESPONSE_HEADER_BYTES
        claim, content, pack_into = ring.claim_nowait, ring.payload, RESPONSE_HEADER.pack_into
        self.unpublished = True
        for sequence, payload in zip(sequences, payloads, strict=True):
            length = len(payload)
            position = -1 if length > room_max or self._waiting else claim(RESPONSE_HEADER_BYTES + length)
            if position < 0:
                self._send(sequence, 0, 0, payload, 0)
            else:
                pack_into(content, position, length, 0, 0, 0, sequence)
                start = position + RESPONSE_HEADER_BYTES
                content[start : start + length] = payload

    def reply_error(self, sequence: int, error: NexusError) -> None:
        message = error.message.encode("utf-8", "replace")[:ERROR_MESSAGE_MAX_BYTES]
        flags = int(error.blame) << BLAME_SHIFT
        self._send(sequence, int(error.code), flags, message + status_bytes(error), len(message))

    def _send(self, sequence: int, code: int, flags: int, payload: bytes, message_length: int) -> None:
        if self._waiting or not self._put(sequence, code, flags, payload, message_length):
            self._waiting.append((sequence, code, flags, payload, message_length))

    def _put(self, sequence: int, code: int, flags: int, payload: bytes, message_length: int) -> bool:
        ring = self._responses
        length = len(payload)
        if RESPONSE_HEADER_BYTES + length > ring.inline_max:
            return self._put_oversize(sequence, code, flags, payload, message_length)
        position = ring.claim_nowait(RESPONSE_HEADER_BYTES + length)
        if position < 0:
            return False
        RESPONSE_HEADER.pack_into(ring.payload, position, length, code, flags, message_length, sequence)
        start = position + RESPONSE_HEADER_BYTES
        ring.payload[start : start + length] = payload
        self.unpublished = True
        return True

    def _put_oversize(self, sequence: int, code: int, flags: int, payload: bytes, message_length: int) -> bool:
        ring = self._responses
        position = ring.claim_nowait(RESPONSE_HEADER_BYTES)
        if position < 0:
            return False
        # The room is claimed and must be filled: an answer that cannot be handed over becomes an error.
        if hand_over_nowait(self._side, sequence, (payload,)):
            RESPONSE_HEADER.pack_into(ring.payload, position, 0, code, OVERSIZE | flags, message_length, sequence)
        else:
            RESPONSE_HEADER.pack_into(ring.payload, position, 0, int(Overloaded.code), 0, 0, sequence)
        self.unpublished = True
        return True

    def publish(self) -> None:
        """Put waiting replies into what room there is, make all visible, and wake the front if it sleeps."""
        while self._waiting and self._put(*self._waiting[0]):
            self._waiting.popleft()
        if self.unpublished:
            self.unpublished = False
            self._responses.publish_and_wake()


__all__ = ["FrontLink", "HandOverError"]

"""The control channel between the supervisor and one process: JSON messages with file descriptors, on a stream socket.

Frame: u32 length, u32 number of descriptors, then `length` bytes of JSON with a "type". Descriptors ride on the frame's
first byte (SCM_RIGHTS) and are matched to frames in order. Control and data never share a channel.
"""

import array
import collections
import json
import os
import socket
import struct
import threading
from typing import Any

Message = dict[str, Any]

_FRAME = struct.Struct("<II")
# Linux passes at most 253 descriptors at once (SCM_MAX_FD); a message here carries a handful.
FDS_MAX = 16
# A catalogue of some thousand models; more is a broken peer.
FRAME_MAX_BYTES = 64 << 20


class ChannelClosed(Exception):
    """The other process is gone, or sent what is not a frame."""


class FrameReader:
    """Bytes and descriptors in, messages out. Pure: knows no socket."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._descriptors: collections.deque[int] = collections.deque()

    def feed(self, received: bytes, descriptors: list[int]) -> list[tuple[Message, list[int]]]:
        """Raises ChannelClosed on a frame that cannot be; every descriptor that is here is closed then."""
        self._bytes += received
        self._descriptors.extend(descriptors)
        messages: list[tuple[Message, list[int]]] = []
        try:
            while (message := self._next()) is not None:
                messages.append(message)
        except ChannelClosed:
            for _, unused in messages:
                self._descriptors.extend(unused)
            self.close()
            raise
        return messages

    def _next(self) -> tuple[Message, list[int]] | None:
        if len(self._bytes) < _FRAME.size:
            return None
        length, count = _FRAME.unpack_from(self._bytes)
        if length > FRAME_MAX_BYTES or count > FDS_MAX:
            raise ChannelClosed(f"a control frame of {length} bytes with {count} descriptors")
        end = _FRAME.size + length
        if len(self._bytes) < end or len(self._descriptors) < count:
            return None
        message = _decode(bytes(self._bytes[_FRAME.size : end]))
        del self._bytes[:end]
        return message, [self._descriptors.popleft() for _ in range(count)]

    def close(self) -> None:
        """Close descriptors that arrived for a message that never did."""
        while self._descriptors:
            os.close(self._descriptors.popleft())


def _decode(text: bytes) -> Message:
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ChannelClosed(f"a control frame that is not JSON: {error}") from None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise ChannelClosed("a control frame without a type")
    return message


def encode_frame(message: Message, descriptor_count: int) -> bytes:
    text = json.dumps(message, separators=(",", ":")).encode()
    return _FRAME.pack(len(text), descriptor_count) + text


def receive_some(channel: socket.socket) -> tuple[bytes, list[int]]:
    """One recvmsg. Empty bytes mean the other side closed. Raises BlockingIOError on a non-blocking socket."""
    room = array.array("i")
    received, ancillary, _, _ = channel.recvmsg(
        65536, socket.CMSG_SPACE(FDS_MAX * room.itemsize), socket.MSG_CMSG_CLOEXEC
    )
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            room.frombytes(content[: len(content) - len(content) % room.itemsize])
    return received, list(room)


class ControlChannel:
    """A child's end: blocking, one reading thread, any number of sending threads."""

    def __init__(self, channel: socket.socket) -> None:
        self._socket = channel
        self._reader = FrameReader()
        self._ready: collections.deque[tuple[Message, list[int]]] = collections.deque()
        self._send_lock = threading.Lock()

    def send(self, message: Message) -> None:
        """Raises ChannelClosed when the supervisor is gone."""
        with self._send_lock:
            try:
                self._socket.sendall(encode_frame(message, 0))
            except OSError as error:
                raise ChannelClosed(str(error)) from None

    def receive(self) -> tuple[Message, list[int]]:
        """Wait for the next message. Raises ChannelClosed when the supervisor is gone."""
        while not self._ready:
            try:
                received, descriptors = receive_some(self._socket)
            except OSError as error:
                raise ChannelClosed(str(error)) from None
            if not received:
                raise ChannelClosed("the supervisor closed the control channel")
            self._ready.extend(self._reader.feed(received, descriptors))
        return self._ready.popleft()

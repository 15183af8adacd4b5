"""HTTP/2 by hand (RFC 9113, 7541), for what no library would send: frames, headers, and enough reading to see refusals.

Headers are written as literals that go into no table; our SETTINGS say that the other side shall keep none either, so
what it sends can be read without one. Values that it sends with Huffman's code are left as they are.
"""

import dataclasses
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from typing import Self

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4
HEADER_TABLE_SIZE, INITIAL_WINDOW_SIZE = 1, 4
FRAME_MAX_BYTES = 16384
CANCEL = 0x8
Fields = Iterable[tuple[bytes, bytes]]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def integer(value: int, bits: int, first: int = 0) -> bytes:
    """RFC 7541, 5.1: with a prefix of `bits`, the bits above it from `first`."""
    limit = (1 << bits) - 1
    if value < limit:
        return bytes((first | value,))
    encoded, value = bytearray((first | limit,)), value - limit
    while value >= 128:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def block(fields: Fields, *, keep: bool = False) -> bytes:
    """A header block: literals without Huffman's code. `keep`: the other side shall put each into its table."""
    first = b"\x40" if keep else b"\0"
    return b"".join(first + integer(len(name), 7) + name + integer(len(value), 7) + value for name, value in fields)


def settings(*pairs: tuple[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *pair) for pair in pairs))


def hello() -> bytes:
    """What a client sends first: no header table, and windows that need no care."""
    window = frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", (1 << 31) - 1 - 65535))
    return PREFACE + settings((HEADER_TABLE_SIZE, 0), (INITIAL_WINDOW_SIZE, (1 << 31) - 1)) + window


def request(stream: int, fields: Fields, *, end: bool = False, keep: bool = False) -> bytes:
    """A request's headers, in as many frames as they need. `end`: there is no body."""
    content, flags = block(fields, keep=keep), END_STREAM if end else 0
    pieces = [content[at : at + FRAME_MAX_BYTES] for at in range(0, len(content), FRAME_MAX_BYTES)] or [b""]
    kinds = [HEADERS] + [CONTINUATION] * (len(pieces) - 1)
    frames = []
    for index, (kind, piece) in enumerate(zip(kinds, pieces, strict=True)):
        last = END_HEADERS if index == len(pieces) - 1 else 0
        frames.append(frame(kind, last | (flags if kind == HEADERS else 0), stream, piece))
    return b"".join(frames)


def reset(stream: int, code: int = CANCEL) -> bytes:
    return frame(RST_STREAM, 0, stream, struct.pack(">I", code))


def message(stream: int, content: bytes, *, end: bool = True) -> bytes:
    """A gRPC message in one DATA frame."""
    return frame(DATA, END_STREAM if end else 0, stream, b"\0" + struct.pack(">I", len(content)) + content)


def grpc_fields(path: bytes, *more: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    """What the headers of a gRPC call must have, and more."""
    return [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", b"localhost"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        *more,
    ]


@dataclasses.dataclass(frozen=True)
class Frame:
    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def code(self) -> int:
        """Of RST_STREAM and GOAWAY."""
        at = 4 if self.kind == GOAWAY else 0
        return int.from_bytes(self.payload[at : at + 4], "big")


class FrameReader:
    """Bytes in, frames out."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, content: bytes) -> list[Frame]:
        self._rest += content
        at, found = 0, []
        while len(self._rest) - at >= 9:
            length = int.from_bytes(self._rest[at : at + 3], "big")
            if len(self._rest) - at - 9 < length:
                break
            kind, flags, stream = struct.unpack_from(">BBI", self._rest, at + 3)
            found.append(Frame(kind, flags, stream & 0x7FFFFFFF, self._rest[at + 9 : at + 9 + length]))
            at += 9 + length
        self._rest = self._rest[at:]
        return found


def literals(content: bytes) -> dict[bytes, bytes]:
    """The fields of a header block that has literal names."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(content):
        first = content[at]
        if first & 0x80:  # indexed, name and value
            _, at = _read_integer(content, at, 7)
            continue
        if first & 0xE0 == 0x20:  # the table's size
            _, at = _read_integer(content, at, 5)
            continue
        index, at = _read_integer(content, at, 6 if first & 0x40 else 4)
        name = b"#%d" % index
        if not index:
            name, at = _read_string(content, at)
        value, at = _read_string(content, at)
        found[name] = value
    return found


def _read_integer(content: bytes, at: int, bits: int) -> tuple[int, int]:
    limit = (1 << bits) - 1
    value, at, shift = content[at] & limit, at + 1, 0
    if value == limit:
        while True:
            value += (content[at] & 127) << shift
            shift, at = shift + 7, at + 1
            if not content[at - 1] & 128:
                break
    return value, at


def _read_string(content: bytes, at: int) -> tuple[bytes, int]:
    length, at = _read_integer(content, at, 7)
    return content[at : at + length], at + length


class Connection:
    """A connection over which anything may be sent. What comes is answered only where RFC 9113 wants it.

    Args:
        acknowledges: whether it says, as it must, that it has the other side's settings.
    """

    def __init__(self, port: int, *, acknowledges: bool = True, timeout: float = 20.0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.closed = False
        self._timeout = timeout
        self._reader = FrameReader()
        self._next = 1
        self._acknowledges = acknowledges
        self.send(hello())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.closed = True
        self.socket.close()

    def new_stream(self) -> int:
        self._next += 2
        return self._next - 2

    def send(self, content: bytes) -> bool:
        """False once the other side has closed."""
        try:
            self.socket.sendall(content)
        except OSError:
            self.closed = True
        return not self.closed

    def frames(self, seconds: float) -> Iterator[Frame]:
        """What comes until the other side closes, or time is up. With 0: what is here already."""
        deadline = time.monotonic() + seconds
        while not self.closed:
            self.socket.settimeout(max(0.0, deadline - time.monotonic()))
            try:
                content = self.socket.recv(1 << 16)
            except (TimeoutError, BlockingIOError):
                break
            except OSError:
                content = b""
            finally:
                self.socket.settimeout(self._timeout)
            self.closed = not content
            came = self._reader.feed(content)
            for each in came:
                self._answer(each)
            yield from came

    def settle(self, seconds: float = 10.0) -> None:
        """Until the other side's settings count: it goes by its own only once they are acknowledged."""
        for each in self.frames(seconds):
            if each.kind == SETTINGS and each.flags & ACK:
                return

    def _answer(self, each: Frame) -> None:
        if each.flags & ACK or self.closed:
            return
        if each.kind == SETTINGS and self._acknowledges:
            self.send(frame(SETTINGS, ACK, 0))
        elif each.kind == PING:
            self.send(frame(PING, ACK, 0, each.payload))

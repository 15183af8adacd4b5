"""What a child writes comes out of our standard error, line by line."""

import json
import os
import threading
import time

import pytest

from nexus_grpc import logs
from nexus_grpc.supervisor import log_pump
from nexus_grpc.supervisor.log_pump import ATOMIC_BYTES, PAUSE_MS, LogPump, finish


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Each write to standard error."""
    logs.configure("json", "info", "supervisor")
    seen: list[bytes] = []

    def write(descriptor: int, data: bytes) -> int:
        assert descriptor == log_pump.STDERR
        seen.append(data)
        return len(data)

    monkeypatch.setattr(log_pump.os, "write", write)
    return seen


def begun(*, has_json: bool) -> tuple[LogPump, int]:
    """A pump, and a child's end of its pipe."""
    pump = LogPump("envoy" if has_json else "worker", 0, has_json=has_json)
    child = os.dup(pump.writer)
    pump.begin(77)
    return pump, child


def pumped(*pieces: bytes, has_json: bool = True) -> LogPump:
    pump, child = begun(has_json=has_json)
    with open(child, "wb", buffering=0) as writer:
        for piece in pieces:
            writer.write(piece)
    pump.drain(5)
    assert not pump.is_alive()
    return pump


def test_whole_lines_are_written_in_atomic_pieces(writes: list[bytes]) -> None:
    lines = [json.dumps({"n": n, "text": "x" * (n % 300)}).encode() + b"\n" for n in range(1000)]
    data = b"".join(lines)
    pumped(*(data[start : start + 777] for start in range(0, len(data), 777)))
    assert b"".join(writes) == data
    assert all(len(piece) <= ATOMIC_BYTES and piece.endswith(b"\n") for piece in writes)


def test_a_line_longer_than_atomic_is_kept_together(writes: list[bytes]) -> None:
    long = b'{"y":"' + b"y" * (3 * ATOMIC_BYTES) + b'"}\n'
    pumped(b"{}\n", long, b'{"b":1}\n')
    assert any(long in piece for piece in writes)


def test_half_a_line_at_its_death_is_an_event(writes: list[bytes]) -> None:
    pump = pumped(b"whole\nhal", has_json=False)
    events = [json.loads(line) for line in b"".join(writes).splitlines()]
    assert [(event["event"], event["pid"]) for event in events] == [("whole", 77), ("hal", 77)]
    assert pump.tail == b"whole\nhal"


def test_an_event_is_written_after_a_pause(writes: list[bytes]) -> None:
    pump, child = begun(has_json=False)
    with open(child, "wb", buffering=0) as writer:
        writer.write(b"one\n")
        time.sleep(PAUSE_MS / 1000 * 5)
        assert len(writes) == 1
    pump.drain(5)


def test_who_writes_never_waits() -> None:
    pump = LogPump("worker", 0)
    line = b"x" * 1023 + b"\n"
    with pytest.raises(BlockingIOError):
        all(os.write(pump.writer, line) for _ in range(1 << 20))
    pump.begin(0)
    pump.drain(10)


def test_a_closed_standard_error_loses_lines_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_descriptor: int, _data: bytes) -> int:
        raise BrokenPipeError

    monkeypatch.setattr(log_pump.os, "write", broken)
    pumped(b"a\n", b"b\n")


def test_the_last_words_of_all_are_waited_for(writes: list[bytes]) -> None:
    children = [begun(has_json=False)[1] for _ in range(3)]
    threading.Timer(0.2, lambda: [os.close(child) for child in children]).start()
    finish(5)
    assert not any(isinstance(thread, LogPump) for thread in threading.enumerate())
    assert writes == []


def test_descriptors_are_closed() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        pumped(b"")
    assert len(os.listdir("/proc/self/fd")) == before

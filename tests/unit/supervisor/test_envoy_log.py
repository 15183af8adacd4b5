"""What Envoy writes comes out of our standard error, line by line."""

import json
import os
import threading

import pytest

from nexus_grpc.supervisor import envoy_log
from nexus_grpc.supervisor.envoy_log import ATOMIC_BYTES, LogPump


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Each write to standard error."""
    seen: list[bytes] = []

    def write(descriptor: int, data: bytes) -> int:
        assert descriptor == envoy_log.STDERR
        seen.append(data)
        return len(data)

    monkeypatch.setattr(envoy_log.os, "write", write)
    return seen


def pump(*pieces: bytes) -> None:
    running = LogPump()
    running.start()
    with open(running.writer, "wb", buffering=0) as writer:
        for piece in pieces:
            writer.write(piece)
    running.join(5)


def test_whole_lines_are_written_in_atomic_pieces(writes: list[bytes]) -> None:
    lines = [json.dumps({"n": n, "text": "x" * (n % 300)}).encode() + b"\n" for n in range(1000)]
    data = b"".join(lines)
    pump(*(data[start : start + 777] for start in range(0, len(data), 777)))
    assert b"".join(writes) == data
    assert all(len(piece) <= ATOMIC_BYTES and piece.endswith(b"\n") for piece in writes)


def test_a_line_longer_than_atomic_is_kept_together(writes: list[bytes]) -> None:
    long = b"y" * (3 * ATOMIC_BYTES) + b"\n"
    pump(b"a\n", long, b"b\n")
    assert b"".join(writes) == b"a\n" + long + b"b\n"
    assert any(long in piece for piece in writes)


def test_half_a_line_at_its_death_is_ended(writes: list[bytes]) -> None:
    pump(b"whole\nhal")
    assert b"".join(writes) == b"whole\nhal\n"


def test_a_closed_standard_error_loses_lines_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_descriptor: int, _data: bytes) -> int:
        raise BrokenPipeError

    monkeypatch.setattr(envoy_log.os, "write", broken)
    pump(b"a\n", b"b\n")
    assert not any(thread.name == "envoy log" for thread in threading.enumerate())


def test_descriptors_are_closed() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        pump(b"")
    assert len(os.listdir("/proc/self/fd")) == before

"""The bytes of a child's standard error become lines of the log, in either format."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus_grpc import logs
from nexus_grpc.supervisor.foreign_log import EVENTS_PER_SECOND_MAX, ForeignLog

KEYS = ["timestamp", "level", "event", "role", "index", "pid", "logger"]
OURS = (
    b'{"bytes_in":0,"event":"http_request","level":"info","pid":0,"role":"envoy","timestamp":"2026-11-30T20:00:00Z"}\n'
)


@pytest.fixture(autouse=True)
def json_format() -> Iterator[None]:
    logs.configure("json", "info", "supervisor")
    yield
    logs.configure("json", "info", "supervisor")


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def log_of(role: str = "worker", *, has_json: bool = False, clock: Clock | None = None) -> ForeignLog:
    log = ForeignLog(role, 3, has_json=has_json, clock_s=clock or Clock())
    log.pid = 77
    return log


def read(written: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written.splitlines()]


def test_events_have_the_fixed_keys() -> None:
    log = log_of()
    [event] = read(log.feed(b"free(): invalid pointer\nhalf a l") + log.end())[:1]
    assert list(event) == KEYS
    assert {key: event[key] for key in KEYS[1:]} == {
        "level": "error",
        "event": "free(): invalid pointer",
        "role": "worker",
        "index": 3,
        "pid": 77,
        "logger": "stderr",
    }


def test_half_a_line_at_its_death_is_said() -> None:
    log = log_of()
    assert [event["event"] for event in read(log.feed(b"whole\nhal") + log.feed(b"f") + log.end())] == ["whole", "half"]


def test_an_event_waits_for_the_rest_of_it_until_there_is_a_pause() -> None:
    log = log_of()
    assert not log.is_holding
    assert log.feed(b"one\n") == b""
    assert log.is_holding
    assert [event["event"] for event in read(log.pause())] == ["one"]
    assert not log.is_holding


def test_a_long_line_is_cut() -> None:
    log = log_of()
    written = log.feed(b"x" * 1_000_000) + log.feed(b"y" * 1_000_000 + b"\nnext\n") + log.end()
    first, second = read(written)
    assert first["event"].startswith("xxx")
    assert len(written) < 10_000
    assert second["event"] == "next"


def test_levels_below_the_lowest_are_left_out() -> None:
    logs.configure("json", "error", "supervisor")
    log = log_of()
    assert [event["event"] for event in read(log.feed(b"well\nfree(): no\n") + log.end())] == ["free(): no"]


def test_a_flood_is_limited_and_counted() -> None:
    clock = Clock()
    log = log_of(clock=clock)
    written = b"".join(log.feed(b"again\n" * 1000) for _ in range(100))
    clock.now_s += 1
    events = read(written + log.feed(b"later\n") + log.end())
    assert len(events) <= EVENTS_PER_SECOND_MAX + 3
    said = sum(event.get("left_out_count", 0) for event in events)
    assert said + sum(event["event"] == "again" for event in events) == 100_000
    assert events[-1]["event"] == "later"


def test_a_flood_costs_little() -> None:
    log, data = log_of(), b"something that nobody wants to read\n" * 1800
    begin_s = time.process_time()
    for _ in range(500):
        log.feed(data)
    assert time.process_time() - begin_s < 1.0  # 32 MB


def test_lines_that_are_json_pass_as_they_are() -> None:
    log = log_of("envoy", has_json=True)
    expected = OURS.replace(b'"pid":0', b'"pid":77')
    assert log.feed(OURS * 3 + OURS[:20]) == expected * 3
    assert log.feed(OURS[20:]) == expected
    event, ours = log.feed(b"PARSE ERROR: what\n" + OURS).splitlines()
    assert (json.loads(event)["event"], ours + b"\n") == ("PARSE ERROR: what", expected)
    # In a value it is not what it looks like.
    value = json.dumps({"path": '/"pid":0,'}, separators=(",", ":")).encode() + b"\n"
    assert log.feed(value) == value


def test_a_worker_cannot_say_what_looks_like_ours() -> None:
    log = log_of()
    [event] = read(log.feed(OURS) + log.end())
    assert (event["role"], event["pid"], event["logger"], event["event"]) == (
        "worker",
        77,
        "stderr",
        OURS.decode()[:-1],
    )


def test_for_people_it_is_text() -> None:
    logs.configure("console", "info", "supervisor")
    log = log_of("envoy", has_json=True)
    traceback = b"Traceback (most recent call last):\n  File \x1b[1ma\x1b[m\x07\nValueError: x\n"
    text = (log.feed(OURS + traceback) + log.end()).decode()
    first, second, *rest = text.splitlines()
    assert first.startswith("2026-11-30T20:00:00Z [info     ] http_request")
    assert "pid=77" in first
    assert "[error    ] ValueError: x" in second
    assert rest == ["Traceback (most recent call last):", "  File a\\x07", "ValueError: x"]


@given(pieces=st.lists(st.binary(max_size=200), max_size=10), has_json=st.booleans())
def test_whatever_comes_each_line_is_an_object(pieces: list[bytes], has_json: bool) -> None:
    log = log_of("envoy" if has_json else "front", has_json=has_json)
    written = b"".join(log.feed(piece) for piece in pieces) + log.end()
    assert written == b"" or written.endswith(b"\n")
    for line in written.splitlines():
        # What begins and ends like our own is Envoy's, whose word we take.
        assert has_json or list(json.loads(line))[: len(KEYS)] == KEYS


@pytest.mark.parametrize(
    "bad", [b"[W:onnxruntime:, " + b"a:1 " * 1000, b": Assertion `" * 400, b":1: " * 1000, b"\x1b]" * 2000]
)
def test_no_line_takes_long(bad: bytes) -> None:
    log = log_of()
    begin_s = time.process_time()
    log.feed((bad + b"\n") * EVENTS_PER_SECOND_MAX)
    assert time.process_time() - begin_s < 0.5

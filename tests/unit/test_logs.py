"""Logging: one line per event, whatever its values are; which requests get one."""

import json
import os
import pty
import re
import subprocess
import sys
from typing import Any

import pytest

from nexus_grpc.ipc.errors import Code
from nexus_grpc.logs import (
    FAILURES_PER_SECOND_MAX,
    RequestLog,
    code_name,
    configure,
    is_logged,
    logger,
    rendered,
    rfc3339,
)


class Broken:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


def json_lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure("json", "info", "front", 2)
    logger().debug("left out")
    logger().info("ready", port=8001)
    logger().error("gone", role="another", worker=3)
    first, second = json_lines(capsys)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", first.pop("timestamp"))
    assert first == {
        "level": "info",
        "event": "ready",
        "role": "front",
        "index": 2,
        "pid": os.getpid(),
        "port": 8001,
    }
    assert list(second) == ["timestamp", "level", "event", "role", "index", "pid", "worker"]
    assert (second["level"], second["role"]) == ("error", "front")


def test_odd_values_are_written_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    configure("json", "debug", "worker")
    itself: list[Any] = []
    itself.append(itself)
    logger().info("odd", nan=float("nan"), raw=b"\xff", surrogate="\ud800", long="x" * 10_000, text="a\nb")
    logger().info("odd", broken=Broken(), keys={1: 2, (3,): 4})
    logger().info("odd", itself=itself, nothing=None, yes=True)
    first, second, third = json_lines(capsys)
    assert (first["nan"], first["raw"], first["text"]) == ("nan", "b'\\xff'", "a\nb")
    assert len(first["long"]) < 5000
    assert "RuntimeError" in second["broken"]
    assert (third["itself"], third["nothing"], third["yes"]) == ("[[...]]", None, True)


def test_an_exception_is_one_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure("json", "info", "supervisor")
    try:
        raise ValueError("why")
    except ValueError:
        logger().exception("failed")
    (line,) = json_lines(capsys)
    assert "ValueError: why" in line["exception"]


def test_console_lines_cannot_be_forged(capsys: pytest.CaptureFixture[str]) -> None:
    configure("console", "info", "front")
    logger().info("request", model="a\n2026 forged", color="\x1b[31m", broken=Broken())
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert "\x1b" not in text
    assert "request" in text
    assert "2026 forged" in text


def test_console_shows_tracebacks(capsys: pytest.CaptureFixture[str]) -> None:
    configure("console", "info", "front")
    try:
        raise ValueError("why")
    except ValueError:
        logger().exception("failed")
    assert "ValueError: why" in capsys.readouterr().err


def test_a_closed_stderr_is_put_up_with() -> None:
    program = (
        "import os; from nexus_grpc.logs import configure, logger; configure('json', 'info', 'front')\n"
        "os.close(2); logger().info('lost'); print('alive')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == "alive\n"


def test_rfc3339() -> None:
    assert rfc3339(1_700_000_000_000_001_999) == "2023-11-14T22:13:20.000001Z"


@pytest.mark.parametrize(("sample", "lines"), [(0.0, 0), (0.01, 10), (0.5, 500), (1.0, 1000)])
def test_successes_are_sampled_evenly(sample: float, lines: int) -> None:
    log = RequestLog(sample)
    assert abs(sum(log.sampled(Code.OK) for _ in range(1000)) - lines) <= 1


def test_failures_are_limited_per_second(capsys: pytest.CaptureFixture[str]) -> None:
    configure("json", "info", "front")
    now_ns = [0]
    log = RequestLog(0.0, clock_ns=lambda: now_ns[0])
    assert sum(log.sampled(Code.INTERNAL) for _ in range(150)) == FAILURES_PER_SECOND_MAX
    now_ns[0] = 1_000_000_000
    assert log.sampled(Code.INTERNAL)
    log.line(method="/a/B", code=Code.INTERNAL, latency_us=7, model="iris")
    log.line(method="/a/B", code=Code.OK, latency_us=5)
    log.line(method="/a/B", code=99, latency_us=5)
    failed, fine, unknown = json_lines(capsys)
    assert (failed["level"], failed["code"], failed["left_out_count"]) == ("warning", "INTERNAL", 50)
    assert (failed["event"], failed["method"], failed["latency_us"], failed["model"]) == ("request", "/a/B", 7, "iris")
    assert (fine["level"], fine["code"]) == ("info", "OK")
    assert unknown["code"] == "99"
    assert "left_out_count" not in unknown


def test_code_name() -> None:
    assert (code_name(0), code_name(3), code_name(77)) == ("OK", "INVALID_ARGUMENT", "77")


def test_what_another_process_said(capsys: pytest.CaptureFixture[str]) -> None:
    configure("json", "info", "supervisor")
    assert [level for level in ("debug", "info", "error", "critical") if is_logged(level)] == [
        "info",
        "error",
        "critical",
    ]
    line = json.loads(rendered("error", "gone", {"role": "worker", "index": 1, "pid": 7, "odd": b"\xff"}))
    assert list(line) == ["timestamp", "level", "event", "role", "index", "pid", "odd"]
    configure("console", "info", "supervisor")
    text = rendered("info", "a\nb", {"role": "worker", "exception": "one\n\x1btwo", "timestamp": "T"}).decode()
    assert text.startswith("T [info     ] a\\nb")
    assert text.endswith("\none\n\\x1btwo\n")
    assert capsys.readouterr().err == ""


def test_lines_go_where_they_are_sent() -> None:
    program = (
        "import os, sys; from nexus_grpc import logs; reader, writer = os.pipe(); logs.write_to(writer)\n"
        "logs.configure('json', 'info', 'front'); logs.logger().info('there'); sys.stderr.write('here')\n"
        "print(os.read(reader, 1000).decode(), end='')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert done.stderr == "here"
    assert json.loads(done.stdout)["event"] == "there"


@pytest.mark.parametrize(
    ("variables", "colours"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "dumb"}, False),
        ({"TERM": ""}, False),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
    ],
)
def test_colours_are_for_terminals_that_want_them(
    variables: dict[str, str], colours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as shown, open(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        configure("console", "info", "cli")
        logger().info("ready")
        assert (b"\x1b" in shown.read(4096)) == colours

"""What Python and its libraries say by themselves becomes events. Each in a process of its own, which it changes."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.unit.support import ROOT

BEGIN = """
import gc, logging, threading, warnings
from nexus_grpc import logs, python_log
logs.configure("{}", "info", "supervisor")
python_log.capture()
"""


def events(program: str, exit_code: int = 0) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-c", BEGIN.format("json") + program], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout) == (exit_code, ""), done
    return [json.loads(line) for line in done.stderr.splitlines()]


@pytest.mark.parametrize(
    ("program", "level", "logger", "text"),
    [
        ("warnings.warn('old', DeprecationWarning)", "warning", "python", "DeprecationWarning: old"),
        ("logging.getLogger('psycopg').warning('lost %s', 'it')", "warning", "psycopg", "lost it"),
        ("logging.getLogger('a').critical('bad')", "error", "a", "bad"),
        ("logging.error('too %s', 'many', 'arguments')", "error", "root", "too %s"),
    ],
)
def test_logging_and_warnings(program: str, level: str, logger: str, text: str) -> None:
    [event] = events(program)
    assert (event["level"], event["logger"], event["role"]) == (level, logger, "supervisor")
    assert text in event["event"]


def test_what_is_below_a_warning_stays_with_the_library() -> None:
    assert events("logging.getLogger('a').info('chatter')") == []


def test_an_exception_that_is_logged_brings_its_traceback() -> None:
    [event] = events("try: 1 / 0\nexcept ZeroDivisionError: logging.exception('failed')")
    assert (event["event"], event["exception"].splitlines()[-1]) == ("failed", "ZeroDivisionError: division by zero")


def test_an_exception_that_nobody_caught() -> None:
    [event] = events("1 / 0", exit_code=1)
    assert (event["level"], event["event"]) == ("error", "uncaught exception")
    assert event["exception"].endswith("ZeroDivisionError: division by zero")


def test_a_thread_s_last_words() -> None:
    [event] = events("thread = threading.Thread(target=lambda: 1 / 0)\nthread.start()\nthread.join()")
    assert event["exception"].endswith("ZeroDivisionError: division by zero")


def test_an_exception_that_python_ignores() -> None:
    [event] = events("class Bad:\n    def __del__(self): 1 / 0\nBad()\ngc.collect()")
    assert event["event"].startswith("Exception ignored in: <function Bad.__del__")
    assert event["exception"].endswith("ZeroDivisionError: division by zero")


def test_what_clients_send_is_no_traceback() -> None:
    program = """
log = logging.getLogger("grpc._cython.cygrpc")
try: b"\\xa4".decode()
except ValueError: log.exception("Invalid encoding on %s", b"x")
logging.getLogger("grpc._server").error("after")
"""
    [event] = events(program)
    assert event["event"] == "after"


def test_a_flood_is_counted() -> None:
    program = """
from nexus_grpc import python_log
for number in range(python_log.RECORDS_PER_SECOND_MAX + 900): logging.warning("again")
import time; time.sleep(1.1); logging.warning("later")
"""
    said = events(program)
    # A second may have begun meanwhile.
    assert len(said) <= 2 * 100 + 1
    assert len(said) + sum(event.get("left_out_count", 0) for event in said) == 1001

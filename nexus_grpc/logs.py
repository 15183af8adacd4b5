"""Logging: one event per line on standard error, as JSON for machines or as text for people.

A child's own standard error is a pipe to the supervisor, which makes events of what libraries write there
(supervisor/log_pump.py); a child that logs gets the supervisor's besides, for its lines (`write_to`).

Every line has `timestamp` (RFC 3339, UTC), `level`, `event`, `role`, `index` and `pid`. Logging never raises and never
blocks a request: odd values are written as text, and a closed standard error is put up with.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from nexus_grpc.ipc.errors import Code

# Settings (settings.py) have put one of the others in place of `auto`.
LogFormat = Literal["auto", "json", "console"]
Role = Literal["supervisor", "front", "worker", "cli"]

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
# Failed requests are worth a line each, until something fails them all.
FAILURES_PER_SECOND_MAX = 100
# A value longer than this is cut: one request must not fill a log collector's line limit (Docker splits at 16 KiB).
VALUE_CHARS_MAX = 4096


# Where the lines go, if not to standard error; what writes them for people, if it is not to be JSON; the lowest level.
_own_stream: TextIO | None = None
_for_people: structlog.dev.ConsoleRenderer | None = None
_lowest = LEVELS["info"]


class _Output:
    """Writes whole lines to the log, by the present sys.stderr; a closed pipe loses lines, not the server."""

    def msg(self, message: str) -> None:
        stream = _stream()
        if stream is None:
            return
        try:
            # One write per line, so that lines of several processes don't mix (POSIX: atomic up to PIPE_BUF).
            stream.write(message + "\n")
            stream.flush()
        except (OSError, ValueError):
            # ValueError: the stream is closed.
            return

    debug = info = warning = error = critical = msg


def write_to(descriptor: int) -> None:
    """Have this process's lines go there, and leave standard error to whatever libraries write."""
    global _own_stream
    _own_stream = os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace")


def _stream() -> TextIO | None:
    return _own_stream or sys.stderr


def configure(format: LogFormat, level: str, role: Role, index: int = 0) -> None:
    """Sets up structlog for this process; call it once, first.

    Args:
        format: `json` or `console`.
        level: the least severe level that is written: debug, info, warning or error.
        role: what this process is.
        index: which of its role, from 0.
    """
    global _for_people, _lowest
    about = {"role": role, "index": index, "pid": os.getpid()}
    _for_people = _console() if format == "console" else None
    to_json: list[Processor] = [structlog.processors.format_exc_info, _render_json]
    _lowest = LEVELS.get(level, LEVELS["info"])
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            _stamper(about),
            *(to_json if _for_people is None else [_plain_values, _for_people]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_lowest),
        logger_factory=lambda *_: _Output(),
        cache_logger_on_first_use=False,
    )


def _console() -> structlog.dev.ConsoleRenderer:
    stream = _stream()
    # No rich tracebacks with locals: they would print requests.
    return structlog.dev.ConsoleRenderer(
        colors=_wants_colors(stream),
        exception_formatter=structlog.dev.plain_traceback,
        pad_event_to=32,
    )


def _wants_colors(stream: TextIO | None) -> bool:
    """On a terminal that can, whose user has not said otherwise (https://no-color.org)."""
    if stream is None or not stream.isatty() or os.environ.get("NO_COLOR"):
        return False
    return os.environ.get("TERM", "dumb") not in {"dumb", ""}


def is_json() -> bool:
    """Whether lines are JSON."""
    return _for_people is None


def is_logged(level: str) -> bool:
    """Whether events of this level are."""
    return LEVELS.get(level, LEVELS["error"]) >= _lowest


def rendered(level: str, event: str, about: dict[str, Any]) -> bytes:
    """The line for what another process said: `about` has its role, index and pid, and perhaps its timestamp."""
    entry = {"timestamp": rfc3339(time.time_ns()), "level": level, "event": event, **about}
    line = (
        _for_people(None, level, _plain_values(None, level, entry)) if _for_people else _render_json(None, level, entry)
    )
    return (line + "\n").encode("utf-8", "backslashreplace")


def logger() -> structlog.typing.FilteringBoundLogger:
    """The logger of this process, as `configure` set it up."""
    bound: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return bound


def _stamper(about: dict[str, Any]) -> Processor:
    def stamp(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        # The fixed keys come first, so that lines can be read by eye; an event's own keys can't replace them.
        head = {"timestamp": rfc3339(time.time_ns()), "level": event.pop("level", ""), "event": event.pop("event", "")}
        return {**head, **about, **{key: value for key, value in event.items() if key not in about}}

    return stamp


def rfc3339(wall_ns: int) -> str:
    """A wall-clock time as RFC 3339 text in UTC, to the microsecond: 2026-01-31T12:00:00.000001Z."""
    seconds, rest_ns = divmod(wall_ns, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest_ns // 1000:06d}Z"


def _render_json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    try:
        return json.dumps({key: _shorten(value) for key, value in event.items()}, default=_as_text, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        # A key that is no text, NaN, or a value that holds itself: JSON has no way to say it.
        return json.dumps({str(key): _simple(value) for key, value in event.items()})


def _plain_values(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return {key: _plain(key, value) for key, value in event.items()}


def _plain(key: str, value: object) -> object:
    if key == "exc_info":
        return value
    if key == "exception":  # a traceback that came as text keeps its lines
        return "\n".join(str(_one_line(line)) for line in _as_text(value).split("\n"))
    return _one_line(_simple(value))


def _one_line(value: object) -> object:
    # A client's text could otherwise forge lines, or drive the terminal with escape sequences.
    return value if not isinstance(value, str) or value.isprintable() else repr(value)[1:-1]


def _simple(value: object) -> object:
    if value is None or isinstance(value, (bool, int)):
        return value
    return _as_text(value)


def _shorten(value: object) -> object:
    return _cut(value) if isinstance(value, str) else value


def _as_text(value: object) -> str:
    try:
        text = str(value)
    except Exception as error:
        # A broken __str__ is somebody's bug, but not one to crash on while reporting something else.
        text = f"<{type(value).__name__}: {type(error).__name__} in __str__>"
    # A lone surrogate (an undecodable file name) can't be written as UTF-8.
    return _cut(text).encode("utf-8", "backslashreplace").decode("utf-8")


def _cut(text: str) -> str:
    return text if len(text) <= VALUE_CHARS_MAX else text[:VALUE_CHARS_MAX] + "…"


class RequestLog:
    """Decides which requests get a line, and writes it.

    Successes are sampled with a counter: it costs an addition per request, and gives an even share where random choice
    would clump. Failures always get a line, up to `FAILURES_PER_SECOND_MAX`; the next line says how many were left out.
    Used by one thread.

    Args:
        sample: share of successes to log, 0 to 1.
        clock_ns: a monotonic clock, in nanoseconds.
    """

    def __init__(self, sample: float, *, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._sample = sample
        self._credit = 0.0
        self._clock_ns = clock_ns
        self._second = 0
        self._failures_count = 0
        self._left_out_count = 0
        self._logger: structlog.typing.FilteringBoundLogger | None = None

    def sampled(self, code: int) -> bool:
        """Whether the request that ended with this gRPC status code gets a line."""
        if code == Code.OK:
            self._credit += self._sample
            if self._credit < 1.0:
                return False
            self._credit -= 1.0
            return True
        second = self._clock_ns() // 1_000_000_000
        if second != self._second:
            self._second = second
            self._failures_count = 0
        if self._failures_count >= FAILURES_PER_SECOND_MAX:
            self._left_out_count += 1
            return False
        self._failures_count += 1
        return True

    def line(self, *, method: str, code: int, latency_us: int, **fields: object) -> None:
        """Writes a request's line; call it where `sampled` said so.

        Args:
            method: the gRPC method's full name.
            code: the gRPC status code it ended with.
            latency_us: from arrival to answer, in microseconds.
            fields: what else is known, such as model, version, request_id, message.
        """
        if self._logger is None:
            # Late, so that `configure` may run after the constructor; bound, which saves doing it at every line.
            self._logger = logger().bind()
        if code != Code.OK and self._left_out_count:
            fields["left_out_count"] = self._left_out_count
            self._left_out_count = 0
        write = self._logger.info if code == Code.OK else self._logger.warning
        write("request", method=method, code=code_name(code), latency_us=latency_us, **fields)


def code_name(code: int) -> str:
    """The gRPC status code's name; its number where there is no such code."""
    return Code(code).name if code in Code._value2member_map_ else str(code)

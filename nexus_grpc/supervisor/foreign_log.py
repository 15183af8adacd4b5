"""The bytes of a child's standard error → lines of our log.

What a library says becomes an event, at most EVENTS_PER_SECOND_MAX in a second. Envoy's own lines are JSON objects of
our form already: in the format `json` they pass as they are, many at once, for there may be thousands in a second.
"""

import json
import time
from collections.abc import Callable
from typing import Any

from nexus_grpc import logs
from nexus_grpc.supervisor.foreign_lines import ForeignEvent, Gatherer

EVENTS_PER_SECOND_MAX = 100
# Of a longer line the beginning is kept: Envoy's are whole JSON objects, of others' a value's length is enough.
LINE_BYTES_MAX = 1 << 16
# How our own lines begin and end that came as JSON; no library's do.
_BEGINNING, _END = b'{"', b"}"
# As a bootstrap says it, before there is a process. Inside of a JSON string the quotes would have backslashes.
PID_UNKNOWN, _PID = b'"pid":0,', b'"pid":%d,'


class ForeignLog:
    """Not thread-safe; whoever reads the pipe has it.

    Args:
        role, index: whose standard error it is.
        has_json: its own lines are among the others, as JSON.
        clock_s: a monotonic clock, in seconds.
    """

    def __init__(
        self, role: str, index: int, *, has_json: bool = False, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self.pid = 0
        self._role, self._index = role, index
        self._has_json = has_json
        self._clock_s = clock_s
        self._gatherer = Gatherer(role)
        self._rest = b""
        self._second = 0
        self._events_count = 0
        self._left_out_count = 0

    @property
    def is_holding(self) -> bool:
        """Whether there is something to be written when nothing more comes: see `pause`."""
        return self._gatherer.is_holding or self._left_out_count > 0

    def feed(self, data: bytes) -> bytes:
        """What came. Returns whole lines for the log, perhaps none."""
        data = self._rest + data
        end = data.rfind(b"\n") + 1
        self._rest = data[end : end + LINE_BYTES_MAX]
        if not end:
            return b""
        whole = data[:end]
        if self._has_json and not self._gatherer.is_holding and logs.is_json() and _is_ours(whole):
            return self._with_pid(whole)
        before = self._begin_second()
        if not self._has_json and self._is_flood():
            self._left_out_count += whole.count(b"\n")
            return before
        return before + b"".join([self._line(line) for line in whole[:-1].split(b"\n")])

    def pause(self) -> bytes:
        """Nothing came for a while: what is held is complete."""
        return self._written(self._gatherer.end()) + self._left_out()

    def end(self) -> bytes:
        """Nothing comes any more; it may have died in the middle of a line."""
        rest, self._rest = self._rest, b""
        return (self._line(rest) if rest else b"") + self.pause()

    def _line(self, line: bytes) -> bytes:
        if self._has_json and line.startswith(_BEGINNING) and line.endswith(_END):
            said = self._our_line(line)
            if said:
                return self._written(self._gatherer.end()) + said
        if self._is_flood():
            self._left_out_count += 1
            return b""
        return self._written(self._gatherer.add(line[: logs.VALUE_CHARS_MAX]))

    def _our_line(self, line: bytes) -> bytes:
        """For the log as it was set up, whatever its level, which Envoy knows; empty if it is not ours after all."""
        line = self._with_pid(line)
        if logs.is_json():
            return line + b"\n"
        try:
            said = json.loads(line)
            return logs.rendered(said.pop("level"), said.pop("event"), said)
        except (ValueError, KeyError, RecursionError):
            return b""

    def _with_pid(self, data: bytes) -> bytes:
        return data.replace(PID_UNKNOWN, _PID % self.pid)

    def _written(self, event: ForeignEvent | None) -> bytes:
        if event is None:
            return b""
        self._events_count += 1
        return self._rendered(event.level, event.fields())

    def _left_out(self) -> bytes:
        count, self._left_out_count = self._left_out_count, 0
        if not count:
            return b""
        fields: dict[str, Any] = {"event": "more lines than are logged", "logger": "stderr", "left_out_count": count}
        return self._rendered("warning", fields)

    def _rendered(self, level: str, fields: dict[str, Any]) -> bytes:
        if not logs.is_logged(level):
            return b""
        about = {"role": self._role, "index": self._index, "pid": self.pid}
        return logs.rendered(level, str(fields.pop("event")), {**about, **fields})

    def _is_flood(self) -> bool:
        return self._events_count >= EVENTS_PER_SECOND_MAX

    def _begin_second(self) -> bytes:
        """The next second's share, and what was left out of the last one's."""
        second = int(self._clock_s())
        if second == self._second:
            return b""
        self._second, self._events_count = second, 0
        return self._left_out()


def _is_ours(whole: bytes) -> bool:
    """Whether each of these lines is a JSON object of ours."""
    count = whole.count(b"\n")
    return (
        whole.startswith(_BEGINNING)
        and whole.count(b"\n" + _BEGINNING) == count - 1
        and whole.count(_END + b"\n") == count
    )

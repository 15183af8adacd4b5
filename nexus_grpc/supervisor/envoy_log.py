"""Hands on what Envoy writes (its access log and its own events, one JSON object per line) to our standard error.

Through a pipe and not directly: Envoy opens /dev/stderr anew, which fails where that is a socket (journald) and, where
it is a file, writes over what the other processes write.
"""

import contextlib
import os
import threading

# A write of whole lines up to this is atomic on a pipe (PIPE_BUF), so lines of several processes don't mix.
ATOMIC_BYTES = 4096
READ_BYTES = 1 << 16
STDERR = 2


class LogPump:
    """A thread from a pipe to standard error: where that is slow, Envoy's log waits, and nothing else does.

    `writer` is Envoy's end, to be closed by whoever has handed it over; the thread ends when Envoy has.
    """

    def __init__(self) -> None:
        self._reader, self.writer = os.pipe()
        self._thread = threading.Thread(target=self._run, daemon=True, name="envoy log")

    def start(self) -> None:
        self._thread.start()

    def join(self, seconds: float) -> None:
        """Wait until everything is handed on."""
        self._thread.join(seconds)

    def _run(self) -> None:
        rest = b""
        with os.fdopen(self._reader, "rb", buffering=0) as reader:
            while received := reader.read(READ_BYTES):
                rest = _write_lines(rest + received)
        if rest:  # it died in the middle of a line
            _write_lines(rest + b"\n")


def _write_lines(data: bytes) -> bytes:
    """Write the whole lines; returns what is left."""
    start, end = 0, data.rfind(b"\n") + 1
    while start < end:
        stop = data.rfind(b"\n", start, min(end, start + ATOMIC_BYTES)) + 1
        # A line that is longer than is atomic goes alone.
        stop = stop or data.find(b"\n", start) + 1
        _write_all(data[start:stop])
        start = stop
    return data[end:]


def _write_all(data: bytes) -> None:
    with contextlib.suppress(OSError):  # nobody reads our log any more: lose lines, not the server
        while data:
            data = data[os.write(STDERR, data) :]

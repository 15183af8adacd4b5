"""A child's standard error is a pipe, and its lines come out of ours as events (foreign_log.py).

Fronts, workers and trials never wait for it: when the pipe is full, because nobody reads it (this process is stopped,
or its own standard error takes nothing), what they write is lost. So is what a library says later by a C++ stream,
which gives up after one failure; hence a pipe that is larger than usual. Envoy's log thread does wait, with the access
log, and nothing else in Envoy. It gets no direct way to our standard error: it would open /dev/stderr anew, which
fails where that is a socket (journald) and, where it is a file, writes over what others write.
"""

import contextlib
import fcntl
import os
import select
import threading
import time

from nexus_grpc.supervisor.foreign_log import ForeignLog

# A write of whole lines up to this is atomic on a pipe (PIPE_BUF), so lines of several processes don't mix.
ATOMIC_BYTES = 4096
READ_BYTES = 1 << 16
# Of several children's this stays below what a user without privileges has for all pipes (64 MiB).
PIPE_BYTES = 1 << 18
# A traceback comes in several writes; after a silence as long as this it is complete.
PAUSE_MS = 100
END_SECONDS = 2.0
TAIL_BYTES = 4096
STDERR = 2


class LogPump(threading.Thread):
    """A thread from a pipe to standard error; where that is slow, it waits, and nothing else does.

    `writer` is the child's end, for its fd 1 and 2. `begin` is to be called once it has been handed over, or could not
    be; the thread ends when the child has. `tail` is the end of what came, up to TAIL_BYTES, as it came.

    Args:
        role, index: whose it is.
        has_json: its own lines are among the others, as JSON, and none may be lost: for Envoy.
    """

    def __init__(self, role: str, index: int, *, has_json: bool = False) -> None:
        super().__init__(daemon=True, name=f"log of {role} {index}")
        self._reader, self.writer = os.pipe()
        self.tail = b""
        self._log = ForeignLog(role, index, has_json=has_json)
        if not has_json:
            os.set_blocking(self.writer, False)
        with contextlib.suppress(OSError):  # as large as pipes are, then
            fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def begin(self, pid: int) -> None:
        """The child has its end, or there is none (0)."""
        os.close(self.writer)
        self._log.pid = pid
        try:
            self.start()
        except RuntimeError:  # no thread to be had: the child is worth more than what its libraries say
            os.close(self._reader)

    def drain(self, seconds: float = END_SECONDS) -> None:
        """Wait until everything is handed on, after the child's death."""
        if self.is_alive():
            self.join(seconds)

    def run(self) -> None:
        with os.fdopen(self._reader, "rb", buffering=0) as reader:
            poll = select.poll()
            poll.register(reader, select.POLLIN)
            while True:
                if self._log.is_holding and not poll.poll(PAUSE_MS):
                    _write_lines(self._log.pause())
                    continue
                received = reader.read(READ_BYTES)
                if not received:
                    break
                self.tail = (self.tail + received)[-TAIL_BYTES:]
                _write_lines(self._log.feed(received))
        _write_lines(self._log.end())


def finish(seconds: float = END_SECONDS) -> None:
    """Wait until the last words of all children are written, which are gone by now; but no longer than this."""
    deadline_s = time.monotonic() + seconds
    for thread in threading.enumerate():
        if isinstance(thread, LogPump):
            thread.drain(max(0.0, deadline_s - time.monotonic()))


def _write_lines(data: bytes) -> None:
    start = 0
    while start < len(data):
        stop = data.rfind(b"\n", start, start + ATOMIC_BYTES) + 1
        # A line that is longer than is atomic goes alone.
        stop = stop or data.find(b"\n", start) + 1
        _write_all(data[start:stop])
        start = stop


def _write_all(data: bytes) -> None:
    with contextlib.suppress(OSError):  # nobody reads our log any more: lose lines, not the server
        while data:
            data = data[os.write(STDERR, data) :]

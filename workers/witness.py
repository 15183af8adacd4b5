"""Whose fault a run is that failed: a known good input is run on the same session. Owned by the loop's thread.

    UNKNOWN   nothing has run here yet              blames nobody
    GOOD      an input is known that runs           a run failed: the known good input runs → the input's fault
                                                                  it fails, too             → BROKEN
    BROKEN    it did not run the last time          blames the model

A success makes it GOOD, whatever it was. The known good input is the sample that the trial ran, or a success kept for
this: the first, later a faster one. One witness serves a session, and so all arms of a version.

Bad inputs must not cost the others much: a known good input that has run vouches for the model for VOUCHED_NS, and for
COST_FACTOR times as long as it took. So all such runs together take a twentieth of the worker's time at most, and a
failing client gets nothing more.
"""

import sys
import time
from collections.abc import Callable

import numpy as np

from nexus_grpc.ipc.errors import NexusError
from nexus_grpc.ipc.record import Blame

from .tensors import Array

Feeds = dict[str, Array]
KEPT_BYTES_MAX = 8 << 20
VOUCHED_NS = 100_000_000
COST_FACTOR = 20
# A known good input that runs in less is not replaced by a faster one.
FAST_NS = 1_000_000
_ANY_NS = 1 << 62


class Witness:
    """Attributes:
    keep_below_ns: a success that ran in less than this is offered to keep(); the hot path's one comparison.
    kept_bytes: what the known good input takes in memory.
    """

    __slots__ = ("_feeds", "_is_broken", "_vouched_until_ns", "keep_below_ns", "kept_bytes")

    def __init__(self) -> None:
        self._feeds: Callable[[], Feeds] | None = None
        self._is_broken = False
        self._vouched_until_ns = 0
        self.keep_below_ns = _ANY_NS
        self.kept_bytes = 0

    def knows(self, feeds: Callable[[], Feeds]) -> None:
        """An input that has run elsewhere, on the same file: the trial's, or config.pbtxt's. Made when it is needed."""
        self._feeds = feeds
        self.keep_below_ns = 0

    def keep(self, feeds: Feeds, rows: int, run_ns: int, room_bytes: int) -> None:
        """A run went well.

        Args:
            rows: how many of each array's first rows are one request's; 0: the arrays are.
            run_ns: how long it took.
            room_bytes: what may be kept at most.
        """
        parts = {name: array[:rows] if rows else array for name, array in feeds.items()}
        size_bytes = sum(size_in_memory(array) for array in parts.values())
        self._is_broken = False
        if size_bytes > min(KEPT_BYTES_MAX, room_bytes + self.kept_bytes):
            # Not looked at again before it is missed: this costs each success something.
            self.keep_below_ns = 0
            return
        copies = {name: np.array(array) for name, array in parts.items()}
        self._feeds = lambda: copies
        self.kept_bytes = size_bytes
        self.keep_below_ns = run_ns // 2 if run_ns > FAST_NS else 0

    def blame(self, run: Callable[[Feeds, bool], list[Array]]) -> Blame:
        """Of a run that failed: INPUT, MODEL, or NOBODY where nothing is known to run.

        Args:
            run: the model's.
        """
        if self._is_broken:
            return Blame.MODEL
        if self._feeds is None:
            self.keep_below_ns = _ANY_NS
            return Blame.NOBODY
        started_ns = time.monotonic_ns()
        if started_ns < self._vouched_until_ns:
            return Blame.INPUT
        try:
            run(self._feeds(), False)
        except NexusError:
            self._lose()
            return Blame.MODEL
        now_ns = time.monotonic_ns()
        self._vouched_until_ns = now_ns + max(VOUCHED_NS, COST_FACTOR * (now_ns - started_ns))
        return Blame.INPUT

    def _lose(self) -> None:
        """What was known to run does not. The next success is the new one."""
        self._feeds = None
        self._is_broken = True
        self._vouched_until_ns = 0
        self.kept_bytes = 0
        self.keep_below_ns = _ANY_NS


def size_in_memory(array: Array) -> int:
    """Bytes; an array of texts has but pointers to them in itself."""
    return array.nbytes + (sum(map(sys.getsizeof, array.ravel().tolist())) if array.dtype.hasobject else 0)

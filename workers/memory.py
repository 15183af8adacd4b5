"""What a large run leaves behind goes back to the system within seconds, whether or not another request comes.

ONNX Runtime keeps the blocks of its largest run in an arena, and the C library what Python freed. All sessions share
one arena (onnx_runtime.py), so a run of a session of our own empties it of what nobody uses: no model is run for that.
"""

import ctypes
import resource

from .onnx_runtime import shrink_arena

# Looked at as rarely as this, and given back from this growth on: getting memory anew costs milliseconds, too.
LOOK_NS = 5_000_000_000
GROWN_BYTES = 32 << 20
_PAGE_BYTES = resource.getpagesize()
_malloc_trim = ctypes.CDLL(None).malloc_trim


def resident_bytes() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * _PAGE_BYTES


def trim() -> None:
    """Give back what the C library holds."""
    _malloc_trim(0)


class MemoryKeeper:
    """Used by the loop's thread."""

    def __init__(self) -> None:
        self._next_ns = 0
        # The least that this process had since it last gave back.
        self._floor_bytes = 0

    def look(self, now_ns: int) -> None:
        """Give back what can be, if it is time and this process has grown."""
        if now_ns < self._next_ns:
            return
        self._next_ns = now_ns + LOOK_NS
        size = resident_bytes()
        if size < self._floor_bytes + GROWN_BYTES:
            self._floor_bytes = min(self._floor_bytes, size)
            return
        shrink_arena()
        trim()
        self._floor_bytes = resident_bytes()

"""Waiting a moment for answers that are due, instead of sleeping and being woken.

A doorbell costs its writer a system call and its sleeper 30 to 70 µs on a virtual machine; most answers of small models
come sooner than that. So the front's thread keeps its turn for a while, giving way to whoever else wants its core.
Models whose answers take longer make it wait in vain: then it leaves the next waits out, twice as many each time.
"""

import os
import time

# How long answers are waited for: a batch of a small model, cold caches included.
LINGER_NS = 400_000
# At most 2**6 - 1 waits are left out after waits in vain.
IN_VAIN_MAX = 6


class Lingering:
    """One wait at a time: again() until it says no, answered() when there was an answer."""

    __slots__ = ("_in_vain", "_left_out", "_until_ns")

    def __init__(self) -> None:
        self._until_ns = 0
        self._in_vain = 0
        self._left_out = 0

    def answered(self) -> None:
        """It was worth it."""
        self._until_ns = self._in_vain = 0

    def again(self) -> bool:
        """Give way once, and say whether to look for answers again."""
        if self._left_out:
            self._left_out -= 1
            return False
        now_ns = time.monotonic_ns()
        if not self._until_ns:
            self._until_ns = now_ns + LINGER_NS
        elif now_ns > self._until_ns:
            self._until_ns = 0
            self._in_vain = min(self._in_vain + 1, IN_VAIN_MAX)
            self._left_out = (1 << self._in_vain) - 1
            return False
        os.sched_yield()
        return True

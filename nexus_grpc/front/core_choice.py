"""Where the front's threads run: ours on a core of their own, or, under REST load on a crowded machine, all anywhere.

A core of its own is worth a quarter of gRPC's throughput (docs/decisions/0006). REST has a third busy process, Envoy,
which on two cores would wait behind bound threads while the other core idles (docs/decisions/0007).
"""

import contextlib
import os
import threading

# Arrivals between two looks.
WINDOW = 1024


class CoreChoice:
    """Made and used by the transport's thread, which it binds.

    Args:
        own: the core of its own, which it shares with the egress thread (the process's main one).
        crowded: all cores, where Envoy has to share them; empty where it has not.
    """

    def __init__(self, own: int, crowded: list[int]) -> None:
        self._own = [own]
        self._others = [core for core in crowded if core != own]
        self._crowded = crowded
        self._ours = {threading.get_native_id(), os.getpid()}
        self._bound = True
        self._seen = self._http = 0
        os.sched_setaffinity(0, self._own)

    def arrived(self, http: bool) -> None:
        """A request has come."""
        self._seen += 1
        self._http += http
        if self._seen == WINDOW:
            self._choose(bound=self._http * 2 < WINDOW or not self._others)
            self._seen = self._http = 0

    def _choose(self, bound: bool) -> None:
        if bound == self._bound:
            return
        self._bound = bound
        for thread in map(int, os.listdir("/proc/self/task")):
            cores = self._crowded if not bound else self._own if thread in self._ours else self._others
            with contextlib.suppress(OSError):  # it has ended
                os.sched_setaffinity(thread, cores)

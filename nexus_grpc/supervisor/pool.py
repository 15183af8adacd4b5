"""The supervisor's places for fronts and workers: what outlives one process of a place (statistics page, restarts), and
what belongs to the present one (child, doorbell, readiness).
"""

import asyncio
import os
import time

from nexus_grpc.ipc.oversize import new_side_sockets
from nexus_grpc.ipc.ring import new_bell
from nexus_grpc.ipc.segment import create_segment
from nexus_grpc.ipc.stats import PageKind, WorkerWord, create_page, open_page, reset_gauges
from nexus_grpc.supervisor.backoff import Backoff
from nexus_grpc.supervisor.catalogue import Version
from nexus_grpc.supervisor.child import Child


class Slot:
    """A place for one process at a time; `generation` counts its processes."""

    role = ""
    page_kind = PageKind.FRONT

    def __init__(self, index: int) -> None:
        self.index = index
        self.generation = 0
        self.restarts = 0
        self.boot_attempts = 0
        self.ready = False
        self.ever_ready = False
        self.forced = False
        self.child: Child | None = None
        self._page_fd = create_page(self.page_kind)
        self.page = open_page(self._page_fd)
        self._bell = -1
        self.backoff = Backoff()

    def begin(self, child: Child) -> None:
        """A new process takes the place."""
        self.child = child
        self.backoff.begin()
        self._bell = new_bell()
        reset_gauges(self.page)

    def end(self) -> bool:
        """The process is gone. Returns whether it had been ready."""
        was_ready = self.ready
        self.ready = False
        self.child = None
        self.generation += 1
        if self._bell >= 0:
            os.close(self._bell)
            self._bell = -1
        return was_ready

    def close(self) -> None:
        if self._page_fd >= 0:
            os.close(self._page_fd)
            self._page_fd = -1

    def new_descriptors(self) -> list[int]:
        """Statistics page and own doorbell, for the first message."""
        return [os.dup(self._page_fd), os.dup(self._bell)]

    def page_descriptor(self) -> int:
        return os.dup(self._page_fd)

    def bell_descriptor(self) -> int:
        return os.dup(self._bell)


class FrontSlot(Slot):
    """`may_listen`: start-up has come to where fronts bind the port; a replacement binds at once."""

    role = "front"
    page_kind = PageKind.FRONT

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.may_listen = False


class WorkerSlot(Slot):
    """`loading` is the model slot being loaded now, `to_load` what follows; `started`: it takes orders."""

    role = "worker"
    page_kind = PageKind.WORKER

    def __init__(self, index: int, cores: list[int]) -> None:
        super().__init__(index)
        self.cores = cores
        self.started = False
        self.loading: int | None = None
        self.died_loading = False
        self.to_load: list[Version] = []
        self.load_timer: asyncio.TimerHandle | None = None

    def end(self) -> bool:
        self.died_loading = self.loading is not None
        self.stop_load_timer()
        self.started = False
        self.loading = None
        self.to_load = []
        return super().end()

    def stop_load_timer(self) -> None:
        if self.load_timer is not None:
            self.load_timer.cancel()
            self.load_timer = None

    def silent_ns(self) -> int:
        """How long its loop has not turned; 0 before it first did."""
        heartbeat_ns = int(self.page[WorkerWord.HEARTBEAT_NS])
        return time.monotonic_ns() - heartbeat_ns if heartbeat_ns else 0


def join(front: FrontSlot, worker: WorkerSlot, ring_bytes: int) -> None:
    """Make a fresh segment and side socket for a pair and hand an end to each. Raises SegmentError."""
    assert front.child is not None
    assert worker.child is not None
    segment = create_segment(ring_bytes, worker.generation)
    front_side, worker_side = new_side_sockets()
    message = {"type": "attach", "worker": worker.index, "front": front.index, "generation": worker.generation}
    # The worker first: it must know the rings before a request can be in them.
    worker.child.send(message, [os.dup(segment), front.bell_descriptor(), worker_side.detach()])
    front.child.send(message, [segment, worker.bell_descriptor(), front_side.detach(), worker.page_descriptor()])

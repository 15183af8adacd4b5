"""What is in which worker's memory: loads and unloads versions in running workers, and tells fronts what they may use.

Loading happens in the workers' control threads, beside their serving. Unloading takes three steps, so that no request
is lost: the fronts get a table without the version and say that they use it; then the workers are told, finish what
they still have for it and let go; then its slot is free.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from nexus_grpc import logs
from nexus_grpc.ipc.control import Message
from nexus_grpc.ipc.errors import ModelNotServable
from nexus_grpc.ipc.stats import read_front_model, read_worker
from nexus_grpc.settings import Settings
from nexus_grpc.supervisor.catalogue import READY, UNAVAILABLE, Catalogue, Version
from nexus_grpc.supervisor.past_counts import PastCounts
from nexus_grpc.supervisor.pool import FrontSlot, WorkerSlot

# A front that does not take a new table in this time is in no state to serve; nothing else waits for it any longer.
ROUTED_SECONDS = 30.0

Table = Callable[[], dict[str, Any]]


class Deployment:
    """All calls from the event loop's thread.

    Args:
        table: the routing table as fronts get it: {"catalogue": [...], "traffic": {...}}.
        changed: called when what is where has changed.
    """

    def __init__(
        self,
        settings: Settings,
        catalogue: Catalogue,
        workers: Sequence[WorkerSlot],
        fronts: Sequence[FrontSlot],
        table: Table,
        changed: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._catalogue = catalogue
        self._workers = workers
        self._fronts = fronts
        self._table = table
        self._changed = changed
        self.past = PastCounts()
        self._log = logs.logger()
        self._epoch = 0
        # Fronts that have not said yet that they use the table of an epoch.
        self._routing: dict[int, tuple[set[int], asyncio.Future[None]]] = {}
        # Slots being loaded or unloaded, and who waits for that.
        self._loading: dict[int, asyncio.Future[None]] = {}
        self._unloading: dict[int, tuple[set[int], asyncio.Future[None]]] = {}
        # Told of a shadow that took a worker down.
        self.shadow_died: Callable[[Version, int], None] = lambda _version, _worker: None
        # Slot → (candidate's slot, basis points).
        self._shadows: dict[int, tuple[int, int]] = {}
        self._unconfined: list[str] = []
        catalogue.circuit_of = self._circuit_of

    def _circuit_of(self, slot: int) -> int:
        return max(read_front_model(front.page, slot).circuit for front in self._fronts)

    # --- loading ---

    async def load(self, version: Version) -> None:
        """Have its workers load a version of the catalogue. Raises ModelNotServable when none of them could."""
        done = self._loading[version.slot] = asyncio.get_running_loop().create_future()
        for worker in self._workers:
            if worker.index in version.workers and worker.child is not None:
                version.pending.add(worker.index)
                if worker.ready and version.variant:
                    # Done at once: no reason to wait for what the worker is loading.
                    worker.child.send(version.load_order(self._settings.default_max_batch_size))
                elif worker.started:
                    worker.to_load.append(version)
                    if worker.loading is None:
                        self._load_next(worker)
        if not version.pending:
            self._loading.pop(version.slot)
            raise ModelNotServable("no worker is there; one is being started; try again")
        try:
            await done
        finally:
            self._loading.pop(version.slot, None)
        if version.state != READY:
            raise ModelNotServable(version.reason or "no worker could load it")

    def started(self, worker: WorkerSlot) -> None:
        """A new worker: it loads everything that it is to hold."""
        worker.started = True
        worker.to_load = self._catalogue.for_worker(worker.index)
        for version in worker.to_load:
            version.pending.add(worker.index)
        self._load_next(worker)

    def _load_next(self, worker: WorkerSlot) -> None:
        """One model at a time, so that it is known which one took a worker down."""
        worker.stop_load_timer()
        worker.loading = None
        while worker.to_load:
            version = worker.to_load.pop(0)
            if version.state == UNAVAILABLE or version.retiring or self._is_orphan(worker, version):
                version.pending.discard(worker.index)
                self._check(version)
                continue
            worker.loading = version.slot
            assert worker.child is not None
            worker.child.send(version.load_order(self._settings.default_max_batch_size))
            loop = asyncio.get_running_loop()
            worker.load_timer = loop.call_later(self._settings.model_load_seconds, self._load_too_slow, worker)
            return
        if not worker.ready:
            worker.ready = True
            self._send_shadows(worker)
            self._changed()

    def _is_orphan(self, worker: WorkerSlot, arm: Version) -> bool:
        """An arm whose version this worker could not load."""
        base = self._catalogue.by_slot(arm.of) if arm.variant else None
        if not arm.variant or (base is not None and worker.index in base.held_by):
            return False
        self._catalogue.failed(arm.slot, "its version is not loaded", worker.index)
        return True

    def _load_too_slow(self, worker: WorkerSlot) -> None:
        if worker.loading is not None and worker.child is not None:
            seconds = self._settings.model_load_seconds
            self._fail(worker.loading, f"loading it took longer than {seconds:g} s (model_load_seconds)")
            worker.loading = None
            worker.child.kill()

    def on_message(self, worker: WorkerSlot, message: Message) -> None:
        """`unconfined`, `started`, `loaded`, `load_failed`, `unloaded` or `batching_ended`."""
        kind, slot = message["type"], message.get("slot", 0)
        if kind == "started":
            self.started(worker)
        elif kind == "unloaded":
            self._unloaded(slot, worker.index)
        elif kind == "loaded":
            labels = message.get("prediction_labels", ())
            self._catalogue.loaded(slot, worker.index, message["metadata"], message["config"], labels)
            self._answered(worker, slot)
        elif kind == "load_failed":
            self._catalogue.failed(slot, message["reason"], worker.index)
            self._answered(worker, slot)
        elif kind == "batching_ended":
            self._batching_ended(slot, message["config"], message["reason"])
        elif kind == "unconfined" and message["missing"] != self._unconfined:
            # The same for every worker: said once.
            self._unconfined = message["missing"]
            self._log.warning("workers are not confined as they should be: see SECURITY.md", missing=self._unconfined)

    def _batching_ended(self, slot: int, config: str, reason: str) -> None:
        """A worker saw that a model whose rows were proved to be apart gives other rows than it gets."""
        version = self._catalogue.by_slot(slot)
        if version is not None:
            version.config = config
            self._log.warning("model is no longer batched", model=version.name, version=version.version, reason=reason)
            self._changed()

    def _answered(self, worker: WorkerSlot, slot: int) -> None:
        version = self._catalogue.by_slot(slot)
        if version is not None:
            self._check(version)
        if worker.loading == slot:
            self._load_next(worker)

    def _fail(self, slot: int, reason: str) -> None:
        self._catalogue.failed(slot, reason)
        version = self._catalogue.by_slot(slot)
        if version is not None:
            self._check(version)

    def _check(self, version: Version) -> None:
        """Wake who waits for a version, when its workers have all answered."""
        done = self._loading.get(version.slot)
        if done is not None and not done.done() and not version.pending:
            done.set_result(None)

    def worker_gone(self, worker: WorkerSlot) -> None:
        """A worker died. What it was loading, or ran as a shadow, may be to blame; what it was to unload is gone."""
        loading = worker.loading
        shadowing = self._catalogue.by_slot(read_worker(worker.page).shadowing)
        if shadowing is not None:
            self.shadow_died(shadowing, worker.index)
        self._catalogue.worker_gone(worker.index)
        if loading is not None:
            self._catalogue.crashed_while_loading(loading)
            version = self._catalogue.by_slot(loading)
            if version is not None:
                self._check(version)
        for slot in list(self._unloading):
            self._unloaded(slot, worker.index)

    # --- unloading ---

    async def unload(self, version: Version) -> None:
        """Take a version out of use and out of memory. Requests that are under way are answered first."""
        version.retiring = True
        await self.publish()
        self._shadows.pop(version.slot, None)
        # A load that failed leaves open who holds it.
        asked = version.workers if version.state == UNAVAILABLE else version.held_by
        holders = [worker for worker in self._workers if worker.index in asked and worker.child is not None]
        if holders:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._unloading[version.slot] = ({worker.index for worker in holders}, done)
            for worker in holders:
                assert worker.child is not None
                worker.child.send({"type": "unload", "slot": version.slot})
            await done
        self.past.keep(version, self._fronts, self._workers)
        self._catalogue.drop(version)
        self.past.forget_unless_in(self._catalogue)
        self._changed()

    def _unloaded(self, slot: int, worker: int) -> None:
        waiting, done = self._unloading.get(slot, (set(), None))
        waiting.discard(worker)
        if done is not None and not waiting:
            del self._unloading[slot]
            if not done.done():
                done.set_result(None)

    # --- routing ---

    async def publish(self) -> None:
        """Give all fronts the table as it is now; return when they use it."""
        self._changed()
        self._epoch += 1
        epoch = self._epoch
        fronts = [front for front in self._fronts if front.child is not None]
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not fronts:
            return
        self._routing[epoch] = ({front.index for front in fronts}, done)
        message = self.table_message()
        for front in fronts:
            assert front.child is not None
            front.child.send(message)
        try:
            await asyncio.wait_for(done, ROUTED_SECONDS)
        except TimeoutError:
            self._log.error("a front does not take the routing table", fronts=sorted(self._routing[epoch][0]))
            del self._routing[epoch]

    def table_message(self) -> Message:
        return {"type": "routes", "epoch": self._epoch, **self._table()}

    def routed(self, front: int, epoch: int) -> None:
        """A front uses the table of an epoch, and with that no earlier one any more."""
        for waited_for in [known for known in self._routing if known <= epoch]:
            fronts, done = self._routing[waited_for]
            fronts.discard(front)
            if not fronts:
                del self._routing[waited_for]
                if not done.done():
                    done.set_result(None)

    def front_gone(self, front: int) -> None:
        self.routed(front, self._epoch)

    # --- shadows ---

    def shadow(self, slot: int, candidate: int, basis_points: int) -> None:
        """Have workers run copies of a slot's requests on another's session; 0 ends it."""
        wanted = (candidate, basis_points) if candidate and basis_points else (0, 0)
        if self._shadows.get(slot, (0, 0)) == wanted:
            return
        self._shadows[slot] = wanted
        for worker in self._workers:
            if worker.ready and worker.child is not None:
                worker.child.send(_shadow_message(slot, *wanted))
        if not candidate:
            del self._shadows[slot]

    def _send_shadows(self, worker: WorkerSlot) -> None:
        assert worker.child is not None
        for slot, (candidate, basis_points) in self._shadows.items():
            worker.child.send(_shadow_message(slot, candidate, basis_points))


def _shadow_message(slot: int, candidate: int, basis_points: int) -> Message:
    return {"type": "shadow", "slot": slot, "candidate": candidate, "basis_points": basis_points}

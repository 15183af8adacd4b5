"""The supervisor: spawns fronts and workers, replaces the dead, tells everyone what changed. The only writer of state.

    starting ──(every worker has loaded, every front listens)──▶ serving ──(SIGTERM, SIGINT)──▶ draining ──▶ stopped

No request passes through here. It waits on pidfds and channels; its only clock is the watchdog's.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

from nexus_grpc import cpus, logs
from nexus_grpc.ipc.control import Message
from nexus_grpc.ipc.ring import ordering_is_proven
from nexus_grpc.ipc.segment import SegmentError
from nexus_grpc.limits.shared import create_table
from nexus_grpc.registry.store import Registry
from nexus_grpc.repository import Contents
from nexus_grpc.settings import Settings
from nexus_grpc.staging import sweep
from nexus_grpc.supervisor import backoff
from nexus_grpc.supervisor.administration import Administration
from nexus_grpc.supervisor.banner import announce
from nexus_grpc.supervisor.catalogue import Catalogue, place
from nexus_grpc.supervisor.child import Child, exit_text
from nexus_grpc.supervisor.deployment import Deployment
from nexus_grpc.supervisor.envoy import Sidecar
from nexus_grpc.supervisor.envoy_setup import has_sidecar
from nexus_grpc.supervisor.lifecycle import Lifecycle
from nexus_grpc.supervisor.metrics import MetricsSources
from nexus_grpc.supervisor.pool import FrontSlot, WorkerSlot, join
from nexus_grpc.supervisor.ports import claim_ports, serve_metrics
from nexus_grpc.supervisor.sources import sources_of

EXIT_FINE, EXIT_FORCED = 0, 1
WATCHDOG_TICK_SECONDS = 0.5
STOP_SECONDS = 5.0


class StartFailed(Exception):
    """The server cannot start here; the message says why."""


class Supervisor:
    """run() is the whole life of the server.

    Raises PortTaken, SegmentError, StartFailed, ConfigurationError or OSError when it cannot start; nothing is left
    behind then.
    """

    def __init__(self, settings: Settings, contents: Contents, registry: Registry) -> None:
        self._settings = settings
        self._log = logs.logger()
        self._cpus = cpus.parse_cpu_list(settings.cpus) if settings.cpus else cpus.available_cpus()
        self._placement = place(contents.entries, settings.workers or cpus.default_worker_count(self._cpus))
        self._contents = contents
        self._catalogue = Catalogue(self._placement)
        sets = cpus.assign(self._cpus, self._placement.workers)
        self._workers = [WorkerSlot(index, list(cores)) for index, cores in enumerate(sets)]
        self._fronts = [FrontSlot(index) for index in range(settings.fronts)]
        self._lifecycle = Lifecycle(settings, self._catalogue, registry)
        self._deployment = self._lifecycle.loading.deployment = Deployment(
            settings, self._catalogue, self._workers, self._fronts, self._lifecycle.table, self._deployed
        )
        self._administration = Administration(settings, self._lifecycle, self._fronts, self._workers, self._tell_fronts)
        self._sources = MetricsSources()
        self._buckets_fd = create_table()  # the fronts' rate limits
        self._started_at_s = time.time()
        self._draining = False
        self._failure: str | None = None
        self._changed = asyncio.Event()
        self._stop = asyncio.Event()
        self._sidecar: Sidecar | None = None

    async def run(self) -> int:
        claims = claim_ports(self._settings)
        metrics = serve_metrics(self._settings, lambda: self._sources, self._administration.admit)
        self._take_signals()
        self._lifecycle.begin(self._contents)
        self._administration.begin()
        try:
            if has_sidecar(self._settings):
                self._sidecar = Sidecar(self._settings, self._cpus, self._sidecar_changed)
            for worker in self._workers:
                self._spawn_worker(worker)
            for front in self._fronts:
                self._spawn_front(front)
            await self._until_serving()
            if not self._stop.is_set():
                self._announce()
                self._administration.start()
                await self._watch()
            return await self._drain()
        finally:
            await self._end_children()
            if metrics is not None:
                metrics.close()
            claims.close()

    # --- starting ---

    def _take_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: int) -> None:
        if not self._stop.is_set():
            self._log.info("stopping: draining requests", signal=signal.Signals(number).name)
            self._stop.set()
            self._changed.set()
        else:
            self._log.warning("stopping at once", signal=signal.Signals(number).name)
            if self._sidecar is not None:
                self._sidecar.kill()
            for slot in (*self._fronts, *self._workers):
                if slot.child is not None:
                    slot.child.kill()

    async def _until_serving(self) -> None:
        """Wait for every worker, then have the fronts listen, then start Envoy. Raises StartFailed."""
        await self._until(lambda: all(worker.ready for worker in self._workers))
        if not self._stop.is_set():
            await self._lifecycle.after_start()
        for front in self._fronts:
            front.may_listen = True
            self._tell_front_all(front)
        await self._until(lambda: all(front.ready for front in self._fronts))
        sidecar = self._sidecar
        if sidecar is not None and not self._stop.is_set():
            sidecar.start()
            await self._until(lambda: sidecar.ready)

    def _sidecar_changed(self) -> None:
        assert self._sidecar is not None
        self._failure = self._failure or self._sidecar.failure
        self._update_sources()
        self._changed.set()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition() and not self._stop.is_set():
            self._changed.clear()
            await self._changed.wait()
            if self._failure is not None:
                raise StartFailed(self._failure)

    def _announce(self) -> None:
        if not ordering_is_proven():
            self._log.warning("this CPU's memory ordering is not covered by docs/decisions/0002: untested here")
        seconds = time.time() - self._started_at_s
        announce(self._settings, self._catalogue, [worker.cores for worker in self._workers], seconds)

    # --- workers ---

    def _spawn_worker(self, worker: WorkerSlot) -> None:
        child = Child("worker", worker.index, worker.generation, self._on_worker_message, self._on_worker_exit)
        worker.begin(child)
        child.spawn("nexus_grpc.worker.main")
        child.send({**self._hello(child), "cpus": worker.cores}, worker.new_descriptors())
        self._update_sources()

    def _hello(self, child: Child) -> Message:
        return {
            "type": "hello",
            "index": child.index,
            "generation": child.generation,
            "supervisor_pid": os.getpid(),
            "compiled": self._settings.compiled,
        }

    def _on_worker_message(self, child: Child, message: Message) -> None:
        worker = self._workers[child.index]
        kind = message["type"]
        if kind == "bug":
            self._log.error("bug in a worker", worker=worker.index, traceback=message["traceback"])
            return
        was_ready = worker.ready
        self._deployment.on_message(worker, message)
        if worker.ready and not was_ready:
            self._worker_ready(worker)

    def _worker_ready(self, worker: WorkerSlot) -> None:
        worker.boot_attempts = 0
        for front in self._fronts:
            self._join(front, worker, worker)
        if any(front.may_listen for front in self._fronts):
            self._tell_fronts(self._deployment.table_message())
        self._update_sources()
        self._changed.set()

    def _on_worker_exit(self, child: Child, code: int) -> None:
        worker = self._workers[child.index]
        # Also while draining: what it was running goes to another worker, if there is one.
        for front in self._fronts:
            if front.child is not None:
                front.child.send({"type": "detach", "worker": child.index, "generation": child.generation})
        if self._draining:
            worker.forced = child.killed
            self._deployment.worker_gone(worker)
            worker.end()
            self._changed.set()
            return
        self._log.error("worker died", worker=child.index, died_of=exit_text(code), child_pid=child.pid)
        self._deployment.worker_gone(worker)
        self._respawn(worker, code)

    def _respawn(self, slot: WorkerSlot | FrontSlot, code: int) -> None:
        """Start the next generation, at once after a long life, with back-off after short ones."""
        was_ready = slot.end()
        slot.restarts += 1
        if not was_ready:
            slot.boot_attempts += 1
            loading = isinstance(slot, WorkerSlot) and slot.died_loading
            if slot.boot_attempts >= backoff.BOOT_ATTEMPTS_MAX and not slot.ever_ready and not loading:
                self._failure = f"{slot.role} {slot.index} cannot start: {exit_text(code)} {slot.boot_attempts} times"
                self._changed.set()
                return
        spawn = self._spawn_worker if isinstance(slot, WorkerSlot) else self._spawn_front
        asyncio.get_running_loop().call_later(slot.backoff.next_delay(), self._spawn_unless_draining, spawn, slot)
        self._update_sources()

    def _spawn_unless_draining(self, spawn: Callable[[Any], None], slot: WorkerSlot | FrontSlot) -> None:
        if self._stop.is_set():
            return
        try:
            spawn(slot)
        except OSError as error:  # no process or descriptor to be had: perhaps later
            self._log.error("cannot start a process", role=slot.role, slot=slot.index, reason=str(error))
            if slot.child is not None and slot.child.pid:
                slot.child.kill()  # its exit is followed by another try
            else:
                slot.end()
                asyncio.get_running_loop().call_later(backoff.MAX_SECONDS, self._spawn_unless_draining, spawn, slot)

    # --- fronts ---

    def _spawn_front(self, front: FrontSlot) -> None:
        child = Child("front", front.index, front.generation, self._on_front_message, self._on_front_exit)
        front.begin(child)
        child.spawn("nexus_grpc.front.main", logs=True)
        own, others = cpus.front_cpus(self._cpus, front.index)
        envoy = self._sidecar.hello(front.index) if self._sidecar is not None else {}
        crowded = self._cpus if envoy and len(self._cpus) <= len(self._fronts) + len(self._workers) else []
        cores = {"cpus": others, "own_cpu": own, "crowded_cpus": crowded}
        settings = self._settings.model_dump_json(exclude={"registry_url"})  # a password that fronts have no use for
        hello = {**self._hello(child), **cores, **envoy, "settings": settings}
        child.send(hello, [*front.new_descriptors(), os.dup(self._buckets_fd)])
        for worker in self._workers:
            if worker.ready:
                self._join(front, worker, front)
        if front.may_listen:
            self._tell_front_all(front)
        self._update_sources()

    def _tell_front_all(self, front: FrontSlot) -> None:
        assert front.child is not None
        for message in (*self._administration.first_messages(), self._deployment.table_message(), {"type": "listen"}):
            front.child.send(message)

    def _deployed(self) -> None:
        """What is in memory has changed."""
        self._update_sources()
        self._changed.set()

    def _on_front_message(self, child: Child, message: Message) -> None:
        front = self._fronts[child.index]
        if message["type"] in ("call", "credentials"):
            self._administration.heard(message, child.send)
        elif message["type"] == "routed":
            self._deployment.routed(front.index, message["epoch"])
        elif message["type"] == "ready":
            front.ready = front.ever_ready = True
            front.boot_attempts = 0
            self._changed.set()
        elif message["type"] == "broken":
            self._end_broken_worker(message["worker"], message["generation"])
        elif message["type"] == "failed":
            self._log.error("front cannot listen", front=child.index, reason=message["reason"])
            if not front.ever_ready:
                self._failure = f"front {child.index} cannot listen: {message['reason']}"
                self._changed.set()
            else:
                child.kill()

    def _end_broken_worker(self, index: int, generation: int) -> None:
        worker = self._workers[index]
        if worker.child is not None and worker.generation == generation:
            self._log.error("worker wrote what cannot be: replacing it", worker=index)
            worker.child.kill()

    def _on_front_exit(self, child: Child, code: int) -> None:
        front = self._fronts[child.index]
        self._deployment.front_gone(front.index)
        # What it was receiving will never be complete.
        repository, alive = self._settings.model_repository, lambda pid: pid != child.pid
        asyncio.get_running_loop().run_in_executor(None, sweep, repository, alive)
        if self._draining:
            front.forced = child.killed
            front.end()
            self._changed.set()
            return
        self._log.error("front died", front=child.index, died_of=exit_text(code), child_pid=child.pid)
        for worker in self._workers:
            if worker.child is not None and worker.ready:
                worker.child.send({"type": "detach", "front": child.index})
        self._respawn(front, code)

    def _join(self, front: FrontSlot, worker: WorkerSlot, newcomer: WorkerSlot | FrontSlot) -> None:
        """Give a front and a worker their rings. Without memory for them the newcomer ends, and comes again later."""
        if front.child is None or worker.child is None:
            return
        try:
            join(front, worker, self._settings.ring_bytes)
        except (SegmentError, OSError) as error:
            self._log.error("no rings for a new process", front=front.index, worker=worker.index, reason=str(error))
            # Only read while starting: a server that serves already goes on with what it has.
            self._failure = str(error)
            self._changed.set()
            assert newcomer.child is not None
            newcomer.child.kill()

    # --- serving ---

    async def _watch(self) -> None:
        """Until told to stop: replace workers whose loop has not turned for too long (stopped, or stuck in a run)."""
        while not self._stop.is_set():
            try:
                await asyncio.wait_for(self._stop.wait(), WATCHDOG_TICK_SECONDS)
            except TimeoutError:
                self._check_heartbeats()

    def _check_heartbeats(self) -> None:
        limit_ns = int(self._settings.watchdog_seconds * 1e9)
        for worker in self._workers:
            silent_ns = worker.silent_ns()
            if worker.ready and worker.child is not None and silent_ns > limit_ns:
                self._log.error("worker is stuck: replacing it", worker=worker.index, silent_seconds=silent_ns / 1e9)
                worker.child.kill()

    def _update_sources(self) -> None:
        """What the metrics thread reads: replaced whole."""
        past = self._deployment.past
        self._sources = sources_of(
            self._fronts, self._workers, self._catalogue, past, self._sidecar, self._started_at_s
        )

    # --- stopping ---

    async def _drain(self) -> int:
        """Envoy and the fronts finish what is in flight, then workers stop. A second signal ends it at once."""
        self._draining = True
        deadline_s = time.monotonic() + self._settings.drain_seconds
        await self._administration.stop(self._settings.drain_seconds / 2)
        if self._sidecar is not None:
            # Not ready any more, then no new connections; only then may fronts refuse calls.
            self._tell_fronts({"type": "unready"})
            await self._sidecar.stop_accepting()
        seconds = max(0.1, deadline_s - time.monotonic())
        self._tell_fronts({"type": "drain", "seconds": seconds})
        await self._until_exited(self._fronts, seconds + 2)
        if self._sidecar is not None:
            await self._sidecar.stop(max(0.1, deadline_s - time.monotonic()))
        for worker in self._workers:
            if worker.child is not None:
                worker.child.send({"type": "stop"})
        await self._until_exited(self._workers, STOP_SECONDS)
        forced = any(slot.child is not None or slot.forced for slot in (*self._fronts, *self._workers))
        forced |= self._sidecar is not None and self._sidecar.forced
        self._log.info("stopped", forced=forced)
        return EXIT_FORCED if forced else EXIT_FINE

    def _tell_fronts(self, message: Message) -> None:
        for front in self._fronts:
            if front.child is not None:
                front.child.send(message)

    async def _until_exited(self, slots: Sequence[FrontSlot] | Sequence[WorkerSlot], seconds: float) -> None:
        children = [slot.child for slot in slots if slot.child is not None]
        waits = [child.exited.wait() for child in children]
        if waits:
            try:
                await asyncio.wait_for(asyncio.gather(*waits), seconds)
            except TimeoutError:
                self._log.warning(
                    "processes did not stop in time", pids=[c.pid for c in children if not c.exited.is_set()]
                )

    async def _end_children(self) -> None:
        """Whatever is left is killed: nothing outlives the supervisor's run()."""
        self._draining = True
        if self._sidecar is not None:
            await self._sidecar.end()
        for slot in (*self._fronts, *self._workers):
            if slot.child is not None and slot.child.pid:
                slot.child.kill()
                await slot.child.exited.wait()
            slot.close()

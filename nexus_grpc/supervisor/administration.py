"""Everything that changes models while the server runs, wired together; and what runs by itself in the background."""

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from nexus_grpc import logs
from nexus_grpc.access.call import Admit
from nexus_grpc.ipc.control import Message
from nexus_grpc.settings import Settings
from nexus_grpc.supervisor.catalogue import Version
from nexus_grpc.supervisor.key_operations import KeyOperations
from nexus_grpc.supervisor.lifecycle import Lifecycle
from nexus_grpc.supervisor.model_operations import ModelOperations
from nexus_grpc.supervisor.operations import Calls, operations
from nexus_grpc.supervisor.poll import Poll
from nexus_grpc.supervisor.pool import FrontSlot, WorkerSlot
from nexus_grpc.supervisor.traffic_operations import TrafficOperations
from nexus_grpc.supervisor.uploads import Uploads
from nexus_grpc.supervisor.variant_statistics import VariantStatistics

if TYPE_CHECKING:
    from nexus_grpc.supervisor.access import AccessKeeper

LINGER_TICK_SECONDS = 1.0


class Administration:
    """`calls` takes the fronts' calls from the beginning; start() begins the background work once the server serves."""

    def __init__(
        self,
        settings: Settings,
        lifecycle: Lifecycle,
        fronts: Sequence[FrontSlot],
        workers: Sequence[WorkerSlot],
        publish: Callable[[Message], None],
    ) -> None:
        self._lifecycle = lifecycle
        # Whom the fronts let in; None where they ask nobody.
        self.access = _keeper(settings, lifecycle, publish) if settings.auth != "off" else None
        self._log = logs.logger()
        self._statistics = VariantStatistics(lifecycle, fronts, workers)
        self._poll = Poll(lifecycle)
        self._traffic = TrafficOperations(lifecycle, self._statistics)
        models, uploads = ModelOperations(lifecycle), Uploads(lifecycle)
        keys = KeyOperations(lifecycle, self.access)
        self.calls = Calls(operations(models, self._traffic, uploads, self._poll, keys))
        self._tasks: list[asyncio.Task[None]] = []
        lifecycle.deployment.shadow_died = self._shadow_died

    @property
    def admit(self) -> Admit | None:
        """Recognises callers of the supervisor's own ports."""
        return self.access.gate.admit if self.access is not None else None

    def begin(self) -> None:
        """Before anything listens. Raises StorageFailed."""
        if self.access is not None:
            self.access.begin()

    def first_messages(self) -> list[Message]:
        """For a front that is about to listen."""
        return [self.access.message()] if self.access is not None else []

    def heard(self, message: Message, send: Callable[[Message], None]) -> None:
        """A front's `call` or `credentials`. `send` is how to answer it."""
        if message["type"] == "call":
            self.calls.begin(message, send)
        elif self.access is not None:
            self.access.heard(message)

    def start(self) -> None:
        if self.access is not None:
            self.access.start()
        self._statistics.restore()
        loop = asyncio.get_running_loop()
        work = (self._poll.run, self._traffic.run, self._end_lingering)
        self._tasks = [loop.create_task(each()) for each in work]
        for task in self._tasks:
            task.add_done_callback(self._ended)

    def _shadow_died(self, shadow: Version, worker: int) -> None:
        task = asyncio.get_running_loop().create_task(self._traffic.end_shadow(shadow, worker))
        self._tasks.append(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and task.exception() is not None:
            self._log.error("background work ended", exc_info=task.exception())

    async def _end_lingering(self) -> None:
        while True:
            await asyncio.sleep(LINGER_TICK_SECONDS)
            await self._lifecycle.tick()

    async def stop(self, seconds: float) -> None:
        """No more changes: those under way end, for so long at most."""
        for task in self._tasks:
            task.cancel()
        if self.access is not None:
            await self.access.stop()
        await self.calls.close(seconds)
        await asyncio.to_thread(self._lifecycle.registry.close)


def _keeper(settings: Settings, lifecycle: Lifecycle, publish: Callable[[Message], None]) -> "AccessKeeper":
    # Late: it brings cryptography along.
    from nexus_grpc.supervisor.access import AccessKeeper

    return AccessKeeper(settings, lifecycle.registry, lifecycle.registry_call, publish)

"""Which operation a front's call means, and what becomes of its end: the supervisor's side of front/supervised.py."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from nexus_grpc import logs
from nexus_grpc.ipc.control import Message
from nexus_grpc.ipc.errors import Code, ModelUnavailable, NexusError, UnknownModel
from nexus_grpc.supervisor.key_operations import KeyOperations
from nexus_grpc.supervisor.model_operations import ModelOperations
from nexus_grpc.supervisor.poll import Poll
from nexus_grpc.supervisor.traffic_operations import TrafficOperations
from nexus_grpc.supervisor.uploads import Uploads

Operation = Callable[[dict[str, Any], str], Awaitable[dict[str, Any]]]
Reply = Callable[[Message], None]


def operations(
    models: ModelOperations, traffic: TrafficOperations, uploads: Uploads, poll: Poll, keys: KeyOperations
) -> dict[str, Operation]:
    """By name: Service.Method."""
    return {
        "Keys.Create": keys.create,
        "Keys.List": keys.list_keys,
        "Keys.Revoke": keys.revoke,
        "Models.Upload": uploads.receive,
        "Models.Load": models.load,
        "Models.Unload": models.unload,
        "Models.Activate": models.activate,
        "Models.Rollback": models.rollback,
        "Models.Delete": models.delete,
        "Models.History": models.history,
        "Models.ListRecords": models.list_records,
        "Models.GetRecord": models.get_record,
        "Models.Register": models.register,
        "Models.UpdateRecord": models.update_record,
        "Repository.Load": models.repository_load,
        "Repository.Unload": models.repository_unload,
        "System.Reload": poll.reload,
        "Traffic.Setup": traffic.setup,
        "Traffic.Split": traffic.split,
        "Traffic.Ramp": traffic.ramp,
        "Traffic.Promote": traffic.promote,
        "Traffic.Abort": traffic.abort,
        "Traffic.Status": traffic.status,
        "Traffic.Shadow": traffic.shadow,
        "Traffic.Balance": traffic.balance,
    }


class Calls:
    """Runs fronts' calls, each as a task of its own, and answers them.

    Args:
        table: what may be called.
    """

    def __init__(self, table: dict[str, Operation]) -> None:
        self._table = table
        self._log = logs.logger()
        self._running: set[asyncio.Task[None]] = set()
        self._closed = False

    def begin(self, message: Message, reply: Reply) -> None:
        """Start a call; `reply` gets its end."""
        task = asyncio.get_running_loop().create_task(self._run(message, reply))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def close(self, seconds: float) -> None:
        """Take no more calls; let those under way end, for so long at most."""
        self._closed = True
        if self._running:
            await asyncio.wait(self._running, timeout=seconds)
        for task in self._running:
            task.cancel()

    async def _run(self, message: Message, reply: Reply) -> None:
        name, number = message["operation"], message["id"]
        try:
            if self._closed:
                raise ModelUnavailable("the server is stopping")
            result = await self._table[name](message["arguments"], message["actor"])
        except NexusError as error:
            reply(_raised(number, error))
        except Exception as error:
            self._log.error("operation failed", operation=name, exc_info=error)
            bug = NexusError(f"internal error in {name}; see the server's log", reason="INTERNAL")
            reply({**_raised(number, bug), "code": int(Code.INTERNAL)})
        else:
            reply({"type": "returned", "id": number, "result": result})


def _raised(number: int, error: NexusError) -> Message:
    meant = ""
    if isinstance(error, UnknownModel):
        # Apart: the front knows whether the caller may be told.
        error, meant = error.unhinted(), error.meant
    return {
        "type": "raised",
        "id": number,
        "code": int(error.code),
        "message": error.message,
        "reason": error.reason,
        "field": error.field,
        "meant": meant,
    }

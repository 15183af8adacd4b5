"""API keys over the wire: what `nexus keys` does on the server's machine, for administrators elsewhere.

Arguments and results are the JSON forms of the messages in proto/nexus/v1/keys.proto. A key's text is in the answer to
the call that made it, and nowhere else.
"""

import time
from typing import TYPE_CHECKING, Any

from nexus_grpc.access.keys import ApiKey, asked_key
from nexus_grpc.ipc.errors import InvalidInput, StateConflict
from nexus_grpc.supervisor.lifecycle import Lifecycle

if TYPE_CHECKING:
    from nexus_grpc.supervisor.access import AccessKeeper

Arguments = dict[str, Any]


class KeyOperations:
    """One method per operation: (arguments, actor) → result. Each raises NexusError and changes nothing then.

    Args:
        keeper: tells the fronts of keys; None where the server asks nobody for credentials.
    """

    def __init__(self, lifecycle: Lifecycle, keeper: "AccessKeeper | None") -> None:
        self._lifecycle = lifecycle
        self._keeper = keeper

    async def create(self, arguments: Arguments, actor: str) -> dict[str, Any]:
        keeper, life, now = self._used(), self._lifecycle, time.time()
        text, key = asked_key(arguments["name"], arguments, now, actor)
        await life.registry_call(life.registry.add_key, key)
        await keeper.look_now()
        return {"key": text, "api_key": shown(key, now)}

    async def list_keys(self, arguments: Arguments, actor: str) -> dict[str, Any]:
        self._used()
        life, now = self._lifecycle, time.time()
        found = [shown(key, now) for key in await life.registry_call(life.registry.list_keys)]
        return {"keys": found, "count": len(found)}

    async def revoke(self, arguments: Arguments, actor: str) -> dict[str, Any]:
        keeper, life, now = self._used(), self._lifecycle, time.time()
        if not arguments["key"]:
            raise InvalidInput("key is missing: the id or the name of the key to revoke", field="key")
        key = await life.registry_call(life.registry.revoke_key, arguments["key"], actor, now)
        await keeper.look_now()
        return {"api_key": shown(key, now)}

    def _used(self) -> "AccessKeeper":
        """Raises StateConflict where anybody could make keys, for the day on which they count."""
        if self._keeper is None:
            raise StateConflict(
                "this server asks nobody for credentials (--auth off), so anybody could make keys: start it with --auth"
                " required or optional, or run `nexus keys` on its machine",
                reason="NO_CREDENTIALS",
            )
        return self._keeper


def shown(key: ApiKey, now: float) -> dict[str, Any]:
    """nexus.v1.ApiKey as JSON: what people may see of a key."""
    return {name: "" if value is None else value for name, value in key.shown(now).items()}

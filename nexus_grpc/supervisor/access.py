"""The credentials that the fronts go by: read from the registry and the issuers, watched, and sent when they change.

nexus keys … ──▶ registry ──(epoch, twice a second)──┐     and each key made or revoked is told to the log
issuers' files and URLs ──(refresh_if_due)───────────┼──▶ message ──▶ fronts, metrics
fronts: "credentials" (last used, unknown keys) ─────┘
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from nexus_grpc import logs
from nexus_grpc.access.gate import Gate
from nexus_grpc.access.issuers import Trust, load_trust
from nexus_grpc.access.jwks import JwksSources
from nexus_grpc.access.keys import ApiKey
from nexus_grpc.configuration import ConfigurationError
from nexus_grpc.ipc.control import Message
from nexus_grpc.ipc.errors import InvalidInput, NexusError
from nexus_grpc.registry.open import open_registry
from nexus_grpc.registry.store import Registry
from nexus_grpc.settings import Settings

# A revoked key is refused within a second.
LOOK_SECONDS = 0.5
ISSUERS_SECONDS = 1.0
NOTE_SECONDS = 10.0
# How long a registry that cannot be read is left alone.
AWAY_SECONDS = 5.0

# Lines of the audit log that are looked at when the keys have changed.
TOLD_MAX = 100
KEY_EVENTS = {"create_key": "API key made", "revoke_key": "API key revoked"}

RegistryCall = Callable[..., Awaitable[Any]]


def trust_of(settings: Settings) -> Trust:
    """Raises ConfigurationError."""
    try:
        return load_trust(Path(settings.jwt_issuers)) if settings.jwt_issuers else Trust()
    except InvalidInput as error:
        raise ConfigurationError(error.message) from None


class AccessKeeper:
    """Coroutines run on the event loop; the registry and the issuers are asked in threads.

    Args:
        registry: the server's own.
        registry_call: calls one of the registry's methods in a thread.
        publish: called with the message for the fronts, whenever it is another.
    """

    def __init__(
        self, settings: Settings, registry: Registry, registry_call: RegistryCall, publish: Callable[[Message], None]
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._registry_call = registry_call
        self._publish = publish
        self._log = logs.logger()
        self._trust = trust_of(settings)
        self._issuers = JwksSources(self._trust.issuers, report=self._report)
        self._keys: list[ApiKey] = []
        self._epoch = -1
        # The newest line of the audit log that was looked at.
        self._told = 0
        self._looking = asyncio.Lock()
        # A connection of its own: it must not wait for what the other one does.
        self._watched: Registry | None = None
        self._used: dict[str, float] = {}
        self._tasks: list[asyncio.Task[None]] = []
        # Recognises the callers of the metrics port.
        self.gate = Gate(
            optional=settings.auth == "optional", anonymous_per_minute=0.0, certificates=bool(settings.tls_client_ca)
        )

    def begin(self) -> None:
        """Read everything once, before anything listens. Raises StorageFailed or ConfigurationError."""
        try:
            self._issuers.load_files()
        except InvalidInput as error:
            raise ConfigurationError(error.message) from None
        self._epoch = self._registry.keys_epoch()
        self._keys = self._registry.list_keys()
        self._told = max((row.sequence for row in self._registry.history("", 1)), default=0)
        self.gate.replace(self.message())

    def start(self) -> None:
        """Watch, from now on."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(work()) for work in (self._watch_keys, self._watch_issuers, self._note)]
        for task in self._tasks:
            task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and task.exception() is not None:
            self._log.error("credentials are not watched any more", exc_info=task.exception())

    async def stop(self) -> None:
        """Watch no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(NexusError):
            await self._note_used()
        if self._watched is not None:
            await asyncio.to_thread(self._watched.close)

    def message(self) -> Message:
        """Digests and secrets: for the control channel, never for a log."""
        keys = [key.to_json() for key in self._keys]
        return {"type": "access", "keys": keys, "trust": self._trust.document, "jwks": self._issuers.snapshot()}

    def heard(self, message: Message) -> None:
        """A front's `credentials` message."""
        for key, used_at_s in message["used"].items():
            self._used[key] = max(used_at_s, self._used.get(key, 0.0))
        for issuer in message["unknown"]:
            self._issuers.ask_refresh(issuer)

    async def _watch_keys(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self._look()
            except Exception as error:  # whatever it is: without watching no key would be revoked any more
                self._log.warning("the keys cannot be read: going on with those known", reason=str(error))
                await asyncio.to_thread(self._forget_connection)
                await asyncio.sleep(AWAY_SECONDS)

    async def look_now(self) -> None:
        """A key was made or revoked in this process: the fronts need not wait. If it fails, the next look will do."""
        with contextlib.suppress(NexusError):
            await self._look()

    async def _look(self) -> None:
        async with self._looking:
            epoch = await asyncio.to_thread(self._current_epoch)
            if epoch == self._epoch:
                return
            self._keys = await self._registry_call(self._registry.list_keys)
            self._epoch = epoch
            self._send()
            await self._tell()

    async def _tell(self) -> None:
        """The log says who made or revoked which key: the audit log knows, whichever process it was."""
        rows = await self._registry_call(self._registry.history, "", TOLD_MAX)
        told, self._told = self._told, max((row.sequence for row in rows), default=self._told)
        for row in reversed(rows):
            if row.sequence > told and row.action in KEY_EVENTS:
                self._log.info(KEY_EVENTS[row.action], actor=row.actor, **row.detail)

    def _current_epoch(self) -> int:
        if self._watched is None:
            settings = self._settings
            self._watched = open_registry(settings.registry_url, settings.data_dir, keeps_snapshot=False)
        return self._watched.keys_epoch()

    def _forget_connection(self) -> None:
        watched, self._watched = self._watched, None
        if watched is not None:
            with contextlib.suppress(NexusError):
                watched.close()

    async def _watch_issuers(self) -> None:
        while self._trust.issuers:
            if await asyncio.to_thread(self._issuers.refresh_if_due):
                self._send()
            await asyncio.sleep(ISSUERS_SECONDS)

    async def _note(self) -> None:
        while True:
            await asyncio.sleep(NOTE_SECONDS)
            with contextlib.suppress(NexusError):
                await self._note_used()

    async def _note_used(self) -> None:
        used, _ = self.gate.take_news()
        self.heard({"used": used, "unknown": []})
        used, self._used = self._used, {}
        if used:
            await self._registry_call(self._registry.note_used, used)

    def _send(self) -> None:
        message = self.message()
        self.gate.replace(message)
        self._publish(message)

    def _report(self, event: str, facts: Mapping[str, Any]) -> None:
        self._log.warning(event, **facts)

"""Envoy's admin interface, for its supervisor alone: a connection made before the socket's name is taken away.

The socket lies in a folder of our own (0700) only until we are connected. Then nobody else can reach it, and nothing
stays behind, however this server ends.
"""

import asyncio
import contextlib
import http.client
import os
import shutil
import socket
import tempfile

ANSWER_SECONDS = 5.0
# sun_path holds 108 bytes, and Envoy's parser wants the terminating zero among them.
PATH_MAX = 100
# Everything but Envoy's own: our questions are counted there too.
_OWN_PREFIX = "http.admin."

# What a broken or refused conversation raises.
AdminError = (OSError, http.client.HTTPException)


class Admin:
    """One Envoy's. close() in any case."""

    def __init__(self) -> None:
        self._folder = _new_folder()
        self.path = os.path.join(self._folder, "admin")
        self._connection: http.client.HTTPConnection | None = None

    def connect_nowait(self) -> bool:
        """Whether we are connected; before Envoy listens we are not."""
        if self._connection is None:
            connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connected.settimeout(ANSWER_SECONDS)
            try:
                connected.connect(self.path)
            except OSError:
                connected.close()
                return False
            self._connection = http.client.HTTPConnection("envoy")
            self._connection.auto_open = 0
            self._connection.sock = connected
        return True

    def hide(self) -> None:
        """Take the socket's name away; the connection stays."""
        shutil.rmtree(self._folder, ignore_errors=True)

    async def live(self) -> bool:
        """Whether Envoy serves: initialised and not draining. Raises what AdminError lists."""
        status, _ = await self._ask("GET", "/ready")
        return status == http.client.OK

    async def stop_accepting(self) -> None:
        """Close the listeners; answers tell clients to close their connections. Raises what AdminError lists."""
        # In this order: clients that are told to close come back at once, and must then find nobody.
        await self._ask("POST", "/drain_listeners")
        await self._ask("POST", "/drain_listeners?graceful&skip_exit")

    async def active(self) -> tuple[int, int]:
        """Requests in flight and connections open. Raises what AdminError lists."""
        _, text = await self._ask("GET", "/stats?filter=downstream_(rq|cx)_active$")
        counts = {"rq": 0, "cx": 0}
        for line in text.splitlines():
            name, _, value = line.partition(": ")
            if name.startswith("http.") and not name.startswith(_OWN_PREFIX):
                counts[name.rsplit("_", 2)[1]] += int(value)
        return counts["rq"], counts["cx"]

    def close(self) -> None:
        self.hide()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def _ask(self, method: str, path: str) -> tuple[int, str]:
        return await asyncio.to_thread(self._ask_blocking, method, path)

    def _ask_blocking(self, method: str, path: str) -> tuple[int, str]:
        if self._connection is None:
            raise http.client.NotConnected
        self._connection.request(method, path)
        response = self._connection.getresponse()
        return response.status, response.read().decode()


def _new_folder() -> str:
    with contextlib.suppress(OSError):
        folder = tempfile.mkdtemp(prefix="nexus-envoy-")
        if len(folder) < PATH_MAX - len("/admin"):
            return folder
        os.rmdir(folder)
    # Containers with a read-only file system still have this one.
    return tempfile.mkdtemp(prefix="nexus-envoy-", dir="/dev/shm")

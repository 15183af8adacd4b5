"""The sidecar: keeps an Envoy on the REST port, and takes it down without losing a request.

    starting ──(the REST port answers)──▶ serving ──(stop_accepting)──▶ draining ──(stop)──▶ stopped
        ▲                                   │
        └──────────(it died; back-off)──────┘

Its bootstrap lies in a memfd that every Envoy of this server reads, so nothing is on disk. Fronts are reached by
abstract unix sockets of their own (`socket_name`), which is quicker than the gRPC port and leaves that one alone.
"""

import asyncio
import contextlib
import http.client
import json
import os
import secrets
import signal
import ssl
from collections.abc import Callable, Sequence

from nexus_grpc import logs
from nexus_grpc.rest.bootstrap import render_bootstrap
from nexus_grpc.settings import Settings
from nexus_grpc.supervisor.backoff import BOOT_ATTEMPTS_MAX, Backoff
from nexus_grpc.supervisor.child import exit_text
from nexus_grpc.supervisor.envoy_admin import AdminError
from nexus_grpc.supervisor.envoy_process import EnvoyProcess
from nexus_grpc.supervisor.envoy_setup import find_binary, forwards_certificates, options_of, thread_count

# An Envoy that does not serve within this is replaced; it takes about 0.2 s.
START_SECONDS = 20.0
POLL_SECONDS = 0.02
PROBE_SECONDS = 5.0
# How long clients may take to see that their connections close, before fronts refuse what still comes.
CLOSING_SECONDS = 3.0
# An idle connection is closed without more ado after this.
IDLE_SECONDS = 0.3
STOP_SECONDS = 3.0


class Sidecar:
    """start(), stop_accepting(), stop(); end() in any case. All calls from the event loop's thread.

    Args:
        cores: the server's.
        changed: called when `ready`, `failure` or `pid` may have changed.

    Raises ConfigurationError when there is no Envoy to be started.
    """

    def __init__(self, settings: Settings, cores: Sequence[int], changed: Callable[[], None]) -> None:
        self.restarts = 0
        self.ready = False
        self.forced = False
        self.failure: str | None = None
        self._settings = settings
        self._cores = cores
        self._threads = thread_count(settings, len(cores))
        self._changed = changed
        self._log = logs.logger()
        self._binary = find_binary()
        # Random: unlike a file's, an abstract name is anybody's who takes it first.
        self._token = secrets.token_hex(8)
        # Known to fronts and Envoy alone, and only where it is needed (access/forwarded.py).
        self._secret = secrets.token_hex(32) if forwards_certificates(settings) else ""
        self._bootstrap = self._write_bootstrap()
        self._process: EnvoyProcess | None = None
        self._draining = False
        self._ever_ready = False
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Of the Envoy that runs, if one does."""
        return self._process.pid if self._process is not None and self._process.pid else None

    def socket_name(self, front: int) -> str:
        """The abstract unix socket that front number `front` listens on for Envoy."""
        return f"nexus-{os.getpid()}-{self._token}-{front}"

    def hello(self, front: int) -> dict[str, str]:
        """What front number `front` has to know of Envoy."""
        return {"envoy_socket": self.socket_name(front), "envoy_secret": self._secret}

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._keep(), name="envoy")

    async def stop_accepting(self) -> None:
        """Close the REST port; returns when clients have finished what they had begun, or soon after."""
        self._draining = True
        process = self._process
        if process is None or not self.ready:
            return
        self.ready = False
        try:
            await process.admin.stop_accepting()
            await self._until_idle(process, CLOSING_SECONDS)
        except AdminError as error:
            self._log.warning("Envoy does not drain", reason=str(error))

    async def stop(self, seconds: float) -> None:
        """End it, once the requests in flight are answered or time is up."""
        self._draining = True
        process = self._process
        if process is None or not process.pid:
            return
        with contextlib.suppress(*AdminError):
            await self._until_idle(process, seconds)
        process.kill(signal.SIGTERM)
        if not await process.wait(STOP_SECONDS):
            self.forced = True
            process.kill()

    def kill(self) -> None:
        """At once."""
        self._draining = True
        if self._process is not None:
            self.forced = True
            self._process.kill()

    async def end(self) -> None:
        """Nothing of it outlives this."""
        self._draining = True
        if self._process is not None:
            self._process.kill()
        if self._task is not None:
            # It ends by itself when Envoy has, unless it waits to start another.
            if self._process is None:
                self._task.cancel()
            await asyncio.wait([self._task])
        if self._bootstrap >= 0:
            os.close(self._bootstrap)
            self._bootstrap = -1

    def _write_bootstrap(self) -> int:
        upstreams = [f"unix:@{self.socket_name(front)}" for front in range(self._settings.fronts)]
        text = json.dumps(render_bootstrap(options_of(self._settings, upstreams, secret=self._secret)))
        descriptor = os.memfd_create("nexus envoy bootstrap")
        with open(descriptor, "w", closefd=False) as file:
            file.write(text)
        return descriptor

    # --- one life after another ---

    async def _keep(self) -> None:
        backoff = Backoff()
        attempts = 0
        while not self._draining:
            backoff.begin()
            process = self._process = EnvoyProcess()
            code = await self._live(process)
            was_ready, self.ready = self.ready, False
            attempts = 0 if was_ready else attempts + 1
            await process.close()
            if self._process is process:
                self._process = None
            if self._draining:
                return
            self.restarts += 1
            self._log.error("Envoy died", died_of=code, child_pid=process.pid)
            if attempts >= BOOT_ATTEMPTS_MAX and not self._ever_ready:
                self.failure = f"Envoy cannot start: {code} {attempts} times; its own words are in the log"
            self._changed()
            await asyncio.sleep(backoff.next_delay())

    async def _live(self, process: EnvoyProcess) -> str:
        """One Envoy from start to end. Returns what it died of."""
        try:
            process.spawn(self._binary, self._bootstrap, self._settings, self._threads, self._cores)
        except OSError as error:
            return str(error)
        self._changed()
        try:
            async with asyncio.timeout(START_SECONDS):
                if await self._until_answers(process):
                    self.ready = self._ever_ready = True
                    self._changed()
        except TimeoutError:
            self._log.error("Envoy does not serve: replacing it", seconds=START_SECONDS)
            process.kill()
        await process.exited.wait()
        return exit_text(process.code)

    async def _until_answers(self, process: EnvoyProcess) -> bool:
        """Wait until the REST port answers. False when the process ends before that."""
        while not process.exited.is_set():
            with contextlib.suppress(*AdminError):
                if process.admin.connect_nowait() and await process.admin.live() and await self._answers():
                    process.admin.hide()
                    return True
            await asyncio.sleep(POLL_SECONDS)
        return False

    async def _answers(self) -> bool:
        """Whether an HTTP request to the REST port has an answer. Raises OSError or HTTPException when not."""
        return await asyncio.to_thread(probe, self._settings)

    async def _until_idle(self, process: EnvoyProcess, seconds: float) -> None:
        """Wait until no request is in flight and no connection open, or only idle ones, or time is up, or it died."""
        idle_s = 0.0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not process.exited.is_set() and idle_s < IDLE_SECONDS:
                    requests, connections = await process.admin.active()
                    if not connections:
                        return
                    idle_s = 0.0 if requests else idle_s + POLL_SECONDS
                    await asyncio.sleep(POLL_SECONDS)


def probe(settings: Settings) -> bool:
    """Ask the REST port for its health; any answer will do. Raises OSError or HTTPException without one."""
    options = options_of(settings)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(options.host, options.host)
    connection = http.client.HTTPConnection(host, options.port, timeout=PROBE_SECONDS)
    if settings.rest_tls_certificate:
        # Our own certificate, whose name is another's business.
        context = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection(host, options.port, timeout=PROBE_SECONDS, context=context)
    with contextlib.closing(connection):
        connection.request("GET", "/health", headers={"User-Agent": "nexus"})
        return connection.getresponse().status > 0

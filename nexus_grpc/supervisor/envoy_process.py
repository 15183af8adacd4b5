"""One Envoy process: spawned, watched by its pidfd, ended. What its life means is the sidecar's business."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from nexus_grpc.settings import Settings
from nexus_grpc.supervisor.environment import envoy_environment
from nexus_grpc.supervisor.envoy_admin import Admin
from nexus_grpc.supervisor.log_pump import LogPump

_EXEC = Path(__file__).with_name("envoy_exec.py")
PROCESS_NAME = "nexus: envoy 0"
# Envoy's own events, in the shape of ours; access log lines come as the bootstrap says. %f is microseconds.
_LOG_FORMAT = (
    '{"timestamp": "%Y-%m-%dT%H:%M:%S.%fZ", "level": "%l", "event": "%j", "role": "envoy", "index": 0, "pid": %P, '
    '"logger": "%n"}'
)
# Envoy says at info what every step of its start was.
_LOG_LEVELS = {"debug": "info", "info": "warning", "warning": "warning", "error": "error"}
# Envoy keeps access log lines back for 10 s, which is long for a person who looks for a request.
LOG_FLUSH_MS = 500


class EnvoyProcess:
    """`admin` is its admin interface; `exited` is set once it is gone, and `code` says how."""

    def __init__(self) -> None:
        self.pid = 0
        self.code = 0
        self.exited = asyncio.Event()
        self.admin = Admin()
        self._log = LogPump("envoy", 0, has_json=True)
        self._loop = asyncio.get_running_loop()

    def spawn(self, binary: str, bootstrap_fd: int, settings: Settings, threads: int, cores: Sequence[int]) -> None:
        """Start it, on these cores. Raises OSError when no process can be made; close() in any case."""
        arguments = [
            # The one path to a descriptor that Envoy accepts.
            *("--config-path", f"/dev/fd/{bootstrap_fd}"),
            *("--config-yaml", json.dumps({"admin": {"address": {"pipe": {"path": self.admin.path, "mode": 0o600}}}})),
            *("--concurrency", str(threads)),
            "--disable-hot-restart",
            # While draining, every answer asks its client to close the connection.
            *("--drain-strategy", "immediate"),
            *("--log-level", _LOG_LEVELS[settings.log_level]),
            *("--component-log-level", "main:error"),  # it warns of every SIGTERM
            *("--log-format", _LOG_FORMAT),
            *("--file-flush-interval-msec", str(LOG_FLUSH_MS)),
        ]
        become = [sys.executable, "-I", "-S", str(_EXEC), str(os.getpid()), ",".join(map(str, cores)), PROCESS_NAME]
        try:
            self._process = subprocess.Popen(
                [*become, binary, *arguments],
                pass_fds=[bootstrap_fd],
                stdin=subprocess.DEVNULL,
                stdout=self._log.writer,
                stderr=self._log.writer,
                env=envoy_environment(),
                start_new_session=True,  # Ctrl-C is for the supervisor
            )
            self.pid = self._process.pid
        finally:
            self._log.begin(self.pid)
        self._pidfd = os.pidfd_open(self.pid)
        self._loop.add_reader(self._pidfd, self._gone)

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.pid and not self.exited.is_set():
            self._process.send_signal(number)

    async def wait(self, seconds: float) -> bool:
        """Whether it has exited within so many seconds."""
        try:
            await asyncio.wait_for(self.exited.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """After its exit: everything it said is handed on, nothing of it is left."""
        self.admin.close()
        await asyncio.to_thread(self._log.drain)

    def _gone(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.code = self._process.wait()
        self.exited.set()

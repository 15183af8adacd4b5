"""One child process as the supervisor holds it: spawned, watched by its pidfd, spoken to over its control channel.

    spawned ──▶ running ──▶ exited
Owns the process and its channel; what the messages mean is the supervisor's business.
"""

import asyncio
import collections
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable

from nexus_grpc.ipc.control import ChannelClosed, FrameReader, Message, encode_frame, receive_some
from nexus_grpc.supervisor.environment import child_environment
from nexus_grpc.supervisor.log_pump import STDERR, LogPump

OnMessage = Callable[["Child", Message], None]
OnExit = Callable[["Child", int], None]


class Child:
    """A front or a worker. All calls from the event loop's thread; nothing here blocks."""

    def __init__(self, role: str, index: int, generation: int, on_message: OnMessage, on_exit: OnExit) -> None:
        self.role = role
        self.index = index
        self.generation = generation
        self.pid = 0
        self.killed = False
        self.exited = asyncio.Event()
        self._on_message = on_message
        self._on_exit = on_exit
        self._reader = FrameReader()
        self._outgoing: collections.deque[tuple[bytes, list[int]]] = collections.deque()
        self._loop = asyncio.get_running_loop()

    def spawn(self, module: str, *, logs: bool = False) -> None:
        """Start `python -m module CONTROL_FD`, with LOG_FD besides for one that logs; what it writes to its standard
        output and error becomes events of our log. Raises OSError when no process can be made.
        """
        pump = LogPump(self.role, self.index)
        handed: list[int] = []
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            ours.setblocking(False)
            handed.append(theirs.detach())
            if logs:
                handed.append(os.dup(STDERR))
            self._process = subprocess.Popen(
                # -P: the working directory is data, not code.
                [sys.executable, "-P", "-m", module, *map(str, handed)],
                pass_fds=handed,
                stdin=subprocess.DEVNULL,
                stdout=pump.writer,
                stderr=pump.writer,
                env=child_environment(holds_models=self.role == "worker"),
            )
            self.pid = self._process.pid
        finally:
            pump.begin(self.pid)
            _close_all(handed)
        self._socket = ours
        self._pidfd = os.pidfd_open(self.pid)
        self._loop.add_reader(self._pidfd, self._exited)
        self._loop.add_reader(ours.fileno(), self._readable)

    def send(self, message: Message, descriptors: list[int] | None = None) -> None:
        """Queue a message. The descriptors are ours to close: they are closed once sent, or when the child is gone."""
        descriptors = descriptors or []
        if self.exited.is_set():
            _close_all(descriptors)
            return
        self._outgoing.append((encode_frame(message, len(descriptors)), descriptors))
        self._writable()

    def kill(self) -> None:
        """SIGKILL; the exit is reported as any other."""
        if not self.exited.is_set():
            self.killed = True
            self._process.send_signal(signal.SIGKILL)

    def _writable(self) -> None:
        while self._outgoing:
            frame, descriptors = self._outgoing[0]
            try:
                sent = socket.send_fds(self._socket, [frame], descriptors)
            except BlockingIOError:
                self._loop.add_writer(self._socket.fileno(), self._writable)
                return
            except OSError:  # it is gone; its exit is reported by the pidfd
                self._drop_outgoing()
                return
            _close_all(descriptors)
            if sent < len(frame):
                self._outgoing[0] = (frame[sent:], [])
            else:
                self._outgoing.popleft()
        self._loop.remove_writer(self._socket.fileno())

    def _readable(self) -> None:
        try:
            received, descriptors = receive_some(self._socket)
            messages = self._reader.feed(received, descriptors)
        except BlockingIOError:
            return
        except (OSError, ChannelClosed, ValueError):
            received, messages = b"", []
        if not received:
            self._loop.remove_reader(self._socket.fileno())
            return
        for message, message_descriptors in messages:
            _close_all(message_descriptors)  # children send none
            self._on_message(self, message)

    def _exited(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._readable()  # what it said last
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        self._reader.close()
        self._drop_outgoing()
        code = self._process.wait()
        self.exited.set()
        self._on_exit(self, code)

    def _drop_outgoing(self) -> None:
        while self._outgoing:
            _close_all(self._outgoing.popleft()[1])


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def exit_text(code: int) -> str:
    """An exit status for people: `signal SIGKILL` or `exit code 1`."""
    if code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"

"""A child process: spoken to, watched, killed. With a real process that speaks the control protocol."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from nexus_grpc.ipc.control import Message
from nexus_grpc.supervisor.child import Child, exit_text
from tests.unit.support import ROOT, open_descriptors

ECHO = """
import os, sys
from nexus_grpc.ipc.control import ControlChannel
from nexus_grpc.ipc.process import control_socket
channel = ControlChannel(control_socket(int(sys.argv[1])))
while True:
    message, descriptors = channel.receive()
    if message["type"] == "exit":
        channel.send({"type": "last words"})
        os._exit(message["code"])
    if message["type"] == "babble":
        os.write(int(sys.argv[1]), b"this is no frame" * 10)
        continue
    contents = [os.pread(descriptor, 100, 0).decode() for descriptor in descriptors]
    channel.send({"type": "echo", "size": len(str(message)), "contents": contents,
                  "config": os.environ.get("NEXUS_CONFIG")})
"""


class Watched:
    """A child that echoes, and what was heard of it."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.codes: list[int] = []
        self.changed = asyncio.Event()
        self.child = Child("tester", 0, 0, self._on_message, self._on_exit)

    def _on_message(self, child: Child, message: Message) -> None:
        self.messages.append(message)
        self.changed.set()

    def _on_exit(self, child: Child, code: int) -> None:
        self.codes.append(code)
        self.changed.set()

    async def until(self, condition: Callable[[], Any]) -> None:
        while not condition():
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), 30)


@pytest.fixture
def with_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[Watched], Awaitable[None]]], None]:
    """Runs a test's coroutine with a spawned child, and sees to it that nothing stays open."""
    (tmp_path / "echo_child.py").write_text(ECHO)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    monkeypatch.setenv("NEXUS_CONFIG", "/secret/place")

    def run(scenario: Callable[[Watched], Awaitable[None]]) -> None:
        async def main() -> None:
            before = open_descriptors()
            watched = Watched()
            watched.child.spawn("echo_child")
            try:
                await scenario(watched)
            finally:
                watched.child.kill()
                await asyncio.wait_for(watched.child.exited.wait(), 30)
            assert open_descriptors() == before
            assert len(watched.codes) == 1

        asyncio.run(main())

    return run


def memory(text: bytes) -> int:
    descriptor = os.memfd_create("m")
    os.write(descriptor, text)
    return descriptor


def test_messages_and_descriptors_reach_it_and_are_closed_here(with_child: Any) -> None:
    async def scenario(watched: Watched) -> None:
        watched.child.send({"type": "hello"}, [memory(b"one"), memory(b"two")])
        watched.child.send({"type": "again"}, [memory(b"three")])
        await watched.until(lambda: len(watched.messages) == 2)
        assert [message["contents"] for message in watched.messages] == [["one", "two"], ["three"]]
        assert watched.messages[0]["config"] is None

    with_child(scenario)


def test_messages_larger_than_the_socket_takes_at_once(with_child: Any) -> None:
    async def scenario(watched: Watched) -> None:
        watched.child.send({"type": "big", "text": "x" * (2 << 20)}, [memory(b"kept")])
        watched.child.send({"type": "small"})
        await watched.until(lambda: len(watched.messages) == 2)
        assert watched.messages[0]["size"] > 2 << 20
        assert watched.messages[0]["contents"] == ["kept"]

    with_child(scenario)


def test_last_words_come_before_the_exit(with_child: Any) -> None:
    async def scenario(watched: Watched) -> None:
        watched.child.send({"type": "exit", "code": 7})
        await watched.until(lambda: watched.codes)
        assert watched.codes == [7]
        assert watched.messages == [{"type": "last words"}]
        watched.child.send({"type": "too late"}, [memory(b"closed all the same")])

    with_child(scenario)


def test_killed_children_are_reported(with_child: Any) -> None:
    async def scenario(watched: Watched) -> None:
        watched.child.kill()
        await watched.until(lambda: watched.codes)
        assert watched.codes == [-signal.SIGKILL]
        assert watched.child.killed

    with_child(scenario)


def test_a_babbling_child_is_not_listened_to_any_more(with_child: Any) -> None:
    async def scenario(watched: Watched) -> None:
        watched.child.send({"type": "babble"})
        watched.child.send({"type": "exit", "code": 3})
        await watched.until(lambda: watched.codes)
        assert watched.messages == []

    with_child(scenario)


def test_exit_statuses_for_people() -> None:
    assert exit_text(-9) == "signal SIGKILL"
    assert exit_text(3) == "exit code 3"

"""Starts a real Redis for tests, on a free port and with a password, and leaves nothing behind."""

import contextlib
import pathlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from urllib.parse import quote

import redis

from nexus_grpc.ipc.process import die_with_parent
from tests.harness import CI, free_port

START_SECONDS = 30.0
# Needs escaping in a URL, and shows wherever a part of it leaks.
PASSWORD = "sesame:/@?#%ä-word"


def binary() -> str:
    """The server's program. With CI=true a missing one fails the test; otherwise it is skipped."""
    import pytest

    found = shutil.which("redis-server")
    if found:
        return found
    if CI:
        pytest.fail("Redis is missing; with CI=true that is a failure (install Debian's redis-server)")
    pytest.skip("Redis is not installed")


class Redis:
    """A server on 127.0.0.1 that keeps nothing on disk. Begins stopped."""

    def __init__(self, folder: pathlib.Path, program: str) -> None:
        self.folder = folder
        self.port = free_port()
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        # By file: a password in the arguments shows in `ps`.
        self._configuration = folder / "redis.conf"
        self._configuration.write_text(
            f'bind 127.0.0.1\nport {self.port}\nsave ""\nappendonly no\ndir {folder}\nrequirepass "{PASSWORD}"\n'
        )

    @property
    def url(self) -> str:
        return f"redis://:{quote(PASSWORD, safe='')}@127.0.0.1:{self.port}/0"

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        assert self._process is not None
        return self._process

    def connection(self) -> "redis.Redis":
        return redis.Redis.from_url(self.url, decode_responses=True, socket_timeout=10)

    def start(self) -> None:
        """Returns when it answers. Raises AssertionError with its log when it does not."""
        assert self._process is None
        log = self.folder / "log"
        with open(log, "ab") as output:
            self._process = subprocess.Popen(
                [self._program, str(self._configuration)],
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(redis.RedisError), self.connection() as connection:
                connection.ping()
                return
            time.sleep(0.02)
        self.kill()
        raise AssertionError(f"Redis does not start:\n{log.read_text()}")

    def kill(self) -> None:
        """As if the machine had gone. Returns when it has ended."""
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()
            process.wait(START_SECONDS)


@contextlib.contextmanager
def running_redis() -> Iterator[Redis]:
    """A started one; stopped and removed at the end."""
    program = binary()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="nexus-redis-", dir="/tmp"))
    try:
        server = Redis(folder, program)
        try:
            server.start()
            yield server
        finally:
            server.kill()
    finally:
        shutil.rmtree(folder)

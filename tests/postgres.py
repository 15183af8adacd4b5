"""Starts a real PostgreSQL for tests, in a folder of its own, and leaves nothing behind."""

import contextlib
import getpass
import os
import pathlib
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from urllib.parse import quote

import psycopg

from nexus_grpc.ipc.process import die_with_parent
from tests.harness import CI, free_port

START_SECONDS = 60.0
# Needs escaping in a URL, and shows wherever a part of it leaks.
PASSWORD = "sesame:/@?#%ä word"
# PostgreSQL refuses to run as root; Debian's package brings the first of these.
USERS = ("postgres", "nobody")
# Nothing here has to outlive the machine: not waiting for the disk makes tests much faster.
OPTIONS = ("fsync=off", "max_connections=50", "log_min_messages=warning", "listen_addresses=127.0.0.1")


def binaries() -> pathlib.Path:
    """The folder of the newest PostgreSQL. With CI=true a missing one fails the test; otherwise it is skipped."""
    import pytest

    found = [path.parent for path in pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    on_path = shutil.which("initdb")
    if found:
        return max(found, key=lambda path: [int(number) for number in re.findall(r"\d+", path.parent.name)])
    if on_path:
        return pathlib.Path(on_path).resolve().parent
    if CI:
        pytest.fail("PostgreSQL is missing; with CI=true that is a failure (install Debian's postgresql)")
    pytest.skip("PostgreSQL is not installed")


def _owner() -> pwd.struct_passwd | None:
    """Whom it runs as; None = us."""
    if os.geteuid() != 0:
        return None
    known = {each.pw_name: each for each in pwd.getpwall()}
    return next(known[name] for name in USERS if name in known)


class Postgres:
    """A server on a unix socket (any local user is let in) and on 127.0.0.1 (with PASSWORD). Begins stopped."""

    def __init__(self, folder: pathlib.Path, bin_folder: pathlib.Path) -> None:
        self._bin = bin_folder
        self._owner = _owner()
        self.folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.user = self._owner.pw_name if self._owner is not None else getpass.getuser()
        if self._owner is not None:
            os.chown(folder, self._owner.pw_uid, self._owner.pw_gid)
        password_file = folder / "password"
        password_file.write_text(PASSWORD)
        arguments = ["--encoding=UTF8", "--locale=C", "--auth-local=trust", "--auth-host=scram-sha-256"]
        self._run("initdb", f"--pgdata={self._data}", "--no-sync", f"--pwfile={password_file}", *arguments)

    @property
    def _data(self) -> pathlib.Path:
        return self.folder / "data"

    @property
    def log(self) -> pathlib.Path:
        return self.folder / "log"

    def _command(self, program: str, *arguments: str) -> list[str]:
        return [str(self._bin / program), *arguments]

    def _as_owner(self) -> dict[str, object]:
        if self._owner is None:
            return {}
        return {"user": self._owner.pw_uid, "group": self._owner.pw_gid, "extra_groups": []}

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            self._command(program, *arguments),
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=START_SECONDS,
            **self._as_owner(),  # type: ignore[call-overload]
        )
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"

    # --- running ---

    def start(self) -> None:
        """Returns when it takes connections. Raises AssertionError with its log when it does not."""
        assert self._process is None
        settings = (*OPTIONS, f"unix_socket_directories={self.folder}", f"port={self.port}")
        flags = [word for setting in settings for word in ("-c", setting)]
        with open(self.log, "ab") as output:
            self._process = subprocess.Popen(
                self._command("postgres", "-D", str(self._data), *flags),
                cwd=self.folder,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=die_with_parent,
                **self._as_owner(),  # type: ignore[call-overload]
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(psycopg.OperationalError), self.connection():
                return
            time.sleep(0.02)
        self.stop("immediate")
        raise AssertionError(f"PostgreSQL does not start:\n{self.log.read_text()}")

    def stop(self, how: str = "fast") -> None:
        """`fast`: as an administrator does; `immediate`: as if it crashed. Returns when it has ended."""
        if self._process is None:
            return
        process, self._process = self._process, None
        process.send_signal(signal.SIGINT if how == "fast" else signal.SIGQUIT)
        try:
            process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(START_SECONDS)
            raise AssertionError(f"PostgreSQL does not stop:\n{self.log.read_text()}") from None

    # --- databases ---

    def connection(self, database: str = "postgres") -> "psycopg.Connection[tuple[object, ...]]":
        """As its administrator, by the socket."""
        return psycopg.connect(self.url(database), autocommit=True, connect_timeout=10)

    def create_database(self, *options: str) -> str:
        """The name of a new one. Its order of text is unlike that of bytes, as in most installations."""
        name = f"registry_{uuid.uuid4().hex}"
        given = options or ("ENCODING 'UTF8'", "LOCALE_PROVIDER icu", "ICU_LOCALE 'en-US'")
        with self.connection() as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE template0 {' '.join(given)}".encode())
        return name

    def url(self, database: str) -> str:
        """By the unix socket."""
        return f"postgresql://{self.user}@/{database}?host={quote(str(self.folder), safe='')}&port={self.port}"

    def tcp_url(self, database: str, password: str = PASSWORD) -> str:
        return f"postgresql://{self.user}:{quote(password, safe='')}@127.0.0.1:{self.port}/{database}"


@contextlib.contextmanager
def running_postgres() -> Iterator[Postgres]:
    """A started one; stopped and removed at the end."""
    bin_folder = binaries()
    # Not pytest's folder: a socket's path is at most 107 bytes long, and others than root must reach it.
    folder = pathlib.Path(tempfile.mkdtemp(prefix="nexus-pg-", dir="/tmp"))
    try:
        server = Postgres(folder, bin_folder)
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)

"""What libraries do by themselves: nothing is written under HOME, nobody outside this machine is spoken to."""

import contextlib
import os
import pathlib
import pwd
import re
import subprocess
import sys
from collections.abc import Sequence

import pytest

from tests.harness import MODELS, NEXUS, copy_models, require_tool, running_server
from tests.integration import rest, uploading
from tests.integration.client import Client, iris_request

# Whoever gets bytes, or is to; whatever makes a file or a folder, or replaces one.
CALLS = "trace=connect,bind,sendto,sendmsg,sendmmsg,mkdir,mkdirat,openat,open,creat,rename,renameat,renameat2"
ADDRESS = re.compile(r'(connect|bind|send\w+)\(.*?sa_family=(AF_\w+)(?:[^}]*?"([^"]+)")?')
# Netlink is the kernel itself: glibc asks it for this machine's addresses whenever a name is looked up.
LOCAL_FAMILIES = {"AF_UNIX", "AF_NETLINK"}
LOOPBACK = re.compile(r"127\.\d+\.\d+\.\d+|::1|::ffff:127\.\d+\.\d+\.\d+")
CHANGES = re.compile(r"O_CREAT|O_WRONLY|O_RDWR|mkdir|creat\(|rename")
# As somebody may have it around: what is on is not turned on by it.
TURNED_ON = {"ORT_DISABLE_TELEMETRY": "0"}


class Watched:
    """Programs under strace, with an empty folder for HOME."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.home, self._trace = folder / "home", folder / "trace"
        self.home.mkdir()
        # -D: the program is our child and gets our signals, and strace is a stranger.
        options = ["-D", "-f", "-qq", "-s", "256", "-e", CALLS, "-A", "-o", str(self._trace)]
        self.prefix = [require_tool("strace"), *options]
        self.environment = {"HOME": str(self.home), **TURNED_ON}
        # A trial has no HOME: a library then asks the system where its user lives.
        cache = pathlib.Path(pwd.getpwuid(os.getuid()).pw_dir) / ".cache"
        self._homes = (str(self.home), str(cache))

    def run(self, command: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
        variables = {"PATH": os.environ["PATH"], **self.environment, **environment}
        return subprocess.run(
            [*self.prefix, *command], env=variables, capture_output=True, text=True, timeout=60, check=False
        )

    @property
    def lines(self) -> list[str]:
        return self._trace.read_text(errors="replace").splitlines()

    def spoken_to(self) -> list[str]:
        """Calls with an address that is not this machine's alone."""
        found = []
        for line in self.lines:
            match = ADDRESS.search(line)
            if match and match[2] not in LOCAL_FAMILIES and not LOOPBACK.fullmatch(match[3] or ""):
                found.append(line)
        return found

    def written(self) -> list[str]:
        """What is in HOME, and what was to be, there or in the user's own."""
        tried = [line for line in self.lines if any(home in line for home in self._homes) and CHANGES.search(line)]
        return [str(path) for path in self.home.rglob("*")] + tried


@pytest.fixture
def watched(tmp_path: pathlib.Path) -> Watched:
    return Watched(tmp_path)


def assert_quiet(watched: Watched) -> None:
    assert len(watched.lines) > 10, "strace saw nothing"
    assert watched.written() == []
    assert watched.spoken_to() == []


def test_a_server_writes_nothing_at_home_and_speaks_to_nobody(watched: Watched, tmp_path: pathlib.Path) -> None:
    repository = copy_models(tmp_path / "models", "iris")
    content = (MODELS / "scalar" / "1" / "model.onnx").read_bytes()
    with running_server(
        tmp_path, repository=repository, rest=True, prefix=watched.prefix, environment=watched.environment
    ) as server:
        with contextlib.closing(Client(server.address)) as client:
            client.infer(iris_request())
        rest.assert_serves(server.rest_port)
        # With its trial.
        form = uploading.form_of(content, id="uploaded")
        answer = rest.post(server.rest_port, uploading.PATH, form, Content_Type=uploading.FORM)
        assert answer.status == 201, answer
        assert "nexus_" in server.metrics()
        told = watched.run([*NEXUS, "predict", "iris", "--address", server.address, "5.1,3.5,1.4,0.2"])
        assert told.returncode == 0, told
        assert server.stop() == 0
    assert_quiet(watched)


def test_doctor_writes_nothing_at_home_and_speaks_to_nobody(watched: Watched) -> None:
    told = watched.run([*NEXUS, "doctor"], NEXUS_MODEL_REPOSITORY=str(MODELS))
    assert "onnxruntime" in told.stdout, told
    assert_quiet(watched)


def test_this_would_be_seen(watched: Watched) -> None:
    """Else the tests above prove nothing; should ONNX Runtime ever stop it, so may SECURITY.md."""
    told = watched.run([sys.executable, "-c", "import onnxruntime"])
    assert told.returncode == 0, told
    assert any(line.endswith("deviceid") for line in watched.written())
    program = "import socket; socket.socket(type=socket.SOCK_DGRAM).connect(('192.0.2.1', 9))"
    watched.run([sys.executable, "-c", program])
    assert any("192.0.2.1" in line for line in watched.spoken_to())


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&-"])
def test_closed_standard_streams_are_nobody_else_s(tmp_path: pathlib.Path, closed: str) -> None:
    """Where one was closed, the next descriptor would get its number, and what is printed with it."""
    prefix = ("sh", "-c", f'exec "$@" {closed}', "sh")
    repository = copy_models(tmp_path / "models", "iris")
    with running_server(tmp_path, "--workers=1", repository=repository, prefix=prefix) as server:
        own = pathlib.Path(f"/proc/{server.process.pid}/fd")
        assert {(own / str(number)).readlink().name for number in (0, 1) if f"{'<>'[number]}&-" in closed} == {"null"}
        assert server.stop() == 0
        assert "Assertion" not in server.log_text()

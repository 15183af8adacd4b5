"""Shared memory that is small, limited or missing: the server serves without it, or says at start what it needs."""

import os
import pathlib
import re
import resource
import subprocess

import numpy as np
import psutil
import pytest

from tests.chaos.census import assert_nothing_left, assert_settled, clean_server, shm_names, take_census
from tests.chaos.ledger import INTERNAL, OK, RESOURCE_EXHAUSTED, Ledger, ask, channel_to, stub_of, wait_until
from tests.harness import CI, NEXUS, free_port, require_tool

pytestmark = pytest.mark.timeout(60)
MIB = 1 << 20
# Less than a ring, more than a statistics page.
LIMIT_BYTES = 1_000_000


def own_mounts() -> str:
    """The path of unshare, if this user may use it."""
    unshare = require_tool("unshare")
    tried = subprocess.run([unshare, "-m", "true"], capture_output=True, timeout=10)
    if tried.returncode:
        reason = f"unshare -m is not permitted here: {tried.stderr.decode().strip()}"
        if CI:
            pytest.fail(f"{reason}; with CI=true that is a failure (run as root)")
        pytest.skip(reason)
    return unshare


def test_a_tiny_dev_shm(tmp_path: pathlib.Path, repository: pathlib.Path) -> None:
    """Rings and large messages are memfds, which /dev/shm's size does not bound."""
    tiny = 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"'
    prefix = (own_mounts(), "-m", "sh", "-c", tiny, "sh")
    with clean_server(tmp_path, repository, "--workers=2", prefix=prefix) as server:
        mounts = pathlib.Path(f"/proc/{server.process.pid}/mounts").read_text()
        assert "/dev/shm tmpfs rw,relatime,size=64k" in mounts
        large = np.arange(20 * MIB // 8, dtype=np.int64).reshape(-1, 4)
        with Ledger(server.address, clients=8) as ledger, channel_to(server.address) as channel:
            ledger.wait_for(20)
            for number in range(3):
                assert ask(stub_of(channel), "counts_i64", number, counts=large + number).right
            ledger.wait_for(20)
        ledger.check()


def test_memory_that_cannot_be_reserved(tmp_path: pathlib.Path, repository: pathlib.Path) -> None:
    """The file-size limit stops the reservation, as a full machine would: no start, and the bytes needed are named."""
    shm = shm_names()
    ports = [f"--grpc-port={free_port()}", "--rest-port=0", f"--metrics-port={free_port()}"]
    serve = [*NEXUS, "serve", f"--model-repository={repository}", *ports, "--workers=2"]
    command = [require_tool("prlimit"), f"--fsize={LIMIT_BYTES}", *serve]
    variables = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=tmp_path, env=variables)
    assert ended.returncode == 1, ended.stderr
    message = ended.stderr.strip().splitlines()[-1]
    needed = re.search(r"cannot reserve (\d+) bytes", message)
    assert needed is not None, ended.stderr
    assert int(needed[1]) > LIMIT_BYTES
    assert "Traceback" not in ended.stderr
    assert_nothing_left(tmp_path)
    assert shm_names() <= shm


def test_no_memory_for_a_new_workers_rings(tmp_path: pathlib.Path, repository: pathlib.Path) -> None:
    """The other worker serves; the new one is tried again until there is memory."""
    with clean_server(tmp_path, repository, "--workers=2") as server, Ledger(server.address, clients=8) as ledger:
        ledger.wait_for(20)
        before = take_census(server)
        supervisor = psutil.Process(server.process.pid)
        unlimited = supervisor.rlimit(resource.RLIMIT_FSIZE)
        supervisor.rlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, unlimited[1]))
        server.children("worker")[0].kill()
        wait_until(lambda: "cannot reserve" in server.log_text(), 10, "no memory for rings")
        ledger.wait_for(20)
        supervisor.rlimit(resource.RLIMIT_FSIZE, unlimited)
        wait_until(lambda: server.metric("nexus_process_info", role="worker") == 2, 10, "two workers again")
        ledger.wait_for(20)
        assert_settled(server, before)
        ledger.stop()
        ledger.check()


def test_workers_without_memory(tmp_path: pathlib.Path, repository: pathlib.Path) -> None:
    """A large request that no worker has the memory for is refused; small ones never notice, and no worker dies."""
    with clean_server(tmp_path, repository, "--workers=1") as server:
        large = np.arange(20 * MIB // 8, dtype=np.int64).reshape(-1, 4)
        with Ledger(server.address, clients=8) as ledger, channel_to(server.address) as channel:
            ledger.wait_for(20)
            worker = server.children("worker")[0]
            unlimited = worker.rlimit(resource.RLIMIT_AS)
            worker.rlimit(resource.RLIMIT_AS, (worker.memory_info().vms + 30 * MIB, unlimited[1]))
            refused = ask(stub_of(channel), "counts_i64", 1, counts=large)
            assert refused.code in (INTERNAL, RESOURCE_EXHAUSTED), refused
            ledger.wait_for(50)
            worker.rlimit(resource.RLIMIT_AS, unlimited)
            again = ask(stub_of(channel), "counts_i64", 2, counts=large)
            assert (again.code, again.right) == (OK, True), again
        ledger.check()
        assert server.metric("nexus_worker_restarts_total") == 0

"""The end of a server, wanted or not: nothing lost that was accepted, nothing left, the ports free for the next."""

import pathlib
import signal
import subprocess
import threading
import time

import pytest

from tests.chaos.census import assert_nothing_left, assert_settled, clean_server, take_census
from tests.chaos.ledger import CANCELLED, UNAVAILABLE, Entry, Ledger, ask_all, wait_until
from tests.chaos.models import TURNS_ENDLESS, TURNS_PER_MS
from tests.harness import NEXUS, Server, wait_ready

pytestmark = [pytest.mark.timeout(60), pytest.mark.timed]


def serve_command(server: Server, repository: pathlib.Path) -> list[str]:
    """The command for another server on the same ports."""
    ports = [f"--grpc-port={server.port}", "--rest-port=0", f"--metrics-port={server.metrics_port}"]
    return [*NEXUS, "serve", f"--model-repository={repository}", *ports, "--workers=1"]


def start_again(server: Server, repository: pathlib.Path, folder: pathlib.Path) -> None:
    """A second life on the same ports, at once, which serves and ends."""
    log = folder / "again.log"
    with open(log, "w") as output:
        command = serve_command(server, repository)
        again = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, text=True, cwd=folder)
    try:
        wait_ready(server.address, again, log)
        assert all(entry.right for entry in ask_all(server.address, "counts_i64", range(4)))
        again.terminate()
        assert again.wait(15) == 0
    finally:
        if again.poll() is None:
            again.kill()
            again.wait(5)


def test_kill_the_supervisor_under_load(tmp_path: pathlib.Path, repository: pathlib.Path) -> None:
    with clean_server(tmp_path, repository, "--workers=2", "--fronts=2") as server:
        with Ledger(server.address) as ledger:
            ledger.wait_for(50)
            server.process.kill()
            server.process.wait(5)
            assert_nothing_left(tmp_path, 1.0)
        ledger.check(UNAVAILABLE)
        start_again(server, repository, tmp_path)


def test_start_again_after_a_stop_with_clients(tmp_path: pathlib.Path, repository: pathlib.Path) -> None:
    """Connections that the server closed keep its port's name busy (TIME_WAIT): a restart must not care."""
    with clean_server(tmp_path, repository, "--workers=1") as server:
        with Ledger(server.address, clients=4) as ledger:
            ledger.wait_for(8)
            assert server.stop() == 0
        start_again(server, repository, tmp_path)


def test_stop_under_load(tmp_path: pathlib.Path, repository: pathlib.Path) -> None:
    with clean_server(tmp_path, repository, "--workers=2") as server:
        # Requests of some milliseconds, so that many are in flight when it is told to stop.
        with Ledger(server.address, "spin", last=3 * TURNS_PER_MS, clients=32) as ledger:
            ledger.wait_for(50)
            stopped_s = time.monotonic()
            assert server.stop(15) == 0
            ended_s = time.monotonic()
            assert_nothing_left(tmp_path)
        ledger.check(UNAVAILABLE, CANCELLED)
        assert [entry for entry in ledger.others() if entry.code is UNAVAILABLE], "nobody came after the end"
        assert not [entry for entry in ledger.others() if entry.sent_s < stopped_s - 0.1], "accepted before, lost"
        assert ended_s - stopped_s < 5


def test_stop_waits_for_long_requests(tmp_path: pathlib.Path, repository: pathlib.Path) -> None:
    with clean_server(tmp_path, repository, "--workers=1") as server:
        entries: list[Entry] = []

        def ask_slowly() -> None:
            entries.extend(ask_all(server.address, "slow", range(8), last=150 * TURNS_PER_MS))

        asking = threading.Thread(target=ask_slowly, daemon=True)
        asking.start()
        wait_until(lambda: server.metric("nexus_in_flight") >= 7, 5, "requests in flight")
        assert server.stop(20) == 0
        asking.join(10)
        assert len(entries) == 8
        assert all(entry.right for entry in entries)


def test_a_second_signal_ends_it_at_once(tmp_path: pathlib.Path, repository: pathlib.Path) -> None:
    with clean_server(tmp_path, repository, "--workers=1") as server:
        stuck = threading.Thread(
            target=ask_all, args=(server.address, "slow", range(2)), kwargs={"last": TURNS_ENDLESS, "timeout": 15}
        )
        stuck.daemon = True
        stuck.start()
        wait_until(lambda: server.metric("nexus_in_flight") == 2, 5, "requests in flight")
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "draining" in server.log_text(), 5, "the server drains")
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(0.5)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(3) == 1
        assert_nothing_left(tmp_path)
        stuck.join(20)


def test_a_second_start_on_the_same_ports(tmp_path: pathlib.Path, repository: pathlib.Path) -> None:
    with clean_server(tmp_path, repository, "--workers=2") as server, Ledger(server.address) as ledger:
        ledger.wait_for(20)
        before = take_census(server)
        command = serve_command(server, repository)
        second = subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=tmp_path)
        assert second.returncode == 1
        assert f"another server uses {tmp_path / 'data'}" in second.stderr
        elsewhere = [*command, f"--data-dir={tmp_path / 'elsewhere'}"]
        second = subprocess.run(elsewhere, capture_output=True, text=True, timeout=20, cwd=tmp_path)
        assert second.returncode == 1
        assert f"127.0.0.1:{server.port} is in use" in second.stderr
        assert "--grpc-port" in second.stderr
        assert "Traceback" not in second.stderr
        ledger.wait_for(50)
        ledger.stop()
        ledger.check()
        assert_settled(server, before)

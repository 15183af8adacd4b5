"""Workers that are killed, stopped or stuck, and requests that kill them: nobody else's request suffers."""

import os
import pathlib
import platform
import shutil
import signal
import threading
import time

import numpy as np
import pytest

from tests.chaos.census import assert_settled, clean_server, take_census, wait_replaced, wait_serving_again
from tests.chaos.ledger import (
    DEADLINE_EXCEEDED,
    INTERNAL,
    OK,
    UNAVAILABLE,
    Entry,
    Ledger,
    ask,
    ask_all,
    channel_to,
    stub_of,
    wait_until,
)
from tests.chaos.models import INT64_MIN, TURNS_ENDLESS, TURNS_PER_MS, add_bomb
from tests.harness import Server

pytestmark = [pytest.mark.timeout(60), pytest.mark.timed]
RESPAWN_SECONDS = 2.0
DEADLY_ROW = np.array([[INT64_MIN, 0, 0, -1]], np.int64)
needs_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86 traps INT64_MIN / -1")


def kill_worker(server: Server, index: int = 0) -> int:
    pid = server.children("worker")[index].pid
    os.kill(pid, signal.SIGKILL)
    return pid


def given_up(server: Server) -> float:
    return server.metric("nexus_deadline_passed_total") + server.metric("nexus_cancelled_total")


def restarts(server: Server) -> float:
    return server.metric("nexus_worker_restarts_total")


@pytest.mark.parametrize("workers", [1, 2])
def test_kill_a_worker_under_load(tmp_path: pathlib.Path, repository: pathlib.Path, workers: int) -> None:
    with clean_server(tmp_path, repository, f"--workers={workers}") as server:
        # Requests of some milliseconds, so that some are being run whenever the worker is killed.
        with Ledger(server.address, "spin", last=2 * TURNS_PER_MS) as ledger:
            ledger.wait_for(50)
            before = take_census(server)
            for killed in range(1, 3):
                pid = kill_worker(server)
                seconds = wait_serving_again(server, 0, pid, 10)
                assert seconds <= RESPAWN_SECONDS
                assert restarts(server) == killed
                ledger.wait_for(50)
        ledger.check()
        assert 2 <= server.metric("nexus_redispatched_total") <= 2 * 16
        assert server.metric("nexus_poisoned_total") == 0
        assert_settled(server, before)


def test_many_dead_workers_leak_nothing(tmp_path: pathlib.Path, repository: pathlib.Path) -> None:
    with clean_server(tmp_path, repository, "--workers=2") as server:
        with Ledger(server.address, clients=8) as ledger:
            ledger.wait_for(20)
            before = take_census(server)
            for _ in range(3):
                # Both at once: for a moment there is none.
                workers = server.children("worker")
                for worker in workers:
                    worker.kill()
                for pid in [worker.pid for worker in workers]:
                    wait_until(lambda pid=pid: not os.path.exists(f"/proc/{pid}"), 5, f"{pid} reaped")
                wait_until(lambda: len(server.children("worker")) == 2, 10, "two workers again")
                ledger.wait_for(8)
        ledger.check()
        assert restarts(server) == 6
        assert_settled(server, before)


@needs_x86
def test_a_request_that_kills_two_workers(tmp_path: pathlib.Path, repository: pathlib.Path) -> None:
    with clean_server(tmp_path, repository, "--workers=1", "--max-in-flight=256") as server:
        with (
            Ledger(server.address, "divide") as same_model,
            Ledger(server.address, "counts_i64", clients=4) as other_model,
            channel_to(server.address) as channel,
        ):
            same_model.wait_for(20)
            before = take_census(server)
            poison = ask(stub_of(channel), "divide", 0, counts=DEADLY_ROW)
            same_model.wait_for(20)
            other_model.wait_for(20)
        assert (poison.code, poison.reason) == (INTERNAL, "WORKER_CRASHED"), poison
        assert "SIGFPE" in server.log_text()
        same_model.check()
        other_model.check()
        assert restarts(server) == 2
        assert server.metric("nexus_poisoned_total") == 1
        assert_settled(server, before)


def test_a_request_that_never_ends(tmp_path: pathlib.Path, repository: pathlib.Path) -> None:
    """The watchdog ends two workers over it; who waited with it, in its batch or behind it, is served."""
    with clean_server(tmp_path, repository, "--workers=1", "--watchdog-seconds=1") as server:
        with (
            Ledger(server.address, "spin", clients=8) as same_model,
            Ledger(server.address, "counts_i64", clients=4) as other_model,
            channel_to(server.address) as channel,
        ):
            same_model.wait_for(20)
            before = take_census(server)
            poison = ask(stub_of(channel), "spin", 0, last=TURNS_ENDLESS)
            same_model.wait_for(20)
            other_model.wait_for(20)
        assert (poison.code, poison.reason) == (INTERNAL, "WORKER_CRASHED"), poison
        assert poison.seconds < 10
        same_model.check()
        other_model.check()
        assert restarts(server) == 2
        assert_settled(server, before)


def test_a_deadline_on_a_request_that_never_ends(tmp_path: pathlib.Path, repository: pathlib.Path) -> None:
    """Its client hears in time; it is not run again, so that it ends one worker only."""
    with clean_server(tmp_path, repository, "--workers=1", "--watchdog-seconds=1") as server:
        with Ledger(server.address, clients=4) as ledger, channel_to(server.address) as channel:
            ledger.wait_for(8)
            pid = server.children("worker")[0].pid
            stuck = ask(stub_of(channel), "slow", 0, last=TURNS_ENDLESS, timeout=0.5)
            wait_serving_again(server, 0, pid, 10)
            ledger.wait_for(20)
        assert stuck.code is DEADLINE_EXCEEDED
        assert stuck.seconds < 1
        ledger.check()
        assert restarts(server) == 1


def test_a_stopped_worker_beside_another(tmp_path: pathlib.Path, repository: pathlib.Path) -> None:
    with clean_server(tmp_path, repository, "--workers=2", "--watchdog-seconds=2") as server:
        # Those with a deadline give up on the stopped worker, those without are run again by the other.
        with Ledger(server.address, timeout=1.0) as hasty, Ledger(server.address, clients=4) as patient:
            hasty.wait_for(50)
            before = take_census(server)
            pid = server.children("worker")[0].pid
            os.kill(pid, signal.SIGSTOP)
            stopped_s = time.monotonic()
            wait_serving_again(server, 0, pid, 10)
            assert 1.5 <= time.monotonic() - stopped_s <= 2 + 0.6 + RESPAWN_SECONDS
            replaced_s = time.monotonic()
            hasty.wait_for(50)
        hasty.check(DEADLINE_EXCEEDED)
        patient.check()
        assert hasty.others(), "nobody noticed the stopped worker"
        assert all(entry.seconds < 1.5 for entry in hasty.others())
        assert not [entry for entry in hasty.others() if entry.sent_s > replaced_s]
        # Some were answered by the other worker all the while.
        meanwhile = [e for e in patient.entries + hasty.entries if stopped_s < e.sent_s < replaced_s and e.code is OK]
        assert len(meanwhile) > 10
        assert_settled(server, before)


def test_the_only_worker_stopped(tmp_path: pathlib.Path, repository: pathlib.Path) -> None:
    """Deadlines are kept by the server also while its only worker does nothing."""
    with clean_server(tmp_path, repository, "--workers=1", "--watchdog-seconds=2") as server:
        assert all(entry.right for entry in ask_all(server.address, "counts_i64", range(4)))
        pid = server.children("worker")[0].pid
        os.kill(pid, signal.SIGSTOP)
        late = ask_all(server.address, "counts_i64", range(8), timeout=1.0)
        assert {entry.code for entry in late} == {DEADLINE_EXCEEDED}
        assert all(0.9 <= entry.seconds <= 1.3 for entry in late)
        # The server's sweep, gRPC's own timer and the client's giving up come at the same moment: any may be first.
        wait_until(lambda: given_up(server) == 8, 1, "8 requests given up by the server")
        wait_until(lambda: server.metric("nexus_in_flight") == 0, 1, "nothing in flight")
        wait_replaced(server, "worker", 0, pid, 5)
        assert all(entry.right for entry in ask_all(server.address, "counts_i64", range(8)))
        assert restarts(server) == 1


def test_a_worker_dies_while_the_server_stops(tmp_path: pathlib.Path, repository: pathlib.Path) -> None:
    """What it ran goes to the other worker, also while draining."""
    with clean_server(tmp_path, repository, "--workers=2") as server:
        entries: list[Entry] = []
        asking = threading.Thread(
            target=lambda: entries.extend(ask_all(server.address, "slow", range(6), last=300 * TURNS_PER_MS)),
            daemon=True,
        )
        asking.start()
        wait_until(lambda: server.metric("nexus_in_flight") == 6, 5, "6 requests in flight")
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "draining" in server.log_text(), 5, "the server drains")
        kill_worker(server)
        asking.join(20)
        assert server.process.wait(20) == 0
        assert [entry.code for entry in entries if not entry.right] == []


@needs_x86
def test_a_model_that_kills_its_loader(tmp_path: pathlib.Path, repository: pathlib.Path) -> None:
    own = tmp_path / "models"
    shutil.copytree(repository, own)
    add_bomb(own)
    with clean_server(tmp_path, own, "--workers=1") as server, channel_to(server.address) as channel:
        stub = stub_of(channel)
        refused = ask(stub, "bomb", 1)
        assert refused.code is UNAVAILABLE
        assert "crashed the worker" in refused.details
        assert ask(stub, "counts_i64", 2).right

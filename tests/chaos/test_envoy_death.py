"""Faults beside and behind Envoy: what it takes with it, what it doesn't, and how it ends."""

import os
import pathlib
import signal
import socket
import threading
import time

import pytest

from tests.chaos.census import (
    Census,
    assert_nothing_left,
    assert_settled,
    clean_server,
    take_census,
    wait_replaced,
)
from tests.chaos.ledger import Ledger, wait_until
from tests.chaos.models import TURNS_PER_MS
from tests.chaos.rest_ledger import BROKEN, REFUSED, RestClient, RestEntry, RestLedger
from tests.harness import Server

pytestmark = [pytest.mark.timeout(90), pytest.mark.timed]
BACK_SECONDS = 2.0


def census_with_envoy(server: Server) -> Census:
    census = take_census(server)
    assert "envoy 0" in census
    return census


def kill_envoy(server: Server) -> tuple[int, float]:
    """Returns the dead one's pid, and when it died."""
    [envoy] = server.children("envoy")
    os.kill(envoy.pid, signal.SIGKILL)
    return envoy.pid, time.monotonic()


def wait_rest_back(server: Server, seconds: float) -> float:
    """Until a new connection is served. Returns the seconds that took."""
    return wait_until(lambda: RestClient(server.rest_port).ask("counts_i64", 1).right, seconds, "REST is back")


def test_kill_envoy_under_load(tmp_path: pathlib.Path, repository: pathlib.Path) -> None:
    with clean_server(tmp_path, repository, "--workers=2", rest=True) as server:
        with Ledger(server.address, clients=8) as direct, RestLedger(server.rest_port) as through:
            direct.wait_for(50)
            through.wait_for(50)
            before = census_with_envoy(server)
            killed, killed_s = kill_envoy(server)
            wait_rest_back(server, 5)
            assert time.monotonic() - killed_s <= BACK_SECONDS
            wait_replaced(server, "envoy", 0, killed, 1)
            through.wait_for(100)
            direct.wait_for(50)
        # Direct clients noticed nothing; REST's only while there was no Envoy.
        direct.check()
        through.check(REFUSED, BROKEN)
        assert through.others(), "nobody was there when it died"
        assert not [entry for entry in through.others() if entry.sent_s > killed_s + BACK_SECONDS]
        assert server.metric("nexus_envoy_restarts_total") == 1
        wait_until(
            lambda: server.metric("nexus_process_info", role="envoy", pid=str(server.children("envoy")[0].pid)) == 1,
            5,
            "the new one in the metrics",
        )
        assert_settled(server, before)


def test_envoy_that_dies_often_comes_back_more_slowly_and_leaks_nothing(
    tmp_path: pathlib.Path, repository: pathlib.Path
) -> None:
    with clean_server(tmp_path, repository, "--workers=1", rest=True) as server:
        before = census_with_envoy(server)
        for _ in range(4):
            kill_envoy(server)
            wait_rest_back(server, 5)
        assert server.metric("nexus_envoy_restarts_total") == 4
        assert_settled(server, before)


def test_kill_a_worker_under_rest_load(tmp_path: pathlib.Path, repository: pathlib.Path) -> None:
    with clean_server(tmp_path, repository, "--workers=2", rest=True) as server:
        with RestLedger(server.rest_port, clients=16) as through:
            through.wait_for(50)
            before = census_with_envoy(server)
            for index in (0, 1):
                killed = server.children("worker")[index].pid
                os.kill(killed, signal.SIGKILL)
                wait_replaced(server, "worker", index, killed, 5)
                through.wait_for(100)
        through.check()
        assert_settled(server, before)


def test_kill_a_front_under_rest_load(tmp_path: pathlib.Path, repository: pathlib.Path) -> None:
    """What was in it is UNAVAILABLE; Envoy finds its successor on the same socket."""
    with clean_server(tmp_path, repository, "--workers=1", rest=True) as server:
        with RestLedger(server.rest_port) as through:
            through.wait_for(50)
            before = census_with_envoy(server)
            killed, killed_s = server.children("front")[0].pid, time.monotonic()
            os.kill(killed, signal.SIGKILL)
            wait_replaced(server, "front", 0, killed, 5)
            wait_rest_back(server, 5)
            through.wait_for(100)
        through.check(503)
        assert not [entry for entry in through.others() if entry.sent_s > killed_s + 5]
        assert_settled(server, before)


def test_stop_under_rest_load(tmp_path: pathlib.Path, repository: pathlib.Path) -> None:
    with clean_server(tmp_path, repository, "--workers=2", rest=True) as server:
        # Requests of some milliseconds, so that many are in flight when it is told to stop.
        with RestLedger(server.rest_port, "spin", last=3 * TURNS_PER_MS, clients=16) as through:
            through.wait_for(50)
            stopped_s = time.monotonic()
            assert server.stop(15) == 0
            ended_s = time.monotonic()
            assert_nothing_left(tmp_path)
            wait_until(lambda: through.others(), 5, "somebody comes after the end")
        through.check(REFUSED)
        assert not [entry for entry in through.others() if entry.sent_s < stopped_s]
        assert ended_s - stopped_s < 8


def test_stop_waits_for_long_rest_requests(tmp_path: pathlib.Path, repository: pathlib.Path) -> None:
    with clean_server(tmp_path, repository, "--workers=1", rest=True) as server:
        entries: list[RestEntry] = []

        def ask_slowly(number: int) -> None:
            entries.append(RestClient(server.rest_port).ask("slow", number, 400 * TURNS_PER_MS))

        asking = [threading.Thread(target=ask_slowly, args=(number,), daemon=True) for number in range(6)]
        for thread in asking:
            thread.start()
        wait_until(lambda: server.metric("nexus_in_flight") >= 5, 5, "requests in flight")
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not listens(server.rest_port), 5, "the REST port is closed")
        assert server.process.poll() is None
        assert server.process.wait(30) == 0
        for thread in asking:
            thread.join(10)
        assert [entry.status for entry in entries] == [200] * 6, entries
        assert all(entry.right for entry in entries)


def test_a_second_signal_ends_envoy_too(tmp_path: pathlib.Path, repository: pathlib.Path) -> None:
    with clean_server(tmp_path, repository, "--workers=1", rest=True) as server:
        stuck = threading.Thread(
            target=RestClient(server.rest_port).ask, args=("slow", 1, 60_000 * TURNS_PER_MS), daemon=True
        )
        stuck.start()
        wait_until(lambda: server.metric("nexus_in_flight") == 1, 5, "a request in flight")
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not listens(server.rest_port), 5, "the REST port is closed")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(5) == 1
        assert_nothing_left(tmp_path)
        stuck.join(20)


def test_kill_the_supervisor_under_rest_load(tmp_path: pathlib.Path, repository: pathlib.Path) -> None:
    temporary = {path.name for path in pathlib.Path("/tmp").glob("nexus-envoy-*")}
    with clean_server(tmp_path, repository, "--workers=1", rest=True) as server:
        with RestLedger(server.rest_port) as through:
            through.wait_for(20)
            server.process.kill()
            server.process.wait(5)
            killed_s = time.monotonic()
            assert_nothing_left(tmp_path, 1.0)
            assert time.monotonic() - killed_s <= 1.0
        through.check(REFUSED, BROKEN, 503)
        assert not listens(server.rest_port)
        assert {path.name for path in pathlib.Path("/tmp").glob("nexus-envoy-*")} <= temporary


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 2).close()
    except OSError:
        return False
    return True

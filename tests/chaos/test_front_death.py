"""Fronts that are killed: their clients come back to a new one, and workers keep nothing of the dead."""

import os
import pathlib
import signal
import time

import pytest

from tests.chaos.census import assert_settled, clean_server, take_census, wait_replaced
from tests.chaos.ledger import UNAVAILABLE, Ledger, ask, ask_all, channel_to, stub_of, wait_until

pytestmark = [pytest.mark.timeout(60), pytest.mark.timed]
RESTART_SECONDS = 2.0


@pytest.mark.parametrize("fronts", [1, 2])
def test_kill_a_front_under_load(tmp_path: pathlib.Path, repository: pathlib.Path, fronts: int) -> None:
    with clean_server(tmp_path, repository, f"--fronts={fronts}", "--workers=1") as server:
        worker = server.children("worker")[0].pid
        with Ledger(server.address, channels=8) as ledger:
            ledger.wait_for(50)
            before = take_census(server)
            killed = server.children("front")[0].pid
            killed_s = time.monotonic()
            os.kill(killed, signal.SIGKILL)
            wait_replaced(server, "front", 0, killed, 5)
            with channel_to(server.address) as channel:
                wait_until(lambda: ask(stub_of(channel), "counts_i64", 0).right, 5, "a new connection is served")
            assert time.monotonic() - killed_s <= RESTART_SECONDS
            wait_until(
                lambda: server.metric("nexus_process_info", role="front") == fronts, 5, "all fronts in the metrics"
            )
            ledger.wait_for(100)
        ledger.check(UNAVAILABLE)
        # Only what was in the dead front, or came while none listened, may have failed.
        late = [entry for entry in ledger.others() if entry.sent_s > killed_s + RESTART_SECONDS]
        assert not late
        assert server.children("worker")[0].pid == worker
        assert_settled(server, before)


def test_ten_dead_fronts_leak_nothing_in_workers(tmp_path: pathlib.Path, repository: pathlib.Path) -> None:
    with clean_server(tmp_path, repository, "--fronts=4", "--workers=2") as server:
        with Ledger(server.address, clients=8, channels=8) as ledger:
            ledger.wait_for(20)
            before = take_census(server)
            workers = [worker.pid for worker in server.children("worker")]
            for _ in range(3):
                fronts = server.children("front")
                for front in fronts[1:]:
                    front.kill()
                ledger.wait_for(8)  # by the one that lives, and by the first that are back
                fronts[0].kill()
                wait_until(lambda: len(server.children("front")) == 4, 10, "four fronts again")
            ledger.wait_for(50)
        ledger.check(UNAVAILABLE)
        assert [worker.pid for worker in server.children("worker")] == workers
        assert_settled(server, before)
        assert all(entry.right for entry in ask_all(server.address, "counts_i64", range(8)))

"""More than fits, and clients that lose interest: refused or skipped at once, and nothing is wrong afterwards."""

import collections
import pathlib
import threading
import time

import numpy as np
import psutil
import pytest

from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from tests.chaos.census import assert_settled, clean_server, take_census
from tests.chaos.ledger import (
    DEADLINE_EXCEEDED,
    OK,
    RESOURCE_EXHAUSTED,
    Ledger,
    ask,
    ask_all,
    channel_to,
    request_of,
    rows_of,
    stub_of,
    wait_until,
)
from tests.chaos.models import TURNS_PER_MS
from tests.harness import Server

pytestmark = [pytest.mark.timeout(60), pytest.mark.alone]
AT_ONCE_SECONDS = 0.5
MIB = 1 << 20


def rows_inferred(server: Server, model: str) -> int:
    with channel_to(server.address) as channel:
        answer = stub_of(channel).ModelStatistics(pb.ModelStatisticsRequest(name=model), timeout=5)
    return int(answer.model_stats[0].inference_count)


def wait_idle(server: Server) -> None:
    wait_until(lambda: server.metric("nexus_in_flight") == 0, 5, "nothing in flight")


def test_more_requests_than_a_worker_may_hold(tmp_path: pathlib.Path, repository: pathlib.Path) -> None:
    with clean_server(tmp_path, repository, "--workers=1", "--max-in-flight=4") as server:
        before = take_census(server)
        entries = ask_all(server.address, "slow", range(64), last=500 * TURNS_PER_MS)
        codes = collections.Counter(entry.code for entry in entries)
        assert codes.keys() == {OK, RESOURCE_EXHAUSTED}, codes
        refused = [entry for entry in entries if entry.code is RESOURCE_EXHAUSTED]
        assert codes[OK] >= 4
        assert len(refused) >= 32
        assert max(entry.seconds for entry in refused) < AT_ONCE_SECONDS
        assert {entry.reason for entry in refused} == {"OVERLOADED"}
        assert all(entry.right for entry in entries if entry.code is OK)
        assert server.metric("nexus_ring_full_total") == len(refused)
        with channel_to(server.address) as channel:
            assert all(ask(stub_of(channel), "slow", number).right for number in range(100, 120))
        wait_idle(server)
        assert_settled(server, before)


def test_more_bytes_than_a_ring_holds(tmp_path: pathlib.Path, repository: pathlib.Path) -> None:
    """The ring is full before the count of requests is: refused at once too, and answers that need room get it."""
    with clean_server(tmp_path, repository, "--workers=1", "--ring-bytes=65536") as server:
        with channel_to(server.address) as channel:
            stub = stub_of(channel)
            # 6 KiB each: one occupies the worker, some ten fit into the ring.
            counts = np.arange(4 * 192, dtype=np.int64).reshape(192, 4)
            first = counts.copy()
            first[0, 3] = 800 * TURNS_PER_MS
            calls = [stub.ModelInfer.future(request_of("slow", 0, first), timeout=20)]
            wait_until(lambda: server.metric("nexus_in_flight") == 1, 5, "the worker is busy")
            time.sleep(0.1)
            asked_s = time.monotonic()
            calls += [stub.ModelInfer.future(request_of("slow", n, counts), timeout=20) for n in range(1, 49)]
            refused = [call for call in calls if call.exception(20) is not None]
            assert {call.code() for call in refused} == {RESOURCE_EXHAUSTED}
            assert len(refused) >= 24
            assert time.monotonic() - asked_s < 15
            assert len(calls) - len(refused) >= 4
            assert ask(stub, "slow", 100).right
        wait_idle(server)


def test_cancelled_requests_are_skipped(tmp_path: pathlib.Path, repository: pathlib.Path) -> None:
    with clean_server(tmp_path, repository, "--workers=1") as server:
        with channel_to(server.address) as channel:
            stub = stub_of(channel)
            assert ask(stub, "slow", 1).right
            before, rows = take_census(server), rows_inferred(server, "slow")
            # Twenty seconds of work, were it all done.
            calls = [
                stub.ModelInfer.future(request_of("slow", number, rows_of(0, 100 * TURNS_PER_MS)), timeout=30)
                for number in range(200)
            ]
            wait_until(lambda: server.metric("nexus_in_flight") >= 190, 5, "the requests are in flight")
            time.sleep(0.1)  # until the front has asked to be told of cancellations
            cancelled_s = time.monotonic()
            for call in calls:
                call.cancel()
            wait_idle(server)
            assert time.monotonic() - cancelled_s < 1.5
            assert server.metric("nexus_cancelled_total") >= 150
            # The slow ones among them were skipped: this one does not stand in their queue.
            assert ask(stub, "slow", 2, timeout=2).right
            assert rows_inferred(server, "slow") - rows <= 40
        assert_settled(server, before)


def test_clients_that_vanish(tmp_path: pathlib.Path, repository: pathlib.Path) -> None:
    """Connections closed with requests in flight, five times over; others are served meanwhile."""
    with clean_server(tmp_path, repository, "--workers=1") as server:
        with Ledger(server.address, clients=4) as ledger:
            ledger.wait_for(8)
            before = take_census(server)
            for _ in range(5):
                with channel_to(server.address) as channel:
                    stub = stub_of(channel)
                    calls = [
                        stub.ModelInfer.future(request_of("slow", number, rows_of(0, 100 * TURNS_PER_MS)), timeout=30)
                        for number in range(20)
                    ]
                    time.sleep(0.1)
                assert all(call.done() for call in calls)
            ledger.wait_for(20)
        ledger.check()
        wait_idle(server)
        assert server.metric("nexus_cancelled_total") >= 50
        assert_settled(server, before)


def test_expired_requests_are_skipped(tmp_path: pathlib.Path, repository: pathlib.Path) -> None:
    with clean_server(tmp_path, repository, "--workers=1") as server:
        rows = rows_inferred(server, "slow")
        entries = ask_all(server.address, "slow", range(48), last=100 * TURNS_PER_MS, timeout=0.5)
        codes = collections.Counter(entry.code for entry in entries)
        assert codes.keys() <= {OK, DEADLINE_EXCEEDED}
        assert codes[DEADLINE_EXCEEDED] >= 24
        assert max(entry.seconds for entry in entries) < 1.5
        with channel_to(server.address) as channel:
            assert ask(stub_of(channel), "slow", 99, timeout=2).right
        assert rows_inferred(server, "slow") - rows <= 48
        wait_idle(server)


def test_messages_over_the_limit(tmp_path: pathlib.Path, repository: pathlib.Path) -> None:
    """65 MiB, four at a time: refused while load goes on, and the memory comes back."""
    with clean_server(tmp_path, repository, "--workers=1") as server:
        front = psutil.Process(server.children("front")[0].pid)
        supervisor_rss, front_rss = psutil.Process(server.process.pid).memory_info().rss, front.memory_info().rss
        too_large = np.zeros((65 * MIB // 32, 4), np.int64)
        with Ledger(server.address, clients=4) as ledger:
            ledger.wait_for(8)
            before = take_census(server)
            peak = 0
            for _ in range(2):
                refusals = send_together(server, too_large, 4)
                peak = max(peak, front.memory_info().rss)
                assert refusals == [RESOURCE_EXHAUSTED] * 4
            ledger.wait_for(20)
        ledger.check()
        assert peak - front_rss < 65 * MIB
        assert front.memory_info().rss - front_rss < 32 * MIB
        assert psutil.Process(server.process.pid).memory_info().rss - supervisor_rss < 16 * MIB
        assert_settled(server, before)


def send_together(server: Server, counts: np.ndarray, count: int) -> list[object]:
    """The status codes of equal requests, each over its own connection."""
    codes: list[object] = []

    def send(number: int) -> None:
        with channel_to(server.address) as channel:
            codes.append(ask(stub_of(channel), "counts_i64", number, counts=counts).code)

    threads = [threading.Thread(target=send, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(25)
    return codes

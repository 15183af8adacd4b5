"""kill -9 of the supervisor at any moment of changes: a restart brings back the same routing, and nothing that was
acknowledged is lost."""

import contextlib
import pathlib
import random
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from nexus_grpc.pb.nexus.v1 import traffic_pb2
from tests.chaos.census import assert_nothing_left
from tests.harness import running_server
from tests.lifecycle import NAME, Admin, code_of, put, wait_for

KEYS = [f"customer-{number}" for number in range(300)]
STICKY = traffic_pb2.StickyKey(header="x-customer")
OPTIONS = ("--workers=1", "--model-control=none")


def make_repository(folder: pathlib.Path) -> pathlib.Path:
    for version in (1, 2, 3):
        put(folder / "models", version)
    return folder / "models"


def routing(admin: Admin) -> tuple[Any, ...]:
    """All of the status but what is counted."""
    status = admin.traffic("Status", model=NAME)
    shares = [(each.variant, each.version, each.percent) for each in status.variants]
    shadow = (status.shadow.version, status.shadow.percent)
    return status.current_version, shares, status.sticky.header, shadow, status.balance, status.ramp.steps[:]


def variants_of(admin: Admin) -> list[tuple[str, str]]:
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda key: admin.ask(metadata=(("x-customer", key),)), KEYS)
        return [(answer.version, answer.variant) for answer in answers]


def test_the_same_keys_get_the_same_variants(tmp_path: pathlib.Path) -> None:
    repository = make_repository(tmp_path)
    with running_server(tmp_path, *OPTIONS, repository=repository) as server, Admin(server.address) as admin:
        admin.models("Activate", id=NAME, version="1")
        # By steps: the table of a split that grew is not the one of a split that began so.
        admin.traffic("Setup", model=NAME, candidate_version="2", percent=5, sticky=STICKY)
        admin.traffic("Split", model=NAME, percent=40)
        admin.traffic("Split", model=NAME, percent=25)
        before = variants_of(admin)
        assert {version for version, _ in before} == {"1", "2"}
        requests = wait_for(lambda: _requests(admin, len(KEYS)))
        wait_for(lambda: _kept(tmp_path))
        server.process.kill()
        server.process.wait()
    with running_server(tmp_path, *OPTIONS, repository=repository) as server, Admin(server.address) as admin:
        # What was counted goes on from where it was written down last.
        assert _requests(admin, 1) <= requests
        assert variants_of(admin) == before
    assert_nothing_left(tmp_path)


def _requests(admin: Admin, least: int) -> float:
    count = sum(each.requests for each in admin.traffic("Status", model=NAME).variants)
    return float(count) if count >= least else 0.0


def _kept(folder: pathlib.Path) -> bool:
    """Whether an experiment's counts have been written into the registry."""
    with contextlib.closing(sqlite3.connect(folder / "data" / "registry.db")) as registry:
        return bool(registry.execute("SELECT count(*) FROM statistics").fetchone()[0])


class Changes(threading.Thread):
    """Changes by chance, one after the other, until the server is gone. `acknowledged` has what the routing was after
    the last one that was answered."""

    def __init__(self, address: str, rng: random.Random) -> None:
        super().__init__()
        self._address, self._rng = address, rng
        self.count = 0
        self.acknowledged: tuple[Any, ...] = ()
        self.under_way = self.ended_by = ""
        self.sequence = 0

    def run(self) -> None:
        with Admin(self._address) as admin:
            try:
                while True:
                    self._note(admin)
                    self._change(admin)
            except grpc.RpcError as error:
                self.ended_by = code_of(error)

    def _note(self, admin: Admin) -> None:
        state, entries = routing(admin), admin.models("History", id=NAME, limit=1).entries
        self.acknowledged, self.sequence = state, entries[0].sequence if entries else 0
        self.count += 1

    def _change(self, admin: Admin) -> None:
        version, percent = str(self._rng.choice((1, 2, 3))), self._rng.choice((0, 1, 5, 33.33, 100))
        balance = self._rng.choice(("least_busy", "round_robin"))
        changes: dict[str, Any] = {
            "activate": lambda: admin.models("Activate", id=NAME, version=version),
            "rollback": lambda: admin.models("Rollback", id=NAME),
            "load": lambda: admin.models("Load", id=NAME, version=version),
            "unload": lambda: admin.models("Unload", id=NAME, version=version),
            "experiment": lambda: admin.traffic("Setup", model=NAME, candidate_version=version, percent=percent),
            "split": lambda: admin.traffic("Split", model=NAME, percent=percent),
            "promote": lambda: admin.traffic("Promote", model=NAME),
            "abort": lambda: admin.traffic("Abort", model=NAME),
            "shadow": lambda: admin.traffic("Shadow", model=NAME, candidate_version=version, percent=percent),
            "balance": lambda: admin.traffic("Balance", model=NAME, balance=balance),
        }
        self.under_way = self._rng.choice(list(changes))
        try:
            changes[self.under_way]()
        except grpc.RpcError as error:
            if code_of(error) not in ("FAILED_PRECONDITION", "INVALID_ARGUMENT"):
                raise


@pytest.mark.parametrize("rounds", [3, pytest.param(8, marks=pytest.mark.long)])
def test_a_kill_at_any_moment(tmp_path: pathlib.Path, rounds: int) -> None:
    repository, rng = make_repository(tmp_path), random.Random(44)
    changes: Changes | None = None
    for number in range(rounds + 1):
        with running_server(tmp_path, *OPTIONS, repository=repository) as server, Admin(server.address) as admin:
            if changes is not None:
                check_against(admin, changes)
            if number == rounds:
                break
            changes = Changes(server.address, rng)
            changes.start()
            wanted = rng.randint(2, 12)
            wait_for(lambda changes=changes, wanted=wanted: changes.count >= wanted, 60)
            threading.Event().wait(rng.uniform(0, 0.05))
            server.process.kill()
            server.process.wait()
            changes.join(30)
            assert not changes.is_alive()
            assert changes.ended_by in ("UNAVAILABLE", "CANCELLED")
    assert_nothing_left(tmp_path)


def check_against(admin: Admin, changes: Changes) -> None:
    """The state is the acknowledged one, or the one after the single change that was under way."""
    entries = admin.models("History", id=NAME, limit=3).entries
    later = [entry.action for entry in entries if entry.sequence > changes.sequence]
    now = routing(admin)
    if later:
        assert later == [changes.under_way]
    else:
        assert now == changes.acknowledged
    assert admin.ask().version in {version for _, version, _ in now[1]} | {now[0]}

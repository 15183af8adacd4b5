"""32 clients load and unload at once for a while (a minute in the long run): each gets a plain answer, what is in
memory in the end is what the audit log says, and the log has the changes in an order in which they can have happened.
"""

import contextlib
import dataclasses
import pathlib
import random
import sqlite3
import threading
import time
from collections.abc import Iterator

import grpc
import pytest

from tests.chaos.census import assert_settled, clean_server, take_census
from tests.lifecycle import Admin, Load, code_of, put

CLIENTS = 32
MODELS = ("left", "right")
VERSIONS = (1, 2, 3)
# A version that takes traffic stays; a load may find the server at its limit of calls under way.
REFUSALS = {"FAILED_PRECONDITION", "RESOURCE_EXHAUSTED"}


@dataclasses.dataclass(frozen=True)
class Done:
    """A change that was answered with OK, as its client saw it."""

    began_s: float
    ended_s: float
    action: str
    model: str
    version: str

    @property
    def what(self) -> tuple[str, str, str]:
        return self.action, self.model, self.version


class Changer(threading.Thread):
    """Loads and unloads by chance, one after the other, until it is told to stop."""

    def __init__(self, address: str, seed: int, stop: threading.Event) -> None:
        super().__init__()
        self._address, self._rng, self._stopping = address, random.Random(seed), stop
        self.done: list[Done] = []
        self.unexpected: list[str] = []

    def run(self) -> None:
        with Admin(self._address) as admin:
            while not self._stopping.is_set():
                action = self._rng.choice(("Load", "Unload"))
                model, version = self._rng.choice(MODELS), str(self._rng.choice(VERSIONS))
                began_s = time.monotonic()
                try:
                    admin.models(action, id=model, version=version)
                except grpc.RpcError as error:
                    self._refused(error)
                else:
                    self.done.append(Done(began_s, time.monotonic(), action.lower(), model, version))

    def _refused(self, error: grpc.RpcError) -> None:
        if code_of(error) not in REFUSALS:
            self.unexpected.append(str(error))


def audit(data: pathlib.Path) -> Iterator[tuple[str, tuple[str, str, str]]]:
    """(actor, (action, model, version)) of what the clients did, in the log's order."""
    with contextlib.closing(sqlite3.connect(data / "registry.db")) as registry:
        rows = registry.execute("SELECT actor, action, model, version FROM audit ORDER BY sequence").fetchall()
    return ((actor, (action, model, version)) for actor, action, model, version in rows if actor.startswith("grpc "))


def matched(log: list[tuple[str, tuple[str, str, str]]], changers: list[Changer]) -> list[Done]:
    """What the clients did, in the log's order. Each client has one connection, which is its actor in the log."""
    by_actor: dict[str, list[tuple[str, str, str]]] = {}
    for actor, what in log:
        by_actor.setdefault(actor, []).append(what)
    left = {actor: changer for changer in changers for actor in by_actor if by_actor[actor] == _whats(changer)}
    assert len(left) == len(by_actor) == len([changer for changer in changers if changer.done])
    remaining = {actor: iter(changer.done) for actor, changer in left.items()}
    return [next(remaining[actor]) for actor, _ in log]


def _whats(changer: Changer) -> list[tuple[str, str, str]]:
    return [done.what for done in changer.done]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("seconds", [10.0, pytest.param(60.0, marks=pytest.mark.long)])
def test_the_audit_log_tells_what_happened(tmp_path: pathlib.Path, seconds: float) -> None:
    repository = tmp_path / "models"
    for model in MODELS:
        for version in VERSIONS:
            put(repository, version, name=model)
        (repository / model / "config.pbtxt").write_text("version_policy {all {}}")
    put(repository, 1, name="steady")
    options = ("--workers=2", "--model-control=none", "--keep-previous-seconds=0")
    with clean_server(tmp_path, repository, *options) as server, Admin(server.address) as admin:
        before = take_census(server)
        stop = threading.Event()
        changers = [Changer(server.address, seed, stop) for seed in range(CLIENTS)]
        with Load(server.address, at_once=8, connections=2, name="steady") as load:
            for changer in changers:
                changer.start()
            time.sleep(seconds)
            stop.set()
            for changer in changers:
                changer.join(60)
        assert load.failures == []
        assert [each for changer in changers for each in changer.unexpected] == []

        log = list(audit(tmp_path / "data"))
        in_order = matched(log, changers)
        assert len(in_order) > 2 * CLIENTS
        # No change stands in the log before one that was over when it began.
        latest_start_s = 0.0
        for done in in_order:
            assert done.ended_s >= latest_start_s, done
            latest_start_s = max(latest_start_s, done.began_s)
        # The last change of each version is what holds.
        for model in MODELS:
            expected = {str(version): "READY" for version in VERSIONS}
            for action, _, version in (what for _, what in log if what[1] == model):
                expected[version] = {"load": "READY", "unload": "UNLOADED"}[action]
            assert admin.states(model) == expected
        assert server.metric("nexus_worker_restarts_total") == 0
        assert_settled(server, before)

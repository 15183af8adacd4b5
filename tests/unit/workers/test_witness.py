"""Whose fault a failed run is, as a known good input tells."""

import time

import numpy as np
import pytest

from nexus_grpc.ipc.errors import InferenceFailed
from nexus_grpc.ipc.record import Blame
from nexus_grpc.worker import witness as module
from nexus_grpc.worker.tensors import Array
from nexus_grpc.worker.witness import KEPT_BYTES_MAX, Witness

ROOM = 1 << 30


class Session:
    """Runs, or fails; counts its runs and remembers what it was last asked."""

    def __init__(self) -> None:
        self.fails = False
        self.runs = 0
        self.asked: dict[str, Array] = {}
        self.seconds = 0.0

    def run(self, feeds: dict[str, Array], oversize: bool) -> list[Array]:
        self.runs += 1
        self.asked = feeds
        time.sleep(self.seconds)
        if self.fails:
            raise InferenceFailed("no")
        return []


def feeds(rows: int = 1, columns: int = 2) -> dict[str, Array]:
    return {"x": np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that went well vouches for no time at all."""
    monkeypatch.setattr(module, "VOUCHED_NS", 0)
    monkeypatch.setattr(module, "COST_FACTOR", 0)


def test_without_a_known_good_input_nobody_is_to_blame() -> None:
    witness, session = Witness(), Session()
    assert witness.blame(session.run) is Blame.NOBODY
    assert session.runs == 0


def test_the_first_request_of_a_batch_is_kept() -> None:
    witness, session = Witness(), Session()
    batch = feeds(rows=5)
    witness.keep(batch, 2, 1000, ROOM)
    batch["x"][:] = -1  # its memory may be used again
    assert witness.blame(session.run) is Blame.INPUT
    assert session.asked["x"].tolist() == [[0, 1], [2, 3]]


@pytest.mark.usefixtures("impatient")
def test_when_it_fails_the_model_is_to_blame_until_something_runs() -> None:
    witness, session = Witness(), Session()
    witness.keep(feeds(), 1, 1000, ROOM)
    session.fails = True
    assert [witness.blame(session.run) for _ in range(5)] == [Blame.MODEL] * 5
    assert session.runs == 1, "once is enough"
    session.fails = False
    assert witness.keep_below_ns > 1 << 60
    witness.keep(feeds(columns=3), 1, 1000, ROOM)
    assert witness.blame(session.run) is Blame.INPUT
    assert session.asked["x"].shape == (1, 3)


def test_bad_inputs_cost_no_more_than_a_twentieth() -> None:
    witness, session = Witness(), Session()
    witness.keep(feeds(), 1, 1000, ROOM)
    session.seconds = 0.02
    end_s = time.monotonic() + 0.9
    while time.monotonic() < end_s:
        assert witness.blame(session.run) is Blame.INPUT
    assert session.runs == 2 or session.runs == 3


def test_a_sample_counts_before_anything_has_run() -> None:
    witness, session = Witness(), Session()
    witness.knows(feeds)
    assert witness.kept_bytes == 0
    assert witness.blame(session.run) is Blame.INPUT


def test_a_faster_one_takes_its_place() -> None:
    witness = Witness()
    witness.keep(feeds(), 1, 10_000_000, ROOM)
    assert witness.keep_below_ns == 5_000_000
    witness.keep(feeds(), 1, 900_000, ROOM)
    assert witness.keep_below_ns == 0


@pytest.mark.parametrize("room", [ROOM, 4])
def test_what_is_too_large_is_not_kept(room: int) -> None:
    witness, session = Witness(), Session()
    witness.keep(feeds(columns=2 if room == 4 else KEPT_BYTES_MAX // 4 + 1), 1, 1000, room)
    assert (witness.kept_bytes, witness.keep_below_ns) == (0, 0)
    assert witness.blame(session.run) is Blame.NOBODY
    assert witness.keep_below_ns > 0, "looked for again"

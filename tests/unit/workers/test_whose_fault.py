"""A run that fails in a worker, in each way that ONNX Runtime has: the fault of the input, of the model, or who knows.

The models wear (tests/integration/graphs.py): which of their runs fail is known beforehand.
"""

from pathlib import Path

import pytest

from nexus_grpc.ipc.errors import Code
from nexus_grpc.ipc.record import Blame
from tests.integration.graphs import FAILURES, save, wearing
from tests.unit.workers.live import LiveWorker, worker

__all__ = ["worker"]
GOOD, BAD = (1, 2), (3, 0)
by_each_kind = pytest.mark.parametrize("kind", FAILURES)


def load(worker: LiveWorker, folder: Path, kind: str, runs: str) -> None:
    save(folder, 1, wearing(kind, runs))
    assert worker.load(1, str(folder / "1" / "model.onnx"))["type"] == "loaded"


def ask(worker: LiveWorker, row: tuple[int, int], slot: int = 1) -> tuple[int, Blame]:
    answer = worker.answer(worker.send_row(slot, *row))
    return answer.code, answer.blame


@by_each_kind
def test_an_input_that_the_model_does_not_take(worker: LiveWorker, tmp_path: Path, kind: str) -> None:
    load(worker, tmp_path, kind, "")
    assert ask(worker, GOOD)[0] == Code.OK
    assert [ask(worker, BAD) for _ in range(3)] == [(Code.INVALID_ARGUMENT, Blame.INPUT)] * 3
    assert ask(worker, GOOD)[0] == Code.OK


@by_each_kind
def test_a_model_that_fails(worker: LiveWorker, tmp_path: Path, kind: str) -> None:
    # The first answer is kept; then a request, the known good input, and two requests more.
    load(worker, tmp_path, kind, "PFFFF")
    assert ask(worker, GOOD)[0] == Code.OK
    assert [ask(worker, GOOD) for _ in range(3)] == [(Code.INTERNAL, Blame.MODEL)] * 3
    assert ask(worker, GOOD)[0] == Code.OK
    assert ask(worker, BAD) == (Code.INVALID_ARGUMENT, Blame.INPUT)


@by_each_kind
def test_who_knows(worker: LiveWorker, tmp_path: Path, kind: str) -> None:
    load(worker, tmp_path, kind, "FF")
    assert ask(worker, GOOD) == (Code.INVALID_ARGUMENT, Blame.INPUT)
    answer = worker.answer(worker.send_row(1, *GOOD))
    assert "it has run on no input yet, so it may be at fault itself" in answer.message
    assert ask(worker, GOOD)[0] == Code.OK


def test_the_sample_of_the_trial_is_a_known_good_input(worker: LiveWorker, tmp_path: Path) -> None:
    save(tmp_path, 1, wearing("FAIL", "FF"))
    assert worker.load(1, str(tmp_path / "1" / "model.onnx"), sample_runs=True)["type"] == "loaded"
    assert ask(worker, GOOD) == (Code.INTERNAL, Blame.MODEL)


def test_arms_have_one_witness(worker: LiveWorker, tmp_path: Path) -> None:
    load(worker, tmp_path, "FAIL", "PFF")
    worker.alias(2, of=1)
    assert ask(worker, GOOD)[0] == Code.OK
    assert ask(worker, GOOD, slot=2) == (Code.INTERNAL, Blame.MODEL)


def test_our_own_checks_blame_the_caller(worker: LiveWorker, tmp_path: Path) -> None:
    load(worker, tmp_path, "FAIL", "")
    answer = worker.answer(worker.send_row(1, 1, 2, 3))
    assert (answer.code, answer.blame) == (Code.INVALID_ARGUMENT, Blame.CALLER)

"""What a worker does with the supervisor's messages: load, alias, unload; and whose counts a slot has."""

import weakref
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from nexus_grpc.ipc.errors import Code
from nexus_grpc.worker.loop import PREDICTED_MAX
from nexus_grpc.worker.model import DEFAULT_VARIANT
from tests.unit.support import Graph
from tests.unit.workers.live import LiveWorker, times, wait_for, worker

__all__ = ["worker"]


@pytest.fixture
def loaded(worker: LiveWorker, tmp_path: Path) -> LiveWorker:
    """Slot 1: × 2."""
    assert worker.load(1, times(tmp_path / "1", 2))["type"] == "loaded"
    return worker


def test_a_load_says_what_the_model_is(worker: LiveWorker, tmp_path: Path) -> None:
    report = worker.load(3, times(tmp_path, 2))
    assert (report["type"], report["slot"]) == ("loaded", 3)
    assert report["metadata"]
    assert report["config"]
    assert report["prediction_labels"][:2] == ["< -1000", "-1000 to -100"]
    assert worker.ask(3, 1, 10).values == [[2, 20]]
    assert worker.ask(3, 1, 10).variant == ""


def test_a_load_that_fails_says_why_and_costs_nothing_else(loaded: LiveWorker, tmp_path: Path) -> None:
    broken = tmp_path / "model.onnx"
    broken.write_bytes(b"no model")
    report = loaded.load(2, str(broken))
    assert (report["type"], report["slot"]) == ("load_failed", 2)
    assert "cannot be loaded" in report["reason"]
    report = loaded.load(2, times(tmp_path / "fine", 3), preferred_batch_sizes=5)
    assert (report["type"], report["reason"]) == ("load_failed", "TypeError: 'int' object is not iterable")
    assert loaded.ask(2, 1, 10).code == Code.UNAVAILABLE
    assert loaded.ask(1, 1, 10).values == [[2, 20]]


def test_a_model_without_outputs_is_refused(loaded: LiveWorker, tmp_path: Path) -> None:
    graph = Graph([helper.make_node("Relu", ["x"], ["y"])], [("x", TensorProto.FLOAT, ["batch", 2])], [])
    report = loaded.load(2, graph.save(tmp_path))
    assert (report["type"], report["reason"]) == ("load_failed", "model 'm' has no outputs")
    assert loaded.ask(1, 1, 10).values == [[2, 20]]


# --- arms ---


def test_an_arm_shares_the_session_and_nothing_else(loaded: LiveWorker) -> None:
    report = loaded.alias(2, of=1, variant="B")
    assert (report["type"], report["slot"]) == ("loaded", 2)
    base, arm = loaded.model(1), loaded.model(2)
    assert arm.run is base.run
    assert (arm.variant, base.variant, arm.version) == ("B", DEFAULT_VARIANT, "1")
    assert arm.templates is not base.templates
    assert loaded.loop.batcher.queue_of(2) is not loaded.loop.batcher.queue_of(1)
    for _ in range(3):  # from the second on by template
        assert loaded.ask(2, 1, 10) == loaded.answer(loaded.send_row(2, 1, 10))
        assert loaded.ask(2, 1, 10).variant == "B"
        assert loaded.ask(1, 1, 10).variant == ""
    assert loaded.wait_counts(2, lambda seen: seen.success_count == 9).batch_size.sum == 9
    assert loaded.wait_counts(1, lambda seen: seen.success_count == 3).batch_size.sum == 3


def test_an_arm_reports_what_its_version_did(worker: LiveWorker, tmp_path: Path) -> None:
    of_version, of_arm = worker.load(1, times(tmp_path, 2)), worker.alias(7, of=1)
    assert of_arm == of_version | {"slot": 7}


def test_only_arms_count_what_they_answer(loaded: LiveWorker) -> None:
    """0.15 × 2 lies between 0.25 and 0.5, -4 × 2 between -10 and -1."""
    loaded.alias(2, of=1)
    for slot in (1, 2):
        for value in (0.15, 0.15, -4):
            loaded.ask(slot, value, 0)
    seen = loaded.wait_counts(2, lambda counts: sum(counts.predictions) == 3)
    assert {bucket: count for bucket, count in enumerate(seen.predictions) if count} == {8: 2, 3: 1}
    seen = loaded.wait_counts(1, lambda counts: counts.success_count == 3)
    assert sum(seen.predictions) == 0


def test_answers_are_not_held_long_to_be_counted(worker: LiveWorker, tmp_path: Path) -> None:
    worker.load(1, times(tmp_path, 2), max_batch_size=1)
    worker.alias(2, of=1)
    gate = worker.gate(2)
    for number in range(20):
        worker.send_row(2, number, 0)
    for _ in range(20):
        gate.wait_entered()
        assert len(worker.loop._predicted) < PREDICTED_MAX
        gate.let_through(1)
    worker.wait_counts(2, lambda seen: sum(seen.predictions) == 20)


def test_an_arm_of_an_unknown_slot_is_refused(loaded: LiveWorker) -> None:
    report = loaded.alias(2, of=9)
    assert (report["type"], report["slot"]) == ("load_failed", 2)
    assert report["reason"] == "its version is not loaded in this worker"
    assert loaded.ask(2, 1, 10).code == Code.UNAVAILABLE
    assert loaded.ask(1, 1, 10).values == [[2, 20]]


def test_an_arm_goes_and_its_version_stays(loaded: LiveWorker) -> None:
    loaded.alias(2, of=1)
    assert loaded.unload(2) == {"type": "unloaded", "slot": 2}
    assert loaded.ask(2, 1, 10).code == Code.UNAVAILABLE
    assert loaded.ask(1, 1, 10).values == [[2, 20]]


# --- unloading ---


def test_an_unloaded_model_lets_go_of_its_session(loaded: LiveWorker) -> None:
    loaded.alias(2, of=1)
    session = weakref.ref(loaded.model(1).run)
    loaded.ask(1, 1, 10)
    loaded.unload(1)
    assert session() is not None, "the arm still uses it"
    loaded.unload(2)
    assert session() is None
    refused = loaded.ask(1, 1, 10)
    assert (refused.code, "not loaded in this worker" in refused.message) == (Code.UNAVAILABLE, True)


def test_what_has_come_is_answered_before_a_model_goes(loaded: LiveWorker, tmp_path: Path) -> None:
    """Requests that wait for company (for an hour) are run at once, and other models' are not lost."""
    hour_ns = 3600 * 10**9
    loaded.load(2, times(tmp_path / "2", 3), max_queue_delay_ns=hour_ns)
    loaded.load(3, times(tmp_path / "3", 4))
    gate = loaded.gate(3)
    taken = loaded.send_row(2, 5, 0)
    loaded.send_row(3, 1, 10)
    gate.wait_entered()  # what is sent now stays in the ring until the worker has heard that the model is to go
    waiting = [loaded.send_row(2, number, 0) for number in range(5)]
    other = loaded.send_row(1, 1, 10)
    loaded.tell("unload", slot=2)
    wait_for(lambda: loaded.loop.commands)
    gate.let_through(1)
    assert loaded.report() == {"type": "unloaded", "slot": 2}
    assert loaded.answer(taken).values == [[15, 0]]
    assert [loaded.answer(flight).values for flight in waiting] == [[[3 * number, 0]] for number in range(5)]
    assert loaded.answer(other).values == [[2, 20]]


def test_unloading_what_is_not_there_is_fine(loaded: LiveWorker) -> None:
    for slot in (2, 2, 255):
        assert loaded.unload(slot) == {"type": "unloaded", "slot": slot}
    assert loaded.ask(1, 1, 10).values == [[2, 20]]


def test_requests_for_unknown_slots_fail_alone(loaded: LiveWorker) -> None:
    flights = [loaded.send_row(slot, 1, 10) for slot in (0, 1, 200, 1)]
    assert [loaded.answer(flight).code for flight in flights] == [Code.UNAVAILABLE, 0, Code.UNAVAILABLE, 0]


# --- whose counts a slot has ---


def test_a_slot_s_counts_are_its_owner_s(worker: LiveWorker, tmp_path: Path) -> None:
    path = times(tmp_path, 2)
    worker.load(1, path, incarnation=5)
    worker.ask(1, 1, 10)
    worker.wait_counts(1, lambda seen: seen.success_count == 1)
    worker.load(1, path, incarnation=5)  # as a replaced worker does
    worker.ask(1, 1, 10)
    assert worker.wait_counts(1, lambda seen: seen.success_count == 2).batch_size.count == 2
    worker.load(1, path, incarnation=6)
    assert worker.counts(1).success_count == 0
    worker.ask(1, 1, 10)
    worker.wait_counts(1, lambda seen: seen.success_count == 1)


def test_without_an_owner_s_number_counts_begin_anew(worker: LiveWorker, tmp_path: Path) -> None:
    path = times(tmp_path, 2)
    for _ in range(2):
        worker.load(1, path)
        assert worker.counts(1).success_count == 0
        worker.ask(1, 1, 10)
        worker.wait_counts(1, lambda seen: seen.success_count == 1)


def test_a_slot_used_again_has_the_new_model(loaded: LiveWorker, tmp_path: Path) -> None:
    loaded.ask(1, 1, 10)
    loaded.unload(1)
    assert loaded.counts(1).success_count == 1, "who reads them last does so when it is gone"
    loaded.load(1, times(tmp_path / "again", 5), incarnation=2)
    assert loaded.ask(1, 1, 10).values == [[5, 50]]
    assert loaded.wait_counts(1, lambda seen: seen.success_count == 1).fail_count == 0


def test_a_shadow_that_ends_with_its_slot(loaded: LiveWorker, tmp_path: Path) -> None:
    """Slots are used again: what was said of the earlier owner's shadow does not hold for the next."""
    loaded.load(2, times(tmp_path / "2", 3))
    loaded.shadow(1, 2)
    loaded.ask(1, 1, 10)
    loaded.wait_counts(1, lambda seen: seen.shadow_compared == 1)
    loaded.unload(1)
    loaded.load(1, times(tmp_path / "again", 5))
    loaded.ask(1, 1, 10)
    wait_for(lambda: loaded.counts(1).success_count == 1)
    assert loaded.loop.shadows.sources == {}
    assert loaded.counts(1).shadow_compared == 0

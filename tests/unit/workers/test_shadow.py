"""Shadows: copies of batches on a candidate's real session, compared, counted, bounded, and never in anybody's way."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from nexus_grpc.ipc.snapshots import ModelSnapshot
from nexus_grpc.ipc.stats import PageKind, WorkerStats, create_page, open_page, read_model
from nexus_grpc.worker.assembly import as_result
from nexus_grpc.worker.loader import load_model
from nexus_grpc.worker.model import Model
from nexus_grpc.worker.shadow import BACKLOG_BYTES, BACKLOG_MAX, Shadows
from nexus_grpc.worker.tensors import Array, text_array
from tests.unit.support import Graph, floats, load_order, one_node
from tests.unit.workers.live import LiveWorker, times, wait_for, worker

__all__ = ["worker"]

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
PRIMARY, CANDIDATE = 1, 2


class Bench:
    """Two loaded models and their shadows, without a loop."""

    def __init__(self, primary: Model, candidate: Model | None) -> None:
        page = create_page(PageKind.WORKER)
        self._page = open_page(page)
        os.close(page)
        self.models = {PRIMARY: primary} | ({CANDIDATE: candidate} if candidate is not None else {})
        self.shadows = Shadows(self.models.get, WorkerStats(self._page))
        self.shadows.set(PRIMARY, CANDIDATE, 10_000)

    def serve(self, *rows: Any) -> None:
        """What the loop does after a batch of the primary's."""
        feeds = {"x": rows[0] if isinstance(rows[0], np.ndarray) else floats(*rows)}
        model = self.models[PRIMARY]
        outputs = model.run(feeds, False)
        self.shadows.copy(PRIMARY, feeds, as_result(model, outputs, len(feeds["x"])), primary_ns=1000)

    def run_all(self) -> int:
        count = 0
        while self.shadows.run_one():
            count += 1
        return count

    @property
    def counts(self) -> ModelSnapshot:
        return read_model(self._page, PRIMARY)

    @property
    def compared(self) -> tuple[int, int, int, int]:
        """Compared, disagreed, errors, dropped."""
        seen = self.counts
        return seen.shadow_compared, seen.shadow_disagreed, seen.shadow_errors, seen.shadow_dropped


def loaded(folder: Path, graph: Graph, slot: int) -> Model:
    path = folder / str(slot)
    path.mkdir()
    return load_model(load_order(graph.save(path), slot=slot))


def bench(folder: Path, primary: Graph, candidate: Graph) -> Bench:
    return Bench(loaded(folder, primary, PRIMARY), loaded(folder, candidate, CANDIDATE))


def scaled(*factors: float, name: str = "y") -> Graph:
    """[batch, n] FP32, each column times its factor."""
    constant = numpy_helper.from_array(np.array(factors, np.float32), "k")
    shape: list[int | str] = ["batch", len(factors)]
    node = helper.make_node("Mul", ["x", "k"], [name])
    return Graph([node], [("x", FLOAT, shape)], [(name, FLOAT, shape)], [constant])


def labelled(*names: str) -> Graph:
    """Texts a, b, c → other texts."""
    attributes: dict[str, Any] = {"keys_strings": ["a", "b", "c"], "values_strings": list(names)}
    return one_node("LabelEncoder", STRING, columns=1, domain="ai.onnx.ml", **attributes)


def argmax(*factors: float) -> Graph:
    """The column, scaled, that is the largest: a label."""
    inner = scaled(*factors, name="scores")
    node = helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0)
    return dataclasses.replace(inner, nodes=[*inner.nodes, node], outputs=[("label", INT64, ["batch"])])


# --- what is compared ---


def test_equal_values_agree(tmp_path: Path) -> None:
    both = bench(tmp_path, scaled(2, 2), scaled(2, 2))
    both.serve([1, 2], [3, np.nan], [np.inf, 0])
    assert both.run_all() == 1
    assert both.compared == (3, 0, 0, 0)
    assert both.counts.shadow_primary_ns == 3 * 1000
    assert both.counts.shadow_candidate_ns > 0


@pytest.mark.parametrize(("factor", "disagreed"), [(2.001, 0), (2.01, 2)])
def test_values_agree_within_a_tolerance(factor: float, disagreed: int, tmp_path: Path) -> None:
    both = bench(tmp_path, scaled(2, 2), scaled(2, factor))
    both.serve([1, 1], [1, 0], [5, 5])  # the second row is zero in the column that differs
    both.run_all()
    assert both.compared == (3, disagreed, 0, 0)


def test_of_probabilities_the_class_counts(tmp_path: Path) -> None:
    """Other probabilities, mostly the same class."""
    both = bench(tmp_path, scaled(1, 1, name="probabilities"), scaled(1, 0.6, name="probabilities"))
    both.serve([0.1, 0.9], [0.9, 0.1], [0.45, 0.55], [0.4, 0.6])
    both.run_all()
    assert both.compared == (4, 2, 0, 0)


def test_one_probability_is_a_value(tmp_path: Path) -> None:
    both = bench(tmp_path, scaled(1, name="probability"), scaled(0.9, name="probability"))
    both.serve([0.5], [0.0])
    both.run_all()
    assert both.compared == (2, 1, 0, 0)


def test_number_labels_must_be_the_same(tmp_path: Path) -> None:
    both = bench(tmp_path, argmax(1, 1, 1), argmax(1, 1, 2))
    both.serve([3, 1, 1], [3, 1, 2], [1, 3, 1])
    both.run_all()
    assert both.compared == (3, 1, 0, 0)


def test_text_labels_must_be_the_same(tmp_path: Path) -> None:
    both = bench(tmp_path, labelled("x", "y", "z"), labelled("x", "y", "q"))
    both.serve(text_array(["a", "b", "c", "c"]).reshape(4, 1))
    both.run_all()
    assert both.compared == (4, 2, 0, 0)


# --- what goes wrong ---


def renamed() -> Graph:
    node = helper.make_node("Relu", ["other"], ["y"])
    return Graph([node], [("other", FLOAT, ["batch", 2])], [("y", FLOAT, ["batch", 2])])


@pytest.mark.parametrize(
    "candidate", [renamed(), scaled(2, 2, 2), one_node("Neg", INT64)], ids=["input", "columns", "type"]
)
def test_a_candidate_that_takes_other_inputs_fails(candidate: Graph, tmp_path: Path) -> None:
    both = bench(tmp_path, scaled(2, 2), candidate)
    both.serve([1, 2], [3, 4])
    assert both.run_all() == 1
    assert both.compared == (0, 0, 1, 0)


def test_answers_of_another_shape_cannot_be_compared(tmp_path: Path) -> None:
    node = helper.make_node("ReduceSum", ["x", "axis"], ["y"], keepdims=1)
    axis = numpy_helper.from_array(np.array([1], dtype=np.int64), "axis")
    summed = Graph([node], [("x", FLOAT, ["batch", 2])], [("y", FLOAT, ["batch", 1])], [axis])
    both = bench(tmp_path, scaled(2, 2), summed)
    both.serve([1, 2])
    both.run_all()
    assert both.compared == (0, 0, 1, 0)


@pytest.mark.parametrize("error", [MemoryError(), KeyError("class"), ZeroDivisionError()], ids=repr)
def test_whatever_a_candidate_provokes_is_an_error_of_its(error: Exception, tmp_path: Path) -> None:
    both = bench(tmp_path, scaled(2, 2), scaled(2, 2))
    working = both.models[CANDIDATE].run

    def failing_once(feeds: dict[str, Array], oversize: bool) -> list[Array]:
        both.models[CANDIDATE].run = working
        raise error

    both.models[CANDIDATE].run = failing_once
    both.serve([1, 2])
    both.serve([1, 2], [3, 4])
    assert both.run_all() == 2
    assert both.compared == (2, 0, 1, 0)


# --- bounds ---


def test_the_backlog_is_bounded_and_drops_are_counted(tmp_path: Path) -> None:
    both = bench(tmp_path, scaled(2, 2), scaled(2, 2))
    for _ in range(BACKLOG_MAX + 6):
        both.serve([1, 2])
    assert both.run_all() == BACKLOG_MAX
    assert both.compared == (BACKLOG_MAX, 0, 0, 6)
    both.serve([1, 2])  # there is room again
    assert both.run_all() == 1


def test_the_backlog_s_memory_is_bounded(tmp_path: Path) -> None:
    both = bench(tmp_path, scaled(*[2] * 1024), scaled(*[2] * 1024))
    rows = np.ones((1024, 1024), np.float32)  # 4 MiB in and 4 MiB out: two fit
    for _ in range(3):
        both.serve(rows)
    assert both.run_all() == 2
    assert both.compared == (2048, 0, 0, 1)
    both.serve(rows)
    assert both.run_all() == 1
    both.serve(rows)
    both.shadows.forget(PRIMARY)
    assert both.run_all() == 0


def test_texts_count_with_their_length(tmp_path: Path) -> None:
    """An array of texts is small; the texts are not."""
    both = bench(tmp_path, labelled("x", "y", "z"), labelled("x", "y", "z"))
    long = text_array(["q" * (BACKLOG_BYTES // 3)]).reshape(1, 1)
    for _ in range(5):
        both.serve(long)
    assert both.counts.shadow_dropped == 3
    assert both.run_all() == 2


def test_a_share_is_a_share(tmp_path: Path) -> None:
    both = bench(tmp_path, scaled(2, 2), scaled(2, 2))
    both.shadows.set(PRIMARY, CANDIDATE, 2_500)
    for _ in range(2_000):
        both.serve([1, 2])
        both.run_all()
    assert 350 < both.counts.shadow_compared < 650  # 500 ± 7.7 standard deviations
    both.shadows.set(PRIMARY, CANDIDATE, 0)
    before = both.counts.shadow_compared
    both.serve([1, 2])
    assert (both.run_all(), both.shadows.sources, both.counts.shadow_compared) == (0, {}, before)


# --- beginnings and ends ---


def test_an_unknown_slot_is_not_shadowed(tmp_path: Path) -> None:
    both = bench(tmp_path, scaled(2, 2), scaled(2, 2))
    both.shadows.set(9, CANDIDATE, 10_000)
    assert list(both.shadows.sources) == [PRIMARY]


def test_copies_for_a_candidate_that_is_not_here_are_dropped(tmp_path: Path) -> None:
    both = Bench(loaded(tmp_path, scaled(2, 2), PRIMARY), None)
    both.serve([1, 2])
    assert both.run_all() == 1
    assert both.compared == (0, 0, 0, 1)


@pytest.mark.parametrize("gone", [PRIMARY, CANDIDATE])
def test_a_model_that_goes_takes_its_copies_along(gone: int, tmp_path: Path) -> None:
    both = bench(tmp_path, scaled(2, 2), scaled(2, 2))
    both.serve([1, 2])
    both.shadows.forget(gone)
    assert (both.run_all(), both.shadows.sources) == (0, {})
    both.serve([1, 2])
    assert both.run_all() == 0


def test_counts_begin_with_each_shadow_and_outlive_a_changed_share(tmp_path: Path) -> None:
    both = bench(tmp_path, scaled(2, 2), scaled(2, 3))
    both.models[3] = loaded(tmp_path, scaled(2, 2), 3)
    both.serve([1, 2])
    both.run_all()
    assert both.compared == (1, 1, 0, 0)
    both.shadows.set(PRIMARY, CANDIDATE, 5_000)
    assert both.compared == (1, 1, 0, 0)
    both.shadows.set(PRIMARY, CANDIDATE, 10_000)
    both.serve([1, 2])
    both.shadows.set(PRIMARY, 3, 10_000)
    assert both.run_all() == 0, "a copy for the earlier candidate"
    assert both.compared == (0, 0, 0, 0)
    both.serve([1, 2])
    both.run_all()
    assert both.compared == (1, 0, 0, 0)


# --- in a worker ---


def test_a_worker_answers_and_compares(worker: LiveWorker, tmp_path: Path) -> None:
    worker.load(1, times(tmp_path / "1", 2))
    worker.load(2, times(tmp_path / "2", 3))
    worker.alias(3, of=1, variant="A")
    for slot in (1, 3):
        worker.shadow(slot, candidate=2)
    for value in (0, 1, 2):
        assert worker.ask(1, value, 0).values == [[2 * value, 0]]
    assert worker.ask(3, 0, 0).variant == "A"
    seen = worker.wait_counts(1, lambda counts: counts.shadow_compared == 3)
    assert (seen.shadow_disagreed, seen.success_count) == (2, 3)
    worker.wait_counts(3, lambda counts: counts.shadow_compared == 1)
    # Copies are nobody's requests.
    assert (worker.counts(2).success_count, worker.counts(2).batch_size.count) == (0, 0)
    worker.shadow(1, candidate=2, basis_points=0)
    worker.ask(1, 1, 0)
    worker.wait_counts(1, lambda counts: counts.success_count == 4)
    assert worker.counts(1).shadow_compared == 3


def test_answers_wait_for_one_copy_at_most(worker: LiveWorker, tmp_path: Path) -> None:
    """Requests that come while a copy runs are answered before the next one does, however many copies wait."""
    worker.load(1, times(tmp_path / "1", 2), max_batch_size=1)  # so that each request is a batch, and a copy
    worker.load(2, times(tmp_path / "2", 2))
    gate = worker.gate(2)
    worker.shadow(1, candidate=2)
    worker.ask(1, 1, 0)
    gate.wait_entered()
    for turn in range(1, 6):  # a copy runs
        sent = [worker.send_row(1, number, 0) for number in range(turn)]
        gate.let_through(1)
        gate.wait_entered()  # the next one runs
        worker.take_answers()
        assert [bool(flight.outcomes) for flight in sent] == [True] * turn
    gate.let_through(100)
    seen = worker.wait_counts(1, lambda counts: counts.shadow_compared == 1 + sum(range(1, 6)))
    assert (seen.shadow_dropped, seen.shadow_disagreed) == (0, 0)


def test_a_model_can_go_while_copies_wait(worker: LiveWorker, tmp_path: Path) -> None:
    worker.load(1, times(tmp_path / "1", 2))
    worker.load(2, times(tmp_path / "2", 2))
    gate = worker.gate(2)
    worker.shadow(1, candidate=2)
    worker.ask(1, 1, 0)
    gate.wait_entered()
    flights = [worker.send_row(1, number, 0) for number in range(4)]
    worker.tell("unload", slot=2)
    wait_for(lambda: worker.loop.commands)
    gate.let_through(100)
    assert worker.report() == {"type": "unloaded", "slot": 2}
    assert [worker.answer(flight).values for flight in flights] == [[[2 * number, 0]] for number in range(4)]
    assert worker.ask(1, 1, 10).values == [[2, 20]]
    assert worker.counts(1).shadow_compared == 1

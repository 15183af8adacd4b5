"""Models as people have them, whose rows change each other, or come out in another number than they went in: each
answer is what onnxruntime gives for that request alone, whatever runs beside it."""

import base64
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from nexus_grpc.ipc.errors import Code
from nexus_grpc.pb.inference.model_config_pb2 import ModelConfig
from nexus_grpc.worker.loader import load_model
from tests.unit.support import load_order
from tests.unit.workers.live import LiveWorker, worker
from tests.unit.workers.rowgraphs import graph, run

__all__ = ["worker"]

FLOAT = TensorProto.FLOAT


def logmel() -> ModelProto:
    """A log spectrum whose floor lies 8 below the loudest value of the whole batch."""
    body = "p = Mul(x, x) c = Max(p, lo) l = Log(c) m = ReduceMax<keepdims = 0>(l) f = Sub(m, eight) y = Max(l, f)"
    return graph(body, "float[batch, 2] x", "float lo = {0.0000000001}, float eight = {8}", outputs="float[batch, 2] y")


def drop_empty() -> ModelProto:
    """Rows without anything in them are dropped."""
    body = "a = Abs(x) s = ReduceSum<keepdims = 0>(a, one) c = Greater(s, zero) y = Compress<axis = 0>(x, c)"
    return graph(body, "float[n, 2] x", "int64[1] one = {1}, float zero = {0}", outputs="float[m, 2] y")


def reverse() -> ModelProto:
    """The order of the whole batch is turned round."""
    consts = "int64[1] last = {-1}, int64[1] end = {-1099511627776}, int64[1] a = {0}, int64[1] step = {-1}"
    return graph("y = Slice(x, last, end, a, step)", "int64[batch] x", consts, outputs="int64[batch] y")


def sliding_window() -> ModelProto:
    """A window over samples, by Scan: onnxruntime dies of SIGFPE where several rows have no step."""

    def value(name: str) -> Any:
        return helper.make_tensor_value_info(name, FLOAT, [None, None])

    body = helper.make_graph(
        [
            helper.make_node("Concat", ["prev", "cur"], ["frame"], axis=1),
            helper.make_node("Slice", ["frame", "two", "end", "one"], ["next"]),
        ],
        "body",
        [value("prev"), value("cur")],
        [value("next"), value("frame")],
    )
    nodes = [
        helper.make_node("Slice", ["x", "zero", "two", "one"], ["X0"]),
        helper.make_node("Slice", ["x", "two", "end", "one"], ["rest"]),
        helper.make_node("Reshape", ["rest", "shape"], ["X"]),
        helper.make_node(
            "Scan",
            ["X0", "X"],
            ["last", "frames"],
            body=body,
            num_scan_inputs=1,
            scan_input_axes=[1],
            scan_output_axes=[1],
        ),
    ]
    constants = {"two": [2], "end": [1 << 40], "one": [1], "zero": [0], "shape": [0, -1, 2]}
    whole = helper.make_graph(
        nodes,
        "window",
        [helper.make_tensor_value_info("x", FLOAT, ["batch", "samples"])],
        [helper.make_tensor_value_info("frames", FLOAT, ["batch", "steps", 4])],
        [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()],
    )
    return helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def any_rank() -> ModelProto:
    """An input without a declared number of dimensions."""
    return graph("y = Mul(x, two)", "float[] x", "float two = {2}", outputs="float[] y")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (logmel(), "node 'm' (ReduceMax): it works along all axes"),
        (drop_empty(), "node 'y' (Compress): the operator is not one that is known to keep rows apart"),
        (reverse(), "node 'y' (Slice): it cuts the batch, or turns it round"),
        (sliding_window(), "node 'last' (Scan): its outputs are not stacked first"),
        (any_rank(), "input 'x' has no declared number of dimensions"),
    ],
    ids=["logmel", "drop-empty", "reverse", "sliding-window", "any-rank"],
)
def test_they_are_loaded_and_not_batched(model: ModelProto, words: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    loaded = load_model(load_order(str(path)))
    assert loaded.max_batch_size == 0
    assert words in loaded.batching


def saved(model: ModelProto, folder: Path) -> str:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return str(path)


def in_company(worker: LiveWorker, rows: list[tuple[float, ...]]) -> list[Any]:
    """The answers to requests that wait together."""
    gate = worker.gate(1)
    first = worker.send_row(1, 1.0, 1.0)
    gate.wait_entered()
    flights = [worker.send_row(1, *row) for row in rows]
    gate.let_through(100)
    worker.answer(first)
    return [worker.answer(flight) for flight in flights]


@pytest.mark.parametrize("model", [logmel(), drop_empty()], ids=["logmel", "drop-empty"])
def test_answers_are_what_each_request_gets_alone(model: ModelProto, worker: LiveWorker, tmp_path: Path) -> None:
    assert worker.load(1, saved(model, tmp_path))["type"] == "loaded"
    rows = [(1e6, 1.0), (1e-3, 2.0), (0.0, 0.0), (3.0, 4.0)]
    for row, answer in zip(rows, in_company(worker, rows), strict=True):
        [alone] = run(model, {"x": np.array([row], np.float32)})
        assert answer.values == alone.tolist()


# --- what happens where a batch goes wrong all the same ---


def relu() -> ModelProto:
    return graph("y = Relu(x)", "float[batch, 2] x", outputs="float[batch, 2] y")


@pytest.fixture
def batched(worker: LiveWorker, tmp_path: Path) -> LiveWorker:
    """Slot 1: Relu, batched."""
    assert worker.load(1, saved(relu(), tmp_path))["type"] == "loaded"
    assert worker.model(1).max_batch_size == 16
    return worker


def test_a_model_that_drops_rows_is_no_longer_batched_and_each_answer_is_its_own(batched: LiveWorker) -> None:
    model, sizes = batched.model(1), []
    model.queue = dataclasses.replace(model.queue, max_queue_delay_ns=1000)

    def drop_negative(feeds: Any, oversize: bool) -> list[Any]:
        sizes.append(len(feeds["x"]))
        return [feeds["x"][(feeds["x"] >= 0).all(axis=1)]]

    model.run = drop_negative
    answers = in_company(batched, [(1.0, 2.0), (-1.0, 2.0), (3.0, 4.0)])
    assert [answer.values for answer in answers] == [[[1, 2]], [], [[3, 4]]]
    assert sizes[:2] == [1, 3]
    assert max(sizes[2:]) <= 2
    report = batched.report()
    assert (report["type"], report["slot"]) == ("batching_ended", 1)
    assert report["reason"] == "for 3 rows its outputs have the shapes [2,2]"
    config = ModelConfig.FromString(base64.b64decode(report["config"]))
    assert config.parameters["batching"].string_value.startswith("requests are no longer batched")
    assert model.queue.max_queue_delay_ns == 0
    sizes.clear()
    in_company(batched, [(1.0, 2.0), (2.0, 3.0), (3.0, 4.0)])
    assert set(sizes) == {1}


def test_where_the_owner_wants_batches_they_go_on(batched: LiveWorker) -> None:
    model = batched.model(1)
    model.batch_limit_is_strict = True
    model.run = lambda feeds, oversize: [feeds["x"][(feeds["x"] >= 0).all(axis=1)]]
    answers = in_company(batched, [(1.0, 2.0), (-1.0, 2.0)])
    assert [answer.values for answer in answers] == [[[1, 2]], []]
    assert model.max_batch_size == 16


def test_a_row_that_raises_fails_alone_and_the_others_run_again_by_halves(batched: LiveWorker) -> None:
    model, sizes = batched.model(1), []

    def refuse_nine(feeds: Any, oversize: bool) -> list[Any]:
        sizes.append(len(feeds["x"]))
        if (feeds["x"] == 9).any():
            raise ValueError("nine")
        return [feeds["x"]]

    model.run = refuse_nine
    answers = in_company(batched, [(float(index), 0.0) for index in range(1, 17)])
    assert [answer.code for answer in answers] == [0] * 8 + [Code.INTERNAL] + [0] * 7
    assert [answer.values for answer in answers[:2]] == [[[1, 0]], [[2, 0]]]
    assert sizes == [1, 16, 8, 8, 4, 2, 1, 1, 2, 4]
    assert batched.report()["type"] == "bug"


def test_rows_that_the_proof_says_nothing_of_run_alone(batched: LiveWorker) -> None:
    model = batched.model(1)
    assert model.may_share((("x", (2,)),))
    assert not model.may_share((("x", (0,)),))
    model.equal_sizes = ((("x", 0), ("z", 0)),)
    assert model.may_share((("x", (2,)), ("z", (2,))))
    assert not model.may_share((("x", (2,)), ("z", (3,))))
    assert model.may_share((("x", (2,)),))
    model.batch_limit_is_strict = True
    assert model.may_share((("x", (2,)), ("z", (3,))))

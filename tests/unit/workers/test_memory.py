"""What a large run leaves in ONNX Runtime's arena goes back to the system; no model is run for that."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from nexus_grpc.worker import onnx_runtime
from nexus_grpc.worker.memory import GROWN_BYTES, LOOK_NS, MemoryKeeper, resident_bytes
from nexus_grpc.worker.session import open_session
from tests.unit.support import Graph

LARGE_BYTES = 4 * GROWN_BYTES


def tile(folder: Path) -> str:
    node = helper.make_node("Tile", ["x", "times"], ["y"])
    inputs = [("x", TensorProto.FLOAT, ["n"]), ("times", TensorProto.INT64, [1])]
    return Graph([node], inputs, [("y", TensorProto.FLOAT, ["m"])]).save(folder)


def test_a_large_runs_memory_is_given_back(tmp_path: Path) -> None:
    opened = open_session(tile(tmp_path), "m", {}, 1)
    keeper = MemoryKeeper()
    keeper.look(1)
    before = resident_bytes()
    feeds = {"x": np.ones(1024, np.float32), "times": np.array([LARGE_BYTES // 4096])}
    sizes = [array.nbytes for array in opened.run(feeds, False)]
    assert sizes == [LARGE_BYTES]
    keeper.look(LOOK_NS)  # not yet
    assert resident_bytes() > before + LARGE_BYTES // 2
    keeper.look(1 + LOOK_NS)
    assert resident_bytes() < before + GROWN_BYTES


def test_a_session_without_an_arena_of_its_own_wish_has_none(tmp_path: Path) -> None:
    opened = open_session(tile(tmp_path), "m", {"enable_mem_arena": False}, 1)
    before = resident_bytes()
    feeds = {"x": np.ones(1024, np.float32), "times": np.array([LARGE_BYTES // 4096])}
    opened.run(feeds, False)
    assert resident_bytes() < before + GROWN_BYTES


def test_the_graph_that_is_run_for_it_is_what_it_is_called() -> None:
    model = onnx.ModelProto.FromString(onnx_runtime._IDENTITY)
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["Identity"]

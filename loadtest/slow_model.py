"""A model that takes about five milliseconds and does not batch: the worker is what is short, not front or client.

It multiplies by a matrix in a loop; how often is measured when the model is made. The matrix moves each number by one
place, so that the right answer is known to the last bit.
"""

import functools
import time
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from nexus_grpc.pb.inference import grpc_service_pb2 as oip
from nexus_grpc.worker.onnx_runtime import ort

NAME = "slow"
WIDTH = 64
SERVICE_S = 0.005
# Tried to see how long one round takes; the quickest of several runs, as others have the cores now and then.
TRIED_ROUNDS, TRIED_RUNS = 100, 40
# Beside the models' folders, where a server does not look.
ROUNDS_FILE = "rounds"
CONFIGURATION = f"""\
name: "{NAME}"
max_batch_size: 0
parameters {{ key: "intra_op_thread_count" value {{ string_value: "1" }} }}
"""


def repository(folder: Path) -> Path:
    """One with the slow model, made for this machine."""
    rounds = rounds_for(SERVICE_S)
    made = folder / "with-a-slow-one"
    version = made / NAME / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").write_bytes(model(rounds))
    (made / NAME / "config.pbtxt").write_text(CONFIGURATION)
    (made / ROUNDS_FILE).write_text(str(rounds))
    return made


def rounds_of(repository: Path) -> int:
    """How often its model multiplies."""
    return int((repository / ROUNDS_FILE).read_text())


def rounds_for(seconds: float) -> int:
    """As many as take so long here."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(model(TRIED_ROUNDS), options, providers=["CPUExecutionProvider"])
    feed, quickest_s = {"x": _numbers(0)}, float("inf")
    for _ in range(TRIED_RUNS):
        began = time.perf_counter()
        session.run(["y"], feed)
        quickest_s = min(quickest_s, time.perf_counter() - began)
    return max(1, round(TRIED_ROUNDS * seconds / quickest_s))


def model(rounds: int) -> bytes:
    """y = the sum of the rows of (diag(x) · shift ^ rounds)."""
    shift = numpy_helper.from_array(np.roll(np.eye(WIDTH, dtype=np.float32), 1, axis=1), "shift")
    unit = numpy_helper.from_array(np.eye(WIDTH, dtype=np.float32), "unit")
    count, true, rows = (
        numpy_helper.from_array(np.array(value), name)
        for name, value in (("count", np.int64(rounds)), ("true", True), ("rows", np.array([0], np.int64)))
    )
    square, vector = [WIDTH, WIDTH], [WIDTH]
    body = helper.make_graph(
        [helper.make_node("MatMul", ["before", "shift"], ["after"]), helper.make_node("Identity", ["go"], ["on"])],
        "round",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, square),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, square),
        ],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["x", "unit"], ["first"]),
            helper.make_node("Loop", ["count", "true", "first"], ["last"], body=body),
            helper.make_node("ReduceSum", ["last", "rows"], ["y"], keepdims=0),
        ],
        NAME,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, vector)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, vector)],
        [shift, unit, count, true, rows],
    )
    return bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )


def _numbers(number: int) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
    return (np.arange(WIDTH) + number * WIDTH).astype(np.float32)


@functools.cache
def request(number: int) -> bytes:
    """A ModelInferRequest; others have other numbers, so that a mixed-up answer is noticed."""
    message = oip.ModelInferRequest(model_name=NAME)
    message.inputs.add(name="x", datatype="FP32", shape=[WIDTH])
    message.raw_input_contents.append(_numbers(number).tobytes())
    return message.SerializeToString()


def is_right(answer: bytes, number: int, rounds: int) -> bool:
    """Whether this is what the model says to `request(number)`."""
    response = oip.ModelInferResponse.FromString(answer)
    return list(response.raw_output_contents) == [np.roll(_numbers(number), rounds % WIDTH).tobytes()]

"""A model with 200 MB of weights, loaded again and again beside the one that is measured."""

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
from onnx import TensorProto, helper, numpy_helper

from loadtest.processes import Server
from nexus_grpc.pb.nexus.v1 import models_pb2, models_pb2_grpc

NAME = "big"
ROWS, COLUMNS = 12_500, 4_000  # FP32: 200 MB
OPTIONS = ("--model-control", "explicit", "--load-model", "iris", "--keep-previous-seconds", "0")
LOAD_SECONDS = 120.0


def repository(folder: Path, iris: Path) -> Path:
    """One with iris (its model file) and the big model."""
    made = folder / "with-a-big-one"
    for name in ("iris", NAME):
        (made / name / "1").mkdir(parents=True)
    shutil.copy(iris, made / "iris" / "1" / "model.onnx")
    (made / NAME / "1" / "model.onnx").write_bytes(_model())
    return made


def _model() -> bytes:
    """y = x · w. Random weights: zeros would be compressed or shared on the way."""
    weights = numpy_helper.from_array(np.random.default_rng(1).random((ROWS, COLUMNS), np.float32), "w")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", ROWS])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", COLUMNS])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], NAME, [x], [y], [weights])
    opsets = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


@contextlib.contextmanager
def loaded_again_and_again(server: Server) -> Iterator[list[None]]:
    """All through the `with`; the list gets an item for each load. Raises grpc.RpcError when one fails."""
    loads: list[None] = []
    failures: list[grpc.RpcError] = []
    stop = threading.Event()
    work = threading.Thread(target=_load_and_unload, args=(server, loads, failures, stop))
    work.start()
    try:
        yield loads
    finally:
        stop.set()
        work.join()
    if failures:
        raise failures[0]


def _load_and_unload(server: Server, loads: list[None], failures: list[grpc.RpcError], stop: threading.Event) -> None:
    file = _file(server)
    with grpc.insecure_channel(server.target) as channel:
        models = models_pb2_grpc.ModelsStub(channel)  # type: ignore[no-untyped-call]
        while not stop.is_set() and not failures:
            # A new file to the server, so that it is tried in a process of its own, too.
            os.utime(file)
            try:
                models.Load(models_pb2.LoadModelRequest(id=NAME), timeout=LOAD_SECONDS)
                loads.append(None)
                models.Unload(models_pb2.UnloadModelRequest(id=NAME), timeout=LOAD_SECONDS)
            except grpc.RpcError as error:
                failures.append(error)


def _file(server: Server) -> Path:
    return server.repository / NAME / "1" / "model.onnx"

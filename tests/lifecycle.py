"""For tests of the model lifecycle: models whose answers tell their version, a client for the admin methods, a load."""

import contextlib
import dataclasses
import pathlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from nexus_grpc.pb.inference import grpc_service_pb2 as oip
from nexus_grpc.pb.nexus.v1 import models_pb2 as models
from nexus_grpc.pb.nexus.v1 import system_pb2, traffic_pb2
from tests.chaos.ledger import channel_to
from tests.integration.client import Client

NAME = "times"


def times(factor: float, megabytes: int = 0) -> bytes:
    """A model: [n, 2] FP32 × factor. With megabytes: so many of weights, which change nothing."""
    nodes = [helper.make_node("Mul", ["x", "k"], ["y"])]
    weights = [helper.make_tensor("k", TensorProto.FLOAT, [1], [factor])]
    if megabytes:
        ballast = np.zeros((megabytes << 18, 1), np.float32)
        ballast[0] = factor
        weights.append(onnx.numpy_helper.from_array(ballast, "ballast"))
        nodes = [
            helper.make_node("Slice", ["ballast", "zero", "one"], ["first"]),
            helper.make_node("Squeeze", ["first", "axes"], ["k1"]),
            helper.make_node("Mul", ["x", "k1"], ["y"]),
        ]
        weights = [
            weights[1],
            *(helper.make_tensor(n, TensorProto.INT64, [1], [v]) for n, v in (("zero", 0), ("one", 1), ("axes", 1))),
        ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])
    graph = helper.make_graph(nodes, "times", [x], [y], weights)
    return bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )


def put(repository: pathlib.Path, version: int, content: bytes | None = None, name: str = NAME) -> pathlib.Path:
    """A version by hand, complete at once. Its factor is its number."""
    folder = repository / name / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    partial = folder / ".partial"
    partial.write_bytes(times(version) if content is None else content)
    partial.rename(path)
    return path


@dataclasses.dataclass(frozen=True)
class Answered:
    """One answer: the version that it names, the one that its values come from, and its variant."""

    version: str
    by_values: str
    variant: str


class Admin:
    """The admin methods, by name: admin.models("Load", id="times"). Errors are grpc.RpcError."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.client = Client(address)

    def __enter__(self) -> "Admin":
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def _call(self, module: Any, service: str, method: str, fields: dict[str, Any]) -> Any:
        descriptor = module.DESCRIPTOR.services_by_name[service].methods_by_name[method]
        request = getattr(module, descriptor.input_type.name)(**fields)
        answer = getattr(module, descriptor.output_type.name)
        return self.client.unary(f"/nexus.v1.{service}/{method}", answer)(request, timeout=60.0)

    def models(self, method: str, **fields: Any) -> Any:
        return self._call(models, "Models", method, fields)

    def traffic(self, method: str, **fields: Any) -> Any:
        return self._call(traffic_pb2, "Traffic", method, fields)

    def reload(self, model: str = "") -> Any:
        return self._call(system_pb2, "System", "Reload", {"model": model})

    def ask(self, version: str = "", metadata: tuple[tuple[str, str], ...] = (), **parameters: str) -> Answered:
        """One ModelInfer."""
        return answered(self.client.infer(request_for(version, **parameters), metadata=metadata))

    def states(self, name: str = NAME) -> dict[str, str]:
        """State by version."""
        return {each.version: each.state for each in self.models("Info", id=name).versions}


def request_for(version: str = "", name: str = NAME, **parameters: str) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name=name, model_version=version)
    request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    request.raw_input_contents.append(np.array([1, 100], "<f4").tobytes())
    for key, value in parameters.items():
        request.parameters[key].string_param = value
    return request


def answered(response: oip.ModelInferResponse) -> Answered:
    one, hundred = np.frombuffer(response.raw_output_contents[0], "<f4").tolist()
    assert hundred == 100 * one, response
    variant = response.parameters["nexus_variant"].string_param if "nexus_variant" in response.parameters else "default"
    return Answered(response.model_version, f"{one:g}", variant)


class Load:
    """Requests without a version, so many at once, until the end of the `with`; all that came back, or failed."""

    def __init__(self, address: str, at_once: int = 32, connections: int = 4, name: str = NAME) -> None:
        self.answers: list[tuple[float, Answered]] = []
        self.failures: list[str] = []
        self._request = request_for(name=name).SerializeToString()
        self._at_once = at_once
        self._channels = [channel_to(address) for _ in range(connections)]
        self._stop = threading.Event()
        self._idle = threading.Semaphore(0)

    def __enter__(self) -> "Load":
        for channel in self._channels:
            call = channel.unary_unary(
                "/inference.GRPCInferenceService/ModelInfer",
                response_deserializer=oip.ModelInferResponse.FromString,
            )
            for _ in range(self._at_once // len(self._channels)):
                self._next(call)
        return self

    def _next(self, call: Any) -> None:
        if self._stop.is_set():
            self._idle.release()
            return
        call.future(self._request, timeout=30).add_done_callback(lambda future: self._done(call, future))

    def _done(self, call: Any, future: Any) -> None:
        try:
            self.answers.append((time.monotonic(), answered(future.result())))
        except Exception as error:
            self.failures.append(
                f"{error.code().name}: {error.details()}" if isinstance(error, grpc.Call) else str(error)
            )
        self._next(call)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for _ in range(self._at_once // len(self._channels) * len(self._channels)):
            assert self._idle.acquire(timeout=40), "a request never ended"
        for channel in self._channels:
            channel.close()


def wait_for(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Until it is true; what it gave. Raises AssertionError when it is not by then."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(grpc.RpcError):
            found = condition()
            if found:
                return found
        assert time.monotonic() < deadline, f"not within {seconds} s: {condition}"
        time.sleep(0.02)


def code_of(error: grpc.RpcError) -> str:
    """Such as "NOT_FOUND"."""
    assert isinstance(error, grpc.Call)
    return str(error.code().name)


@contextlib.contextmanager
def refused(code: str) -> Iterator[list[str]]:
    """The call inside must fail with this code; the list gets its message."""
    said: list[str] = []
    with pytest.raises(grpc.RpcError) as caught:
        yield said
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code().name == code, caught.value.details()
    said.append(caught.value.details() or "")

"""A gRPC client for tests: one callable per method, request builders, and errors taken apart."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2

from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from nexus_grpc.pb.nexus.v1 import inference_pb2 as nexus_pb

OIP, NEXUS = "/inference.GRPCInferenceService/", "/nexus.v1.Inference/"
TIMEOUT_S = 20.0
DATATYPES = {
    "bool": "BOOL",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    **{f"{sign}int{bits}": f"{sign}int{bits}".upper() for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
DTYPES = {datatype: np.dtype(name) for name, datatype in DATATYPES.items()}
IRIS_ROW = [5.1, 3.5, 1.4, 0.2]


class Client:
    """One channel. Unary methods are called as `client.infer(request)`; `unary` and `stream` give any other."""

    def __init__(self, address: str) -> None:
        options = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.enable_http_proxy", 0),
            # Channels to one address share connections otherwise; a test's channel shall be its own.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        self.channel = grpc.insecure_channel(address, options=options)
        self.infer = self.unary(OIP + "ModelInfer", pb.ModelInferResponse)
        self.predict = self.unary(NEXUS + "Predict", nexus_pb.PredictResponse)
        self.batch_predict = self.unary(NEXUS + "BatchPredict", nexus_pb.BatchPredictResponse)
        self.infer_stream = self.stream(OIP + "ModelStreamInfer", pb.ModelStreamInferResponse)
        self.predict_stream = self.stream(NEXUS + "PredictStream", nexus_pb.PredictStreamResponse)

    def cold(self, method: str, request: Any) -> Any:
        """A method of inference.GRPCInferenceService, by its name."""
        answer = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name[method].output_type
        return self.unary(OIP + method, getattr(pb, answer.name))(request)

    def unary(self, path: str, answer: Any) -> Any:
        """Takes a message or bytes."""
        call = self.channel.unary_unary(path, request_serializer=_serialised, response_deserializer=answer.FromString)

        def invoke(request: Any, timeout: float = TIMEOUT_S, metadata: Sequence[tuple[str, str]] = ()) -> Any:
            return call(request, timeout=timeout, metadata=metadata)

        invoke.multicallable = call  # type: ignore[attr-defined]
        return invoke

    def stream(self, path: str, answer: Any) -> Any:
        call = self.channel.stream_stream(path, request_serializer=_serialised, response_deserializer=answer.FromString)

        def invoke(requests: Iterator[Any], timeout: float = TIMEOUT_S) -> Any:
            return call(requests, timeout=timeout)

        return invoke

    def close(self) -> None:
        self.channel.close()


def _serialised(request: Any) -> bytes:
    return request if isinstance(request, bytes) else request.SerializeToString()


def datatype_of(array: np.ndarray) -> str:
    return DATATYPES.get(array.dtype.name, "BYTES")


def encode_texts(array: np.ndarray) -> bytes:
    """BYTES elements as they travel raw."""
    elements = [item if isinstance(item, bytes) else item.encode() for item in array.ravel().tolist()]
    return b"".join(len(item).to_bytes(4, "little") + item for item in elements)


def decode_texts(raw: bytes) -> list[bytes]:
    found, offset = [], 0
    while offset < len(raw):
        length = int.from_bytes(raw[offset : offset + 4], "little")
        found.append(raw[offset + 4 : offset + 4 + length])
        offset += 4 + length
    return found


def raw_request(model: str, inputs: dict[str, np.ndarray], **fields: Any) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, **fields)
    for name, array in inputs.items():
        request.inputs.add(name=name, datatype=datatype_of(array), shape=array.shape)
        request.raw_input_contents.append(encode_texts(array) if array.dtype == object else array.tobytes())
    return request


def typed_request(model: str, inputs: dict[str, np.ndarray], **fields: Any) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, **fields)
    for name, array in inputs.items():
        tensor = request.inputs.add(name=name, datatype=datatype_of(array), shape=array.shape)
        values = [item.encode() if isinstance(item, str) else item for item in array.ravel().tolist()]
        getattr(tensor.contents, CONTENTS[tensor.datatype]).extend(values)
    return request


def outputs_of(response: pb.ModelInferResponse) -> dict[str, np.ndarray]:
    """Outputs as arrays (bytes objects for BYTES), raw or typed, whichever the answer has: never both."""
    arrays = {}
    for index, tensor in enumerate(response.outputs):
        if response.raw_output_contents:
            assert len(response.raw_output_contents) == len(response.outputs)
            assert not tensor.HasField("contents")
            raw = response.raw_output_contents[index]
            flat: Any = decode_texts(raw) if tensor.datatype == "BYTES" else np.frombuffer(raw, DTYPES[tensor.datatype])
        else:
            flat = list(getattr(tensor.contents, CONTENTS[tensor.datatype]))
        if tensor.datatype == "BYTES":
            array = np.empty(len(flat), dtype=object)
            array[:] = flat
        else:
            array = np.asarray(flat, DTYPES[tensor.datatype])
        arrays[tensor.name] = array.reshape(tuple(tensor.shape))
    return arrays


@dataclasses.dataclass
class Refusal:
    """A failed call, taken apart."""

    code: grpc.StatusCode
    message: str
    reason: str
    domain: str
    fields: list[str]
    initial: dict[str, str]
    detailed: bool


def refusal(call: Callable[[], Any]) -> Refusal:
    """The error that a call must end with."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    found = Refusal(error.code(), error.details(), "", "", [], dict(error.initial_metadata() or ()), False)
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            found.detailed = True
            status = status_pb2.Status.FromString(value)
            assert status.code == error.code().value[0]
            assert status.message == error.details()
            for detail in status.details:
                info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
                if detail.Unpack(info):
                    found.reason, found.domain = info.reason, info.domain
                elif detail.Unpack(bad):
                    found.fields += [violation.field for violation in bad.field_violations]
    return found


def iris_request(**fields: Any) -> pb.ModelInferRequest:
    return raw_request("iris", {"X": np.array([IRIS_ROW], np.float32)}, **fields)


def assert_serves(client: Client) -> None:
    """A good request gets a good answer."""
    assert outputs_of(client.infer(iris_request()))["label"].tolist() == [0]

"""Every call as data: its method, its request, and how its answer is read. The clients only carry them out."""

import dataclasses
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from nexus_grpc.client import codec
from nexus_grpc.client.errors import NexusClientError, error_of, invalid
from nexus_grpc.client.results import (
    BatchPrediction,
    InferResult,
    ModelInfo,
    ModelState,
    Parameter,
    Prediction,
    RowPrediction,
    TensorInfo,
    Timing,
)
from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from nexus_grpc.pb.nexus.v1 import inference_pb2 as nexus_pb

Answer = TypeVar("Answer")
Inputs = Mapping[str, npt.ArrayLike]
# Names, or names with the parameters that each output is asked for with.
Outputs = Sequence[str] | Mapping[str, Mapping[str, Parameter]]
_OIP, _NEXUS = "/inference.GRPCInferenceService/", "/nexus.v1.Inference/"
_TIMING = "nexus_timing"


@dataclasses.dataclass(frozen=True, slots=True)
class Call(Generic[Answer]):
    """A unary call. `decode` takes the answer's message and the request id."""

    path: str
    request: Any
    answer_type: Any
    decode: Callable[[Any, str], Answer]


@dataclasses.dataclass(frozen=True, slots=True)
class StreamCall(Generic[Answer]):
    """A stream. `encode` makes one item of the caller's a request; `decode` raises the error that an answer carries."""

    path: str
    answer_type: Any
    encode: Callable[[Any], Any]
    decode: Callable[[Any, str], Answer]


class Feed:
    """The requests of a stream. When an item can't be had or encoded, they end there, and `failure` says why."""

    def __init__(self, encode: Callable[[Any], Any], items: Any) -> None:
        self._encode = encode
        self._items = items
        self.failure: Exception | None = None

    def __iter__(self) -> Iterator[Any]:
        try:
            for item in self._items:
                yield self._encode(item)
        except Exception as error:
            self.failure = error

    async def __aiter__(self) -> AsyncIterator[Any]:
        try:
            async for item in each_of(self._items):
                yield self._encode(item)
        except Exception as error:
            self.failure = error


async def each_of(items: Any) -> AsyncIterator[Any]:
    """The items of an iterable of either kind."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


def serialised(message: Any) -> bytes:
    return bytes(message.SerializeToString())


# --- inference.GRPCInferenceService ---


def infer(
    model: str,
    inputs: Inputs,
    outputs: Outputs,
    version: str,
    parameters: Mapping[str, Parameter] | None,
    datatypes: Mapping[str, str] | None,
    timing: bool,
) -> Call[InferResult]:
    """Raises InvalidInput when an input or parameter can't be encoded."""
    request = _infer_request(model, inputs, outputs, version, parameters, datatypes, timing)
    return Call(_OIP + "ModelInfer", request, pb.ModelInferResponse, _infer_result)


def infer_stream(
    model: str,
    outputs: Outputs,
    version: str,
    parameters: Mapping[str, Parameter] | None,
    datatypes: Mapping[str, str] | None,
    timing: bool,
) -> StreamCall[InferResult]:
    def encode(inputs: Inputs) -> pb.ModelInferRequest:
        return _infer_request(model, inputs, outputs, version, parameters, datatypes, timing)

    return StreamCall(_OIP + "ModelStreamInfer", pb.ModelStreamInferResponse, encode, _stream_infer_result)


def _infer_request(
    model: str,
    inputs: Inputs,
    outputs: Outputs,
    version: str,
    parameters: Mapping[str, Parameter] | None,
    datatypes: Mapping[str, str] | None,
    timing: bool,
) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, model_version=version)
    for name, value in inputs.items():
        datatype, shape, raw = codec.encode_tensor(name, value, (datatypes or {}).get(name, ""))
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(raw)
    if isinstance(outputs, str):
        raise invalid(f"outputs: expected a sequence of names, got the string {outputs!r}")
    asked: Mapping[str, Mapping[str, Parameter]] = (
        outputs if isinstance(outputs, Mapping) else {name: {} for name in outputs}
    )
    for name, wishes in asked.items():
        _set_parameters(request.outputs.add(name=name).parameters, wishes)
    _set_parameters(request.parameters, parameters or {})
    if timing:
        request.parameters[_TIMING].bool_param = True
    return request


def _set_parameters(target: Any, parameters: Mapping[str, Parameter]) -> None:
    for name, value in parameters.items():
        target[name].CopyFrom(codec.encode_parameter(name, value))


def _infer_result(response: pb.ModelInferResponse, request_id: str) -> InferResult:
    """Raises NexusClientError (INTERNAL) when the answer's tensors are malformed."""
    raw = response.raw_output_contents
    if raw and len(raw) != len(response.outputs):
        raise NexusClientError("INTERNAL", f"{len(raw)} raw contents for {len(response.outputs)} outputs")
    arrays = {
        tensor.name: codec.decode_tensor(tensor.name, tensor.datatype, tensor.shape, raw[index])
        if raw
        else codec.decode_typed(tensor.name, tensor.datatype, tensor.shape, tensor.contents)
        for index, tensor in enumerate(response.outputs)
    }
    parameters = {name: codec.decode_parameter(value) for name, value in response.parameters.items()}
    stages = [parameters.get(f"nexus_{field.name}") for field in dataclasses.fields(Timing)]
    return InferResult(
        arrays,
        model=response.model_name,
        model_version=response.model_version,
        request_id=request_id,
        parameters=parameters,
        timing=None if None in stages else Timing(*(int(stage or 0) for stage in stages)),
    )


def _stream_infer_result(answer: pb.ModelStreamInferResponse, request_id: str) -> InferResult:
    if answer.error_message:
        # The protocol's stream answers carry no code.
        raise error_of("UNKNOWN", answer.error_message, request_id=request_id)
    return _infer_result(answer.infer_response, request_id)


def live() -> Call[bool]:
    return Call(_OIP + "ServerLive", pb.ServerLiveRequest(), pb.ServerLiveResponse, lambda answer, _: bool(answer.live))


def ready(model: str, version: str) -> Call[bool]:
    if not model:
        request, answer_type = pb.ServerReadyRequest(), pb.ServerReadyResponse
        return Call(_OIP + "ServerReady", request, answer_type, lambda answer, _: bool(answer.ready))
    of_model = pb.ModelReadyRequest(name=model, version=version)
    return Call(_OIP + "ModelReady", of_model, pb.ModelReadyResponse, lambda answer, _: bool(answer.ready))


def models() -> Call[list[ModelState]]:
    def decode(answer: pb.RepositoryIndexResponse, _: str) -> list[ModelState]:
        return [ModelState(item.name, item.version, item.state, item.reason) for item in answer.models]

    return Call(_OIP + "RepositoryIndex", pb.RepositoryIndexRequest(), pb.RepositoryIndexResponse, decode)


def model(name: str, version: str) -> Call[ModelInfo]:
    def tensors(of: Iterable[Any]) -> tuple[TensorInfo, ...]:
        return tuple(TensorInfo(item.name, item.datatype, tuple(item.shape)) for item in of)

    def decode(answer: pb.ModelMetadataResponse, _: str) -> ModelInfo:
        versions = tuple(answer.versions)
        return ModelInfo(answer.name, versions, answer.platform, tensors(answer.inputs), tensors(answer.outputs))

    request = pb.ModelMetadataRequest(name=name, version=version)
    return Call(_OIP + "ModelMetadata", request, pb.ModelMetadataResponse, decode)


# --- nexus.v1.Inference ---


def predict(model: str, features: npt.ArrayLike, version: str, timing: bool) -> Call[Prediction]:
    """Raises InvalidInput when the features are neither numbers nor text."""
    request = _predict_request(model, features, version, timing)
    return Call(_NEXUS + "Predict", request, nexus_pb.PredictResponse, _prediction)


def predict_batch(model: str, rows: Iterable[npt.ArrayLike], version: str, timing: bool) -> Call[BatchPrediction]:
    """Raises InvalidInput when a row's features are neither numbers nor text."""
    request = nexus_pb.BatchPredictRequest(model_id=model, model_version=version, nexus_timing=timing)
    for row in rows:
        features, texts = codec.encode_row(row)
        request.rows.add(features=features, texts=texts)
    return Call(_NEXUS + "BatchPredict", request, nexus_pb.BatchPredictResponse, _batch_prediction)


def predict_stream(model: str, version: str, timing: bool) -> StreamCall[Prediction]:
    def encode(features: npt.ArrayLike) -> nexus_pb.PredictRequest:
        return _predict_request(model, features, version, timing)

    return StreamCall(_NEXUS + "PredictStream", nexus_pb.PredictStreamResponse, encode, _stream_prediction)


def _predict_request(model: str, features: npt.ArrayLike, version: str, timing: bool) -> nexus_pb.PredictRequest:
    numbers, texts = codec.encode_row(features)
    return nexus_pb.PredictRequest(
        model_id=model, model_version=version, features=numbers, texts=texts, nexus_timing=timing
    )


def _prediction(answer: nexus_pb.PredictResponse, request_id: str) -> Prediction:
    return Prediction(**_row(answer), **_answered(answer, request_id), cache_hit=answer.cache_hit)


def _batch_prediction(answer: nexus_pb.BatchPredictResponse, request_id: str) -> BatchPrediction:
    rows = tuple(RowPrediction(**_row(row)) for row in answer.predictions)
    return BatchPrediction(rows, **_answered(answer, request_id))


def _stream_prediction(answer: nexus_pb.PredictStreamResponse, request_id: str) -> Prediction:
    if answer.HasField("error"):
        raise error_of(answer.error.code, answer.error.message, request_id=request_id)
    return _prediction(answer.response, request_id)


def _row(row: nexus_pb.PredictResponse | nexus_pb.Prediction) -> dict[str, Any]:
    """The fields of a RowPrediction."""
    return {
        "prediction": np.array(row.prediction, np.float64),
        "labels": tuple(row.labels),
        "probabilities": np.array(row.probabilities, np.float64),
        "confidence": row.confidence,
    }


def _answered(answer: nexus_pb.PredictResponse | nexus_pb.BatchPredictResponse, request_id: str) -> dict[str, Any]:
    """The fields that both answers have besides their rows."""
    timing = answer.timing if answer.HasField("timing") else None
    return {
        "model": answer.model_id,
        "model_version": answer.model_version,
        "request_id": answer.request_id or request_id,
        "latency_ms": answer.latency_ms,
        "timestamp": answer.timestamp,
        "variant": answer.variant,
        "batch_size": answer.batch_size,
        "timing": timing and Timing(timing.queue_us, timing.batch_size, timing.infer_us, timing.total_us),
    }

"""The JSON answers of the hot REST routes, as google.api.HttpBody. Every answer carries its own id and times."""

from typing import Any

import msgspec

from nexus_grpc.ipc.wire import json_body

from .decisions import verdict
from .infer_form import RequestedOutput
from .json_tensors import json_values, nested
from .predict_codec import utc_now
from .requests import Timings
from .results import BatchResult, top_classes
from .tensors import BYTES, Piece

_encode = msgspec.json.Encoder().encode


class HttpForm:
    """What the forms below share. They make no templates."""

    __slots__ = ("request_id",)

    def __init__(self, request_id: str = "") -> None:
        self.request_id = request_id

    def pieces(self, tensors: list[bytes]) -> list[Piece]:
        raise NotImplementedError

    def encode_all(self, result: BatchResult, count: int) -> list[bytes] | None:
        return None

    def encode(self, result: BatchResult, first: int, last: int, timings: Timings, request_id: bytes) -> bytes:
        own_id = self.request_id or request_id.decode("ascii", "replace")
        return json_body(_encode(self.answer(result, first, last, timings, own_id)))

    def answer(self, result: BatchResult, first: int, last: int, timings: Timings, request_id: str) -> Any:
        """What becomes JSON."""
        raise NotImplementedError


class HttpPredictForm(HttpForm):
    """nexus.v1.PredictResponse by protobuf's JSON mapping, with its own field names and with defaults."""

    __slots__ = ("timing",)

    def __init__(self, request_id: str, timing: bool) -> None:
        super().__init__(request_id)
        self.timing = timing

    def answer(self, result: BatchResult, first: int, last: int, timings: Timings, request_id: str) -> Any:
        model = result.model
        values, probabilities, confidence = prediction(result, first)
        is_text = model.outputs[0].datatype is BYTES
        answer = {
            "model_id": model.name,
            "request_id": request_id,
            "prediction": [] if is_text else values,
            "latency_ms": timings.total_us / 1000,
            "timestamp": utc_now(),
            "model_version": model.version,
            "variant": model.variant,
            "confidence": confidence,
            "probabilities": probabilities,
            "cache_hit": False,
            "batch_size": timings.batch_size,
            "labels": values if is_text else [],
        }
        decided = verdict(model, result.row_values(model.probabilities_index)[first] if probabilities else ())
        answer["predicted_class"], answer["decision"], answer["threshold_used"] = decided
        if self.timing:
            answer["timing"] = {name: getattr(timings, name) for name in _TIMING_FIELDS}
        return answer


_TIMING_FIELDS = ("queue_us", "batch_size", "infer_us", "total_us")


def prediction(result: BatchResult, row: int) -> tuple[list[Any], list[Any], Any]:
    """(first output, probabilities, the largest of these or 0) of one row."""
    values = result.json_row(0, row)
    index = result.model.probabilities_index
    if index < 0:
        return values, [], 0.0
    probabilities = result.json_row(index, row)
    return values, probabilities, max(result.row_values(index)[row], default=0.0)  # type: ignore[type-var]


class ApiPredictForm(HttpForm):
    """realtime-ml-serving-api's answer."""

    __slots__ = ()

    def answer(self, result: BatchResult, first: int, last: int, timings: Timings, request_id: str) -> Any:
        return _api_prediction(result, first, timings)


class ApiBatchPredictForm(HttpForm):
    """realtime-ml-serving-api's answer to several rows."""

    __slots__ = ()

    def answer(self, result: BatchResult, first: int, last: int, timings: Timings, request_id: str) -> Any:
        rows = [_api_prediction(result, row, timings) for row in range(first, last)]
        return {"predictions": rows, "total_latency_ms": timings.total_us / 1000}


def _api_prediction(result: BatchResult, row: int, timings: Timings) -> dict[str, Any]:
    values, _, confidence = prediction(result, row)
    return {
        "prediction": values[0] if len(values) == 1 else values,
        "probability": confidence,
        "model_name": result.model.name,
        "timestamp": utc_now(),
        "from_cache": False,
        "latency_ms": timings.total_us / 1000,
    }


class NamedForm(HttpForm):
    """distributed-ai-platform's answer: values by output name, nested; without the batch dimension for one row."""

    __slots__ = ("one_row",)

    def __init__(self, one_row: bool) -> None:
        super().__init__()
        self.one_row = one_row

    def answer(self, result: BatchResult, first: int, last: int, timings: Timings, request_id: str) -> Any:
        output = {}
        for index, spec in enumerate(result.model.outputs):
            array = result.array(index, first, last)
            shape = array.shape[1:] if self.one_row and array.ndim and array.shape[0] == 1 else array.shape
            output[spec.name] = nested(json_values(array), shape)
        return {
            "model": result.model.name,
            "version": result.model.version,
            "output": output,
            "request_id": request_id,
            "latency_ms": timings.total_us / 1000,
        }


class V2Form(HttpForm):
    """Open Inference Protocol, REST: one flat tensor per output."""

    __slots__ = ("outputs", "timing")

    def __init__(self, own_id: str, outputs: tuple[RequestedOutput, ...], timing: bool) -> None:
        super().__init__(own_id)
        self.outputs = outputs
        self.timing = timing

    def answer(self, result: BatchResult, first: int, last: int, timings: Timings, request_id: str) -> Any:
        answer: dict[str, Any] = {"model_name": result.model.name, "model_version": result.model.version}
        answer["id"] = request_id
        parameters: dict[str, Any] = {"nexus_variant": result.model.variant} if result.model.is_arm else {}
        if self.timing:
            parameters |= {f"nexus_{name}": getattr(timings, name) for name in _TIMING_FIELDS}
        if parameters:
            answer["parameters"] = parameters
        answer["outputs"] = [self._output(result, each, first, last) for each in self.outputs]
        return answer

    def _output(self, result: BatchResult, requested: RequestedOutput, first: int, last: int) -> dict[str, Any]:
        spec = result.model.outputs[requested.index]
        array = result.array(requested.index, first, last)
        if not requested.classes:
            shape = list(array.shape)
            return {"name": spec.name, "shape": shape, "datatype": spec.datatype.name, "data": json_values(array)}
        rows = array if result.is_cut else [array]
        found = [[item.decode() for item in top_classes(row, requested.classes, spec.labels)] for row in rows]
        shape = [len(found), len(found[0])] if result.is_cut else [len(found[0])]
        flat = [item for row in found for item in row]
        return {"name": spec.name, "shape": shape, "datatype": BYTES.name, "data": flat}

"""The JSON answers of the hot REST routes, as google.api.HttpBody. Every answer carries its own id and times."""

from collections.abc import Sequence
from typing import Any

import msgspec

from nexus_grpc.ipc.wire import json_body

from .decisions import confidence_of, positive_probability, predicted_index, verdict
from .json_tensors import json_values, nested
from .model import Model
from .predict_codec import utc_now
from .requests import Timings
from .results import BatchResult
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
    """nexus.v1.PredictResponse in JSON, by its own field names; what does not apply is left out."""

    __slots__ = ("timing",)

    def __init__(self, request_id: str, timing: bool) -> None:
        super().__init__(request_id)
        self.timing = timing

    def answer(self, result: BatchResult, first: int, last: int, timings: Timings, request_id: str) -> Any:
        model = result.model
        answer = {
            "model_id": model.name,
            "request_id": request_id,
            **self.claims(result, first, last),
            "latency_ms": timings.total_us / 1000,
            "timestamp": utc_now(),
            "model_version": model.version,
            "variant": model.variant,
            "cache_hit": False,
            "batch_size": timings.batch_size,
        }
        if self.timing:
            answer["timing"] = {name: getattr(timings, name) for name in TIMING_FIELDS}
        return answer

    def claims(self, result: BatchResult, first: int, last: int) -> dict[str, Any]:
        """What the model says."""
        return _claims(result, first)


class HttpRowsForm(HttpPredictForm):
    """The same for several rows: what is said of a row is a list, outputs nested as their shape."""

    __slots__ = ()

    def claims(self, result: BatchResult, first: int, last: int) -> dict[str, Any]:
        model, index = result.model, result.model.probabilities_index
        arrays = [result.array(number, first, last) for number in range(len(model.outputs))]
        nests = [nested(json_values(array), array.shape) for array in arrays]
        claims: dict[str, Any] = {"labels" if model.outputs[0].datatype is BYTES else "prediction": nests[0]}
        if index >= 0:
            claims["probabilities"] = nests[index]
            judged = [_judged(model, result.row_values(index)[row]) for row in range(first, last)]
            names = [name for name in _JUDGED if any(name in each for each in judged)]
            claims |= {name: [each.get(name) for each in judged] for name in names}
        if "threshold_used" in claims:
            claims["threshold_used"] = next(filter(None.__ne__, claims["threshold_used"]))
        others = {spec.name: nests[i] for i, spec in enumerate(model.outputs) if i not in (0, index)}
        return {**claims, "outputs": others} if others else claims


class SentinelForm(HttpPredictForm):
    """The answer to a request that names no model, with the fields that sentinel has, as it has them."""

    __slots__ = ()

    def answer(self, result: BatchResult, first: int, last: int, timings: Timings, request_id: str) -> Any:
        model, answer = result.model, super().answer(result, first, last, timings, request_id)
        named = model.version_names - {"", model.version}
        answer["model_version"] = min(named, key=lambda name: name == f"v{model.version}")
        answer["variant"] = model.variant if model.is_arm else "A"
        answer["latency_us"] = timings.total_us
        probabilities = result.row_values(model.probabilities_index)[first] if "confidence" in answer else []
        if probabilities:
            answer["predicted_class"] = predicted_index(model, probabilities)
            positive = positive_probability(model, probabilities)
            return answer if positive is None else {"fraud_probability": positive, **answer}
        said = answer.get("prediction", [])
        return {**answer, "predicted_class": said[0]} if len(said) == 1 and type(said[0]) is int else answer


_JUDGED = ("confidence", "predicted_class", "decision", "threshold_used")
TIMING_FIELDS = ("queue_us", "batch_size", "infer_us", "total_us")


def _claims(result: BatchResult, row: int) -> dict[str, Any]:
    """What the model says of one row."""
    model, index = result.model, result.model.probabilities_index
    claims: dict[str, Any] = {"labels" if model.outputs[0].datatype is BYTES else "prediction": result.json_row(0, row)}
    if index >= 0:
        claims["probabilities"] = result.json_row(index, row)
        claims |= _judged(model, result.row_values(index)[row])
    if len(model.outputs) > 1 and (others := result.others(row)):
        claims["outputs"] = {name: nested(json_values(array), array.shape or (1,)) for name, array in others.items()}
    return claims


def _judged(model: Model, probabilities: Sequence[Any]) -> dict[str, Any]:
    """What one row's probabilities say; nothing where one of them is NaN."""
    confidence = confidence_of(probabilities)
    if confidence is None:
        return {}
    judged: dict[str, Any] = {"confidence": confidence}
    predicted_class, decision, threshold = verdict(model, probabilities)
    if predicted_class:
        judged["predicted_class"] = predicted_class
    if decision:
        judged |= {"decision": decision, "threshold_used": threshold}
    return judged


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
    values, index = result.json_row(0, row), result.model.probabilities_index
    confidence = confidence_of(result.row_values(index)[row]) if index >= 0 else None
    return {
        "prediction": values[0] if len(values) == 1 else values,
        **({} if confidence is None else {"probability": confidence}),
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

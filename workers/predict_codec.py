"""nexus.v1 Predict and BatchPredict: flat features in, a prediction out. Decoders raise only InvalidInput."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from nexus_grpc.ipc.errors import InvalidInput
from nexus_grpc.pb.nexus.v1 import inference_pb2 as pb

from .decisions import confidence_of, verdict
from .json_tensors import fed_shape, number_piece
from .model import Model, Shape, TensorSpec
from .named_inputs import decode_named_row, python_list
from .requests import Decoded, Timings
from .results import BatchResult
from .shapes import common_rows, feature_count, resolve_row
from .tensors import BF16, BOOL, BYTES, Array, Piece, is_float, text_array

ONE_KIND_OF_INPUT = "send either features, or texts, or inputs"


def decode_predict(model: Model, message: bytes) -> Decoded:
    """PredictRequest bytes → one row. Raises InvalidInput."""
    request = _parsed(pb.PredictRequest, message)
    _check_addressee(model, request)
    if request.inputs:
        if request.features or request.texts:
            raise InvalidInput(ONE_KIND_OF_INPUT, field="inputs")
        tensors = {name: (tuple(tensor.shape), python_list(tensor.data)) for name, tensor in request.inputs.items()}
        return decode_named_row(model, tensors, PredictForm(None, request.request_id, request.nexus_timing))
    if takes_nothing(model, request.features, request.texts):
        return Decoded((), 1, [], PredictForm(None, request.request_id, request.nexus_timing), templatable=False)
    spec = single_input(model)
    piece, row = row_piece(model, spec, list(request.features), list(request.texts))
    form = PredictForm(spec, request.request_id, request.nexus_timing)
    signature = ((spec.name, features_shape(model, spec, row)),)
    return Decoded(signature, 1, [piece], form, templatable=spec.datatype is not BYTES)


def decode_batch_predict(model: Model, message: bytes) -> Decoded:
    """BatchPredictRequest bytes → all its rows. Raises InvalidInput naming the row that does not fit."""
    request = _parsed(pb.BatchPredictRequest, message)
    _check_addressee(model, request)
    if not request.rows:
        raise InvalidInput("invalid input: expected at least 1 row, got 0", field="rows")
    spec = single_input(model)
    if not model.batchable:
        raise InvalidInput(f"model '{model.name}' takes one request at a time; use Predict or ModelInfer", field="rows")
    pieces: list[Piece] = []
    shapes = set()
    for index, row in enumerate(request.rows):
        try:
            piece, shape = row_piece(model, spec, list(row.features), list(row.texts))
        except InvalidInput as error:
            raise InvalidInput(f"row {index}: {error.message}", field=f"rows[{index}]") from None
        pieces.append(piece)
        shapes.add(shape)
    if len(shapes) != 1:
        raise InvalidInput("all rows must have the same number of features", field="rows")
    return _batch_decoded(model, spec, request, pieces, shapes.pop())


def _batch_decoded(
    model: Model, spec: TensorSpec, request: pb.BatchPredictRequest, pieces: list[Piece], row: Shape
) -> Decoded:
    count = len(pieces)
    rows = common_rows(model, {spec.name: (count, *row)})
    joined: Piece = np.concatenate(pieces) if spec.datatype is BYTES else b"".join(pieces)  # type: ignore[arg-type]
    form = BatchPredictForm(spec, request.request_id, request.nexus_timing)
    return Decoded(((spec.name, row),), rows, [joined], form, templatable=False)


def _parsed(kind: Any, message: bytes) -> Any:
    try:
        return kind.FromString(message)
    except DecodeError:
        raise InvalidInput(f"the request is not a valid {kind.DESCRIPTOR.full_name} message") from None


def _check_addressee(model: Model, request: Any) -> None:
    if request.model_id != model.name or request.model_version not in model.version_names:
        raise InvalidInput("model_id and model_version must appear once in the message, and first", field="model_id")


def takes_nothing(model: Model, features: Sequence[Any], texts: Sequence[str]) -> bool:
    """Whether the model needs no input, and the request has none. Raises InvalidInput where only the first is true."""
    if any(not spec.optional for spec in model.inputs):
        return False
    if not features and not texts:
        return True
    optional = ", ".join(f"'{spec.name}'" for spec in model.inputs)
    what = f"needs no input; name those that it may have in `inputs`: {optional}" if optional else "takes no input"
    raise InvalidInput(f"model '{model.name}' {what}", field="features" if features else "texts")


def features_shape(model: Model, spec: TensorSpec, row: Shape) -> Shape:
    """A signature's shape for flat features: an input of any number of dimensions gets one row of them."""
    return (1, *row) if spec.any_rank else fed_shape(model, spec, row)


def single_input(model: Model) -> TensorSpec:
    required = [spec for spec in model.inputs if not spec.optional]
    if len(required) != 1:
        names = ", ".join(f"'{spec.name}'" for spec in model.inputs)
        raise InvalidInput(
            f"model '{model.name}' has {len(required)} inputs ({names}); flat features fit a model with one: name"
            " them in `inputs`, or use ModelInfer",
            field="features",
        )
    return required[0]


def row_piece(model: Model, spec: TensorSpec, features: list[Any], texts: list[str]) -> tuple[Piece, Shape]:
    """One row as a piece, and its shape without the batch dimension. Raises InvalidInput."""
    expected, row = feature_count(model, spec)
    if spec.datatype is BYTES:
        if features:
            raise InvalidInput(f"model '{model.name}' expects text: send it in `texts`", field="features")
        return text_array(texts), resolve_row(model, row, len(texts), expected)
    if texts:
        raise InvalidInput(f"model '{model.name}' expects numbers: send them in `features`", field="texts")
    shape = resolve_row(model, row, len(features), expected)
    if spec.datatype.dtype.kind in "iu":
        return number_piece(spec, features, "feature", "features"), shape
    return cast_features(spec, np.array(features, dtype=np.float64)), shape


def cast_features(spec: TensorSpec, features: Array) -> bytes:
    """float64 features → the input's dtype, little-endian. Raises InvalidInput when one does not fit it exactly enough.

    Floats may round (a client's double is not a float32); integers may not.
    """
    dtype = spec.datatype.dtype
    try:
        with np.errstate(over="raise", invalid="raise"):
            cast = features.astype(dtype)
    except FloatingPointError:
        raise _misfit(spec, features) from None
    if spec.datatype is BF16 and (np.isinf(cast) != np.isinf(features)).any():
        raise _misfit(spec, features)  # ml_dtypes tells numpy nothing of it
    if not is_float(dtype) and (spec.datatype is BOOL or not np.array_equal(cast, features)):
        if spec.datatype is BOOL and np.isin(features, (0.0, 1.0)).all():
            return cast.tobytes()
        raise _misfit(spec, features)
    return cast.tobytes()


def _misfit(spec: TensorSpec, features: Array) -> InvalidInput:
    with np.errstate(all="ignore"):
        cast = features.astype(spec.datatype.dtype)
        infinite = np.isinf(cast) != np.isinf(features)
        wrong = infinite if spec.datatype.is_float else cast.astype(np.float64) != features
    for index in np.flatnonzero(wrong)[:1].tolist():
        value = features[index].item()
        return InvalidInput(
            f"invalid input: feature {index} ({value!r}) does not fit {spec.datatype.name}", field="features"
        )
    return InvalidInput(f"invalid input: a feature does not fit {spec.datatype.name}", field="features")


_second_s, _second_text = 0, ""


def utc_now() -> str:
    """RFC 3339 with milliseconds. Only the milliseconds are formatted anew within a second."""
    global _second_s, _second_text
    now_ms = time.time_ns() // 1_000_000
    second_s, ms = divmod(now_ms, 1000)
    if second_s != _second_s:
        _second_s, _second_text = second_s, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second_s))
    return f"{_second_text}.{ms:03d}Z"


class PredictForm:
    """How the answer to a Predict looks."""

    __slots__ = ("request_id", "spec", "timing")

    def __init__(self, spec: TensorSpec | None, request_id: str, timing: bool) -> None:
        # Of features; None where the request has none, and makes no template.
        self.spec = spec
        self.request_id = request_id
        self.timing = timing

    def pieces(self, tensors: list[bytes]) -> list[Piece]:
        """The packed doubles of a templated message, cast to the input's dtype. Raises InvalidInput."""
        assert self.spec is not None
        return [cast_features(self.spec, np.frombuffer(tensors[0], dtype="<f8"))]

    def encode_all(self, result: BatchResult, count: int) -> list[bytes] | None:
        """None: each answer carries its own id and times."""
        return None

    def encode(self, result: BatchResult, first: int, last: int, timings: Timings, request_id: bytes) -> bytes:
        response = pb.PredictResponse(**self.head(result, timings, request_id))
        fill_prediction(response, result, first)
        return bytes(response.SerializeToString())

    def head(self, result: BatchResult, timings: Timings, request_id: bytes) -> dict[str, Any]:
        """The fields that PredictResponse and BatchPredictResponse share."""
        fields = {
            "model_id": result.model.name,
            "request_id": self.request_id or request_id.decode("ascii", "replace"),
            "model_version": result.model.version,
            "variant": result.model.variant,
            "latency_ms": timings.total_us / 1000,
            "timestamp": utc_now(),
            "batch_size": timings.batch_size,
        }
        return {**fields, "timing": stage_timings(timings)} if self.timing else fields


class BatchPredictForm(PredictForm):
    """How the answer to a BatchPredict looks: one Prediction per row. It makes no templates: pieces() is not used."""

    __slots__ = ()

    def encode(self, result: BatchResult, first: int, last: int, timings: Timings, request_id: bytes) -> bytes:
        response = pb.BatchPredictResponse(**self.head(result, timings, request_id))
        for row in range(first, last):
            fill_prediction(response.predictions.add(), result, row)
        return bytes(response.SerializeToString())


def fill_prediction(message: Any, result: BatchResult, row: int) -> None:
    """Write one row's first output, probabilities and confidence into a PredictResponse or Prediction."""
    model = result.model
    values = result.row_values(0)[row]
    if model.outputs[0].datatype is BYTES:
        message.labels.extend(values)
    else:
        message.prediction.extend(values)
    index = model.probabilities_index
    if index >= 0:
        probabilities = result.row_values(index)[row]
        message.probabilities.extend(probabilities)
        message.confidence = confidence_of(probabilities) or 0.0
        message.predicted_class, message.decision, message.threshold_used = verdict(model, probabilities)
    if len(model.outputs) > 1:
        for name, array in result.others(row).items():
            message.outputs[name].extend(array.tolist() if array.ndim else [array.item()])


def stage_timings(timings: Timings) -> pb.StageTimings:
    return pb.StageTimings(
        queue_us=timings.queue_us,
        batch_size=timings.batch_size,
        infer_us=timings.infer_us,
        total_us=timings.total_us,
    )

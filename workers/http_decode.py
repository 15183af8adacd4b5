"""The hot REST routes: JSON → Decoded. Decoders raise only InvalidInput."""

from typing import Any

import numpy as np

from nexus_grpc.ipc.errors import InvalidInput

from .http_bodies import (
    ApiBatchPredictBody,
    ApiPredictBody,
    InferBody,
    PredictBody,
    V2Body,
    json_of,
    names_model,
    read_body,
)
from .http_forms import (
    ApiBatchPredictForm,
    ApiPredictForm,
    HttpForm,
    HttpPredictForm,
    HttpRowsForm,
    NamedForm,
    SentinelForm,
    V2Form,
)
from .infer_form import RequestedOutput
from .json_tensors import feature_numbers, flatten, full_tensor
from .model import Model, TensorSpec
from .named_inputs import check_known, decode_named_row, input_spec
from .predict_codec import ONE_KIND_OF_INPUT, features_shape, row_piece, single_input, takes_nothing
from .requests import Decoded
from .shapes import common_rows
from .tensors import BYTES, Piece

MAX_CLASSES = 1 << 31


def decode_http_predict(model: Model, message: bytes) -> Decoded:
    """POST /predict."""
    body = read_body(PredictBody, json_of(message))
    name = body.model_id if names_model(message) or body.model_id else model.name
    _check_addressee(model, "model_id", name, body.model_version)
    kind = HttpPredictForm if names_model(message) else SentinelForm
    form = kind(body.request_id, body.nexus_timing)
    if body.inputs:
        if body.features or body.texts:
            raise InvalidInput(ONE_KIND_OF_INPUT, field="inputs")
        tensors = {name: (tuple(tensor.shape), tensor.data) for name, tensor in body.inputs.items()}
        return decode_named_row(model, tensors, form)
    if body.features and isinstance(body.features[0], list):
        if body.texts:
            raise InvalidInput(ONE_KIND_OF_INPUT, field="texts")
        return _several_rows(model, body.features, "features", HttpRowsForm(body.request_id, body.nexus_timing))
    return _one_row(model, body.features, body.texts, form)


def decode_api_predict(model: Model, message: bytes) -> Decoded:
    """POST /api/v1/predict."""
    body = read_body(ApiPredictBody, json_of(message))
    _check_addressee(model, "model_name", body.model_name)
    return _one_row(model, body.features, [], ApiPredictForm())


def _one_row(model: Model, features: list[Any], texts: list[str], form: HttpForm) -> Decoded:
    if takes_nothing(model, features, texts):
        return Decoded((), 1, [], form, templatable=False)
    spec = single_input(model)
    piece, row = row_piece(model, spec, feature_numbers(spec, features), texts)
    return Decoded(((spec.name, features_shape(model, spec, row)),), 1, [piece], form, templatable=False)


def decode_api_batch_predict(model: Model, message: bytes) -> Decoded:
    """POST /api/v1/batch_predict."""
    body = read_body(ApiBatchPredictBody, json_of(message))
    _check_addressee(model, "model_name", body.model_name)
    if not body.features_batch:
        raise InvalidInput("invalid input: expected at least 1 row, got 0", field="features_batch")
    return _several_rows(model, body.features_batch, "features_batch", ApiBatchPredictForm())


def _several_rows(model: Model, features: list[Any], field: str, form: HttpForm) -> Decoded:
    spec = single_input(model)
    if not model.batchable and len(features) > 1:
        raise InvalidInput(f"model '{model.name}' takes one row at a time; send each alone", field=field)
    pieces: list[Any] = []
    shapes = set()
    for index, row in enumerate(features):
        try:
            if not isinstance(row, list):
                raise InvalidInput("expected a list of features, as the rows before it")
            piece, shape = row_piece(model, spec, feature_numbers(spec, row), [])
        except InvalidInput as error:
            raise InvalidInput(f"row {index}: {error.message}", field=f"{field}[{index}]") from None
        pieces.append(piece)
        shapes.add(shape)
    if len(shapes) != 1:
        raise InvalidInput("all rows must have the same number of features", field=field)
    shape = shapes.pop()
    rows = common_rows(model, {spec.name: (len(pieces), *shape)})
    joined = np.concatenate(pieces) if spec.datatype is BYTES else b"".join(pieces)
    return Decoded(((spec.name, features_shape(model, spec, shape)),), rows, [joined], form, templatable=False)


def decode_v1_infer(model: Model, message: bytes) -> Decoded:
    """POST /v1/infer: by name, one row, or a batch when the values are nested as deep as the whole input."""
    body = read_body(InferBody, json_of(message))
    _check_addressee(model, "model", body.model, body.version.removeprefix("v"))
    check_known(model, body.input)
    if not all([_is_whole(input_spec(model, name), data) for name, data in body.input.items()]):
        return decode_named_row(model, {name: ((), data) for name, data in body.input.items()}, NamedForm(True))
    tensors = {name: (flatten(data, name)[1], data) for name, data in body.input.items()}
    return _whole(model, tensors, NamedForm(False))


def _is_whole(spec: TensorSpec, data: list[Any]) -> bool:
    return spec.fits(flatten(data, spec.name)[1])


def decode_v2_infer(model: Model, message: bytes) -> Decoded:
    """POST /v2/models/{model_name}/infer."""
    body = read_body(V2Body, json_of(message))
    timing, timeout_ns = _parameters(body.parameters)
    tensors = {}
    for tensor in body.inputs:
        spec = input_spec(model, tensor.name)
        if tensor.name in tensors:
            raise InvalidInput(f"input '{tensor.name}' appears twice", field=tensor.name)
        if tensor.datatype != spec.datatype.name:
            raise InvalidInput(
                f"input '{tensor.name}' of model '{model.name}': expected datatype {spec.datatype.name}, got"
                f" {tensor.datatype or 'none'}",
                field=tensor.name,
            )
        _refuse_binary(tensor.parameters)
        tensors[tensor.name] = (tuple(tensor.shape), tensor.data)
    check_known(model, tensors)
    decoded = _whole(model, tensors, V2Form(body.id, _requested(model, body), timing))
    decoded.timeout_ns = timeout_ns
    return decoded


def _whole(model: Model, tensors: dict[str, Any], form: HttpForm) -> Decoded:
    """Tensors with their batch dimension."""
    pieces: list[Piece] = []
    shapes = {}
    signature = []
    for spec in model.fed(tensors):
        piece, shape = full_tensor(model, spec, *tensors[spec.name])
        pieces.append(piece)
        shapes[spec.name] = shape
        signature.append((spec.name, shape[1:] if model.has_rows(spec) else shape))
    rows = common_rows(model, shapes)
    return Decoded(tuple(signature), rows, pieces, form, templatable=False)


def _parameters(parameters: dict[str, Any]) -> tuple[bool, int]:
    """(nexus_timing, timeout in ns). Raises InvalidInput on a parameter we would have to disobey."""
    _refuse_binary(parameters)
    for name in parameters:
        if name.startswith("triton_"):
            raise InvalidInput(f"parameter '{name}' is not supported", field=name)
    timeout_us = parameters.get("timeout", 0)
    if type(timeout_us) is not int or timeout_us < 0:
        raise InvalidInput("parameter 'timeout' must be a whole number of microseconds", field="timeout")
    return parameters.get("nexus_timing") is True, timeout_us * 1000


def _refuse_binary(parameters: dict[str, Any]) -> None:
    for name in ("binary_data", "binary_data_size", "binary_data_output"):
        if parameters.get(name):
            raise InvalidInput(f"parameter '{name}': tensors in binary travel by gRPC only; send JSON", field=name)


def _requested(model: Model, body: V2Body) -> tuple[RequestedOutput, ...]:
    if not body.outputs:
        return tuple(RequestedOutput(index, 0) for index in range(len(model.outputs)))
    requested = []
    for output in body.outputs:
        _refuse_binary(output.parameters)
        index = model.output_index(output.name)
        if index < 0:
            known = ", ".join(f"'{spec.name}'" for spec in model.outputs)
            raise InvalidInput(
                f"unexpected output '{output.name}' for model '{model.name}', expected {known}", field=output.name
            )
        classes = output.parameters.get("classification", 0)
        if type(classes) is not int or not 0 <= classes < MAX_CLASSES:
            raise InvalidInput("parameter 'classification' must be a whole number", field="classification")
        if classes and model.outputs[index].datatype is BYTES:
            raise InvalidInput(f"output '{output.name}' is text and has no classes", field="classification")
        requested.append(RequestedOutput(index, classes))
    return tuple(requested)


def _check_addressee(model: Model, field: str, name: Any, version: str = "") -> None:
    """The front found the name without parsing. They must agree."""
    if name != model.name or version not in model.version_names:
        raise InvalidInput(f"{field} and the version must appear once in the body, at its top level", field=field)

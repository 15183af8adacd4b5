"""The hot REST routes: JSON → Decoded. Decoders raise only InvalidInput."""

from typing import Any

import numpy as np

from nexus_grpc.ipc.errors import InvalidInput

from .http_bodies import (
    ApiBatchPredictBody,
    ApiPredictBody,
    InferBody,
    PredictBody,
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
)
from .images import array_of
from .json_tensors import feature_numbers, flatten, full_tensor
from .model import Model, TensorSpec
from .named_inputs import check_known, decode_named_row, input_spec
from .predict_codec import ONE_KIND_OF_INPUT, features_shape, row_piece, single_input, takes_nothing
from .requests import Decoded
from .shapes import common_rows
from .tensors import BYTES, Piece


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
    given = _with_images(model, body.input)
    check_known(model, given)
    if not all([isinstance(data, list) and _is_whole(input_spec(model, name), data) for name, data in given.items()]):
        return decode_named_row(model, {name: ((), data) for name, data in given.items()}, NamedForm(True))
    tensors = {name: (flatten(data, name)[1], data) for name, data in given.items()}
    return _whole(model, tensors, NamedForm(False))


def _with_images(model: Model, given: dict[str, list[Any] | str]) -> dict[str, Any]:
    """What is a text alone as the row that it means; `image` may stand for the input that takes images."""
    if not any([isinstance(data, str) for data in given.values()]):
        return given
    found: dict[str, Any] = {}
    for name, data in given.items():
        spec = model.input_named(name)
        if spec is None and name == "image" and model.image is not None:
            spec = model.input_named(model.image.name)
        if spec is None or isinstance(data, list):
            found[name] = data
        elif spec.name in found:
            raise InvalidInput(f"input '{spec.name}' appears twice", field=name)
        else:
            found[spec.name] = [data] if spec.datatype is BYTES else array_of(model, spec, data)
    return found


def _is_whole(spec: TensorSpec, data: list[Any]) -> bool:
    return spec.fits(flatten(data, spec.name)[1])


def _whole(model: Model, tensors: dict[str, Any], form: HttpForm) -> Decoded:
    """Tensors with their batch dimension."""
    pieces: list[Piece] = []
    shapes = {}
    signature = []
    for spec in model.fed(tensors):
        piece, shape = full_tensor(model, spec, *tensors[spec.name])
        pieces.append(piece)
        shapes[spec.name] = shape
        signature.append((spec.name, model.row_of(spec, shape)))
    rows = common_rows(model, shapes)
    return Decoded(tuple(signature), rows, pieces, form, templatable=False)


def _check_addressee(model: Model, field: str, name: Any, version: str = "") -> None:
    """The front found the name without parsing. They must agree."""
    if name != model.name or version not in model.version_names:
        raise InvalidInput(f"{field} and the version must appear once in the body, at its top level", field=field)

"""One row of each of a model's inputs, by name: the `inputs` of Predict, by gRPC and by REST."""

from collections.abc import Container, Mapping
from typing import Any

import numpy as np

from nexus_grpc.ipc.errors import InvalidInput

from .json_tensors import fed_shape, row_tensor
from .model import Model, Shape, TensorSpec
from .requests import Decoded, Form
from .shapes import check_missing
from .tensors import Array, Piece


def decode_named_row(model: Model, tensors: Mapping[str, tuple[Shape, list[Any] | Array]], form: Form) -> Decoded:
    """{name: (shape or (), data)} → one row; an array is one already. Raises InvalidInput."""
    pieces: list[Piece] = []
    signature = []
    check_known(model, tensors)
    for spec in model.fed(tensors):
        shape, data = tensors[spec.name]
        if isinstance(data, np.ndarray):
            piece: Piece = data.tobytes()
            row = data.shape if model.batchable or spec.shape[:1] == (-1,) else (1, *data.shape)
        else:
            piece, row = row_tensor(model, spec, shape, data)
        pieces.append(piece)
        signature.append((spec.name, fed_shape(model, spec, row)))
    return Decoded(tuple(signature), 1, pieces, form, templatable=False)


def check_known(model: Model, given: Mapping[str, Any]) -> None:
    """Raises InvalidInput for a name that is no input of the model, and for an input that is missing."""
    for name in given:
        if model.input_named(name) is None:
            raise unexpected_input(model, name)
    check_missing(model, given)


def unexpected_input(model: Model, name: str) -> InvalidInput:
    known = ", ".join(f"'{spec.name}'" for spec in model.inputs)
    return InvalidInput(f"unexpected input '{name}' for model '{model.name}', expected {known}", field=name)


def input_spec(model: Model, name: str) -> TensorSpec:
    """Raises InvalidInput when the model has no such input."""
    spec = model.input_named(name)
    if spec is None:
        raise unexpected_input(model, name)
    return spec


def sent_input(model: Model, name: str, datatype: str, seen: Container[str]) -> TensorSpec:
    """The input that a request's tensor is for. Raises InvalidInput for none, a second one, or another datatype.

    Args:
        seen: the names of the tensors before it.
    """
    spec = input_spec(model, name)
    if name in seen:
        raise InvalidInput(f"input '{name}' appears twice", field=name)
    if datatype != spec.datatype.name:
        raise InvalidInput(
            f"input '{name}' of model '{model.name}': expected datatype {spec.datatype.name}, got {datatype or 'none'}",
            field=name,
        )
    return spec


def python_list(values: Any) -> list[Any]:
    """A google.protobuf.ListValue as Python has it. Raises InvalidInput for objects in it."""
    return [_python_value(value) for value in values.values]


def _python_value(value: Any) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "list_value":
        return python_list(value.list_value)
    if kind == "null_value":
        return None
    if kind in ("number_value", "string_value", "bool_value"):
        return getattr(value, kind)
    raise InvalidInput("inputs: data may hold numbers, texts, booleans, nulls and lists of them", field="inputs")

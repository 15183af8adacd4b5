"""POST /v2/models/{model_name}/infer: JSON, and binary values behind it, → Decoded. Raises only InvalidInput."""

from collections.abc import Mapping
from typing import Any

from nexus_grpc.ipc.errors import InvalidInput

from .http_bodies import V2Body, V2Input, V2Output, read_body
from .infer_decode import raw_piece
from .infer_form import RequestedOutput, all_outputs, asked_output
from .json_tensors import full_tensor
from .model import Model, Shape, TensorSpec
from .named_inputs import check_known, sent_input
from .request_parameters import read_parameters, refuse_shared_memory
from .requests import Decoded
from .shapes import check_shape, common_rows
from .tensors import BYTES, Piece
from .v2_envelope import Envelope, open_envelope
from .v2_form import V2Form

MAX_CLASSES = 1 << 31


def decode_v2_infer(model: Model, message: bytes) -> Decoded:
    """Raises InvalidInput."""
    envelope = open_envelope(message)
    body = read_body(V2Body, envelope.text)
    _check_addressee(model, body)
    parameters = body.parameters or {}
    asked = read_parameters(model, parameters)
    tensors: dict[str, tuple[Piece, Shape]] = {}
    for tensor in body.inputs:
        spec = sent_input(model, tensor.name, tensor.datatype, tensors)
        tensors[tensor.name] = _tensor(model, spec, tensor, envelope)
    envelope.check_end()
    check_known(model, tensors)
    outputs = _requested(model, body.outputs or [])
    binary = _binary(body.outputs or [], len(outputs), _flag(parameters, "binary_data_output"))
    form = V2Form("" if body.id is None else str(body.id), outputs, binary, asked, envelope.coding)
    return _decoded(model, tensors, form)


def _decoded(model: Model, tensors: Mapping[str, tuple[Piece, Shape]], form: V2Form) -> Decoded:
    """Tensors with their batch dimension, in the model's order."""
    present = [(spec, *tensors[spec.name]) for spec in model.fed(tensors)]
    rows = common_rows(model, {spec.name: shape for spec, _, shape in present})
    signature = tuple([(spec.name, model.row_of(spec, shape)) for spec, _, shape in present])
    pieces = [piece for _, piece, _ in present]
    decoded = Decoded(signature, rows, pieces, form, templatable=False, timeout_ns=form.asked.timeout_ns)
    decoded.priority = form.asked.priority
    return decoded


def _check_addressee(model: Model, body: V2Body) -> None:
    """The path names the model; a body may say so, too."""
    for field, given, known in (
        ("model_name", body.model_name, (model.name,)),
        ("model_version", body.model_version, model.version_names),
    ):
        text = "" if given is None else str(given)
        if text and text not in known:
            raise InvalidInput(f"{field} in the body is '{text}', but the path names another one", field=field)


def _tensor(model: Model, spec: TensorSpec, tensor: V2Input, envelope: Envelope) -> tuple[Piece, Shape]:
    parameters = tensor.parameters or {}
    refuse_shared_memory(parameters)
    shape, size = tuple(tensor.shape), parameters.get("binary_data_size")
    if size is None:
        if tensor.data is None:
            raise InvalidInput(f"input '{spec.name}' has neither data nor binary_data_size", field=spec.name)
        return full_tensor(model, spec, shape, tensor.data)
    if tensor.data is not None:
        raise InvalidInput(f"input '{spec.name}' has both data and binary_data_size; send one of them", field=spec.name)
    if type(size) is not int or size < 0:
        raise InvalidInput(f"input '{spec.name}': binary_data_size must be a whole number of bytes", field=spec.name)
    check_shape(model, spec, shape)
    return raw_piece(spec, shape, envelope.take(size, spec.name)), shape


def _flag(parameters: Mapping[str, Any], name: str) -> bool:
    value = parameters.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise InvalidInput(f"parameter '{name}' must be true or false", field=name)
    return value


def _binary(outputs: list[V2Output], count: int, by_default: bool) -> tuple[bool, ...]:
    """Whether each output is to be answered in binary."""
    if not outputs:
        return (by_default,) * count
    given = [output.parameters or {} for output in outputs]
    return tuple([by_default if each.get("binary_data") is None else _flag(each, "binary_data") for each in given])


def _requested(model: Model, outputs: list[V2Output]) -> tuple[RequestedOutput, ...]:
    if not outputs:
        return all_outputs(model)
    requested = []
    for output in outputs:
        parameters = output.parameters or {}
        refuse_shared_memory(parameters)
        index = asked_output(model, output.name)
        classes = parameters.get("classification")
        classes = 0 if classes is None else classes
        if type(classes) is not int or not 0 <= classes < MAX_CLASSES:
            raise InvalidInput("parameter 'classification' must be a whole number", field="classification")
        if classes and model.outputs[index].datatype is BYTES:
            raise InvalidInput(f"output '{output.name}' is text and has no classes", field="classification")
        requested.append(RequestedOutput(index, classes))
    return tuple(requested)

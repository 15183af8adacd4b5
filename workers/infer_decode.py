"""ModelInferRequest bytes → Decoded. Raises only InvalidInput (a fuzz test holds it to that)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from nexus_grpc.ipc.errors import InvalidInput
from nexus_grpc.pb.inference import grpc_service_pb2 as pb

from .infer_form import InferForm, RequestedOutput, all_outputs, asked_output
from .model import Model, Shape, TensorSpec
from .named_inputs import sent_input
from .request_parameters import read_parameters, refuse_shared_memory
from .requests import Decoded, Signature
from .shapes import check_missing, check_shape, common_rows
from .tensors import BOOL, BYTES, Datatype, Piece, decode_bytes_tensor, decode_text, text_array

# Typed contents that carry narrower datatypes too.
_NARROWED = {"int_contents": np.dtype("<i4"), "uint_contents": np.dtype("<u4")}


@dataclasses.dataclass(frozen=True, slots=True)
class _Tensor:
    spec: TensorSpec
    shape: Shape
    piece: Piece


def decode_infer(model: Model, message: bytes) -> Decoded:
    """Parse and check a request against the model. Raises InvalidInput."""
    try:
        request = pb.ModelInferRequest.FromString(message)
    except DecodeError:
        raise InvalidInput("the request is not a valid inference.ModelInferRequest message") from None
    _check_addressee(model, request)
    asked = read_parameters(model, _values(request.parameters))
    raw = bool(request.raw_input_contents)
    tensors = _raw_tensors(model, request) if raw else _typed_tensors(model, request)
    check_missing(model, tensors)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    rows = common_rows(model, shapes)
    form = InferForm(request.id, _requested_outputs(model, request), _answers_raw(request), asked.timing)
    form.final = asked.final
    present = [tensors[spec.name] for spec in model.fed(tensors)]
    in_order = [tensor.name for tensor in request.inputs] == [tensor.spec.name for tensor in present]
    pieces = [tensor.piece for tensor in present]
    decoded = Decoded(_signature(model, present), rows, pieces, form, raw and in_order, asked.timeout_ns)
    decoded.priority = asked.priority
    return decoded


def _check_addressee(model: Model, request: pb.ModelInferRequest) -> None:
    """The front routed on the first name in the message; protobuf lets a later one win. They must agree."""
    if request.model_name != model.name or request.model_version not in model.version_names:
        raise InvalidInput(
            "model_name and model_version must appear once in the message, and first", field="model_name"
        )


def _values(parameters: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    """Parameters as Python has them."""
    found: dict[str, Any] = {}
    for name, value in parameters.items():
        kind = value.WhichOneof("parameter_choice")
        found[name] = getattr(value, kind) if kind else None
    return found


def _spec_of(model: Model, tensor: pb.ModelInferRequest.InferInputTensor, seen: dict[str, Any]) -> TensorSpec:
    spec = sent_input(model, tensor.name, tensor.datatype, seen)
    if tensor.parameters:
        refuse_shared_memory(_values(tensor.parameters))
    check_shape(model, spec, tuple(tensor.shape))
    return spec


def _raw_tensors(model: Model, request: pb.ModelInferRequest) -> dict[str, _Tensor]:
    if len(request.raw_input_contents) != len(request.inputs):
        raise InvalidInput(
            f"expected {len(request.inputs)} raw_input_contents, one per input, got {len(request.raw_input_contents)}",
            field="raw_input_contents",
        )
    tensors: dict[str, _Tensor] = {}
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        spec = _spec_of(model, tensor, tensors)
        # MLServer's client always puts one there.
        if tensor.HasField("contents") and tensor.contents.ListFields():
            raise InvalidInput(
                f"input '{tensor.name}' has both contents and raw_input_contents; send one of them", field=tensor.name
            )
        shape = tuple(tensor.shape)
        tensors[tensor.name] = _Tensor(spec, shape, raw_piece(spec, shape, raw))
    return tensors


def _element_count(shape: Shape) -> int:
    count = 1
    for dim in shape:
        count *= dim
    return count


def raw_piece(spec: TensorSpec, shape: Shape, raw: bytes) -> Piece:
    """Raw content of an input, checked against its shape. Raises InvalidInput."""
    count = _element_count(shape)
    if spec.datatype is BYTES:
        return decode_bytes_tensor(raw, count, spec.name)
    expected = count * spec.datatype.itemsize_bytes
    if len(raw) != expected:
        raise InvalidInput(
            f"input '{spec.name}': expected {expected} bytes for shape {list(shape)} of {spec.datatype.name}, got"
            f" {len(raw)}",
            field=spec.name,
        )
    if spec.datatype is BOOL and raw.translate(None, b"\x00\x01"):
        raise InvalidInput(f"input '{spec.name}': BOOL content must be bytes 0 and 1", field=spec.name)
    return raw


def _typed_tensors(model: Model, request: pb.ModelInferRequest) -> dict[str, _Tensor]:
    tensors: dict[str, _Tensor] = {}
    for tensor in request.inputs:
        spec = _spec_of(model, tensor, tensors)
        shape = tuple(tensor.shape)
        tensors[tensor.name] = _Tensor(spec, shape, _typed_piece(spec, shape, tensor.contents))
    return tensors


def _typed_piece(spec: TensorSpec, shape: Shape, contents: pb.InferTensorContents) -> Piece:
    datatype, name = spec.datatype, spec.name
    if not datatype.contents:
        raise InvalidInput(f"input '{name}': {datatype.name} travels in raw_input_contents only", field=name)
    values = getattr(contents, datatype.contents)
    filled = [field.name for field, _ in contents.ListFields()]
    if any(field != datatype.contents for field in filled):
        raise InvalidInput(
            f"input '{name}': {datatype.name} values belong in {datatype.contents}, got {', '.join(filled)}", field=name
        )
    expected = _element_count(shape)
    if len(values) != expected:
        raise InvalidInput(
            f"input '{name}': expected {expected} values for shape {list(shape)}, got {len(values)}", field=name
        )
    if datatype is BYTES:
        return text_array([decode_text(item, name, index) for index, item in enumerate(values)])
    return _packed(datatype, name, values)


def _packed(datatype: Datatype, name: str, values: Any) -> bytes:
    given = np.array(values, dtype=_NARROWED.get(datatype.contents, datatype.dtype))
    # Not np.array(values, datatype.dtype): protobuf's containers hand numpy an array, and arrays wrap around silently.
    packed = given.astype(datatype.dtype)
    if given.dtype != packed.dtype and not np.array_equal(given, packed):
        raise InvalidInput(f"input '{name}': a value does not fit {datatype.name}", field=name)
    return packed.tobytes()


def _answers_raw(request: pb.ModelInferRequest) -> bool:
    """Typed input gets typed output unless every requested output asks for `binary_data`; what says nothing of either,
    such as a request without inputs, gets raw contents, which every client reads."""
    if request.raw_input_contents or not any([tensor.HasField("contents") for tensor in request.inputs]):
        return True
    return bool(request.outputs) and all([output.parameters["binary_data"].bool_param for output in request.outputs])


def _requested_outputs(model: Model, request: pb.ModelInferRequest) -> tuple[RequestedOutput, ...]:
    if not request.outputs:
        return all_outputs(model)
    requested = []
    for output in request.outputs:
        index = asked_output(model, output.name)
        classes = output.parameters["classification"].int64_param if "classification" in output.parameters else 0
        if classes < 0 or ("classification" in output.parameters and classes == 0):
            raise InvalidInput(f"output '{output.name}': classification must be at least 1", field=output.name)
        if classes and model.outputs[index].datatype is BYTES:
            raise InvalidInput(f"output '{output.name}' is text; classification needs numbers", field=output.name)
        requested.append(RequestedOutput(index, classes))
    return tuple(requested)


def _signature(model: Model, present: list[_Tensor]) -> Signature:
    return tuple([(tensor.spec.name, model.row_of(tensor.spec, tensor.shape)) for tensor in present])

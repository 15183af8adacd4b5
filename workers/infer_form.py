"""How a ModelInfer answer is to look, and its encoding: a prebuilt head plus raw bytes where possible.

A serialised message followed by more fields is again a message, so an answer is the head (name, version, id, output
names, datatypes, shapes) and one `raw_output_contents` field per output. The head is the same for every answer to
requests of the same form and shapes, so it is kept.
"""

import dataclasses
from typing import Any, cast

from nexus_grpc.ipc.errors import InvalidInput
from nexus_grpc.ipc.wire import length_prefix
from nexus_grpc.pb.inference import grpc_service_pb2 as pb

from .model import Model, TensorSpec
from .request_parameters import FINAL_RESPONSE
from .requests import Timings
from .results import BatchResult, top_classes
from .tensors import BYTES, Array, Piece, encode_bytes_tensor, text_array, text_elements

RAW_OUTPUT_CONTENTS_FIELD = pb.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER


@dataclasses.dataclass(frozen=True, slots=True)
class RequestedOutput:
    """Output number `index` of the model; `classes` > 0 asks for that many top classes instead of the tensor."""

    index: int
    classes: int


def all_outputs(model: Model) -> tuple[RequestedOutput, ...]:
    """What a request gets that names none."""
    return tuple([RequestedOutput(index, 0) for index in range(len(model.outputs))])


def asked_output(model: Model, name: str) -> int:
    """The index of an output that a request names. Raises InvalidInput."""
    index = model.output_index(name)
    if index < 0:
        known = ", ".join([f"'{spec.name}'" for spec in model.outputs])
        raise InvalidInput(f"unexpected output '{name}' for model '{model.name}', expected {known}", field=name)
    return index


class InferForm:
    """The answer's form. Shared by all requests that match one template."""

    __slots__ = ("_head", "_key", "_prefixes", "final", "id", "outputs", "plain", "raw", "timing")

    def __init__(self, request_id: str, outputs: tuple[RequestedOutput, ...], raw: bool, timing: bool) -> None:
        self.id = request_id
        self.outputs = outputs
        self.raw = raw
        self.timing = timing
        # Whether the answer is to say that no other follows it.
        self.final = False
        self.plain = raw and not timing and not any(output.classes for output in outputs)
        self._key: Any = None
        self._head = b""
        self._prefixes: list[tuple[int, bytes]] = []

    def pieces(self, tensors: list[bytes]) -> list[Piece]:
        """Raw contents are pieces as they are: the template has fixed their sizes."""
        return cast(list[Piece], tensors)

    def encode(self, result: BatchResult, first: int, last: int, timings: Timings, request_id: bytes) -> bytes:
        """The serialised ModelInferResponse for rows first…last of the batch."""
        if not self.plain or result.as_given:
            return self._encode_built(result, first, last, timings)
        rows = last - first
        key = (rows, result.row_shapes)
        if key != self._key:
            self._build_head(result, rows, key)
        parts = [self._head]
        for index, prefix in self._prefixes:
            raw = result.raw(index, first, last)
            parts.append(prefix or length_prefix(RAW_OUTPUT_CONTENTS_FIELD, len(raw)))
            parts.append(raw)
        return b"".join(parts)

    def encode_all(self, result: BatchResult, count: int) -> list[bytes] | None:
        """A whole batch of `count` requests of this form at once; None when that cannot be."""
        if not self.plain or result.as_given:
            return None
        rows = result.rows // count
        key = (rows, result.row_shapes)
        if key != self._key:
            self._build_head(result, rows, key)
        columns = []
        for index, prefix in self._prefixes:
            if not prefix:
                return None
            columns.append([prefix + part for part in result.raw_parts(index, count)])
        head = self._head
        return [head + b"".join(parts) for parts in zip(*columns, strict=True)]

    def _build_head(self, result: BatchResult, rows: int, key: Any) -> None:
        response = self._response(result)
        prefixes = []
        for requested in self.outputs:
            spec = result.model.outputs[requested.index]
            shape = result.shape(requested.index, rows)
            response.outputs.add(name=spec.name, datatype=spec.datatype.name, shape=shape)
            prefixes.append((requested.index, _fixed_prefix(spec, shape)))
        self._head = response.SerializeToString()
        self._prefixes = prefixes
        self._key = key

    def _response(self, result: BatchResult) -> pb.ModelInferResponse:
        model = result.model
        response = pb.ModelInferResponse(model_name=model.name, model_version=model.version, id=self.id)
        if model.is_arm:
            response.parameters["nexus_variant"].string_param = model.variant
        if self.final:
            response.parameters[FINAL_RESPONSE].bool_param = True
        return response

    def _encode_built(self, result: BatchResult, first: int, last: int, timings: Timings) -> bytes:
        response = self._response(result)
        raw = self.raw or self._has_raw_only(result)
        for requested in self.outputs:
            spec = result.model.outputs[requested.index]
            array = result.array(requested.index, first, last)
            if requested.classes:
                _add_classes(response, spec, array, requested.classes, result.is_cut, raw)
            else:
                _add_tensor(response, spec, array, raw)
        if self.timing:
            response.parameters["nexus_queue_us"].int64_param = timings.queue_us
            response.parameters["nexus_batch_size"].int64_param = timings.batch_size
            response.parameters["nexus_infer_us"].int64_param = timings.infer_us
            response.parameters["nexus_total_us"].int64_param = timings.total_us
        return bytes(response.SerializeToString())

    def _has_raw_only(self, result: BatchResult) -> bool:
        """One raw output (FP16 has no typed field) makes all of them raw: clients count raw_output_contents."""
        return any(not item.classes and not result.model.outputs[item.index].datatype.contents for item in self.outputs)


def _add_classes(
    response: pb.ModelInferResponse, spec: TensorSpec, array: Array, classes: int, batched: bool, raw: bool
) -> None:
    per_row = [top_classes(row, classes, spec.labels) for row in (array if batched else [array])]
    found = [item for row in per_row for item in row]
    shape = [len(per_row), len(per_row[0])] if batched else [len(found)]
    tensor = response.outputs.add(name=spec.name, datatype=BYTES.name, shape=shape)
    if raw:
        response.raw_output_contents.append(encode_bytes_tensor(text_array([item.decode() for item in found])))
    else:
        tensor.contents.bytes_contents.extend(found)


def _add_tensor(response: pb.ModelInferResponse, spec: TensorSpec, array: Array, raw: bool) -> None:
    tensor = response.outputs.add(name=spec.name, datatype=spec.datatype.name, shape=array.shape)
    if raw:
        response.raw_output_contents.append(encode_bytes_tensor(array) if spec.datatype is BYTES else array.tobytes())
    elif spec.datatype is BYTES:
        tensor.contents.bytes_contents.extend(text_elements(array))
    else:
        getattr(tensor.contents, spec.datatype.contents).extend(array.ravel().tolist())


def _fixed_prefix(spec: TensorSpec, shape: tuple[int, ...]) -> bytes:
    """Tag and length of a raw output whose size follows from its shape; empty for BYTES."""
    if spec.datatype is BYTES:
        return b""
    size = spec.datatype.itemsize_bytes
    for dim in shape:
        size *= dim
    return length_prefix(RAW_OUTPUT_CONTENTS_FIELD, size)

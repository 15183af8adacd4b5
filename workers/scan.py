"""What is refused of a model file before ONNX Runtime sees it.

ONNX files name other files (external data), memory addresses (ONNX Runtime's ORT_MEM_ADDR marker), compiled blobs
(EPContext) and operators of any library; a small file may declare tensors of any size or functions that unfold without
end. The file is parsed as protobuf and nothing more: external data is never opened, no node is run. The walk goes
through every message by its descriptor, so that nothing hides in a corner that this module forgot.

Runs in the throw-away process of a trial (trial.py). Sources: ONNX's CVE-2022-25882, -2024-27318, -2024-5187,
-2026-34445; onnx/onnx.proto.
"""

import dataclasses
import math
import os
from collections.abc import Iterator
from typing import Any

from google.protobuf.message import DecodeError, Message
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto

from .foreign_formats import HEAD_BYTES, recognised
from .known_ops import CONTRIB_OPS, IR_VERSION_MAX, OPSET_MAX

# Exported language models have some 50,000 nodes; ONNX Runtime copies a function's nodes for each call.
NODES_MAX = 1_000_000
# Functions that call functions: onnxruntime unfolds them recursively, and 5000 deep overflow its stack. PyTorch's are a
# handful deep.
CALLS_DEEP_MAX = 100
# A subgraph costs protobuf three levels of its own limit of 100. Exported models have five at most.
DEPTH_MAX = 16
# PyTorch names a value after the path of its module; a few hundred bytes.
NAME_MAX_CHARACTERS = 4096
# numpy has no arrays of more dimensions.
RANK_MAX = 64
# Beyond protobuf's own limit for one message there is no request that could carry it.
INPUT_BYTES_MAX = (2 << 30) - 1
# A sparse tensor is stored dense once loaded; real ones are a hundred times their file's size at most.
DENSE_FACTOR_MAX, DENSE_BYTES_FREE = 1000, 16 << 20

READ_BYTES = 1 << 20

STANDARD_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})
CONTRIB_DOMAIN = "com.microsoft"
MEMORY_MARKER = "_ORT_MEM_ADDR_"

# Bits of one element by TensorProto.DataType's names (onnx.proto); strings count as one byte each.
_BITS = {
    2: "INT2 UINT2",
    4: "INT4 UINT4 FLOAT4E2M1",
    6: "FLOAT6E2M3 FLOAT6E3M2",
    8: "UINT8 INT8 BOOL STRING FLOAT8E4M3FN FLOAT8E4M3FNUZ FLOAT8E5M2 FLOAT8E5M2FNUZ FLOAT8E8M0",
    16: "FLOAT16 BFLOAT16 INT16 UINT16",
    32: "FLOAT INT32 UINT32",
    64: "DOUBLE INT64 UINT64 COMPLEX64",
    128: "COMPLEX128",
}
_BITS_OF = {TensorProto.DataType.Value(name): bits for bits, names in _BITS.items() for name in names.split()}
# A type that is newer than this: onnxruntime will say what it thinks of it.
_BITS_UNKNOWN = 8


class ScanRefused(Exception):
    """The file is refused; the text says what was found, where, and what to do.

    `kind` is "refused" for a model that must not be loaded, "not_onnx" for what is no ONNX model at all.
    """

    kind = "refused"


class NotOnnx(ScanRefused):
    kind = "not_onnx"


def scan_file(path: str) -> None:
    """As `scan`, of a file. Raises OSError when it cannot be read."""
    size = os.stat(path).st_size
    if size > INPUT_BYTES_MAX:
        raise NotOnnx("the file is larger than 2 GiB, more than an ONNX model (one protobuf message) can be")
    content, length = bytearray(size), 0
    with open(path, "rb", buffering=0) as file, memoryview(content) as view:
        # In pieces: on a kernel without preemption, one read of 200 MB stops whoever else is on the core for 100 ms.
        while count := file.readinto(view[length : length + READ_BYTES]):
            length += count
    scan(content[:length] if length < size else content)


def scan(content: bytes | bytearray) -> None:
    """Look through a model file.

    Raises:
        NotOnnx: it is no ONNX model, or only a part of one.
        ScanRefused: it is one that must not be loaded, or that this server cannot load.
    """
    if not content:
        raise NotOnnx("the file is empty; expected an ONNX model")
    model = ModelProto()
    try:
        model.ParseFromString(content)  # type: ignore[arg-type]
    except DecodeError:
        raise NotOnnx(
            recognised(bytes(content[:HEAD_BYTES]))
            or "not an ONNX model: the file is no protobuf message, is truncated, or is nested too deeply;"
            " check that it arrived whole (its sha256) and that it was exported as ONNX"
        ) from None
    if not model.HasField("graph") or not (model.ir_version or model.opset_import):
        raise NotOnnx(
            recognised(bytes(content[:HEAD_BYTES]))
            or "not an ONNX model: it has no graph; expected a file written by an ONNX exporter"
        )
    _check_versions(model)
    _Walk(model, len(content)).check()


def _check_versions(model: ModelProto) -> None:
    if model.ir_version > IR_VERSION_MAX:
        raise ScanRefused(
            f"the model has IR version {model.ir_version}; this server reads up to {IR_VERSION_MAX}:"
            " export it with an older onnx, or set model.ir_version before saving"
        )
    functions = ((f"function '{_cut(function.name)}'", function.opset_import) for function in model.functions)
    for owner, imports in (("the model", model.opset_import), *functions):
        for item in imports:
            known = OPSET_MAX.get("" if item.domain == "ai.onnx" else item.domain)
            if known is not None and not 0 < item.version <= known:
                raise ScanRefused(
                    f"{owner} uses opset {item.version} of domain '{item.domain or 'ai.onnx'}'; this server knows"
                    f" 1 to {known}: export it with an opset of at most {known}"
                )


@dataclasses.dataclass(slots=True)
class _Place:
    """Where in the file a message is, for texts, and how many graphs deep."""

    text: str
    depth: int = 0


Key = tuple[str, str, str]


class _Walk:
    """One pass over all messages of a model; counts on the way."""

    def __init__(self, model: ModelProto, file_bytes: int) -> None:
        self._model = model
        self._file_bytes = file_bytes
        self._dense_bytes = 0
        self._nodes = 0
        self._functions: dict[Key, FunctionProto] = {
            (function.domain, function.name, function.overload): function for function in model.functions
        }
        # Which functions the nodes of the main graph (None) and of each function call, with repetitions.
        self._calls: dict[Key | None, list[Key]] = {None: []}
        self._own_nodes: dict[Key | None, int] = {}

    def check(self) -> None:
        """Raises ScanRefused."""
        for field, value in self._model.ListFields():
            if field.type == field.TYPE_STRING:
                _check_texts(field, value, _Place("the model"))
            elif field.type == field.TYPE_MESSAGE and field.name != "functions":
                self._descend(value, _Place("the model"), None)
        self._own_nodes[None] = self._nodes
        if len(self._functions) < len(self._model.functions):
            # Which of them onnxruntime takes is its secret.
            raise ScanRefused("the model has two functions of one name; export it again")
        for key, function in self._functions.items():
            before = self._nodes
            self._calls[key] = []
            self._message(function, _Place(f"function '{_cut(function.name)}'", 1), key)
            self._own_nodes[key] = self._nodes - before
        self._check_unfolded()

    # --- the walk ---

    def _message(self, message: Message, place: _Place, owner: Key | None) -> None:
        if isinstance(message, TensorProto):
            # Not by its fields: each look at raw_data copies it.
            _check_tensor(message, place)
            return
        fields = message.ListFields()
        for field, value in fields:
            if field.type == field.TYPE_STRING:
                _check_texts(field, value, place)
        if isinstance(message, SparseTensorProto):
            self._sparse(message, place)
        elif isinstance(message, NodeProto):
            place = self._node(message, place, owner)
        elif isinstance(message, GraphProto):
            place = _graph(message, place)
        elif isinstance(message, AttributeProto):
            _check_attribute(message, place)
        for field, value in fields:
            if field.type == field.TYPE_MESSAGE:
                self._descend(value, place, owner)

    def _descend(self, value: Any, place: _Place, owner: Key | None) -> None:
        for item in (value,) if isinstance(value, Message) else value:
            self._message(item, place, owner)

    def _node(self, node: NodeProto, place: _Place, owner: Key | None) -> _Place:
        self._nodes += 1
        if self._nodes > NODES_MAX:
            raise ScanRefused(f"the model has more than {NODES_MAX} nodes")
        title = f"{place.text}: node '{_cut(node.name or node.op_type)}' ({_cut(node.op_type)})"
        key = (node.domain, node.op_type, node.overload)
        if node.op_type == "EPContext":
            raise ScanRefused(
                f"{title} holds a model compiled for other hardware, or names a file with one; export the original"
            )
        if key in self._functions:
            self._calls[owner].append(key)
        elif node.domain == CONTRIB_DOMAIN:
            if node.op_type not in CONTRIB_OPS:
                raise ScanRefused(f"{title}: this server's onnxruntime has no such operator in '{CONTRIB_DOMAIN}'")
        elif node.domain not in STANDARD_DOMAINS:
            raise ScanRefused(
                f"{title} is a custom operator of domain '{_cut(node.domain)}'; this server has those of ai.onnx,"
                f" ai.onnx.ml and {CONTRIB_DOMAIN}: export the model without it"
            )
        return dataclasses.replace(place, text=title)

    def _sparse(self, tensor: SparseTensorProto, place: _Place) -> None:
        name = f"{place.text}: sparse tensor '{_cut(tensor.values.name)}'"
        self._dense_bytes += _declared_bytes(tuple(tensor.dims), tensor.values.data_type, name)
        if self._dense_bytes > max(DENSE_FACTOR_MAX * self._file_bytes, DENSE_BYTES_FREE):
            raise ScanRefused(
                f"{name}: the model's sparse tensors declare {self._dense_bytes} bytes once stored dense, in a file of"
                f" {self._file_bytes} bytes"
            )

    # --- functions ---

    def _check_unfolded(self) -> None:
        """How many nodes there are once each function's are copied to where it is called, and how deep."""
        unfolded: dict[Key | None, int] = {}
        depths: dict[Key | None, int] = {}
        for key in _callees_first(self._calls):
            unfolded[key] = self._own_nodes[key] + sum(unfolded[called] for called in self._calls[key])
            depths[key] = 1 + max((depths[called] for called in self._calls[key]), default=0)
            if unfolded[key] > NODES_MAX:
                raise ScanRefused(f"the model's functions unfold to more than {NODES_MAX} nodes")
            if depths[key] > CALLS_DEEP_MAX:
                raise ScanRefused(f"the model's functions call each other more than {CALLS_DEEP_MAX} deep")


def _callees_first(calls: dict[Key | None, list[Key]]) -> Iterator[Key | None]:
    """Every function after those that it calls. Raises ScanRefused when there is no such order."""
    done: set[Key | None] = set()
    for start in calls:
        # By hand rather than recursively: a chain of functions may be longer than Python's stack.
        stack: list[tuple[Key | None, Iterator[Key]]] = [(start, iter(set(calls[start])))] if start not in done else []
        open_keys = {start}
        while stack:
            key, rest = stack[-1]
            called = next(rest, None)
            if called is None:
                stack.pop()
                open_keys.discard(key)
                done.add(key)
                yield key
            elif called in open_keys:
                raise ScanRefused(
                    f"function '{_cut(called[1])}' of the model calls itself; export it without recursion"
                )
            elif called not in done:
                open_keys.add(called)
                stack.append((called, iter(set(calls[called]))))


def _graph(graph: GraphProto, place: _Place) -> _Place:
    if place.depth >= DEPTH_MAX:
        raise ScanRefused(f"the model's graphs are nested more than {DEPTH_MAX} deep")
    inner = _Place(f"subgraph '{_cut(graph.name)}'" if place.depth else "the graph", place.depth + 1)
    for value in graph.input:
        tensor = value.type.tensor_type
        dims = tuple(dim.dim_value for dim in tensor.shape.dim if dim.HasField("dim_value") and dim.dim_value > 0)
        declared = _declared_bytes(dims, tensor.elem_type, f"input '{_cut(value.name)}'")
        if declared > INPUT_BYTES_MAX:
            raise ScanRefused(f"input '{_cut(value.name)}' has {declared} bytes, more than a request can carry (2 GiB)")
    return inner


def _check_texts(field: Any, value: Any, place: _Place) -> None:
    # Free text, which nothing looks up; keys and values of metadata among it.
    if field.name == "doc_string" or field.containing_type.name == "StringStringEntryProto":
        return
    for text in (value,) if isinstance(value, str | bytes) else value:
        _check_name(field.name, text, place)


def _check_name(kind: str, text: str | bytes, place: _Place) -> None:
    if len(text) > NAME_MAX_CHARACTERS:
        raise ScanRefused(
            f"{place.text}: a {kind} is {len(text)} characters long, at most {NAME_MAX_CHARACTERS} are taken:"
            f" '{_cut(text)}'"
        )
    # ONNX is proto2, whose strings come as bytes when they are no text.
    if isinstance(text, bytes):
        raise NotOnnx(f"{place.text}: a {kind} is not UTF-8 text: '{_cut(text)}'; the file is damaged")


def _check_attribute(attribute: AttributeProto, place: _Place) -> None:
    for value in (attribute.s, *attribute.strings):
        if MEMORY_MARKER.encode() in value:
            raise ScanRefused(f"{place.text}: attribute '{_cut(attribute.name)}' names a memory address")


def _check_tensor(tensor: TensorProto, place: _Place) -> None:
    name = f"{place.text}: tensor '{_cut(tensor.name)}'"
    _check_name("name", tensor.name, place)
    for entry in tensor.external_data:
        if MEMORY_MARKER in _text(entry.value):
            raise ScanRefused(f"{name} names a memory address instead of data; export the model with its weights")
    if tensor.data_location != TensorProto.DEFAULT or tensor.external_data:
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        raise ScanRefused(
            f"{name} has its data in another file ('{_cut(location)}'); external data is not read: save the model as"
            " one file (onnx.save with save_as_external_data=False)"
        )
    declared = _declared_bytes(tuple(tensor.dims), tensor.data_type, name)
    have = _held_bytes(tensor)
    if declared > have:
        raise ScanRefused(
            f"{name} declares {list(tensor.dims)[:8]}, {declared} bytes, and holds {have}; the file is damaged"
        )


def _declared_bytes(dims: tuple[int, ...], data_type: int, name: str) -> int:
    """What a tensor of these dims takes; strings count 1 each. Raises ScanRefused for a negative dim."""
    if len(dims) > RANK_MAX:
        raise ScanRefused(f"{name} has {len(dims)} dimensions, at most {RANK_MAX} are taken")
    if any(dim < 0 for dim in dims):
        raise ScanRefused(f"{name} has a negative dimension: {list(dims)[:8]}")
    return math.prod(dims) * _BITS_OF.get(data_type, _BITS_UNKNOWN) // 8


def _held_bytes(tensor: TensorProto) -> int:
    """Bytes of the tensor's elements as they are in memory, by the field that holds them (onnx.proto, TensorProto)."""
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data)
    bits = _BITS_OF.get(tensor.data_type, _BITS_UNKNOWN)
    # One entry per element; below 8 bits several share one of 8 bits; a complex number takes two.
    packed = max(bits, 8)
    complex_ones = tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128)
    entries = (
        len(tensor.float_data)
        + len(tensor.int32_data)
        + len(tensor.int64_data)
        + len(tensor.double_data)
        + len(tensor.uint64_data)
        + len(tensor.string_data)
    )
    return entries * packed // (16 if complex_ones else 8)


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "backslashreplace")


def _cut(value: str | bytes) -> str:
    text = _text(value)
    return text if len(text) <= 80 else text[:79] + "…"


__all__ = ["NotOnnx", "ScanRefused", "scan", "scan_file"]

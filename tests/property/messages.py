"""Strategies: valid requests for a few models, and their mutations."""

import struct
from typing import Any

import numpy as np
from hypothesis import strategies as st

from nexus_grpc.ipc.wire import varint
from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from nexus_grpc.pb.nexus.v1 import inference_pb2 as predict_pb
from nexus_grpc.worker.model import Model
from tests.unit.support import model_of, spec

TEXTS = st.text(max_size=6)


def models() -> list[Model]:
    """Fresh ones: templates are kept in them."""
    return [
        model_of(spec("x", "FP32", -1, 2)),
        model_of(spec("x", "FP32", -1, 2), max_batch_size=0),
        model_of(spec("x", "INT8", -1, -1), max_batch_size=4, strict=True),
        model_of(spec("x", "BOOL", -1, 2)),
        model_of(spec("x", "BYTES", -1, -1)),
        model_of(spec("x", "FP16", 2, 2), max_batch_size=0),
        model_of(spec("x", "INT64", -1, 1), spec("z", "FP64", -1, 2, optional=True)),
        model_of(spec("x", "UINT64", -1, 0, -1)),
    ]


@st.composite
def infer_requests(draw: st.DrawFn, model: Model) -> pb.ModelInferRequest:
    """Mostly valid ones."""
    request = pb.ModelInferRequest(model_name="m", model_version=draw(st.sampled_from(["", "1"])), id=draw(TEXTS))
    rows = draw(st.integers(0, 3))
    raw = draw(st.booleans())
    for tensor in draw(st.permutations(model.inputs)):
        if tensor.optional and draw(st.booleans()):
            continue
        shape = [rows if index == 0 and dim == -1 else draw(st.integers(0, 3)) if dim == -1 else dim
                 for index, dim in enumerate(tensor.shape)]  # fmt: skip
        added = request.inputs.add(name=tensor.name, datatype=tensor.datatype.name, shape=shape)
        count = int(np.prod(shape))
        if not raw:
            values: Any = [b"text"] * count if tensor.datatype.name == "BYTES" else [1] * count
            if tensor.datatype.contents:
                getattr(added.contents, tensor.datatype.contents).extend(values)
        elif tensor.datatype.name == "BYTES":
            request.raw_input_contents.append(b"\2\0\0\0ab" * count)
        elif tensor.datatype.name == "BOOL":
            request.raw_input_contents.append(b"\1" * count)
        else:
            size = count * tensor.datatype.itemsize_bytes
            request.raw_input_contents.append(draw(st.binary(min_size=size, max_size=size)))
    if draw(st.booleans()):
        output = request.outputs.add(name="y")
        if draw(st.booleans()):
            output.parameters["classification"].int64_param = draw(st.integers(-1, 3))
        output.parameters["binary_data"].bool_param = draw(st.booleans())
    if draw(st.booleans()):
        request.parameters["nexus_timing"].bool_param = True
        request.parameters["timeout"].int64_param = draw(st.integers(-(2**63), 2**63 - 1))
    return request


VALUES = st.lists(st.floats() | st.integers(-3, 3).map(float), max_size=5)


@st.composite
def predict_requests(draw: st.DrawFn) -> predict_pb.PredictRequest:
    return predict_pb.PredictRequest(
        model_id="m",
        model_version=draw(st.sampled_from(["", "1"])),
        features=draw(VALUES),
        texts=draw(st.just([]) | st.lists(TEXTS, max_size=4)),
        request_id=draw(TEXTS),
        nexus_timing=draw(st.booleans()),
    )


@st.composite
def predict_twins(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Two messages of one build and other values: features packed or not, at once or in parts, other fields between."""
    one, other = bytearray(b"\x0a\x01m"), bytearray(b"\x0a\x01m")
    for _ in range(draw(st.integers(1, 3))):
        count = draw(st.integers(0, 2))
        packed = draw(st.booleans())
        for message in (one, other):
            values = draw(st.lists(st.sampled_from([0.0, 1.0, 2.0, 0.5, 300.0]), min_size=count, max_size=count))
            doubles = [struct.pack("<d", value) for value in values]
            if packed:
                message += b"\x1a" + varint(8 * count) + b"".join(doubles)
            else:
                message += b"".join(b"\x19" + double for double in doubles)
        field = draw(st.sampled_from([b"", b"\x22\x02id", b"\x30\x01"]))
        one += field
        other += field
    return bytes(one), bytes(other)


@st.composite
def batch_requests(draw: st.DrawFn) -> predict_pb.BatchPredictRequest:
    rows = draw(st.lists(st.tuples(VALUES, st.just([]) | st.lists(TEXTS, max_size=3)), max_size=4))
    return predict_pb.BatchPredictRequest(
        model_id="m", rows=[predict_pb.FeatureRow(features=values, texts=texts) for values, texts in rows]
    )


@st.composite
def extra_fields(draw: st.DrawFn) -> bytes:
    """A field of any number and wire type, whole or not quite."""
    number, kind = draw(st.integers(1, 8)), draw(st.sampled_from([0, 1, 2, 5]))
    content = {
        0: varint(draw(st.integers(0, 2**64 - 1))),
        1: draw(st.binary(min_size=8, max_size=8)),
        2: b"",
        5: draw(st.binary(min_size=4, max_size=4)),
    }[kind]
    if kind == 2:
        body = draw(st.binary(max_size=20))
        content = varint(len(body)) + body
    return varint(number << 3 | kind) + content


@st.composite
def mutations(draw: st.DrawFn, message: bytes) -> bytes:
    """Bytes changed, cut out, put in or repeated; fields before and behind."""
    changed = bytearray(message)
    for _ in range(draw(st.integers(0, 3))):
        what = draw(st.sampled_from(["flip", "cut", "insert", "append", "prepend", "repeat"]))
        at = draw(st.integers(0, max(0, len(changed) - 1)))
        if what == "flip" and changed:
            changed[at] = draw(st.integers(0, 255))
        elif what == "cut":
            del changed[at : at + draw(st.integers(1, 8))]
        elif what == "insert":
            changed[at:at] = draw(st.binary(min_size=1, max_size=4))
        elif what == "append":
            changed += draw(extra_fields())
        elif what == "prepend":
            changed[:0] = draw(extra_fields())
        elif what == "repeat":
            changed += changed[: at + 1]
    return bytes(changed)

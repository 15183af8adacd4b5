"""Tensors of every datatype go through decoding, batching and encoding unchanged."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from nexus_grpc.worker.infer_decode import decode_infer
from nexus_grpc.worker.requests import Timings
from nexus_grpc.worker.results import BatchResult
from nexus_grpc.worker.tensors import DATATYPES, Array, Datatype, decode_bytes_tensor, encode_bytes_tensor, text_array
from tests.effort import examples
from tests.unit.support import model_of, spec

TEXT = st.text(max_size=8)


def values_of(datatype: Datatype) -> st.SearchStrategy[Any]:
    kind, bits = datatype.dtype.kind, 8 * datatype.dtype.itemsize
    if kind == "O":
        return TEXT
    if kind == "b":
        return st.booleans()
    if kind == "f":
        return st.floats(width=bits, allow_nan=False)  # type: ignore[arg-type]
    low = -(2 ** (bits - 1)) if kind == "i" else 0
    return st.integers(low, low + 2**bits - 1)


@st.composite
def arrays(draw: st.DrawFn, datatype: Datatype, rows_max: int = 4) -> Array:
    rows, columns = draw(st.integers(1, rows_max)), draw(st.integers(0, 3))
    values = draw(st.lists(values_of(datatype), min_size=rows * columns, max_size=rows * columns))
    array = text_array(values) if datatype.dtype == object else np.array(values, dtype=datatype.dtype)
    return array.reshape(rows, columns)


def request_of(datatype: Datatype, array: Array, raw: bool) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="m")
    tensor = request.inputs.add(name="x", datatype=datatype.name, shape=array.shape)
    if datatype.dtype == object:
        if raw:
            request.raw_input_contents.append(encode_bytes_tensor(array))
        else:
            tensor.contents.bytes_contents.extend(text.encode() for text in array.ravel())
    elif raw:
        request.raw_input_contents.append(array.tobytes())
    else:
        getattr(tensor.contents, datatype.contents).extend(array.ravel().tolist())
    return request


def array_of(response: pb.ModelInferResponse, datatype: Datatype) -> Array:
    [output] = response.outputs
    assert output.datatype == datatype.name
    shape = tuple(output.shape)
    if response.raw_output_contents:
        [raw] = response.raw_output_contents
        if datatype.dtype == object:
            return decode_bytes_tensor(raw, int(np.prod(shape)), "y").reshape(shape)
        return np.frombuffer(raw, dtype=datatype.dtype).reshape(shape)
    values = getattr(output.contents, datatype.contents)
    if datatype.dtype == object:
        return text_array([value.decode() for value in values]).reshape(shape)
    return np.array(list(values), dtype=datatype.dtype).reshape(shape)


@given(st.data(), st.sampled_from(DATATYPES), st.booleans())
@settings(deadline=None, max_examples=examples(300))
def test_in_and_out_again(data: st.DataObject, datatype: Datatype, raw: bool) -> None:
    """What a model that returns its input would answer, for a part of a batch."""
    raw = raw or not datatype.contents
    array = data.draw(arrays(datatype))
    model = model_of(spec("x", datatype.name, -1, -1), outputs=[spec("y", datatype.name, -1, -1)])
    decoded = decode_infer(model, request_of(datatype, array, raw).SerializeToString())
    [piece] = decoded.pieces
    fed = piece if isinstance(piece, np.ndarray) else np.frombuffer(piece, dtype=datatype.dtype)
    assert decoded.rows == len(array)
    assert fed.reshape(array.shape).tolist() == array.tolist()
    others = np.concatenate([array, array, array])
    first = len(array)
    encoded = decoded.form.encode(BatchResult(model, [others], len(others)), first, 2 * first, Timings(0, 0, 0, 0), b"")
    answered = array_of(pb.ModelInferResponse.FromString(encoded), datatype)
    assert answered.shape == array.shape
    assert answered.tolist() == array.tolist()


@given(st.lists(TEXT, max_size=20))
@settings(deadline=None, max_examples=examples(100))
def test_bytes_tensors(texts: list[str]) -> None:
    assert decode_bytes_tensor(encode_bytes_tensor(text_array(texts)), len(texts), "x").tolist() == texts

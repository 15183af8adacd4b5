"""Whatever bytes come: the decoders answer with a request or with InvalidInput, nothing else."""

from collections.abc import Callable

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus_grpc.ipc.errors import InvalidInput
from nexus_grpc.ipc.record import Method
from nexus_grpc.worker.assembly import assemble
from nexus_grpc.worker.infer_decode import decode_infer
from nexus_grpc.worker.model import Model
from nexus_grpc.worker.predict_codec import decode_batch_predict, decode_predict
from nexus_grpc.worker.requests import Decoded, Request
from nexus_grpc.worker.template import find_template, remember_template
from tests.effort import examples
from tests.property.messages import batch_requests, infer_requests, models, mutations, predict_requests

MODELS = range(len(models()))


def hold(decode: Callable[[Model, bytes], Decoded], method: Method, model: Model, message: bytes) -> None:
    """Decode as the worker does, and assemble what came out: that must not fail either."""
    try:
        decoded = decode(model, message)
    except InvalidInput:
        return
    assert decoded.rows >= 1
    request = Request(None, 1, 0, 0, b"")
    request.rows, request.signature, request.pieces = decoded.rows, decoded.signature, decoded.pieces
    for name, array in assemble(model, [request], decoded.rows).items():
        spec = model.input_named(name)
        assert spec is not None
        assert array.dtype == spec.datatype.dtype
        assert array.shape[0] == decoded.rows or not model.batchable
        assert isinstance(array, np.ndarray)
    remember_template(model, method, message, decoded)
    template = find_template(model, method, message)
    if template is not None:
        assert template.decoded.form.pieces(template.tensors(message)) == decoded.pieces


@given(st.binary(max_size=200), st.sampled_from(MODELS))
@settings(deadline=None, max_examples=examples(200))
def test_random_bytes(message: bytes, index: int) -> None:
    hold(decode_infer, Method.MODEL_INFER, models()[index], message)
    hold(decode_predict, Method.PREDICT, models()[index], message)
    hold(decode_batch_predict, Method.BATCH_PREDICT, models()[index], message)


@given(st.data(), st.sampled_from(MODELS))
@settings(deadline=None, max_examples=examples(400))
def test_infer_requests_and_what_becomes_of_them(data: st.DataObject, index: int) -> None:
    model = models()[index]
    message = data.draw(infer_requests(model)).SerializeToString()
    hold(decode_infer, Method.MODEL_INFER, model, data.draw(st.just(message) | mutations(message)))


@given(st.data(), st.sampled_from(MODELS))
@settings(deadline=None, max_examples=examples(300))
def test_predict_requests_and_what_becomes_of_them(data: st.DataObject, index: int) -> None:
    message = data.draw(predict_requests()).SerializeToString()
    hold(decode_predict, Method.PREDICT, models()[index], data.draw(st.just(message) | mutations(message)))


@given(st.data(), st.sampled_from(MODELS))
@settings(deadline=None, max_examples=examples(300))
def test_batch_requests_and_what_becomes_of_them(data: st.DataObject, index: int) -> None:
    message = data.draw(batch_requests()).SerializeToString()
    hold(decode_batch_predict, Method.BATCH_PREDICT, models()[index], data.draw(st.just(message) | mutations(message)))


DIMS = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, 1, 2, 2**31, 2**32, 2**62])


@given(st.lists(DIMS, max_size=4), st.binary(max_size=16), st.sampled_from(MODELS))
@settings(deadline=None, max_examples=examples(300))
def test_shapes_of_any_size(shape: list[int], raw: bytes, index: int) -> None:
    from nexus_grpc.pb.inference import grpc_service_pb2 as pb

    model = models()[index]
    request = pb.ModelInferRequest(model_name="m", raw_input_contents=[raw])
    request.inputs.add(name="x", datatype=model.inputs[0].datatype.name, shape=shape)
    hold(decode_infer, Method.MODEL_INFER, model, request.SerializeToString())

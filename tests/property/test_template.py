"""Whenever a template matches, decoding in full gives the same request."""

import contextlib
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus_grpc.ipc.errors import InvalidInput
from nexus_grpc.ipc.record import Method
from nexus_grpc.worker.infer_decode import decode_infer
from nexus_grpc.worker.infer_form import InferForm
from nexus_grpc.worker.model import Model
from nexus_grpc.worker.predict_codec import PredictForm, decode_predict
from nexus_grpc.worker.requests import Decoded
from nexus_grpc.worker.template import find_template, remember_template
from nexus_grpc.worker.tensors import Piece
from tests.effort import examples
from tests.property.messages import infer_requests, models, mutations, predict_requests, predict_twins

DECODERS = {Method.MODEL_INFER: decode_infer, Method.PREDICT: decode_predict}


def form_key(form: Any) -> object:
    """What decides how an answer looks."""
    if isinstance(form, InferForm):
        return form.id, form.outputs, form.raw, form.timing
    assert isinstance(form, PredictForm)
    return form.spec, form.request_id, form.timing


def plain(pieces: list[Piece]) -> list[object]:
    return [piece.tolist() if isinstance(piece, np.ndarray) else bytes(piece) for piece in pieces]


def check(model: Model, method: Method, first: bytes, second: bytes) -> None:
    """As the worker's loop does: decode the first in full and remember it, then look at the second."""
    try:
        remember_template(model, method, first, DECODERS[method](model, first))
    except InvalidInput:
        return
    template = find_template(model, method, second)
    if template is None:
        return
    in_full: Decoded | None = None
    with contextlib.suppress(InvalidInput):
        in_full = DECODERS[method](model, second)
    try:
        pieces = template.decoded.form.pieces(template.tensors(second))
    except InvalidInput:
        assert in_full is None
        return
    assert in_full is not None, "the template accepts what decoding in full refuses"
    assert plain(pieces) == plain(in_full.pieces)
    assert template.decoded.signature == in_full.signature
    assert template.decoded.rows == in_full.rows
    assert template.decoded.timeout_ns == in_full.timeout_ns
    assert form_key(template.decoded.form) == form_key(in_full.form)


@given(st.data(), st.sampled_from(range(len(models()))))
@settings(deadline=None, max_examples=examples(300))
def test_infer_templates(data: st.DataObject, index: int) -> None:
    model = models()[index]
    first = data.draw(infer_requests(model)).SerializeToString()
    first = data.draw(mutations(first) | st.just(first))
    check(model, Method.MODEL_INFER, first, data.draw(mutations(first) | st.just(first)))


@given(st.data(), st.sampled_from(range(len(models()))))
@settings(deadline=None, max_examples=examples(300))
def test_predict_templates(data: st.DataObject, index: int) -> None:
    model = models()[index]
    first = data.draw(predict_requests()).SerializeToString()
    first = data.draw(mutations(first) | st.just(first))
    check(model, Method.PREDICT, first, data.draw(mutations(first) | st.just(first)))


@given(predict_twins(), st.sampled_from(range(len(models()))))
@settings(deadline=None, max_examples=examples(300))
def test_predict_templates_of_twins(twins: tuple[bytes, bytes], index: int) -> None:
    check(models()[index], Method.PREDICT, *twins)

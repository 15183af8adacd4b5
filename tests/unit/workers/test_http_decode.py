"""JSON bodies: strictly read, and equal in meaning to their typed messages."""

import contextlib
import json

import numpy as np
import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from nexus_grpc.ipc.errors import InvalidInput
from nexus_grpc.ipc.wire import length_prefix
from nexus_grpc.pb.nexus.v1 import inference_pb2, rest_pb2
from nexus_grpc.worker.http_bodies import (
    ApiBatchPredictBody,
    ApiPredictBody,
    InferBody,
    PredictBody,
    V2Body,
    V2Input,
    V2Output,
    json_of,
)
from nexus_grpc.worker.http_decode import (
    decode_api_batch_predict,
    decode_api_predict,
    decode_http_predict,
    decode_v1_infer,
)
from nexus_grpc.worker.http_forms import SentinelForm
from nexus_grpc.worker.predict_codec import decode_predict
from nexus_grpc.worker.v2_decode import decode_v2_infer
from tests.unit.support import model_of, spec

DECODERS = [
    decode_http_predict,
    decode_api_predict,
    decode_api_batch_predict,
    decode_v1_infer,
    decode_v2_infer,
]
MODEL = model_of(spec("x", "FP32", -1, 2))
TWO = model_of(spec("a", "FP32", -1, 2), spec("t", "BYTES", -1, 1))


def message(body: object, name: bytes = b"m", version: bytes = b"") -> bytes:
    """As front/http_calls.py writes it."""
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = (length_prefix(1, len(name)) + name if name else b"") + (
        length_prefix(2, len(version)) + version if version else b""
    )
    return head + length_prefix(15, len(text)) + text


@pytest.mark.parametrize("version", [b"", b"1"])
def test_the_json_is_found(version: bytes) -> None:
    assert json_of(message(b"{}" * 200, version=version)) == b"{}" * 200


@pytest.mark.parametrize(
    ("kind", "descriptor", "in_path"),
    [
        (PredictBody, inference_pb2.PredictRequest.DESCRIPTOR, set()),
        (ApiPredictBody, rest_pb2.ApiPredictRequest.DESCRIPTOR, set()),
        (ApiBatchPredictBody, rest_pb2.ApiBatchPredictRequest.DESCRIPTOR, set()),
        (InferBody, rest_pb2.InferRequest.DESCRIPTOR, set()),
        (V2Body, rest_pb2.V2InferRequest.DESCRIPTOR, set()),
        (V2Input, rest_pb2.V2RequestInput.DESCRIPTOR, set()),
        (V2Output, rest_pb2.V2RequestOutput.DESCRIPTOR, set()),
    ],
)
def test_bodies_have_the_fields_of_the_protos(kind: type, descriptor: object, in_path: set[str]) -> None:
    assert set(kind.__struct_fields__) == {field.name for field in descriptor.fields} - in_path  # type: ignore[attr-defined]


def test_a_body_may_name_no_model_where_the_front_knew_one() -> None:
    for version in (b"", b"1"):
        decoded = decode_http_predict(
            MODEL, message({"features": [1, 2], "model_version": version.decode()}, b"", version)
        )
        assert (decoded.rows, type(decoded.form)) == (1, SentinelForm)
    with pytest.raises(InvalidInput, match="must appear once"):
        decode_http_predict(MODEL, message({"model_id": "other", "features": [1, 2]}, b""))


def test_several_rows() -> None:
    decoded = decode_http_predict(MODEL, message({"model_id": "m", "features": [[1, 2], [3, None]]}))
    assert (decoded.rows, decoded.signature) == (2, (("x", (2,)),))
    assert np.frombuffer(decoded.pieces[0], "<f4").tolist()[:3] == [1, 2, 3]
    alone = model_of(spec("x", "FP32", 1, 2), max_batch_size=0)
    with pytest.raises(InvalidInput, match="takes one row at a time"):
        decode_http_predict(alone, message({"model_id": "m", "features": [[1, 2], [3, 4]]}))
    assert decode_http_predict(alone, message({"model_id": "m", "features": [[1, 2]]})).rows == 1


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=2), st.text(max_size=9)
)
def test_a_typed_request_as_json_means_the_same(features: list[float], request_id: str) -> None:
    typed = inference_pb2.PredictRequest(model_id="m", features=features, request_id=request_id)
    by_grpc = decode_predict(MODEL, typed.SerializeToString())
    by_rest = decode_http_predict(MODEL, message(json_format.MessageToDict(typed, preserving_proto_field_name=True)))
    assert (by_rest.signature, by_rest.rows, by_rest.pieces) == (by_grpc.signature, by_grpc.rows, by_grpc.pieces)


@pytest.mark.parametrize("shape", [[], [2], [1, 2]])
def test_named_inputs_by_grpc_and_by_rest(shape: list[int]) -> None:
    inputs = {"a": {"shape": shape, "data": [1.5, 2]}, "t": {"data": ["größe"]}}
    typed = json_format.ParseDict({"model_id": "m", "inputs": inputs}, inference_pb2.PredictRequest())
    by_grpc = decode_predict(TWO, typed.SerializeToString())
    by_rest = decode_http_predict(TWO, message({"model_id": "m", "inputs": inputs}))
    assert by_grpc.signature == by_rest.signature == (("a", (2,)), ("t", (1,)))
    for decoded in (by_grpc, by_rest):
        numbers, texts = decoded.pieces
        assert np.frombuffer(numbers, "<f4").tolist() == [1.5, 2.0]
        assert texts.tolist() == ["größe"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"model_id": "m", "feature": [1]}, 'unknown field "feature"; did you mean "features"?'),
        ({"model_id": "m", "colour": 1}, 'unknown field "colour"; expected model_id, features'),
        ({"model_id": "m", "inputs": {"x": {"date": [1]}}}, 'unknown field "date" in .*; did you mean "data"?'),
        ({"model_id": "m", "inputs": {"x": {"shape": [1]}}}, 'field "data" is missing in inputs'),
        ({"model_id": "m", "features": ["1", 2]}, r'features\[0\]: expected a number, null or "NaN", .* got text'),
        ({"model_id": "m", "features": [[1, 2], 3]}, "row 1: expected a list of features"),
        ({"model_id": "m", "features": [[1, 2], [3]]}, "row 1: invalid input: expected 2 features, got 1"),
        ({"model_id": "m", "features": [[1, 2], [3, "x"]]}, r"row 1: features\[1\]: expected a number"),
        ({"model_id": "m", "features": [[[1, 2]]]}, r"row 0: features\[0\]: expected a number.* got a list"),
        ({"model_id": "m", "features": [[1, 2]], "texts": ["a"]}, "send either features"),
        ({"model_id": "", "features": [1, 2]}, "must appear once"),
        ({"features": [1, 2]}, "must appear once"),
        ({"model_id": "m", "features": [1, 2, 3]}, "invalid input: expected 2 features, got 3"),
        ({"model_id": "m", "features": [1e39, 2]}, r"feature 0 \(1e\+39\) does not fit FP32"),
        ({"model_id": "m", "features": [1, 2], "texts": ["a"]}, "expects numbers"),
        ({"model_id": "m", "features": [1, 2], "inputs": {"x": {"data": [1, 2]}}}, "send either features"),
        ({"model_id": "m", "inputs": {"y": {"data": [1, 2]}}}, "unexpected input 'y' for model 'm', expected 'x'"),
        ({"model_id": "other", "features": [1, 2]}, "must appear once"),
        ({"model_id": "m", "model_version": "2", "features": [1, 2]}, "must appear once"),
        (b'{"model_id":"m","features":[1,2],"features":[3,4]}', 'field "features" appears twice'),
        (b'{"model_id":"m","features":[1,2],"\\u0066eatures":[3,4]}', 'field "features" appears twice'),
        (b'{"model_id":"m","inputs":{"x":{"data":[1,2]},"x":{"data":[3,4]}}}', 'field "x" appears twice'),
        (b'{"model_id":"m","inputs":{"x":{"data":[1,2],"data":[3,4]}}}', 'field "data" appears twice'),
        (b'{"model_id":"m","features":[1,2],"request_id":"\\\\","nexus_timing":' + b"1" * 5000 + b"}", "nexus_timing"),
        (b"", "the body is empty"),
        (b"{", "not valid JSON"),
        (b'{"model_id":"m","features":[NaN,1]}', 'not valid JSON.*; write "NaN", with quotes, or null'),
        (b'{"model_id":"m","features":[1e999,1]}', "out of range"),
        (b'{"model_id":"m\xff","features":[1,2]}', "not valid JSON"),
        (b'{"model_id":"m","inputs":{"x":{"data":' + b"[" * 100_000 + b"]" * 100_000 + b"}}}", "nested too deeply"),
    ],
)
def test_what_is_wrong_with_a_predict_is_named(body: object, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        decode_http_predict(MODEL, message(body))


def test_integers_are_exact() -> None:
    model = model_of(spec("x", "INT64", -1, 2))
    decoded = decode_http_predict(model, message({"model_id": "m", "features": [2**63 - 1, -(2**63)]}))
    assert np.frombuffer(decoded.pieces[0], "<i8").tolist() == [2**63 - 1, -(2**63)]
    with pytest.raises(InvalidInput, match=rf"feature 1 \({2**63}\) does not fit INT64"):
        decode_http_predict(model, message({"model_id": "m", "features": [1, 2**63]}))


def test_the_predecessors_bodies() -> None:
    assert decode_api_predict(MODEL, message({"model_name": "m", "features": [1, 2], "use_cache": True})).rows == 1
    batch = decode_api_batch_predict(MODEL, message({"model_name": "m", "features_batch": [[1, 2], [3, 4]]}))
    assert (batch.rows, np.frombuffer(batch.pieces[0], "<f4").tolist()) == (2, [1, 2, 3, 4])
    with pytest.raises(InvalidInput, match="row 1: invalid input: expected 2 features, got 1"):
        decode_api_batch_predict(MODEL, message({"model_name": "m", "features_batch": [[1, 2], [3]]}))
    with pytest.raises(InvalidInput, match="at least 1 row"):
        decode_api_batch_predict(MODEL, message({"model_name": "m", "features_batch": []}))
    assert decode_v1_infer(MODEL, message({"model": "m", "version": "v1", "input": {"x": [1, 2]}})).rows == 1
    assert decode_v1_infer(MODEL, message({"model": "m", "input": {"x": [[1, 2], [3, 4], [5, 6]]}})).rows == 3


def v2(**fields: object) -> dict[str, object]:
    tensor = {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]}
    return {"inputs": [{**tensor, **fields}]}


def test_open_inference_by_rest() -> None:
    for data in ([1, 2, 3, 4], [[1, 2], [3, 4]]):
        decoded = decode_v2_infer(MODEL, message(v2(data=data)))
        assert (decoded.rows, decoded.signature) == (2, (("x", (2,)),))
    decoded = decode_v2_infer(MODEL, message(v2() | {"parameters": {"timeout": 5}, "outputs": [{"name": "y"}]}))
    assert decoded.timeout_ns == 5000


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (v2(name="z"), "unexpected input 'z'"),
        (v2(datatype="FP64"), "expected datatype FP32, got FP64"),
        (v2(shape=[2, 3]), r"expected shape \[-1,2\], got \[2,3\]"),
        (v2(shape=[-1, 2]), "expected shape"),
        (v2(data=[1, 2, 3]), "expected 4 values"),
        (v2(dat=[1]), r'unknown field "dat" in inputs\[0\]; did you mean "data"\?'),
        (v2(parameters={"binary_data_size": 8}), "both data and binary_data_size"),
        ({"inputs": []}, "missing: x"),
        ({}, "model .m. expects inputs .x.; missing: x"),
        ({"inputs": [v2()["inputs"][0]] * 2}, "input 'x' appears twice"),  # type: ignore[index]
        (v2() | {"outputs": [{"name": "z"}]}, "unexpected output 'z'"),
        (v2() | {"outputs": [{"name": "y", "parameters": {"classification": -1}}]}, "classification"),
        (v2() | {"parameters": {"triton_x": 1}}, "'triton_x' is not supported"),
        (v2() | {"parameters": {"timeout": "soon"}}, "'timeout' must be"),
        (b'{"inputs":[{"name":"x","name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}]}', "appears twice"),
        (b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}],"id":"a","id":"b"}', "appears twice"),
    ],
)
def test_what_is_wrong_with_a_v2_request_is_named(body: object, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        decode_v2_infer(MODEL, message(body))


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)
_fields = st.sampled_from(
    [
        "model_id",
        "model_name",
        "model",
        "features",
        "inputs",
        "features_batch",
        "input",
        "texts",
        "id",
        "outputs",
        "data",
    ]
)


@given(st.dictionaries(_fields, _json | st.just("m"), max_size=4) | _json, st.sampled_from(DECODERS))
def test_any_json_gives_a_decoded_request_or_a_refusal(body: object, decode: object) -> None:
    with contextlib.suppress(InvalidInput):
        decode(TWO, message(json.dumps(body).encode()))  # type: ignore[operator]


@given(st.binary(max_size=80), st.sampled_from(DECODERS))
def test_any_bytes_give_a_refusal(body: bytes, decode: object) -> None:
    with pytest.raises(InvalidInput):
        decode(MODEL, message(body))  # type: ignore[operator]

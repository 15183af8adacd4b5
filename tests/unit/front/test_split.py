"""Which variant a request goes to."""

import gzip
import json
import zlib
from typing import Any

import pytest

from nexus_grpc.front.split import STRATA, Split
from nexus_grpc.ipc.record import Method
from nexus_grpc.ipc.wire import length_prefix
from nexus_grpc.pb.inference import grpc_service_pb2 as infer_pb
from nexus_grpc.pb.nexus.v1 import inference_pb2 as predict_pb
from nexus_grpc.rest.twin import BODY_FIELD
from nexus_grpc.traffic.assignment import BUCKETS, bucket_of, encode, initial
from tests.unit.support import RecordedFlight

HALF = encode(initial([5_000, 5_000]))
KEYS = [f"key-{number}" for number in range(200)]


def flight(message: bytes = b"", method: int = Method.MODEL_INFER, **metadata: str | bytes) -> RecordedFlight:
    made = RecordedFlight(message, method=method)
    made.metadata = tuple(metadata.items())
    return made


def json_flight(method: int, content: Any) -> RecordedFlight:
    body = json.dumps(content).encode()
    return flight(length_prefix(BODY_FIELD, len(body)) + body, method)


def test_every_bucket_is_drawn_in_its_share() -> None:
    """Of a hundred in a row each hundredth of the table has one: shares are exact but for the stratum that is cut."""
    split = Split("AB", encode(initial([9_450, 550])), "salt", None)
    for _ in range(50):
        drawn = [split.choose(flight()) for _ in range(STRATA)]
        assert drawn.count("B") in (5, 6)
    many = [split.choose(flight()) for _ in range(100 * STRATA)]
    assert abs(many.count("B") / len(many) - 0.055) < 0.002


def test_the_order_of_a_draw_is_not_to_be_foreseen() -> None:
    split = Split("A", encode(initial([BUCKETS])), "salt", None)
    first, second = ([split._draw() for _ in range(STRATA)] for _ in range(2))
    assert sorted(bucket * STRATA // BUCKETS for bucket in first) == list(range(STRATA))
    assert [bucket * STRATA // BUCKETS for bucket in first] != [bucket * STRATA // BUCKETS for bucket in second]


def expected(key: str) -> str:
    return "AB"[bucket_of(key.encode(), "salt") >= 5_000]


@pytest.mark.parametrize("as_bytes", [False, True])
def test_a_header_is_the_key(as_bytes: bool) -> None:
    split = Split("AB", HALF, "salt", ("header", "x-user"))
    for key in KEYS:
        value = key.encode() if as_bytes else key
        assert {split.choose(flight(**{"other": "x", "x-user": value})) for _ in range(5)} == {expected(key)}
    # Without it: by chance.
    assert {split.choose(flight(other="x")) for _ in range(200)} == {"A", "B"}


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Method.MODEL_INFER, lambda key: _infer(string_param=key)),
        (Method.MODEL_STREAM_INFER, lambda key: _infer(string_param=key)),
        (Method.PREDICT, lambda key: predict_pb.PredictRequest(model_id="m", sticky_key=key)),
        (Method.PREDICT_STREAM, lambda key: predict_pb.PredictRequest(model_id="m", sticky_key=key)),
    ],
)
def test_a_parameter_is_the_key(method: int, message: Any) -> None:
    split = Split("AB", HALF, "salt", ("parameter", "customer"))
    for key in KEYS:
        assert split.choose(flight(message(key).SerializeToString(), method)) == expected(key)


def _infer(**value: Any) -> infer_pb.ModelInferRequest:
    request = infer_pb.ModelInferRequest(model_name="m")
    request.parameters["other"].string_param = "x"
    request.parameters["customer"].CopyFrom(infer_pb.InferParameter(**value))
    return request


@pytest.mark.parametrize(("value", "text"), [({"int64_param": 7}, "7"), ({"bool_param": True}, "True")])
def test_a_parameter_of_another_type(value: dict[str, Any], text: str) -> None:
    split = Split("AB", HALF, "salt", ("parameter", "customer"))
    assert {split.choose(flight(_infer(**value).SerializeToString())) for _ in range(9)} == {expected(text)}


def test_json_bodies() -> None:
    split = Split("AB", HALF, "salt", ("parameter", "customer"))
    for key in KEYS:
        assert split.choose(json_flight(Method.HTTP_PREDICT, {"features": [1], "sticky_key": key})) == expected(key)
        v2 = {"inputs": [], "parameters": {"customer": key, "other": 1}}
        assert split.choose(json_flight(Method.HTTP_V2_INFER, v2)) == expected(key)


@pytest.mark.parametrize("pack", [None, gzip.compress, zlib.compress])
def test_v2_bodies_with_binary_values_or_compressed(pack: Any) -> None:
    split = Split("AB", HALF, "salt", ("parameter", "customer"))
    for key in KEYS:
        text = json.dumps({"inputs": [], "parameters": {"customer": key}}).encode()
        body = text + b"\0\xff" * 8
        sent = [(3, str(len(text)).encode()), (15, pack(body) if pack else body)]
        if pack:
            sent.insert(1, (4, b"gzip"))
        message = b"".join(length_prefix(field, len(value)) + value for field, value in sent)
        assert split.choose(flight(message, Method.HTTP_V2_INFER)) == expected(key)


@pytest.mark.parametrize(
    "request_",
    [
        flight(b"\x0b"),
        flight(b"\xff\xff"),
        flight(),
        flight(infer_pb.ModelInferRequest(model_name="m").SerializeToString()),
        json_flight(Method.HTTP_PREDICT, {"sticky_key": ["x"]}),
        json_flight(Method.HTTP_V2_INFER, {"parameters": {"customer": None}}),
        json_flight(Method.HTTP_V2_INFER, {"parameters": []}),
        json_flight(Method.HTTP_V2_INFER, "no object"),
    ],
)
def test_what_has_no_key_is_drawn(request_: RecordedFlight) -> None:
    """What is wrong with a request is for the worker to say."""
    split = Split("AB", HALF, "salt", ("parameter", "customer"))
    assert {split.choose(request_) for _ in range(200)} == {"A", "B"}

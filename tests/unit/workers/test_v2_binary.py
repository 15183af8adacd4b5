"""POST /v2/models/{model_name}/infer: values behind the JSON, compressed bodies, and what clients write as null."""

import contextlib
import gzip
import json
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus_grpc.ipc.errors import InvalidInput
from nexus_grpc.ipc.wire import ANSWER_HEADERS_TAG, answer_headers, fields, length_prefix
from nexus_grpc.worker.http_bodies import json_of
from nexus_grpc.worker.model import QueuePolicy
from nexus_grpc.worker.requests import Decoded, Timings
from nexus_grpc.worker.results import BatchResult
from nexus_grpc.worker.tensors import DATATYPES, encode_bytes_tensor, text_array
from nexus_grpc.worker.v2_decode import decode_v2_infer
from nexus_grpc.worker.v2_envelope import COMPRESSED_BYTES_MAX, PLAIN_BYTES_MAX
from tests.unit.support import model_of, spec

MODEL = model_of(spec("x", "FP32", -1, 2), outputs=[spec("y", "FP32", -1, 2), spec("t", "BYTES", -1, 1)])
ROWS = np.array([[1, 2], [3, 4]], np.float32)
TIMINGS = Timings(1, 2, 3, 4)
Pack = Callable[[bytes], bytes]


def message(
    body: Any, binary: bytes = b"", length: str | None = None, pack: Pack | None = None, coding: str = "", **more: str
) -> bytes:
    """As front/http_calls.py writes it."""
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    if length is None:
        length = str(len(text)) if binary else ""
    sent = {1: b"m", 3: length.encode(), 4: coding.encode(), 5: more.get("accept", "").encode()}
    sent[15] = (pack or bytes)(text + binary)
    return b"".join(length_prefix(field, len(value)) + value for field, value in sent.items() if value or field == 15)


def tensor(**changes: Any) -> dict[str, Any]:
    plain = {"name": "x", "shape": [2, 2], "datatype": "FP32", "parameters": {"binary_data_size": 16}}
    return {key: value for key, value in {**plain, **changes}.items() if value is not ...}


def body(**changes: Any) -> dict[str, Any]:
    return {"inputs": [tensor()], **changes}


def answered(decoded: Decoded) -> tuple[dict[str, str], bytes, bytes]:
    """(headers, content type, content) of what a batch of two rows answers."""
    text = np.array([["a"], ["ä"]], object)
    raw = decoded.form.encode(BatchResult(MODEL, [ROWS, text], 2), 0, 2, TIMINGS, b"id")
    headers = dict(answer_headers(raw)) if raw[0] == ANSWER_HEADERS_TAG else {}
    found = {number: raw[start:end] for number, _, start, end in fields(raw)}
    return headers, found[1], found[2]


@pytest.mark.parametrize(
    ("pack", "coding"), [(None, ""), (None, "identity"), (gzip.compress, "gzip"), (zlib.compress, "deflate")]
)
def test_values_behind_the_json(pack: Pack | None, coding: str) -> None:
    decoded = decode_v2_infer(MODEL, message(body(), ROWS.tobytes(), pack=pack, coding=coding))
    assert (decoded.rows, decoded.signature) == (2, (("x", (2,)),))
    assert decoded.pieces == [ROWS.tobytes()]


@pytest.mark.parametrize("datatype", DATATYPES, ids=lambda each: each.name)
def test_every_datatype(datatype: Any) -> None:
    model = model_of(spec("x", datatype.name, -1, 2))
    text = text_array(["a", "größe"])
    values = text if datatype.name == "BYTES" else np.array([0, 1], datatype.dtype)
    raw = encode_bytes_tensor(values) if datatype.name == "BYTES" else values.tobytes()
    given = tensor(shape=[1, 2], datatype=datatype.name, parameters={"binary_data_size": len(raw)})
    (piece,) = decode_v2_infer(model, message({"inputs": [given]}, raw)).pieces
    assert piece.tolist() == text.tolist() if datatype.name == "BYTES" else piece == raw  # type: ignore[union-attr]


def test_several_inputs_share_what_follows() -> None:
    model = model_of(spec("a", "FP32", -1, 2), spec("b", "INT8", -1, 1), spec("c", "FP32", -1, 1))
    inputs = [
        tensor(name="b", shape=[1, 1], datatype="INT8", parameters={"binary_data_size": 1}),
        tensor(name="c", shape=[1, 1], parameters=None, data=[5]),
        tensor(name="a", shape=[1, 2], parameters={"binary_data_size": 8}),
    ]
    decoded = decode_v2_infer(model, message({"inputs": inputs}, b"\x07" + ROWS[0].tobytes()))
    assert decoded.pieces == [ROWS[0].tobytes(), b"\x07", np.float32(5).tobytes()]


def test_what_is_answered_in_binary() -> None:
    one, other = {"name": "y"}, {"name": "t"}
    yes, no = {"parameters": {"binary_data": True}}, {"parameters": {"binary_data": False}}
    for changes, wanted in [
        ({}, []),
        ({"parameters": {"binary_data_output": True}}, ["y", "t"]),
        ({"outputs": [one | yes, other]}, ["y"]),
        ({"outputs": [one, other | no], "parameters": {"binary_data_output": True}}, ["y"]),
        ({"outputs": [one | {"parameters": None}, other | {"parameters": {"binary_data": None}}]}, []),
    ]:
        headers, kind, content = answered(decode_v2_infer(MODEL, message(body(**changes), ROWS.tobytes())))
        length = int(headers.get("inference-header-content-length", len(content)))
        outputs = json.loads(content[:length])["outputs"]
        assert [each["name"] for each in outputs if "data" not in each] == wanted
        sizes = [each["parameters"]["binary_data_size"] for each in outputs if "data" not in each]
        assert sum(sizes) == len(content) - length
        assert kind == (b"application/octet-stream" if wanted else b"application/json")
        if wanted:
            assert content[length:].startswith(ROWS.tobytes())


@pytest.mark.parametrize(("coding", "unpack"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)])
def test_a_compressed_answer(coding: str, unpack: Pack) -> None:
    asked = body(parameters={"binary_data_output": True})
    headers, _, content = answered(decode_v2_infer(MODEL, message(asked, ROWS.tobytes(), accept=coding)))
    assert headers["content-encoding"] == coding
    length = int(headers["inference-header-content-length"])
    assert unpack(content)[length:].startswith(ROWS.tobytes())
    headers, kind, content = answered(decode_v2_infer(MODEL, message(body(), ROWS.tobytes(), accept=coding)))
    assert (list(headers), kind) == (["content-encoding"], b"application/json")
    assert json.loads(unpack(content))["outputs"][0]["data"] == [1, 2, 3, 4]


@pytest.mark.parametrize("accept", ["", "gzip, deflate", "br", "*", "identity", "gzip;q=0"])
def test_who_lists_several_codings_gets_none(accept: str) -> None:
    headers, _, _ = answered(decode_v2_infer(MODEL, message(body(), ROWS.tobytes(), accept=accept)))
    assert headers == {}


def test_a_large_answer_goes_as_it_is() -> None:
    form = decode_v2_infer(MODEL, message(body(parameters={"binary_data_output": True}), ROWS.tobytes(), accept="gzip"))
    large = np.zeros((1, COMPRESSED_BYTES_MAX // 4), np.float32)
    result = BatchResult(MODEL, [large, np.array([["a"]], object)], 1)
    assert "content-encoding" not in dict(answer_headers(form.form.encode(result, 0, 1, TIMINGS, b"id")))


def test_null_is_as_good_as_nothing() -> None:
    given = tensor(data=[1, 2, 3, 4], parameters=None)
    asked = {"id": None, "parameters": None, "outputs": None, "model_name": None, "model_version": None}
    assert decode_v2_infer(MODEL, message({**asked, "inputs": [given]})).rows == 2
    nulls = {"sequence_id": None, "timeout": None, "priority": None, "binary_data_output": None, "triton": None}
    assert decode_v2_infer(MODEL, message({"parameters": nulls, "inputs": [given]})).timeout_ns == 0


@pytest.mark.parametrize(("sent", "id_"), [(None, "id"), ("", "id"), (7, "7"), ("x", "x"), (0, "0")])
def test_ids(sent: Any, id_: str) -> None:
    _, _, content = answered(decode_v2_infer(MODEL, message(body(id=sent), ROWS.tobytes())))
    assert json.loads(content)["id"] == id_


def test_the_body_may_say_what_the_path_says() -> None:
    for version in ("1", 1, "v1", "", None):
        decode_v2_infer(MODEL, message(body(model_name="m", model_version=version), ROWS.tobytes()))
    for wrong in ({"model_name": "n"}, {"model_version": "2"}):
        with pytest.raises(InvalidInput, match="the path names another"):
            decode_v2_infer(MODEL, message(body(**wrong), ROWS.tobytes()))


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (message(body(), ROWS.tobytes()[:-1]), "binary_data_size is 16, but 15 bytes are left"),
        (message(body(), ROWS.tobytes() + b"x"), "1 bytes behind the JSON belong to no input"),
        (message(body(), ROWS.tobytes(), length="9999"), "Inference-Header-Content-Length is '9999', but the body has"),
        (message(body(), ROWS.tobytes(), length="-1"), "Inference-Header-Content-Length is '-1'"),
        (message(body(), ROWS.tobytes(), length="many"), "Inference-Header-Content-Length is 'many'"),
        (message({"inputs": [tensor(parameters=None)]}), "neither data nor binary_data_size"),
        (message({"inputs": [tensor(data=[1])]}, ROWS.tobytes()), "both data and binary_data_size"),
        (message({"inputs": [tensor(shape=[1, 2])]}, ROWS.tobytes()), "expected 8 bytes for shape"),
        (message({"inputs": [tensor(parameters={"binary_data_size": -1})]}), "must be a whole number"),
        (message({"inputs": [tensor(parameters={"binary_data_size": True})]}), "must be a whole number"),
        (message({"inputs": [tensor(parameters={"shared_memory_region": "r"})]}), "'shared_memory_region': shared"),
        (message(body(outputs=[{"name": "y", "parameters": {"shared_memory_region": "r"}}]), ROWS.tobytes()), "shared"),
        (message(body(parameters={"binary_data_output": 1}), ROWS.tobytes()), "'binary_data_output' must be true"),
        (message(body(), ROWS.tobytes(), coding="br"), "Content-Encoding is 'br'; expected gzip, deflate or none"),
        (message(body(), ROWS.tobytes(), coding="gzip"), "not gzip, as Content-Encoding says"),
        (message(body(), pack=lambda raw: gzip.compress(raw)[:-4], coding="gzip"), "it is cut"),
        (message(body(), pack=lambda raw: gzip.compress(raw) + b"x", coding="gzip"), "it is cut, or something follows"),
        (message(bytes(PLAIN_BYTES_MAX + 1), pack=gzip.compress, coding="gzip"), "when it is decompressed"),
        (message(body(parameters={"sequence_id": 1}), ROWS.tobytes()), "'sequence_id': model 'm' has no sequence"),
        (message(body(parameters={"sequence_id": "a"}), ROWS.tobytes()), "'sequence_id': model 'm' has no sequence"),
        (message(body(parameters={"priority": 1}), ROWS.tobytes()), "'priority': model 'm' has no priority levels"),
    ],
)
def test_what_is_wrong_is_named(made: bytes, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        decode_v2_infer(MODEL, made)


def test_sequences_and_priorities_that_ask_for_nothing() -> None:
    nothing = {"sequence_id": 0, "sequence_start": False, "sequence_end": False, "priority": 0}
    assert decode_v2_infer(MODEL, message(body(parameters=nothing), ROWS.tobytes())).priority == 0
    assert decode_v2_infer(MODEL, message(body(parameters={"sequence_id": ""}), ROWS.tobytes())).rows == 2


def test_priorities_are_those_of_the_model() -> None:
    model = model_of(queue=QueuePolicy(priority_levels=3, default_priority=2))
    for asked, level in ((0, 2), (1, 1), (3, 3), (4, 2)):
        assert decode_v2_infer(model, message(body(parameters={"priority": asked}), ROWS.tobytes())).priority == level
    with pytest.raises(InvalidInput, match="must not be negative"):
        decode_v2_infer(model, message(body(parameters={"priority": -1}), ROWS.tobytes()))


@given(st.binary(max_size=200), st.text(max_size=4), st.sampled_from(["", "gzip", "deflate", "x"]), st.binary())
def test_nothing_but_the_documented_error(text: bytes, length: str, coding: str, binary: bytes) -> None:
    with contextlib.suppress(InvalidInput):
        decode_v2_infer(MODEL, message(text, binary, length=length, coding=coding))


def test_the_other_routes_find_their_json() -> None:
    assert json_of(message(b"{}")) == b"{}"

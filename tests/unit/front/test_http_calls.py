"""Which model a REST call names: found without parsing where that is safe, and never another than a parser finds."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus_grpc.front.http_calls import addressee, as_hot_request
from nexus_grpc.front.routes import read_name_and_version
from nexus_grpc.ipc.errors import InvalidInput
from nexus_grpc.ipc.record import Method, is_http
from nexus_grpc.ipc.wire import fields, json_body, length_prefix

PREDICT = Method.HTTP_PREDICT


def twin_message(body: bytes, *parameters: bytes, leading: bytes = b"") -> bytes:
    """What Envoy sends; it begins with an empty body when the body is bound to a field."""
    message = leading
    for number, value in enumerate(parameters, 1):
        message += length_prefix(number, len(value)) + value
    wrapped = json_body(body)
    return message + length_prefix(15, len(wrapped)) + wrapped


def test_rest_methods_are_told_apart() -> None:
    assert [method.name for method in Method if is_http(method)] == [
        "HTTP_PREDICT",
        "HTTP_API_PREDICT",
        "HTTP_API_BATCH_PREDICT",
        "HTTP_V1_INFER",
        "HTTP_V2_INFER",
    ]


@pytest.mark.parametrize("leading", [b"", b"z\0"])
def test_a_message_is_rewritten_name_and_version_first(leading: bytes) -> None:
    body = b'{"features": [1], "model_version": "3", "model_id": "iris"}'
    message = as_hot_request(PREDICT, twin_message(body, leading=leading))
    assert read_name_and_version(message) == (b"iris", b"3")
    assert [(number, message[start:end]) for number, _, start, end in fields(message)] == [
        (1, b"iris"),
        (2, b"3"),
        (15, body),
    ]


def test_the_path_names_the_model_of_v2() -> None:
    message = as_hot_request(Method.HTTP_V2_INFER, twin_message(b'{"inputs": []}', b"iris", b"2", leading=b"z\0"))
    assert read_name_and_version(message) == (b"iris", b"2")


@pytest.mark.parametrize(
    ("method", "body", "expected"),
    [
        (PREDICT, b'{"model_id":"iris"}', (b"iris", b"")),
        (PREDICT, b'{ "model_id" \n : \t "iris" , "model_version":"" }', (b"iris", b"")),
        (PREDICT, b'{"\\u006dodel_id":"iris"}', (b"iris", b"")),
        (PREDICT, b'{"model_id":"i\\u0072is"}', (b"iris", b"")),
        (PREDICT, '{"model_id":"größe"}'.encode(), ("größe".encode(), b"")),
        (Method.HTTP_API_PREDICT, b'{"model_name":"iris","model_version":"9"}', (b"iris", b"")),
        (Method.HTTP_API_BATCH_PREDICT, b'{"model_name":"iris"}', (b"iris", b"")),
        (Method.HTTP_V1_INFER, b'{"model":"iris","version":"v2","input":{"model_x":[1]}}', (b"iris", b"v2")),
    ],
)
def test_who_is_named(method: Method, body: bytes, expected: tuple[bytes, bytes]) -> None:
    assert addressee(method, body) == expected


def test_predict_may_name_no_model() -> None:
    body = b'{"features": [1], "model_version": "3"}'
    message = as_hot_request(PREDICT, twin_message(body))
    assert [(number, message[start:end]) for number, _, start, end in fields(message)] == [(2, b"3"), (15, body)]
    for method in (Method.HTTP_API_PREDICT, Method.HTTP_API_BATCH_PREDICT, Method.HTTP_V1_INFER):
        with pytest.raises(InvalidInput, match="is missing: it names the model"):
            addressee(method, b"{}")


def test_a_v_before_a_version_is_taken_off() -> None:
    message = as_hot_request(Method.HTTP_V1_INFER, twin_message(b'{"model":"iris","version":"v2"}'))
    assert read_name_and_version(message) == (b"iris", b"2")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "empty"),
        (b"  ", "empty"),
        (b"{", "not valid JSON"),
        (b'"iris"', "must be a JSON object"),
        (b'{"model":"iris"}', 'is missing: it names the model; is it what the body has as "model"[?]'),
        (b'{"model_id":""}', '"model_id" is empty'),
        (b'{"model_id":7}', '"model_id" must be a string'),
        (b'{"model_id":"iris","model_version":2}', '"model_version" must be a string'),
        (b'{"model_id":null}', '"model_id" is missing'),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"model_id":"\xff"}', "not valid JSON"),
    ],
)
def test_what_names_nobody(body: bytes, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        addressee(PREDICT, body)


@pytest.mark.parametrize("message", [b"\xff", b"\x0a\x05ab", b"\x7a\x03abc", b"\x7a\x02\x12\x09"])
def test_what_is_no_twin_message(message: bytes) -> None:
    with pytest.raises(InvalidInput):
        as_hot_request(PREDICT, message)


_scalars = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | st.text(max_size=8)
_keys = st.sampled_from(["model_id", "model_version", "features", "x", 'a"model_id"', "\u00e9"]) | st.text(max_size=5)
_json = st.recursive(_scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=4))


@given(st.dictionaries(_keys, _json, max_size=5), st.booleans())
def test_never_another_model_than_a_parser_finds_at_the_top_level(content: dict[str, object], ascii_only: bool) -> None:
    """Or, where the key stands in a nested object alone, one that the worker refuses when it has parsed."""
    body = json.dumps(content, ensure_ascii=ascii_only).encode("utf-8", "replace")
    parsed = json.loads(body)
    try:
        name, _ = addressee(PREDICT, body)
    except InvalidInput:
        return
    if isinstance(parsed.get("model_id"), str):
        assert name.decode() == parsed["model_id"]


@given(st.binary(max_size=60))
def test_arbitrary_bytes_raise_nothing_else(message: bytes) -> None:
    for method in (PREDICT, Method.HTTP_V2_INFER):
        try:
            as_hot_request(method, message)
        except InvalidInput:
            continue

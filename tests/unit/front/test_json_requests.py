"""REST's administrative bodies and parameters, read strictly."""

import contextlib
import json
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from nexus_grpc.front.json_requests import BODY_BYTES_MAX, read_request
from nexus_grpc.ipc.errors import InvalidInput, NexusError, TooLarge
from nexus_grpc.pb.nexus.v1 import models_pb2, system_pb2, traffic_pb2


def read(kind: type[Message], body: Any, **parameters: str) -> Message:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_request(kind, text, parameters)


@pytest.mark.parametrize("body", [b"", b" \r\n", b"{}"])
def test_no_body_is_an_empty_object(body: bytes) -> None:
    assert read(system_pb2.ReloadRequest, body) == system_pb2.ReloadRequest()


def test_every_kind_of_field() -> None:
    body = {
        "model": "iris",
        "candidate_version": "v2",
        "percent": 5,
        "sticky": {"header": "x-user"},
        "more": [{"version": "3", "percent": 2.5}],
    }
    assert read(traffic_pb2.SetupExperimentRequest, body) == traffic_pb2.SetupExperimentRequest(
        model="iris",
        candidate_version="v2",
        percent=5,
        sticky=traffic_pb2.StickyKey(header="x-user"),
        more=[traffic_pb2.VariantShare(version="3", percent=2.5)],
    )
    ramp = {"steps": [5, 25.5], "every_seconds": 1e1, "guards": ["p99<20ms"], "min_requests": 7}
    assert read(traffic_pb2.RampTrafficRequest, ramp) == traffic_pb2.RampTrafficRequest(
        steps=[5, 25.5], every_seconds=10, guards=["p99<20ms"], min_requests=7
    )
    assert read(models_pb2.RegisterModelRequest, {"labels": {"team": "ü"}}).labels == {"team": "ü"}  # type: ignore[attr-defined]
    assert read(models_pb2.UploadHeader, {"store_only": True}) == models_pb2.UploadHeader(store_only=True)


def test_an_empty_message_is_present() -> None:
    assert read(traffic_pb2.SetupExperimentRequest, {"sticky": {}}).HasField("sticky")


def test_parameters_of_the_path_win() -> None:
    request = read(models_pb2.LoadModelRequest, {"id": "other", "version": "2"}, id="iris")
    assert request == models_pb2.LoadModelRequest(id="iris", version="2")


def test_parameters_have_the_fields_types() -> None:
    request = read(models_pb2.ModelHistoryRequest, b"", id="iris", limit="-5")
    assert request == models_pb2.ModelHistoryRequest(id="iris", limit=-5)
    assert read(models_pb2.UploadHeader, b"", store_only="true", size_bytes="1e3") == models_pb2.UploadHeader(
        store_only=True, size_bytes=1000
    )


@pytest.mark.parametrize("text", ["", "five", "1_0", " 1", "1.5", "٣", "2147483648", "9" * 5000, "0x10", "nan"])
def test_a_parameter_that_is_no_whole_number(text: str) -> None:
    with pytest.raises(InvalidInput, match="limit") as caught:
        read(models_pb2.ModelHistoryRequest, b"", limit=text)
    assert caught.value.field == "limit"


@pytest.mark.parametrize("text", ["", "inf", "nan", "1e999", "1_0"])
def test_a_parameter_that_is_no_number(text: str) -> None:
    with pytest.raises(InvalidInput, match="size_bytes"):
        read(models_pb2.UploadHeader, b"", size_bytes=text)


@pytest.mark.parametrize(
    ("body", "message", "field"),
    [
        (b'{"percent": 1, "percent": 2}', 'field "percent" is given twice', "percent"),
        (b'{"percnt": 2}', 'unknown field "percnt"; did you mean "percent"?', "percnt"),
        (b'{"zzz": 1}', 'unknown field "zzz"; expected model, candidate_version, percent, sticky, more', "zzz"),
        (b'{"candidateVersion": ""}', 'did you mean "candidate_version"?', "candidateVersion"),
        (b'{"sticky": {"heder": "x"}}', 'unknown field "heder" in sticky; did you mean "header"?', "heder"),
        (b'{"more": [{}, {"versoin": "3"}]}', 'unknown field "versoin" in more[1]; did you mean "version"?', "versoin"),
        (b'{"percent": "5"}', 'field "percent" must be a number, got a string', "percent"),
        (b'{"percent": true}', 'field "percent" must be a number, got true or false', "percent"),
        (b'{"percent": null}', 'field "percent" must be a number, got null', "percent"),
        (b'{"percent": 1e999}', 'field "percent" must be a finite number', "percent"),
        (b'{"percent": 1' + b"0" * 400 + b"}", 'field "percent" must be a finite number', "percent"),
        (b'{"candidate_version": 2}', 'field "candidate_version" must be a string, got a number', "candidate_version"),
        (b'{"candidate_version": "\\ud800"}', "is not Unicode text", "candidate_version"),
        (b'{"more": {}}', 'field "more" must be a list, got an object', "more"),
        (b'{"more": [5]}', 'field "more[0]" must be an object, got a number', "more[0]"),
        (b'{"sticky": "x"}', 'field "sticky" must be an object, got a string', "sticky"),
        (b'{"percent": NaN}', "NaN is no JSON number", ""),
        (b"[]", "the body must be a JSON object, got a list", ""),
        (b'"x"', "the body must be a JSON object, got a string", ""),
        (b"null", "the body must be a JSON object, got null", ""),
        (b"{", "the body is not valid JSON", ""),
        (b'{"percent": 1' + b"0" * 9000 + b"}", "the body is not valid JSON", ""),
        (b"\xff\xfe", "the body is not valid JSON", ""),
        (b'{"a":' * 100_000, "nested too deeply", ""),
        (b"{}{}", "the body is not valid JSON", ""),
    ],
    ids=lambda value: repr(value)[:40],
)  # fmt: skip
def test_what_is_wrong_is_named(body: bytes, message: str, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(traffic_pb2.SetupExperimentRequest, body)
    assert message in caught.value.message
    assert caught.value.field == field


@pytest.mark.parametrize("number", ["2.0", "2147483648", "-2147483649", "1e3", "true"])
def test_whole_numbers_are_whole_and_in_range(number: str) -> None:
    with pytest.raises(InvalidInput, match="min_requests"):
        read(traffic_pb2.RampTrafficRequest, b'{"min_requests": %b}' % number.encode())


def test_labels_must_be_texts() -> None:
    for body in ({"labels": []}, {"labels": {"a": 1}}, {"labels": {"a": None}}):
        with pytest.raises(InvalidInput, match="labels"):
            read(models_pb2.RegisterModelRequest, body)
    with pytest.raises(InvalidInput, match='"a" is given twice'):
        read(models_pb2.RegisterModelRequest, b'{"labels": {"a": "1", "a": "2"}}')


def test_a_body_of_absurd_size() -> None:
    with pytest.raises(TooLarge, match="at most"):
        read(models_pb2.RegisterModelRequest, b'{"description": "%b"}' % (b"x" * BODY_BYTES_MAX))


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SHARE = st.fixed_dictionaries({"version": TEXT, "percent": st.floats(allow_nan=False, allow_infinity=False)})
SETUP = st.fixed_dictionaries(
    {},
    optional={
        "model": TEXT,
        "candidate_version": TEXT,
        "percent": st.one_of(st.integers(0, 100), st.floats(allow_nan=False, allow_infinity=False)),
        "sticky": st.fixed_dictionaries({}, optional={"header": TEXT, "parameter": TEXT}),
        "more": st.lists(SHARE, max_size=3),
    },
)


@given(SETUP)
def test_what_is_right_is_read_as_protobuf_reads_it(content: dict[str, Any]) -> None:
    expected = json_format.ParseDict(content, traffic_pb2.SetupExperimentRequest())
    assert read(traffic_pb2.SetupExperimentRequest, content) == expected


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["model", "percent", "more", "sticky", "version", "x"]), inner, max_size=4),
    ),
    max_leaves=8,
)


@given(st.one_of(st.binary(max_size=60), JSON.map(lambda content: json.dumps(content).encode())))
def test_anything_is_read_or_refused(body: bytes) -> None:
    with contextlib.suppress(NexusError):
        assert isinstance(read(traffic_pb2.SetupExperimentRequest, body), traffic_pb2.SetupExperimentRequest)

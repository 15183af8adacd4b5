"""The one error shape."""

import json

from nexus_grpc.ipc.errors import Code, InvalidInput, UnknownModel
from nexus_grpc.ipc.rich_errors import status_bytes
from nexus_grpc.rest.errors import HTTP_STATUS, error_body, http_status


def test_every_code_has_a_status() -> None:
    assert {code: http_status(code) for code in Code if code not in HTTP_STATUS} == {
        Code.UNKNOWN: 500,
        Code.INTERNAL: 500,
        Code.DATA_LOSS: 500,
    }
    assert http_status(Code.NOT_FOUND) == 404


def test_some_reasons_have_a_status_of_their_own() -> None:
    assert http_status(Code.RESOURCE_EXHAUSTED, "TOO_LARGE") == 413
    assert http_status(Code.FAILED_PRECONDITION, "MODEL_REFUSED") == 422
    assert http_status(Code.INVALID_ARGUMENT, "NOT_ONNX") == 400
    assert http_status(Code.RESOURCE_EXHAUSTED, "OVERLOADED") == http_status(Code.RESOURCE_EXHAUSTED) == 429


def test_the_body() -> None:
    error = InvalidInput("expected 4 features, got 3", field="features")
    body = json.loads(error_body(error.code, error.message, "id-1", status_bytes(error)))
    assert body.keys() == {"error", "request_id"}
    assert body["request_id"] == "id-1"
    assert body["error"]["code"] == "INVALID_ARGUMENT"
    assert body["error"]["message"] == "expected 4 features, got 3"
    info, bad_request = body["error"]["details"]
    assert info["reason"] == "INVALID_INPUT"
    assert bad_request["fieldViolations"][0]["field"] == "features"


def test_without_details_and_with_any_text() -> None:
    error = UnknownModel('"größe"\n\ud800')
    body = json.loads(error_body(error.code, error.message, ""))
    assert body["error"]["details"] == []
    assert body["error"]["message"].startswith('"größe"\n')

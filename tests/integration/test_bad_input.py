"""Every kind of bad request is refused with the right code, says what was wrong and expected, and harms nobody."""

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from nexus_grpc.pb.nexus.v1 import inference_pb2 as nexus_pb
from tests.integration.bad_requests import INVALID, MODEL_INFER, NOT_FOUND, PREDICT
from tests.integration.client import NEXUS, OIP, Client, assert_serves, iris_request, outputs_of, raw_request, refusal


@pytest.fixture(autouse=True)
def _still_serves(client: Client) -> Iterator[None]:
    yield
    assert_serves(client)


def assert_refused(call: Callable[[], Any], code: grpc.StatusCode, message: str, field: str) -> None:
    refused = refusal(call)
    assert refused.code == code
    assert message in refused.message
    assert refused.detailed
    assert refused.domain == "nexus-grpc"
    assert refused.reason == ("UNKNOWN_MODEL" if code == NOT_FOUND else "INVALID_INPUT")
    assert refused.fields == ([field] if field else [])
    assert refused.initial["x-request-id"]


@pytest.mark.parametrize("case", MODEL_INFER)
def test_model_infer(client: Client, case: str) -> None:
    request, code, message, field = MODEL_INFER[case]
    for _ in range(2):
        assert_refused(lambda: client.infer(request), code, message, field)


@pytest.mark.parametrize("case", PREDICT)
def test_predict(client: Client, case: str) -> None:
    request, code, message, field = PREDICT[case]
    for _ in range(2):
        assert_refused(lambda: client.predict(request), code, message, field)


def test_unknown_model_message_is_exact(client: Client) -> None:
    refused = refusal(lambda: client.infer(pb.ModelInferRequest(model_name="x")))
    assert refused.message == "Request for unknown model: 'x' is not found"


def test_wrong_values_that_match_a_template(client: Client) -> None:
    """The same bytes around other features: the check of the values must not be skipped."""
    good = nexus_pb.PredictRequest(model_id="counts_i64", features=[1, 2, 3, 4])
    for _ in range(20):
        assert client.predict(good).prediction
    for bad in (0.5, 1e300, float("inf")):
        request = nexus_pb.PredictRequest(model_id="counts_i64", features=[bad, 2, 3, 4])
        assert_refused(lambda request=request: client.predict(request), INVALID, "feature 0", "features")
    assert client.predict(good).prediction


def test_batch_predict(client: Client) -> None:
    row = nexus_pb.FeatureRow(features=[1, 2, 3, 4])
    batch = nexus_pb.BatchPredictRequest
    cases = [
        (batch(model_id="iris"), "expected at least 1 row", "rows"),
        (
            batch(model_id="iris", rows=[row, nexus_pb.FeatureRow(features=[1])]),
            "row 1: invalid input: expected 4",
            "rows[1]",
        ),
        (batch(model_id="scalar", rows=[row]), "takes one request at a time", "rows"),
        (batch(model_id="digits_cnn", rows=[nexus_pb.FeatureRow(features=[0] * 64)] * 33), "allows: 32", ""),
    ]
    for request, message, field in cases:
        assert_refused(lambda request=request: client.batch_predict(request), INVALID, message, field)


def test_zero_width_batches_cannot_pretend_to_be_huge(client: Client) -> None:
    """Without elements no byte count bounds the rows."""
    request = raw_request("all_types", {})
    width = {
        "in_bool": "BOOL",
        "in_uint8": "UINT8",
        "in_uint16": "UINT16",
        "in_uint32": "UINT32",
        "in_uint64": "UINT64",
    }
    width |= {"in_int8": "INT8", "in_int16": "INT16", "in_int32": "INT32", "in_int64": "INT64"}
    width |= {"in_float16": "FP16", "in_float32": "FP32", "in_float64": "FP64"}
    for name, datatype in width.items():
        request.inputs.add(name=name, datatype=datatype, shape=[2**60, 0])
        request.raw_input_contents.append(b"")
    for _ in range(20):
        assert refusal(lambda: client.infer(request)).code == INVALID


def test_one_bad_request_of_a_batch_harms_no_other(client: Client) -> None:
    futures = []
    for number in range(200):
        request = iris_request(id=str(number))
        if number % 10 == 0:
            request.raw_input_contents[0] = b"short"
        futures.append(client.infer.multicallable.future(request, timeout=20))
    for number, future in enumerate(futures):
        if number % 10 == 0:
            assert future.code() == INVALID
        else:
            assert future.result().id == str(number)
            assert outputs_of(future.result())["label"].tolist() == [0]


def test_unknown_methods(client: Client) -> None:
    for path in (OIP + "Nothing", NEXUS + "Nothing", "/no.Service/Method"):
        refused = refusal(lambda path=path: client.unary(path, pb.ModelInferResponse)(b""))
        assert refused.code == grpc.StatusCode.UNIMPLEMENTED

"""Values that JSON has no numbers for, and tensors without values: what we write is read, wherever tensors are."""

from typing import Any

import pytest
from google.protobuf import json_format

from nexus_grpc.pb.nexus.v1 import inference_pb2 as pb
from tests.harness import Server
from tests.integration.client import Client
from tests.integration.rest import post

ROW = [1.5, "NaN", "Infinity", "-Infinity"]
READ = [1.5, None, "Infinity", "-Infinity"]


@pytest.fixture
def port(rest_server: Server) -> int:
    return rest_server.rest_port


def v2(shape: list[int], data: list[Any], name: str = "x") -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": "FP32", "data": data}


def answer_of(port: int, path: str, body: dict[str, Any]) -> Any:
    answer = post(port, path, body)
    assert answer.status == 200, answer
    return answer.json


@pytest.mark.parametrize("row", [ROW, READ], ids=["as written", "null"])
def test_what_is_no_number_is_read_everywhere(port: int, row: list[Any]) -> None:
    one = {"data": row}
    assert answer_of(port, "/predict", {"model_id": "identity", "features": row})["prediction"] == ROW
    assert answer_of(port, "/predict", {"model_id": "identity", "inputs": {"x": one}})["prediction"] == ROW
    assert answer_of(port, "/api/v1/predict", {"model_name": "identity", "features": row})["prediction"] == ROW
    batch = answer_of(port, "/api/v1/batch_predict", {"model_name": "identity", "features_batch": [row, row]})
    assert [each["prediction"] for each in batch["predictions"]] == [ROW, ROW]
    assert answer_of(port, "/v1/infer", {"model": "identity", "input": {"x": row}})["output"]["y"] == ROW
    assert answer_of(port, "/v1/infer", {"model": "identity", "input": {"x": [row, row]}})["output"]["y"] == [ROW, ROW]
    for data in (row, [row]):
        answer = answer_of(port, "/v2/models/identity/infer", {"inputs": [v2([1, 4], data)]})
        assert answer["outputs"][0]["data"] == ROW


def test_our_own_answers_are_read(port: int) -> None:
    """Round trip: the output of one request is the input of the next."""
    sent: dict[str, Any] = {"inputs": [v2([2, 2], [[3e38, -3e38], [None, 1]])]}
    answer = answer_of(port, "/v2/models/scale/infer", sent)["outputs"][0]
    assert answer["data"] == ["Infinity", "-Infinity", "NaN", 2.0]
    again = answer_of(port, "/v2/models/identity/infer", {"inputs": [{**answer, "name": "x"}]})["outputs"][0]
    assert again == {**answer, "name": "y"}


def test_by_grpc(client: Client) -> None:
    body = {"model_id": "identity", "inputs": {"x": {"data": READ}}}
    answer = client.predict(json_format.ParseDict(body, pb.PredictRequest()))
    assert list(map(str, answer.prediction)) == ["1.5", "nan", "inf", "-inf"]


@pytest.mark.parametrize("row", [[0, 0, 0], [0, 1, 2], [1, 1, 2]], ids=["all NaN", "one", "infinite"])
def test_nothing_is_claimed_of_what_is_no_number(port: int, client: Client, row: list[int]) -> None:
    answer = answer_of(port, "/predict", {"model_id": "ratio", "features": row})
    assert answer["probabilities"] == ["Infinity" if value else "NaN" for value in row]
    assert not {"confidence", "predicted_class", "decision", "threshold_used"} & answer.keys()
    assert "probability" not in answer_of(port, "/api/v1/predict", {"model_name": "ratio", "features": row})
    by_grpc = client.predict(pb.PredictRequest(model_id="ratio", features=row))
    assert (by_grpc.confidence, by_grpc.predicted_class) == (0.0, "")


@pytest.mark.parametrize("data", [[], [[]], [[[]]]], ids=str)
def test_lists_without_values(port: int, data: list[Any]) -> None:
    sent = {"inputs": [v2([1, 0, 2], data, "past"), v2([1, 1, 2], [1, 2])]}
    output = answer_of(port, "/v2/models/append/infer", sent)["outputs"][0]
    assert (output["shape"], output["data"]) == ([1, 1, 2], [1, 2])
    for shape in ({"shape": [1, 0, 2]}, {"shape": [0, 2]}, {}):
        inputs = {"past": {"data": data, **shape}, "x": {"data": [[1, 2]]}}
        assert answer_of(port, "/predict", {"model_id": "append", "inputs": inputs})["prediction"] == [1, 2]
    sent = {"model": "append", "input": {"past": data, "x": [[1, 2]]}}
    assert answer_of(port, "/v1/infer", sent)["output"]["present"] == [[1, 2]]

"""What requests say and how answers are read, where a real server can't be brought to say it."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from nexus_grpc.client import InvalidInput, NexusClientError, RowPrediction, calls
from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from nexus_grpc.pb.nexus.v1 import inference_pb2 as nexus_pb
from tests.unit.client.scripted import Ask, ScriptedServer

ROW = np.array([[1, 2]], np.float32)


def request_of(**fields: Any) -> pb.ModelInferRequest:
    values: dict[str, Any] = {
        "model": "m",
        "inputs": {"x": ROW},
        "outputs": (),
        "version": "",
        "parameters": None,
        "datatypes": None,
        "timing": False,
    }
    request = calls.infer(**{**values, **fields}).request
    assert isinstance(request, pb.ModelInferRequest)
    return request


def test_a_request() -> None:
    request = request_of(version="3", parameters={"priority": 1, "who": "me"}, timing=True)
    assert (request.model_name, request.model_version, request.id) == ("m", "3", "")
    assert [(item.name, item.datatype, list(item.shape)) for item in request.inputs] == [("x", "FP32", [1, 2])]
    assert list(request.raw_input_contents) == [ROW.tobytes()]
    assert not request.inputs[0].HasField("contents")
    assert request.parameters["priority"].int64_param == 1
    assert request.parameters["who"].string_param == "me"
    assert request.parameters["nexus_timing"].bool_param


def test_outputs() -> None:
    assert [item.name for item in request_of(outputs=["b", "a"]).outputs] == ["b", "a"]
    (asked,) = request_of(outputs={"p": {"classification": 3}}).outputs
    assert (asked.name, asked.parameters["classification"].int64_param) == ("p", 3)
    with pytest.raises(InvalidInput, match="a sequence of names"):
        request_of(outputs="label")


def test_a_datatype_by_name() -> None:
    request = request_of(inputs={"x": np.zeros(2, np.uint16), "y": ROW}, datatypes={"x": "BF16"})
    assert [item.datatype for item in request.inputs] == ["BF16", "FP32"]


def test_raw_contents_must_match_the_outputs(ask: Ask) -> None:
    answer = pb.ModelInferResponse(model_name="m", raw_output_contents=[b"1234", b"1234"])
    answer.outputs.add(name="y", datatype="FP32", shape=[1])
    with ScriptedServer(answer=answer) as server:
        with pytest.raises(NexusClientError, match="2 raw contents for 1 outputs") as caught:
            ask(server.address)
        assert len(server.asked) == 1
    assert caught.value.code == "INTERNAL"


def test_an_answer(ask: Ask) -> None:
    answer = pb.ModelInferResponse(model_name="m", model_version="7")
    answer.outputs.add(name="y", datatype="FP32", shape=[1, 2])
    answer.outputs.add(name="t", datatype="BYTES", shape=[2])
    answer.raw_output_contents.extend([ROW.tobytes(), b"\x01\0\0\0a\x02\0\0\0\xc3\xbc"])
    answer.parameters["nexus_queue_us"].int64_param = 5
    answer.parameters["sequence_end"].bool_param = True
    with ScriptedServer(answer=answer) as server:
        result = ask(server.address, request_id="mine")
    assert list(result) == ["y", "t"]
    assert len(result) == 2
    assert "z" not in result
    assert (result.model, result.model_version, result.request_id) == ("m", "7", "mine")
    assert result.parameters == {"nexus_queue_us": 5, "sequence_end": True}
    assert result.timing is None
    assert result.text("t").tolist() == ["a", "ü"]
    with pytest.raises(TypeError, match="float32"):
        result.text("y")
    with pytest.raises(ValueError, match="read-only"):
        result["y"][0, 0] = 1
    assert repr(result) == "InferResult(m 7: y: float32[1, 2], t: object[2])"


def test_typed_answers() -> None:
    answer = pb.ModelInferResponse(model_name="m")
    tensor = answer.outputs.add(name="y", datatype="INT16", shape=[1, 2])
    tensor.contents.int_contents.extend([-5, 6])
    decoded = calls.infer("m", {}, (), "", None, None, False).decode(answer, "")
    assert decoded["y"].tolist() == [[-5, 6]]
    assert decoded["y"].dtype == np.int16


def test_a_batch_is_a_sequence_of_rows() -> None:
    rows = [nexus_pb.Prediction(prediction=[1], probabilities=[0.25, 0.75], confidence=0.75), nexus_pb.Prediction()]
    answer = nexus_pb.BatchPredictResponse(model_id="m", predictions=rows, batch_size=2)
    batch = calls.predict_batch("m", [[1.0], [2.0]], "", False).decode(answer, "r")
    assert len(batch) == 2
    assert batch[0].probabilities.tolist() == [0.25, 0.75]
    assert [row.confidence for row in batch] == [0.75, 0.0]
    assert isinstance(batch[-1], RowPrediction)
    assert len(batch[:1]) == 1
    assert (batch.request_id, batch.timing) == ("r", None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch[0].confidence = 1.0  # type: ignore[misc]


def test_a_feed_ends_where_its_source_fails() -> None:
    def source() -> Any:
        yield 1
        raise KeyError("gone")

    feed = calls.Feed(lambda item: item * 2, source())
    assert list(feed) == [2]
    assert isinstance(feed.failure, KeyError)

"""The requests that are sent, as bytes, and the check that an answer to them is right.

Nothing is random: every row of a run, and every run, sends the same flowers.
"""

import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf import json_format

from nexus_grpc.pb.inference import grpc_service_pb2 as oip
from nexus_grpc.pb.nexus.v1 import inference_pb2 as nexus

MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
PREDICT = "/nexus.v1.Inference/Predict"
REST_PREDICT = "/predict"
PREDICT_STREAM = "/nexus.v1.Inference/PredictStream"

MODEL_NAME = "iris"
BATCH_ROWS = 32
# Messages in one PredictStream body: h2load sends a body whole, so one stream is this many requests and answers.
STREAM_MESSAGES = 32

# One flower of each of the three species; repeated to fill larger requests.
_FLOWERS = np.array([[5.1, 3.5, 1.4, 0.2], [7.0, 3.2, 4.7, 1.4], [6.3, 3.3, 6.0, 2.5]], dtype=np.float32)


class WrongAnswerError(Exception):
    """The server answered, but not what it should have."""


@dataclass(frozen=True)
class Expected:
    """What onnxruntime says in this process about the same rows."""

    labels: np.ndarray[Any, Any]
    probabilities: np.ndarray[Any, Any]


def rows_of(count: int) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(np.resize(_FLOWERS, (count, _FLOWERS.shape[1])))


def frame(message: bytes) -> bytes:
    """gRPC's length prefix: one byte 'not compressed', four bytes big-endian length, the message."""
    return b"\0" + struct.pack(">I", len(message)) + message


def frames(messages: Iterable[bytes]) -> bytes:
    return b"".join(frame(message) for message in messages)


def split_frames(body: bytes) -> list[bytes]:
    """The messages in a body; refuses compressed and truncated ones."""
    messages, at = [], 0
    while at < len(body):
        if len(body) - at < 5 or body[at] != 0:
            raise ValueError(f"no uncompressed gRPC frame at byte {at}")
        (length,) = struct.unpack_from(">I", body, at + 1)
        if at + 5 + length > len(body):
            raise ValueError(f"the frame at byte {at} is truncated")
        messages.append(body[at + 5 : at + 5 + length])
        at += 5 + length
    return messages


def model_infer(row_count: int) -> bytes:
    rows = rows_of(row_count)
    request = oip.ModelInferRequest(model_name=MODEL_NAME)
    request.inputs.add(name="X", datatype="FP32", shape=rows.shape)
    request.raw_input_contents.append(rows.tobytes())
    return request.SerializeToString()


def predict() -> bytes:
    # The decimal 5.1, not its nearest float32 widened: what a person's client would send.
    features = [float(str(value)) for value in rows_of(1)[0]]
    return nexus.PredictRequest(model_id=MODEL_NAME, features=features).SerializeToString()


def rest_predict() -> bytes:
    """The same flower as predict(), as JSON."""
    features = [float(str(value)) for value in rows_of(1)[0]]
    return json.dumps({"model_id": MODEL_NAME, "features": features}).encode()


def rest_answer(expected: Expected) -> bytes:
    """What POST /predict answers to it, in about as many bytes."""
    response = nexus.PredictResponse(
        model_id=MODEL_NAME,
        request_id="01234567-89ab-8def-a123-456789abcdef",
        prediction=expected.labels[:1].tolist(),
        latency_ms=0.123,
        timestamp="2026-01-01T00:00:00.000000Z",
        model_version="1",
        variant="default",
        confidence=float(expected.probabilities[0].max()),
        probabilities=expected.probabilities[0].tolist(),
        batch_size=1,
    )
    text = json_format.MessageToJson(response, always_print_fields_with_no_presence=True, indent=None)
    return text.encode()


def check_model_infer(answer: bytes, expected: Expected) -> None:
    response = oip.ModelInferResponse.FromString(answer)
    raw = dict(zip((output.name for output in response.outputs), response.raw_output_contents, strict=False))
    if not {"label", "probabilities"} <= raw.keys():
        raise WrongAnswerError(f"raw outputs {sorted(raw)} instead of label and probabilities")
    _compare("label", np.frombuffer(raw["label"], np.int64), expected.labels, 0.0)
    probabilities = np.frombuffer(raw["probabilities"], np.float32)
    _compare("probabilities", probabilities, expected.probabilities.ravel(), 1e-5)


def check_predict(answer: bytes, expected: Expected) -> None:
    _check_prediction(nexus.PredictResponse.FromString(answer), expected)


def check_rest_predict(answer: bytes, expected: Expected) -> None:
    _check_prediction(json_format.Parse(answer, nexus.PredictResponse()), expected)


def check_predict_stream(answer: bytes, expected: Expected) -> None:
    response = nexus.PredictStreamResponse.FromString(answer)
    if response.WhichOneof("outcome") != "response":
        raise WrongAnswerError(f"a stream error: {response.error.code} {response.error.message}")
    _check_prediction(response.response, expected)


def _check_prediction(response: nexus.PredictResponse, expected: Expected) -> None:
    _compare("prediction", np.array(response.prediction), expected.labels[:1], 0.0)
    _compare("probabilities", np.array(response.probabilities), expected.probabilities[0], 1e-5)


def _compare(what: str, got: np.ndarray[Any, Any], want: np.ndarray[Any, Any], tolerance: float) -> None:
    if got.shape != want.shape or not np.allclose(got, want, rtol=0.0, atol=tolerance):
        raise WrongAnswerError(f"{what} is {got[:6].tolist()}…, onnxruntime says {want[:6].tolist()}…")

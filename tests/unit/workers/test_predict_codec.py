"""Flat features in, predictions out."""

import math

import numpy as np
import pytest

from nexus_grpc.ipc.errors import InvalidInput
from nexus_grpc.pb.nexus.v1 import inference_pb2 as pb
from nexus_grpc.worker.model import Model
from nexus_grpc.worker.predict_codec import cast_features, decode_batch_predict, decode_predict
from nexus_grpc.worker.requests import Decoded, Timings
from nexus_grpc.worker.results import BatchResult
from nexus_grpc.worker.tensors import DATATYPES, Array
from tests.unit.support import model_of, spec

NUMBERS = [row.name for row in DATATYPES if row.name != "BYTES"]
TIMINGS = Timings(1, 2, 3, 4000)


def predict(model: Model, *features: float, texts: tuple[str, ...] = (), **fields: str) -> Decoded:
    message = pb.PredictRequest(model_id="m", features=features, texts=texts, **fields)
    return decode_predict(model, message.SerializeToString())


def batch(model: Model, *rows: tuple[float, ...]) -> Decoded:
    message = pb.BatchPredictRequest(model_id="m", rows=[pb.FeatureRow(features=row) for row in rows])
    return decode_batch_predict(model, message.SerializeToString())


def cast(datatype: str, *values: float) -> list[object]:
    tensor = spec("x", datatype, -1, 2)
    raw = cast_features(tensor, np.array(values, dtype=np.float64))
    found: list[object] = np.frombuffer(raw, dtype=tensor.datatype.dtype).tolist()
    return found


@pytest.mark.parametrize("datatype", NUMBERS)
def test_zero_and_one_fit_everything(datatype: str) -> None:
    assert cast(datatype, 0, 1) == [0, 1]


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("INT8", (-128, 127)),
        ("UINT8", (0, 255)),
        ("INT64", (-(2**63), 2**53)),
        ("UINT64", (0, 2**63)),
        ("FP16", (65504, -65504)),
        ("FP64", (1e308, 5e-324)),
        ("FP32", (math.inf, -math.inf)),
        ("FP32", (1e-60, 0.5)),
    ],
)
def test_values_that_fit(datatype: str, values: tuple[float, ...]) -> None:
    assert cast(datatype, *values) == pytest.approx(list(values), abs=1e-40)


def test_floats_may_round() -> None:
    assert cast("FP32", 0.1) == [float(np.float32(0.1))]
    assert math.isnan(float(cast("FP32", math.nan)[0]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        ("INT8", 128),
        ("INT8", -129),
        ("UINT8", -1),
        ("UINT8", 256),
        ("INT32", 0.5),
        ("INT32", 2.0**31),
        ("INT64", 2.0**63),
        ("INT64", 1e300),
        ("UINT64", 2.0**64),
        ("UINT64", -1),
        ("INT64", math.nan),
        ("INT64", math.inf),
        ("UINT8", math.nan),
        ("FP32", 1e39),
        ("FP32", -1e300),
        ("FP16", 70000),
        ("BOOL", 2),
        ("BOOL", 0.5),
        ("BOOL", math.nan),
    ],
)
def test_misfits_are_named(datatype: str, value: float) -> None:
    with pytest.raises(InvalidInput) as caught:
        cast(datatype, 1, value, 1)
    assert caught.value.message == f"invalid input: feature 1 ({float(value)!r}) does not fit {datatype}"
    assert caught.value.field == "features"


def test_one_row_of_a_batched_model() -> None:
    decoded = predict(model_of(), 1, 2, request_id="mine")
    assert (decoded.rows, decoded.signature, decoded.templatable) == (1, (("x", (2,)),), True)
    assert decoded.pieces == [np.array([1, 2], dtype=np.float32).tobytes()]


@pytest.mark.parametrize(
    ("shape", "signature"), [((-1, 2), (1, 2)), ((1, 2), (1, 2)), ((2,), (2,)), ((-1, -1), (1, 2))]
)
def test_the_whole_shape_of_an_unbatched_model(shape: tuple[int, ...], signature: tuple[int, ...]) -> None:
    decoded = predict(model_of(spec("x", "FP32", *shape), max_batch_size=0), 1, 2)
    assert decoded.signature == (("x", signature),)


def test_a_dynamic_row_takes_what_comes() -> None:
    decoded = predict(model_of(spec("x", "FP32", -1, 2, -1)), 1, 2, 3, 4, 5, 6)
    assert decoded.signature == (("x", (2, 3)),)
    assert len(decoded.pieces[0]) == 24


def test_texts() -> None:
    decoded = predict(model_of(spec("x", "BYTES", -1, 2)), texts=("a", "ä"))
    [piece] = decoded.pieces
    assert isinstance(piece, np.ndarray)
    assert piece.tolist() == ["a", "ä"]
    assert not decoded.templatable


def test_refusals() -> None:
    with pytest.raises(InvalidInput, match="expected 2 features, got 3"):
        predict(model_of(), 1, 2, 3)
    with pytest.raises(InvalidInput, match="expects numbers"):
        predict(model_of(), 1, 2, texts=("a",))
    with pytest.raises(InvalidInput, match="expects text"):
        predict(model_of(spec("x", "BYTES", -1, 2)), 1, 2)
    with pytest.raises(InvalidInput, match=r"has 2 inputs \('x', 'z'\)"):
        predict(model_of(spec("x", "FP32", -1, 2), spec("z", "FP32", -1, 2)), 1, 2)
    with pytest.raises(InvalidInput, match="must appear once"):
        predict(model_of(), 1, 2, model_version="7")
    with pytest.raises(InvalidInput, match=r"not a valid nexus\.v1\.PredictRequest"):
        decode_predict(model_of(), b"\xff")


def test_an_optional_second_input_does_not_matter() -> None:
    model = model_of(spec("x", "FP32", -1, 2), spec("z", "FP32", -1, 2, optional=True))
    assert predict(model, 1, 2).signature == (("x", (2,)),)


def test_batches() -> None:
    decoded = batch(model_of(), (1, 2), (3, 4), (5, 6))
    assert (decoded.rows, decoded.templatable) == (3, False)
    assert decoded.pieces == [np.arange(1, 7, dtype=np.float32).tobytes()]


def test_batches_of_text() -> None:
    rows = [pb.FeatureRow(texts=["a", "b"]), pb.FeatureRow(texts=["c", "d"])]
    message = pb.BatchPredictRequest(model_id="m", rows=rows).SerializeToString()
    [piece] = decode_batch_predict(model_of(spec("x", "BYTES", -1, 2)), message).pieces
    assert isinstance(piece, np.ndarray)
    assert piece.tolist() == ["a", "b", "c", "d"]


def test_batch_refusals_name_the_row() -> None:
    with pytest.raises(InvalidInput, match="row 1: invalid input: expected 2 features, got 1") as caught:
        batch(model_of(), (1, 2), (3,))
    assert caught.value.field == "rows[1]"
    with pytest.raises(InvalidInput, match="expected at least 1 row"):
        batch(model_of())
    with pytest.raises(InvalidInput, match="one request at a time"):
        batch(model_of(max_batch_size=0), (1, 2))
    with pytest.raises(InvalidInput, match="same number of features"):
        batch(model_of(spec("x", "FP32", -1, -1)), (1, 2), (3,))
    with pytest.raises(InvalidInput, match="batch of 3 rows is larger"):
        batch(model_of(max_batch_size=2, strict=True), (1, 2), (3, 4), (5, 6))


# --- answers ---

PROBABILITIES = np.array([[0.25, 0.75], [0.5, 0.5]], dtype=np.float32)


def classifier(labels: Array) -> BatchResult:
    kind = "BYTES" if labels.dtype == object else "INT64"
    model = model_of(outputs=[spec("label", kind, -1), spec("probabilities", "FP32", -1, 2)])
    return BatchResult(model, [labels, PROBABILITIES], 2)


def test_a_prediction_of_one_row() -> None:
    result = classifier(np.array([1, 0]))
    form = predict(result.model, 1, 2).form
    response = pb.PredictResponse.FromString(form.encode(result, 0, 1, TIMINGS, b"from-the-call"))
    assert (response.model_id, response.model_version, response.request_id) == ("m", "1", "from-the-call")
    assert list(response.prediction) == [1]
    assert list(response.probabilities) == [0.25, 0.75]
    assert (response.confidence, response.latency_ms, response.batch_size) == (0.75, 4.0, 2)
    assert response.timestamp.endswith("Z")
    assert not response.HasField("timing")


def test_labels_request_id_and_timing() -> None:
    result = classifier(np.array(["a", "b"], dtype=object))
    message = pb.PredictRequest(model_id="m", features=[1, 2], request_id="mine", nexus_timing=True)
    form = decode_predict(result.model, message.SerializeToString()).form
    response = pb.PredictResponse.FromString(form.encode(result, 1, 2, TIMINGS, b"from-the-call"))
    assert list(response.labels) == ["b"]
    assert response.request_id == "mine"
    assert (response.timing.queue_us, response.timing.infer_us, response.timing.total_us) == (1, 3, 4000)


def test_a_prediction_per_row_of_a_batch() -> None:
    result = classifier(np.array([1, 0]))
    form = batch(result.model, (1, 2), (3, 4)).form
    response = pb.BatchPredictResponse.FromString(form.encode(result, 0, 2, TIMINGS, b"id"))
    assert [list(item.prediction) for item in response.predictions] == [[1], [0]]
    assert [item.confidence for item in response.predictions] == [0.75, 0.5]

"""ModelInferResponse, in all its forms."""

import numpy as np
import pytest

from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from nexus_grpc.worker.infer_form import InferForm, RequestedOutput
from nexus_grpc.worker.model import Model
from nexus_grpc.worker.requests import Timings
from nexus_grpc.worker.results import BatchResult
from nexus_grpc.worker.tensors import Array, text_array
from tests.unit.support import model_of, spec

TIMINGS = Timings(1, 2, 3, 4)
TENSOR = np.arange(6, dtype=np.float32).reshape(3, 2)


def encode(
    model: Model, outputs: list[Array], requested: list[RequestedOutput], raw: bool = True, timing: bool = False
) -> pb.ModelInferResponse:
    """Rows 1 and 2 of a batch of three (all of it for an unbatched model)."""
    form = InferForm("an-id", tuple(requested), raw, timing)
    result = BatchResult(model, outputs, 3 if model.batchable else 1)
    return pb.ModelInferResponse.FromString(form.encode(result, 1, 3, TIMINGS, b""))


def test_raw_rows() -> None:
    response = encode(model_of(), [TENSOR], [RequestedOutput(0, 0)])
    assert (response.model_name, response.model_version, response.id) == ("m", "1", "an-id")
    [output] = response.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("y", "FP32", [2, 2])
    assert list(response.raw_output_contents) == [TENSOR[1:3].tobytes()]


def test_a_kept_head_serves_other_values_and_not_other_shapes() -> None:
    form = InferForm("an-id", (RequestedOutput(0, 0),), True, False)
    model = model_of(outputs=[spec("y", "FP32", -1, -1)])
    for array, first, last in ((TENSOR, 0, 1), (TENSOR * 2, 1, 2), (TENSOR, 0, 3), (TENSOR.reshape(2, 3), 0, 1)):
        result = BatchResult(model, [array], len(array))
        response = pb.ModelInferResponse.FromString(form.encode(result, first, last, TIMINGS, b""))
        assert list(response.outputs[0].shape) == list(array[first:last].shape)
        assert list(response.raw_output_contents) == [array[first:last].tobytes()]


def test_typed_rows() -> None:
    response = encode(model_of(), [TENSOR], [RequestedOutput(0, 0)], raw=False)
    assert list(response.outputs[0].contents.fp32_contents) == [2, 3, 4, 5]
    assert not response.raw_output_contents


@pytest.mark.parametrize("raw", [True, False])
def test_text(raw: bool) -> None:
    model = model_of(outputs=[spec("y", "BYTES", -1)])
    response = encode(model, [text_array(["a", "b", "ä"])], [RequestedOutput(0, 0)], raw)
    if raw:
        assert list(response.raw_output_contents) == [b"\1\0\0\0b\2\0\0\0\xc3\xa4"]
    else:
        assert list(response.outputs[0].contents.bytes_contents) == [b"b", "ä".encode()]


def test_one_output_without_typed_contents_makes_all_of_them_raw() -> None:
    model = model_of(outputs=[spec("y", "FP32", -1, 2), spec("h", "FP16", -1, 2)])
    outputs = [TENSOR, TENSOR.astype(np.float16)]
    response = encode(model, outputs, [RequestedOutput(0, 0), RequestedOutput(1, 0)], raw=False)
    assert [output.HasField("contents") for output in response.outputs] == [False, False]
    assert list(response.raw_output_contents) == [array[1:3].tobytes() for array in outputs]


def test_half_precision_that_was_not_asked_for_changes_nothing() -> None:
    model = model_of(outputs=[spec("y", "FP32", -1, 2), spec("h", "FP16", -1, 2)])
    outputs = [TENSOR, TENSOR.astype(np.float16)]
    asked = [RequestedOutput(0, 0), RequestedOutput(1, 1)]  # classes of the second are text
    response = encode(model, outputs, asked, raw=False)
    assert [output.HasField("contents") for output in response.outputs] == [True, True]


@pytest.mark.parametrize("raw", [True, False])
def test_classes_per_row(raw: bool) -> None:
    response = encode(model_of(), [TENSOR], [RequestedOutput(0, 1)], raw)
    [output] = response.outputs
    assert (output.datatype, list(output.shape)) == ("BYTES", [2, 1])
    expected = [b"3.000000:1", b"5.000000:1"]
    if raw:
        assert list(response.raw_output_contents) == [b"".join(b"\x0a\0\0\0" + item for item in expected)]
    else:
        assert list(output.contents.bytes_contents) == expected


def test_classes_of_an_unbatched_model() -> None:
    response = encode(model_of(max_batch_size=0), [TENSOR[0]], [RequestedOutput(0, 5)], raw=False)
    assert list(response.outputs[0].shape) == [2]


def test_timing() -> None:
    response = encode(model_of(), [TENSOR], [RequestedOutput(0, 0)], timing=True)
    found = {name: value.int64_param for name, value in response.parameters.items()}
    assert found == {"nexus_queue_us": 1, "nexus_batch_size": 2, "nexus_infer_us": 3, "nexus_total_us": 4}
    assert list(response.raw_output_contents) == [TENSOR[1:3].tobytes()]


def test_a_scalar_keeps_its_empty_shape() -> None:
    model = model_of(outputs=[spec("y", "FP32")], max_batch_size=0)
    for timing in (False, True):
        response = encode(model, [np.array(2.5, dtype=np.float32)], [RequestedOutput(0, 0)], timing=timing)
        assert list(response.outputs[0].shape) == []
        assert list(response.raw_output_contents) == [np.float32(2.5).tobytes()]

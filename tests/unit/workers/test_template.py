"""Templates: only what means the same may match."""

import struct

import numpy as np
import pytest

from nexus_grpc.ipc.record import Method
from nexus_grpc.ipc.wire import length_prefix
from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from nexus_grpc.pb.nexus.v1 import inference_pb2 as predict_pb
from nexus_grpc.worker.infer_decode import decode_infer
from nexus_grpc.worker.model import Model
from nexus_grpc.worker.predict_codec import decode_predict
from nexus_grpc.worker.template import TEMPLATES_MAX, find_template, remember_template
from tests.unit.support import model_of, spec


def infer(values: list[float], request_id: str = "id", rows: int = 1, **fields: object) -> bytes:
    raw = np.array(values, dtype=np.float32).tobytes()
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[rows, 2])
    message = pb.ModelInferRequest(model_name="m", id=request_id, inputs=[tensor], raw_input_contents=[raw])
    return message.SerializeToString()


def predict(values: list[float], **fields: object) -> bytes:
    return predict_pb.PredictRequest(model_id="m", features=values, **fields).SerializeToString()  # type: ignore[arg-type]


def remember_infer(model: Model, message: bytes) -> None:
    remember_template(model, Method.MODEL_INFER, message, decode_infer(model, message))


def remember_predict(model: Model, message: bytes) -> None:
    remember_template(model, Method.PREDICT, message, decode_predict(model, message))


def test_other_values_match_and_anything_else_does_not() -> None:
    model = model_of()
    remember_infer(model, infer([1, 2]))
    other = infer([3, 4])
    template = find_template(model, Method.MODEL_INFER, other)
    assert template is not None
    assert template.tensors(other) == decode_infer(model, other).pieces
    assert template.decoded.form.pieces(template.tensors(other)) == decode_infer(model, other).pieces
    assert find_template(model, Method.MODEL_INFER, infer([3, 4], request_id="di")) is None
    assert find_template(model, Method.MODEL_INFER, infer([1, 2, 3, 4], rows=2)) is None
    assert find_template(model, Method.MODEL_STREAM_INFER, other) is None
    assert find_template(model, Method.MODEL_INFER, other.replace(b"FP32", b"FP64")) is None


def test_a_template_keeps_no_tensor_of_the_first_message() -> None:
    model = model_of()
    message = infer([1, 2])
    decoded = decode_infer(model, message)
    remember_template(model, Method.MODEL_INFER, message, decoded)
    template = find_template(model, Method.MODEL_INFER, message)
    assert template is not None
    assert template.decoded.pieces == []
    assert decoded.pieces == [message[-8:]]


def test_bytes_behind_the_tensors_count_too() -> None:
    model = model_of()
    head, tail = infer([1, 2]), pb.ModelInferRequest(id="late").SerializeToString()
    remember_infer(model, head + tail)
    assert find_template(model, Method.MODEL_INFER, infer([5, 6]) + tail) is not None
    assert find_template(model, Method.MODEL_INFER, infer([5, 6]) + tail.replace(b"late", b"soon")) is None


def test_flat_features_are_cast_and_checked_each_time() -> None:
    model = model_of(spec("x", "INT64", -1, 2))
    remember_predict(model, predict([1, 2]))
    template = find_template(model, Method.PREDICT, predict([3, 4]))
    assert template is not None
    form = template.decoded.form
    assert form.pieces(template.tensors(predict([3, 4]))) == [np.array([3, 4], dtype="<i8").tobytes()]


def test_features_in_several_parts_make_no_template() -> None:
    model = model_of(spec("x", "FP32", -1, 3))
    packed = predict([1, 2])
    unpacked = bytes([3 << 3 | 1]) + struct.pack("<d", 3.0)
    for message in (packed + unpacked, unpacked + packed, packed + predict([3])):
        decoded = decode_predict(model, message)
        assert len(decoded.pieces[0]) == 12
        remember_template(model, Method.PREDICT, message, decoded)
        assert find_template(model, Method.PREDICT, message) is None


@pytest.mark.parametrize(("datatype", "raw"), [("BOOL", b"\1\0"), ("BYTES", b"\1\0\0\0a\1\0\0\0b")])
def test_contents_with_an_inner_form_make_no_template(datatype: str, raw: bytes) -> None:
    model = model_of(spec("x", datatype, -1, 2))
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype=datatype, shape=[1, 2])
    message = pb.ModelInferRequest(model_name="m", inputs=[tensor], raw_input_contents=[raw]).SerializeToString()
    remember_infer(model, message)
    assert find_template(model, Method.MODEL_INFER, message) is None


def test_typed_contents_and_batches_of_rows_make_no_template() -> None:
    model = model_of()
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 2])
    tensor.contents.fp32_contents.extend([1, 2])
    message = pb.ModelInferRequest(model_name="m", inputs=[tensor]).SerializeToString()
    remember_infer(model, message)
    decoded = decode_infer(model, infer([1, 2]))
    remember_template(model, Method.BATCH_PREDICT, infer([1, 2]), decoded)
    assert model.templates == {}


def test_inputs_in_another_order_than_the_model_s_make_no_template() -> None:
    model = model_of(spec("x", "FP32", -1, 1), spec("z", "FP32", -1, 1))
    request = pb.ModelInferRequest(model_name="m", raw_input_contents=[b"zzzz", b"xxxx"])
    for name in ("z", "x"):
        request.inputs.add(name=name, datatype="FP32", shape=[1, 1])
    message = request.SerializeToString()
    decoded = decode_infer(model, message)
    assert decoded.pieces == [b"xxxx", b"zzzz"]
    remember_template(model, Method.MODEL_INFER, message, decoded)
    assert model.templates == {}


def test_templates_are_limited_in_number() -> None:
    model = model_of()
    for length in range(TEMPLATES_MAX + 10):
        remember_infer(model, infer([1, 2], request_id="x" * length))
    assert len(model.templates) == TEMPLATES_MAX


def test_a_template_that_keeps_missing_is_replaced_in_the_end() -> None:
    model = model_of()
    remember_infer(model, infer([1, 2], request_id="aa"))
    later = infer([1, 2], request_id="bb")
    for _ in range(8):
        remember_infer(model, later)
    assert find_template(model, Method.MODEL_INFER, later) is not None


def test_length_prefixes_inside_a_message_are_part_of_the_template() -> None:
    """Two raw contents of swapped lengths make a message of the same length and another meaning."""
    model = model_of(spec("x", "FP32", -1, -1), spec("z", "FP32", -1, -1), max_batch_size=0)

    def message(first: int, second: int) -> bytes:
        request = pb.ModelInferRequest(model_name="m")
        for name, count in (("x", first), ("z", second)):
            request.inputs.add(name=name, datatype="FP32", shape=[1, count])
        parts = [length_prefix(7, 4 * count) + bytes(4 * count) for count in (first, second)]
        return request.SerializeToString() + b"".join(parts)

    remember_infer(model, message(1, 2))
    assert find_template(model, Method.MODEL_INFER, message(1, 2)) is not None
    assert find_template(model, Method.MODEL_INFER, message(2, 1)) is None

"""ModelInferRequest in, pieces out, or an InvalidInput that names what is wrong."""

from typing import Any

import numpy as np
import pytest

from nexus_grpc.ipc.errors import InvalidInput
from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from nexus_grpc.worker.infer_decode import decode_infer
from nexus_grpc.worker.infer_form import InferForm
from nexus_grpc.worker.model import Model
from nexus_grpc.worker.requests import Decoded
from nexus_grpc.worker.tensors import DATATYPES
from tests.unit.support import model_of, spec

ROW = np.array([1.5, -2.0], dtype=np.float32).tobytes()
TEXT = b"\1\0\0\0a\2\0\0\0\xc3\xa4"


def request(raw: bytes | None = ROW, datatype: str = "FP32", shape: tuple[int, ...] = (1, 2)) -> pb.ModelInferRequest:
    made = pb.ModelInferRequest(model_name="m")
    made.inputs.add(name="x", datatype=datatype, shape=shape)
    if raw is not None:
        made.raw_input_contents.append(raw)
    return made


def decode(message: pb.ModelInferRequest, model: Model | None = None) -> Decoded:
    return decode_infer(model or model_of(), message.SerializeToString())


def refusal(message: pb.ModelInferRequest, model: Model | None = None) -> str:
    with pytest.raises(InvalidInput) as caught:
        decode(message, model)
    return caught.value.message


def form_of(decoded: Decoded) -> InferForm:
    assert isinstance(decoded.form, InferForm)
    return decoded.form


def test_raw_contents_are_the_pieces() -> None:
    decoded = decode(request(ROW * 3, shape=(3, 2)))
    assert decoded.pieces == [ROW * 3]
    assert decoded.rows == 3
    assert decoded.signature == (("x", (2,)),)
    assert decoded.templatable
    assert form_of(decoded).raw


def test_an_unbatched_model_has_one_row_and_its_whole_shape() -> None:
    decoded = decode(request(ROW * 3, shape=(3, 2)), model_of(max_batch_size=0))
    assert (decoded.rows, decoded.signature) == (1, (("x", (3, 2)),))


@pytest.mark.parametrize(
    "row", [row for row in DATATYPES if row.contents and row.name != "BYTES"], ids=lambda r: r.name
)
def test_typed_contents_become_raw(row: Any) -> None:
    values = [1, 0] if row.name != "FP32" else [1.5, 0.0]
    message = request(None, datatype=row.name)
    getattr(message.inputs[0].contents, row.contents).extend(values)
    decoded = decode(message, model_of(spec("x", row.name, -1, 2)))
    assert decoded.pieces == [np.array(values, dtype=row.dtype).tobytes()]
    assert not decoded.templatable
    assert not form_of(decoded).raw


def test_text_both_ways() -> None:
    model = model_of(spec("x", "BYTES", -1, 2))
    typed = request(None, datatype="BYTES")
    typed.inputs[0].contents.bytes_contents.extend([b"a", "ä".encode()])
    for message in (typed, request(TEXT, datatype="BYTES")):
        [piece] = decode(message, model).pieces
        assert isinstance(piece, np.ndarray)
        assert piece.tolist() == ["a", "ä"]


def test_inputs_come_out_in_the_model_s_order() -> None:
    model = model_of(spec("x", "FP32", -1, 1), spec("z", "INT8", -1, 1))
    message = pb.ModelInferRequest(model_name="m", raw_input_contents=[b"z", b"xxxx"])
    message.inputs.add(name="z", datatype="INT8", shape=[1, 1])
    message.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    decoded = decode(message, model)
    assert decoded.pieces == [b"xxxx", b"z"]
    assert not decoded.templatable


def test_optional_inputs_may_be_absent() -> None:
    model = model_of(spec("x", "FP32", -1, 2), spec("z", "FP32", -1, 2, optional=True))
    assert decode(request(), model).signature == (("x", (2,)),)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda m: m.ClearField("raw_input_contents"), "expected 2 values for shape"),
        (lambda m: m.raw_input_contents.append(ROW), "expected 1 raw_input_contents, one per input, got 2"),
        (lambda m: setattr(m.inputs[0], "name", "y"), "unexpected input 'y' for model 'm', expected 'x'"),
        (lambda m: setattr(m.inputs[0], "datatype", "FP64"), "expected datatype FP32, got FP64"),
        (lambda m: setattr(m.inputs[0], "datatype", ""), "expected datatype FP32, got none"),
        (lambda m: m.inputs[0].shape.append(1), r"expected shape \[-1,2\], got \[1,2,1\]"),
        (lambda m: m.inputs[0].shape.__setitem__(0, 2), "expected 16 bytes for shape"),
        (lambda m: m.inputs[0].shape.__setitem__(0, 2**62), "expected .* bytes for shape"),
        (lambda m: m.inputs[0].contents.fp32_contents.append(1), "has both contents and raw_input_contents"),
        (lambda m: m.ClearField("inputs"), "expected 0 raw_input_contents"),
        (lambda m: (m.ClearField("inputs"), m.ClearField("raw_input_contents")), "missing: x"),
        (lambda m: setattr(m, "model_version", "2"), "must appear once"),
        (lambda m: setattr(m, "model_name", "other"), "must appear once"),
        (lambda m: m.outputs.add(name="q"), "unexpected output 'q' for model 'm', expected 'y'"),
        (lambda m: m.parameters["triton_x"].SetInParent(), "parameter 'triton_x' is not supported"),
    ],
)
def test_refusals(change: Any, text: str) -> None:
    message = request()
    change(message)
    with pytest.raises(InvalidInput, match=text):
        decode(message)


def test_an_input_twice() -> None:
    message = request()
    message.MergeFrom(request())
    assert refusal(message) == "input 'x' appears twice"


def test_no_protobuf_at_all() -> None:
    with pytest.raises(InvalidInput, match=r"not a valid inference\.ModelInferRequest"):
        decode_infer(model_of(), b"\xff\xff")


def test_bool_bytes_are_zero_and_one() -> None:
    model = model_of(spec("x", "BOOL", -1, 2))
    assert decode(request(b"\0\1", "BOOL"), model).pieces == [b"\0\1"]
    assert "bytes 0 and 1" in refusal(request(b"\0\2", "BOOL"), model)


def test_half_precision_is_raw_only() -> None:
    model = model_of(spec("x", "FP16", -1, 2))
    assert decode(request(bytes(4), "FP16"), model).pieces == [bytes(4)]
    assert "FP16 travels in raw_input_contents only" in refusal(request(None, "FP16"), model)


def test_values_in_another_type_s_field() -> None:
    message = request(None)
    message.inputs[0].contents.fp64_contents.extend([1, 2])
    assert refusal(message) == "input 'x': FP32 values belong in fp32_contents, got fp64_contents"


@pytest.mark.parametrize("value", [128, -129, 2**31 - 1])
def test_values_that_do_not_fit_their_datatype(value: int) -> None:
    message = request(None, "INT8")
    message.inputs[0].contents.int_contents.extend([0, value])
    assert refusal(message, model_of(spec("x", "INT8", -1, 2))) == "input 'x': a value does not fit INT8"


def test_parameters() -> None:
    message = request()
    message.parameters["nexus_timing"].bool_param = True
    message.parameters["timeout"].int64_param = 1500
    message.parameters["anything"].string_param = "is ignored"
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    decoded = decode(message)
    assert decoded.timeout_ns == 1_500_000
    assert form_of(decoded).timing
    message.parameters["timeout"].int64_param = -5
    assert decode(message).timeout_ns == 0


def test_a_final_response_where_it_is_asked_for() -> None:
    message = request()
    assert not form_of(decode(message)).final
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    assert form_of(decode(message)).final


@pytest.mark.parametrize(
    ("name", "field", "value", "text"),
    [
        ("sequence_id", "int64_param", 3, "no sequence batching"),
        ("sequence_id", "string_param", "a", "no sequence batching"),
        ("sequence_start", "bool_param", True, "no sequence batching"),
        ("priority", "uint64_param", 1, "no priority levels"),
        ("triton_other", "bool_param", True, "'triton_other' is not supported"),
        ("timeout", "string_param", "soon", "'timeout' must be a whole number"),
    ],
)
def test_parameters_that_cannot_be_obeyed_are_named(name: str, field: str, value: Any, text: str) -> None:
    message = request()
    setattr(message.parameters[name], field, value)
    assert text in refusal(message)


def test_parameters_that_ask_for_nothing() -> None:
    message = request()
    message.parameters["sequence_id"].int64_param = 0
    message.parameters["sequence_end"].bool_param = False
    message.parameters["priority"].uint64_param = 0
    message.parameters["timeout"].SetInParent()
    assert decode(message).priority == 0
    message.parameters["sequence_id"].string_param = ""
    assert decode(message).rows == 1


def test_shared_memory_is_refused_by_name() -> None:
    message = request()
    message.inputs[0].parameters["shared_memory_region"].string_param = "r"
    assert "'shared_memory_region': shared memory" in refusal(message)


def test_requested_outputs_in_the_order_asked_for() -> None:
    model = model_of(outputs=[spec("y", "FP32", -1, 2), spec("label", "BYTES", -1, 1)])
    message = request()
    message.outputs.add(name="label")
    message.outputs.add(name="y").parameters["classification"].int64_param = 2
    requested = form_of(decode(message, model)).outputs
    assert [(item.index, item.classes) for item in requested] == [(1, 0), (0, 2)]


@pytest.mark.parametrize(
    ("output", "parameter", "text"),
    [("y", 0, "at least 1"), ("y", -1, "at least 1"), ("label", 2, "is text")],
)
def test_classification_that_cannot_be(output: str, parameter: int, text: str) -> None:
    model = model_of(outputs=[spec("y", "FP32", -1, 2), spec("label", "BYTES", -1, 1)])
    message = request()
    message.outputs.add(name=output).parameters["classification"].int64_param = parameter
    assert text in refusal(message, model)


def test_typed_requests_may_ask_for_raw_answers() -> None:
    message = request(None)
    message.inputs[0].contents.fp32_contents.extend([1, 2])
    message.outputs.add(name="y").parameters["binary_data"].bool_param = True
    assert form_of(decode(message)).raw


def test_a_version_that_is_the_model_s() -> None:
    message = request()
    message.model_version = "1"
    assert decode(message).rows == 1

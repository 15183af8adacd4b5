"""Bad requests, by what is wrong with them: (request, code, part of the message, the field that the details name)."""

from collections.abc import Callable
from typing import Any

import grpc
import numpy as np

from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from nexus_grpc.pb.nexus.v1 import inference_pb2 as nexus_pb
from tests.integration.client import iris_request, raw_request, typed_request

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
ROW = np.array([[5.1, 3.5, 1.4, 0.2]], np.float32)


def changed(
    change: Callable[[pb.ModelInferRequest], Any], build: Any = raw_request, **inputs: Any
) -> pb.ModelInferRequest:
    """A good request of iris with something changed."""
    request = build("iris", inputs or {"X": ROW})
    change(request)
    return request


def _set(**fields: Any) -> Callable[[pb.ModelInferRequest], None]:
    def change(request: pb.ModelInferRequest) -> None:
        for name, value in fields.items():
            if name == "shape":
                del request.inputs[0].shape[:]
                request.inputs[0].shape.extend(value)
            elif name == "raw":
                del request.raw_input_contents[:]
                request.raw_input_contents.extend(value)
            elif name == "values":
                del request.inputs[0].contents.fp32_contents[:]
                request.inputs[0].contents.fp32_contents.extend(value)
            else:
                setattr(request.inputs[0], name, value)

    return change


def _text(raw: bytes, count: int = 1) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="text_echo", raw_input_contents=[raw])
    request.inputs.add(name="text", datatype="BYTES", shape=[count, 1])
    return request


def _two(**arrays: np.ndarray) -> pb.ModelInferRequest:
    return raw_request("two_inputs", arrays)


def _output(name: str, **parameters: int) -> pb.ModelInferRequest:
    request = iris_request()
    output = request.outputs.add(name=name)
    for key, value in parameters.items():
        output.parameters[key].int64_param = value
    return request


def _parameter(name: str) -> pb.ModelInferRequest:
    request = iris_request()
    request.parameters[name].bool_param = True
    return request


THREE = np.ones((1, 3), np.float32)
MODEL_INFER = {
    "unknown model": (
        pb.ModelInferRequest(model_name="x"),
        NOT_FOUND,
        "Request for unknown model: 'x' is not found",
        "",
    ),
    "unknown version": (
        iris_request(model_version="7"),
        NOT_FOUND,
        "Request for unknown model: 'iris' version 7 is not found; there is: 1",
        "",
    ),
    "version that is no number": (iris_request(model_version="latest"), NOT_FOUND, "'iris' version latest", ""),
    "no model": (pb.ModelInferRequest(id="1"), INVALID, "names no model: set model_name", "model_name"),
    "empty message": (b"", INVALID, "names no model", "model_name"),
    "no protobuf": (b"\xff\xff\xff\xff", INVALID, "not a valid protobuf message", ""),
    "cut after the name": (b"\x0a\x04iris\x2a\x50", INVALID, "not a valid inference.ModelInferRequest message", ""),
    "name twice": (
        iris_request().SerializeToString() + b"\x0a\x07scale_x",
        INVALID,
        "model_name and model_version must appear once",
        "model_name",
    ),
    "version twice": (
        iris_request(model_version="1").SerializeToString() + b"\x12\x012",
        INVALID,
        "must appear once",
        "model_name",
    ),
    "invalid UTF-8 in the id": (iris_request().SerializeToString() + b"\x1a\x01\xff", INVALID, "not a valid", ""),
    "wrong input": (changed(_set(name="Y")), INVALID, "unexpected input 'Y' for model 'iris', expected 'X'", "Y"),
    "wrong datatype": (changed(_set(datatype="FP64")), INVALID, "expected datatype FP32, got FP64", "X"),
    "no datatype": (changed(_set(datatype="")), INVALID, "expected datatype FP32, got none", "X"),
    "wrong width": (changed(_set(shape=[1, 3])), INVALID, "expected shape [-1,4], got [1,3]", "X"),
    "wrong rank": (changed(_set(shape=[4])), INVALID, "expected shape [-1,4], got [4]", "X"),
    "no shape": (changed(_set(shape=[])), INVALID, "expected shape [-1,4], got []", "X"),
    "negative rows": (changed(_set(shape=[-1, 4])), INVALID, "got [-1,4]", "X"),
    "no rows": (changed(_set(shape=[0, 4], raw=[b""])), INVALID, "expected a batch of at least 1 row", "X"),
    "huge shape": (changed(_set(shape=[2**62, 4])), INVALID, "got 16", "X"),
    "too few bytes": (changed(_set(raw=[b"123"])), INVALID, "expected 16 bytes for shape [1, 4] of FP32, got 3", "X"),
    "too many bytes": (changed(_set(raw=[b"1" * 17])), INVALID, "expected 16 bytes", "X"),
    "too many tensors": (
        changed(_set(raw=[b"1" * 16] * 2)),
        INVALID,
        "expected 1 raw_input_contents",
        "raw_input_contents",
    ),
    "too few values": (
        changed(_set(values=[1, 2, 3]), typed_request),
        INVALID,
        "expected 4 values for shape [1, 4], got 3",
        "X",
    ),
    "no content": (changed(_set(raw=[])), INVALID, "expected 4 values for shape [1, 4], got 0", "X"),
    "both contents": (
        changed(lambda request: request.inputs[0].contents.fp32_contents.extend([1, 2, 3, 4])),
        INVALID,
        "both contents and raw_input_contents",
        "X",
    ),
    "values of another type": (
        changed(lambda request: request.inputs[0].contents.int_contents.append(1), typed_request),
        INVALID,
        "FP32 values belong in fp32_contents, got",
        "X",
    ),
    "no inputs": (pb.ModelInferRequest(model_name="iris"), INVALID, "expects inputs 'X'; missing: X", "X"),
    "one input of two": (_two(a=THREE), INVALID, "expects inputs 'a', 'b'; missing: b", "b"),
    "rows that differ": (_two(a=THREE, b=np.ones((2, 3), np.float32)), INVALID, "same batch dimension", ""),
    "input twice": (
        changed(lambda r: (r.inputs.append(r.inputs[0]), r.raw_input_contents.append(r.raw_input_contents[0]))),
        INVALID,
        "input 'X' appears twice",
        "X",
    ),
    "unknown output": (_output("y"), INVALID, "unexpected output 'y' for model 'iris', expected 'label'", "y"),
    "classification of nothing": (
        _output("probabilities", classification=0),
        INVALID,
        "classification must be at least 1",
        "probabilities",
    ),
    "negative classification": (_output("probabilities", classification=-2), INVALID, "at least 1", "probabilities"),
    "unsupported parameter": (
        _parameter("triton_final_response"),
        INVALID,
        "parameter 'triton_final_response' is not supported",
        "triton_final_response",
    ),
    "text without length": (_text(b"\x01"), INVALID, "ends inside a length prefix (1 of 4 bytes)", "text"),
    "text cut short": (_text(b"\x09\0\0\0abc"), INVALID, "element 0 is truncated: expected 9 bytes, got 3", "text"),
    "text of huge length": (_text(b"\xff\xff\xff\xffabc"), INVALID, "expected 4294967295 bytes, got 3", "text"),
    "too many texts": (_text(b"\x01\0\0\0a" * 2), INVALID, "expected 1 BYTES elements, got 2", "text"),
    "text that is no UTF-8": (_text(b"\x01\0\0\0\xff"), INVALID, "BYTES element 0 is not valid UTF-8", "text"),
    "batch over the limit": (
        raw_request("digits_cnn", {"image": np.zeros((33, 1, 8, 8), np.float32)}),
        INVALID,
        "batch of 33 rows is larger than model 'digits_cnn' allows: 32",
        "",
    ),
    "other fixed batch": (
        raw_request("fixed_batch", {"x": np.zeros((3, 3), np.float32)}),
        INVALID,
        "expected shape [2,3], got [3,3]",
        "x",
    ),
}
PREDICT: dict[str, tuple[Any, Any, str, str]] = {
    "unknown model": (
        nexus_pb.PredictRequest(model_id="x", features=[1]),
        NOT_FOUND,
        "Request for unknown model: 'x' is not found",
        "",
    ),
    "no model": (nexus_pb.PredictRequest(features=[1]), INVALID, "names no model", "model_name"),
    "three features": (
        nexus_pb.PredictRequest(model_id="iris", features=[1, 2, 3]),
        INVALID,
        "invalid input: expected 4 features, got 3",
        "features",
    ),
    "no features": (nexus_pb.PredictRequest(model_id="iris"), INVALID, "expected 4 features, got 0", "features"),
    "integer overflow": (
        nexus_pb.PredictRequest(model_id="counts_i64", features=[1, 1e300, 3, 4]),
        INVALID,
        "feature 1 (1e+300) does not fit INT64",
        "features",
    ),
    "just over": (
        nexus_pb.PredictRequest(model_id="counts_i64", features=[2.0**63, 0, 0, 0]),
        INVALID,
        "feature 0",
        "features",
    ),
    "fraction": (
        nexus_pb.PredictRequest(model_id="counts_i64", features=[1, 2, 3.5, 4]),
        INVALID,
        "feature 2 (3.5) does not fit INT64",
        "features",
    ),
    "not a number": (
        nexus_pb.PredictRequest(model_id="counts_i64", features=[1, 2, 3, float("nan")]),
        INVALID,
        "feature 3 (nan) does not fit INT64",
        "features",
    ),
    "float overflow": (
        nexus_pb.PredictRequest(model_id="iris", features=[1e300, 0, 0, 0]),
        INVALID,
        "feature 0 (1e+300) does not fit FP32",
        "features",
    ),
    "two inputs": (
        nexus_pb.PredictRequest(model_id="two_inputs", features=[1, 2, 3]),
        INVALID,
        "has 2 inputs ('a', 'b'); flat features fit a model with one: name them in `inputs`, or use ModelInfer",
        "features",
    ),
    "two dynamic dimensions": (
        nexus_pb.PredictRequest(model_id="all_types", features=[1]),
        INVALID,
        "use ModelInfer",
        "features",
    ),
    "text for numbers": (
        nexus_pb.PredictRequest(model_id="iris", texts=["a"]),
        INVALID,
        "expects numbers: send them in `features`",
        "texts",
    ),
    "numbers for text": (
        nexus_pb.PredictRequest(model_id="text_echo", features=[1]),
        INVALID,
        "expects text: send it in `texts`",
        "features",
    ),
    "name twice": (
        nexus_pb.PredictRequest(model_id="iris", features=[1] * 4).SerializeToString() + b"\x0a\x05scale",
        INVALID,
        "model_id and model_version must appear once",
        "model_id",
    ),
    "no protobuf": (b"\x0a\x04iris\x1a\x50", INVALID, "not a valid nexus.v1.PredictRequest message", ""),
}

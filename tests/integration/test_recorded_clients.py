"""Requests as other clients sent them, byte for byte: recorded from KServe's Python SDK 0.21.0 (InferenceRESTClient and
InferRequest.to_grpc) and MLServer 1.7.1 (its types as JSON, with and without nulls; its gRPC converters, typed and
raw).

Both packages are too heavy to be dependencies of a test. Newer recordings go in the same way: send with the client,
keep what it sent.
"""

import base64
import json
from typing import Any

import pytest

from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from tests.harness import Server
from tests.integration.client import Client
from tests.integration.rest import call, get, post

JSON_TYPE, BINARY_TYPE = "application/json", "application/octet-stream"
ROW = b"33\xa3@\x00\x00`@33\xb3?\xcd\xccL>"
KSERVE = [
    (
        "iris",
        b'{"id":"a1","model_name":"iris","inputs":[{"name":"X","shape":[1,4],"datatype":"FP32","data":'
        b"[5.099999904632568,3.5,1.399999976158142,0.20000000298023224]}]}",
        0,
    ),
    (
        "iris",
        b'{"id":"9708e5d4-6f1d-4abe-ad64-ff0183ced9cd","model_name":"iris","inputs":[{"name":"X","shape":[1,4],'
        b'"datatype":"FP32","parameters":{"binary_data_size":16}}],"parameters":{"binary_data_output":true}}' + ROW,
        199,
    ),
    (
        "iris",
        b'{"id":null,"inputs":[{"name":"X","shape":[1,4],"datatype":"FP32","data":[1,2,3,4],"parameters":null}],'
        b'"outputs":null,"parameters":null}',
        0,
    ),
    (
        "text_echo",
        b'{"id":"97ada8c9-673b-4bce-b4c0-d700bfddb817","model_name":"text_echo","inputs":[{"name":"text","shape":[1,1],'
        b'"datatype":"BYTES","data":["h\xc3\xa9llo"]}]}',
        0,
    ),
    (
        "text_echo",
        b'{"id":"bd69be0b-7aad-4771-a9f3-c3bca23b53a1","model_name":"text_echo","inputs":[{"name":"text","shape":[1,1],'
        b'"datatype":"BYTES","parameters":{"binary_data_size":10}}]}\x06\x00\x00\x00h\xc3\xa9llo',
        167,
    ),
]
MLSERVER = [
    (
        "iris",
        b'{"id":null,"parameters":null,"inputs":[{"name":"X","shape":[1,4],"datatype":"FP32","parameters":'
        b'{"content_type":"np","headers":null},"data":[5.099999904632568,3.5,1.399999976158142,0.20000000298023224]}],'
        b'"outputs":null}',
        0,
    ),
    (
        "iris",
        b'{"id":"7","parameters":{"content_type":"np","headers":{"a":"b"}},"inputs":[{"name":"X","shape":[1,4],'
        b'"datatype":"FP32","parameters":{"content_type":"np","headers":null},"data":[1,2,3,4]}],'
        b'"outputs":[{"name":"label","parameters":null}]}',
        0,
    ),
    (
        "text_echo",
        b'{"inputs":[{"name":"text","shape":[1,1],"datatype":"BYTES","parameters":{"content_type":"str"},'
        b'"data":["h\xc3\xa9llo"]}]}',
        0,
    ),
]
BY_GRPC = {
    "kserve": [
        "CgRpcmlzGgFxIggKAWESAxoBYiIHCgFuEgIQAyohCgFYEgRGUDMyGgIBBCoSMhAAAIA/AAAAQAAAQEAAAIBA",
        "CgRpcmlzKiUKAVgSBEZQMzIaAgEEIhYKEGJpbmFyeV9kYXRhX3NpemUSAhAQOhAzM6NAAABgQDMzsz/NzEw+",
        "Cgl0ZXh0X2VjaG8aAXEqGwoEdGV4dBIFQllURVMaAgEBKghCBmjDqWxsbw==",
    ],
    "mlserver": [
        "CgRpcmlzKjcKAVgSBEZQMzIaAgEEIhQKDGNvbnRlbnRfdHlwZRIEGgJucCoSMhAzM6NAAABgQDMzsz/NzEw+",
        # An empty `contents` beside raw contents.
        "CgRpcmlzKiUKAVgSBEZQMzIaAgEEIhQKDGNvbnRlbnRfdHlwZRIEGgJucCoAOhAzM6NAAABgQDMzsz/NzEw+",
        "Cgl0ZXh0X2VjaG8qMgoEdGV4dBIFQllURVMaAgEBIhUKDGNvbnRlbnRfdHlwZRIFGgNzdHIqCEIGaMOpbGxv",
        "Cgl0ZXh0X2VjaG8qKgoEdGV4dBIFQllURVMaAgEBIhUKDGNvbnRlbnRfdHlwZRIFGgNzdHIqADoKBgAAAGjDqWxsbw==",
        "CgRpcmlzGgE3IhQKDGNvbnRlbnRfdHlwZRIEGgJucColCgFYEgRGUDMyGgIBBCIUCgxjb250ZW50X3R5cGUSBBoCbnAqADIHCgVsYWJlbDoQ"
        "AACAPwAAAEAAAEBAAACAQA==",
    ],
}


@pytest.mark.parametrize(("model", "body", "length"), [*KSERVE, *MLSERVER])
def test_by_rest(rest_server: Server, model: str, body: bytes, length: int) -> None:
    headers = {"Content_Type": JSON_TYPE, "Accept": "*/*", "Accept_Encoding": "gzip, deflate"}
    if length:
        headers |= {"Content_Type": BINARY_TYPE, "Inference_Header_Content_Length": str(length)}
    answer = post(rest_server.rest_port, f"/v2/models/{model}/infer", body, **headers)
    assert answer.status == 200, answer
    size = int(answer.headers.get("inference-header-content-length", len(answer.body)))
    content: dict[str, Any] = json.loads(answer.body[:size])
    first = content["outputs"][0]
    if model == "text_echo":
        assert first["data"] == ["héllo"]
    elif "data" in first:
        assert first["data"] == [0]
    else:
        assert answer.body[size : size + 8] == bytes(8)
    sent = json.loads(body[: length or len(body)]).get("id")
    assert content["id"] == (sent or answer.headers["x-request-id"])


def test_what_kserve_asks_first(rest_server: Server) -> None:
    """It tells by the status alone."""
    for path, status in (
        ("/v2/health/live", 200),
        ("/v2/health/ready", 200),
        ("/v2/models/iris/ready", 200),
        ("/v2/models/none/ready", 404),
    ):
        assert get(rest_server.rest_port, path, Accept_Encoding="gzip, deflate").status == status
    index = call(rest_server.rest_port, "POST", "/v2/repository/index", {"ready": None})
    assert {"name": "iris", "version": "1", "state": "READY", "reason": ""} in index.json


@pytest.mark.parametrize("message", [*BY_GRPC["kserve"], *BY_GRPC["mlserver"]])
def test_by_grpc(client: Client, message: str) -> None:
    raw = base64.b64decode(message)
    request = pb.ModelInferRequest.FromString(raw)
    infer = client.channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer", None, pb.ModelInferResponse.FromString
    )
    response = infer(raw, timeout=20)
    assert response.id == request.id
    if request.raw_input_contents:
        expected = b"\x06\0\0\0h\xc3\xa9llo" if request.model_name == "text_echo" else bytes(8)
        assert response.raw_output_contents[0] == expected
    elif request.model_name == "text_echo":
        assert list(response.outputs[0].contents.bytes_contents) == ["héllo".encode()]
    else:
        assert list(response.outputs[0].contents.int64_contents) == [0]

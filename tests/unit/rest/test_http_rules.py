"""nexus_grpc/rest/http_rules.py: the routes that proto/ names."""

import re

import pytest
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2, descriptor_pool

from nexus_grpc.rest.http_rules import Binding, http_methods

# Names are part of the contract with the front, which serves them by name.
EXPECTED = {
    "InferencePredict": ["POST /predict"],
    "ModelsList": ["GET /models"],
    "ModelsInfo": ["GET /models/{id}", "GET /models/info"],
    "ModelsUpload": ["POST /models/upload"],
    "ModelsLoad": ["POST /v1/models/{id}/load"],
    "ModelsUnload": ["POST /v1/models/{id}/unload"],
    "ModelsActivate": ["POST /v1/models/{id}/activate"],
    "ModelsRollback": ["POST /v1/models/{id}/rollback"],
    "ModelsDelete": ["DELETE /v1/models/{id}", "DELETE /v1/models/{id}/versions/{version}"],
    "ModelsHistory": ["GET /v1/models/{id}/history"],
    "ModelsListRecords": ["GET /v1/models"],
    "ModelsGetRecord": ["GET /v1/models/{id}"],
    "ModelsRegister": ["POST /v1/models"],
    "ModelsUpdateRecord": ["PUT /v1/models/{id}"],
    "ModelsOverview": ["GET /v1/overview"],
    "KeysCreate": ["POST /admin/keys"],
    "KeysList": ["GET /admin/keys"],
    "KeysRevoke": ["POST /admin/keys/revoke"],
    "TrafficSetup": ["POST /admin/ab/setup"],
    "TrafficSplit": ["POST /admin/ab/split"],
    "TrafficRamp": ["POST /admin/ab/ramp"],
    "TrafficPromote": ["POST /admin/ab/promote"],
    "TrafficAbort": ["POST /admin/ab/abort"],
    "TrafficStatus": ["GET /admin/ab/status"],
    "TrafficShadow": ["POST /admin/ab/shadow"],
    "TrafficBalance": ["POST /admin/ab/balance"],
    "SystemHealth": ["GET /health"],
    "SystemReady": ["GET /ready"],
    "SystemVersion": ["GET /admin/version"],
    "SystemReload": ["POST /admin/reload"],
    "RestApiPredict": ["POST /api/v1/predict"],
    "RestApiBatchPredict": ["POST /api/v1/batch_predict"],
    "RestApiModel": ["GET /api/v1/models/{name}"],
    "RestInfer": ["POST /v1/infer"],
    "RestV2Live": ["GET /v2/health/live"],
    "RestV2Ready": ["GET /v2/health/ready"],
    "RestV2Server": ["GET /v2"],
    "RestV2Model": ["GET /v2/models/{model_name}", "GET /v2/models/{model_name}/versions/{model_version}"],
    "RestV2ModelReady": [
        "GET /v2/models/{model_name}/ready",
        "GET /v2/models/{model_name}/versions/{model_version}/ready",
    ],
    "RestV2ModelConfig": [
        "GET /v2/models/{model_name}/config",
        "GET /v2/models/{model_name}/versions/{model_version}/config",
    ],
    "RestV2Statistics": [
        "GET /v2/models/stats",
        "GET /v2/models/{model_name}/stats",
        "GET /v2/models/{model_name}/versions/{model_version}/stats",
    ],
    "RestV2RepositoryIndex": ["POST /v2/repository/index"],
    "RestV2Logging": ["GET /v2/logging"],
    "RestV2Tracing": ["GET /v2/trace/setting", "GET /v2/models/{model_name}/trace/setting"],
    "RestV2SystemSharedMemory": [
        "GET /v2/systemsharedmemory/status",
        "GET /v2/systemsharedmemory/region/{region}/status",
    ],
    "RestV2CudaSharedMemory": ["GET /v2/cudasharedmemory/status", "GET /v2/cudasharedmemory/region/{region}/status"],
    "V2AdminLoad": ["POST /v2/repository/models/{model_name}/load"],
    "V2AdminUnload": ["POST /v2/repository/models/{model_name}/unload"],
    "V2AdminUpdateLogSettings": ["POST /v2/logging"],
    "V2AdminUpdateTraceSettings": ["POST /v2/trace/setting", "POST /v2/models/{model_name}/trace/setting"],
    "V2AdminSystemSharedMemoryRegister": ["POST /v2/systemsharedmemory/region/{region}/register"],
    "V2AdminSystemSharedMemoryUnregister": [
        "POST /v2/systemsharedmemory/unregister",
        "POST /v2/systemsharedmemory/region/{region}/unregister",
    ],
    "V2AdminCudaSharedMemoryRegister": ["POST /v2/cudasharedmemory/region/{region}/register"],
    "V2AdminCudaSharedMemoryUnregister": [
        "POST /v2/cudasharedmemory/unregister",
        "POST /v2/cudasharedmemory/region/{region}/unregister",
    ],
    "RestV2Infer": [
        "POST /v2/models/{model_name}/infer",
        "POST /v2/models/{model_name}/versions/{model_version}/infer",
    ],
}
METHODS = {method.name: method for method in http_methods()}


def test_every_annotated_method_is_found() -> None:
    found = {name: [f"{each.verb} {each.template}" for each in method.bindings] for name, method in METHODS.items()}
    assert found == EXPECTED


def test_bodies_go_with_post_and_put() -> None:
    for name, method in METHODS.items():
        verbs = {binding.verb for binding in method.bindings}
        assert verbs <= ({"POST", "PUT"} if method.has_body else {"GET", "DELETE"}), name


def test_what_is_the_open_inference_protocols() -> None:
    assert {name for name, method in METHODS.items() if method.is_v2} == {
        name for name in EXPECTED if name.startswith(("RestV2", "V2Admin"))
    }


def test_what_is_in_no_path_is_in_the_query() -> None:
    assert METHODS["ModelsHistory"].query == ("limit",)
    assert METHODS["TrafficStatus"].query == ("model",)
    assert METHODS["ModelsInfo"].query == METHODS["ModelsDelete"].query == METHODS["ModelsUpdateRecord"].query == ()


def test_predictions_and_questions_change_nothing() -> None:
    unchanging = {name for name, method in METHODS.items() if not method.is_change}
    assert {name for name in METHODS if name.startswith(("Inference", "Rest"))} < unchanging
    assert {"SystemHealth", "ModelsInfo", "ModelsHistory", "TrafficStatus"} < unchanging
    assert not unchanging & {"ModelsUpload", "ModelsDelete", "ModelsUpdateRecord", "TrafficAbort", "SystemReload"}


def test_an_upload_comes_in_pieces() -> None:
    assert {name for name, method in METHODS.items() if method.client_streaming} == {"ModelsUpload"}


def test_parameters_stand_in_the_order_of_the_longest_path() -> None:
    assert METHODS["RestV2Infer"].parameters == ("model_name", "model_version")
    assert METHODS["ModelsInfo"].parameters == ("id",)
    assert METHODS["InferencePredict"].parameters == ()


def test_a_parameter_is_one_segment() -> None:
    binding = Binding("GET", "/v2/models/{model_name}/ready")
    assert binding.parameters == ("model_name",)
    assert not binding.is_exact
    assert re.fullmatch(binding.regex, "/v2/models/iris/ready")
    assert not re.fullmatch(binding.regex, "/v2/models/iris/x/ready")
    assert not re.fullmatch(binding.regex, "/v2/models//ready")


def test_dots_of_a_path_are_dots() -> None:
    assert not re.fullmatch(Binding("GET", "/a.b/{id}").regex, "/axb/1")


@pytest.mark.parametrize(
    ("rule", "streaming", "words"),
    [
        ({"post": "/x", "body": "row"}, {}, "whole message"),
        ({"body": "*"}, {}, "an HTTP verb is needed"),
        ({"get": "/x"}, {"client_streaming": True}, "all in the body"),
        ({"post": "/x/{row}", "body": "*"}, {"client_streaming": True}, "without parameters"),
        ({"get": "/x"}, {"server_streaming": True}, "no form in HTTP"),
    ],
)
def test_what_the_twin_has_no_form_for_is_refused(rule: dict[str, str], streaming: dict[str, bool], words: str) -> None:
    file = descriptor_pb2.FileDescriptorProto(name="x.proto", package="x", syntax="proto3")
    file.dependency.append("google/api/annotations.proto")
    file.message_type.add(name="M").field.add(name="row", number=1, type=9, label=1)
    method = file.service.add(name="S").method.add(name="Do", input_type=".x.M", output_type=".x.M", **streaming)
    for key, value in rule.items():
        setattr(method.options.Extensions[annotations_pb2.http], key, value)
    pool = descriptor_pool.DescriptorPool()
    for module in (descriptor_pb2, annotations_pb2.google_dot_api_dot_http__pb2, annotations_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    with pytest.raises(ValueError, match=words):
        http_methods([pool.FindFileByName("x.proto")])

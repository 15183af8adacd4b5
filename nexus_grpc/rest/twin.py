"""The HTTP twin: the descriptors by which Envoy hands JSON through to us untouched.

Envoy's transcoder would turn JSON into protobuf by itself, but forgivingly: a misspelt field vanishes, a duplicate key
wins, NaN is a number. So each annotated method of proto/ gets a twin in the service `nexus.http.v1.Http`, with the same
HTTP rule, whose body is a google.api.HttpBody: the bytes as they came. The server decodes those strictly.

    message RestV2InferRequest {
      string model_name = 1;          // path and query parameters, in order
      string model_version = 2;
      google.api.HttpBody body = 15;  // where the method has a body
    }
    rpc RestV2Infer(RestV2InferRequest) returns (google.api.HttpBody)

A body that comes in pieces (an upload) is a stream of HttpBody; the first has the content type:

    rpc ModelsUpload(stream google.api.HttpBody) returns (google.api.HttpBody)

The twin is made from the annotations: there is no second list of routes.
"""

from collections.abc import Iterable

from google.api import annotations_pb2, http_pb2, httpbody_pb2
from google.protobuf import any_pb2, descriptor_pb2

from nexus_grpc.rest.http_rules import HttpMethod, http_methods

PACKAGE = "nexus.http.v1"
SERVICE = f"{PACKAGE}.Http"
BODY_FIELD = 15
_FILE = "nexus/http/v1/http.proto"
_HTTP_BODY = ".google.api.HttpBody"


def path_of(name: str) -> str:
    """The gRPC path of a twin, such as /nexus.http.v1.Http/InferencePredict."""
    return f"/{SERVICE}/{name}"


def v2_paths() -> frozenset[str]:
    """The gRPC paths of the twins that are the Open Inference Protocol's."""
    return frozenset(path_of(method.name) for method in http_methods() if method.is_v2)


def descriptor_set(methods: Iterable[HttpMethod] | None = None) -> descriptor_pb2.FileDescriptorSet:
    """The twin and all it imports, for Envoy's `proto_descriptor_bin`."""
    file = descriptor_pb2.FileDescriptorProto(name=_FILE, package=PACKAGE, syntax="proto3")
    file.dependency.extend(["google/api/annotations.proto", "google/api/httpbody.proto"])
    service = file.service.add(name="Http")
    for method in http_methods() if methods is None else methods:
        if not method.client_streaming:
            _add_request(file, method)
        _add_method(service, method)
    imported = (descriptor_pb2, any_pb2, http_pb2, annotations_pb2, httpbody_pb2)
    files = [descriptor_pb2.FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb) for module in imported]
    return descriptor_pb2.FileDescriptorSet(file=[*files, file])


def _add_request(file: descriptor_pb2.FileDescriptorProto, method: HttpMethod) -> None:
    message = file.message_type.add(name=f"{method.name}Request")
    field_type = descriptor_pb2.FieldDescriptorProto
    if len(method.parameters) >= BODY_FIELD:
        raise ValueError(f"{method.name} has more than {BODY_FIELD - 1} parameters")
    for number, name in enumerate(method.parameters, 1):
        message.field.add(
            name=name, number=number, type=field_type.TYPE_STRING, label=field_type.LABEL_OPTIONAL, json_name=name
        )
    if method.has_body:
        message.field.add(
            name="body",
            number=BODY_FIELD,
            type=field_type.TYPE_MESSAGE,
            type_name=_HTTP_BODY,
            label=field_type.LABEL_OPTIONAL,
        )


def _add_method(service: descriptor_pb2.ServiceDescriptorProto, method: HttpMethod) -> None:
    added = service.method.add(name=method.name, input_type=f".{PACKAGE}.{method.name}Request", output_type=_HTTP_BODY)
    if method.client_streaming:
        added.input_type, added.client_streaming = _HTTP_BODY, True
    rule = added.options.Extensions[annotations_pb2.http]
    for number, binding in enumerate(method.bindings):
        target = rule.additional_bindings.add() if number else rule
        setattr(target, binding.verb.lower(), binding.template)
        if binding.verb == "GET":
            rule.additional_bindings.add(custom=http_pb2.CustomHttpPattern(kind="HEAD", path=binding.template))
        if method.has_body:
            target.body = "*" if method.client_streaming else "body"

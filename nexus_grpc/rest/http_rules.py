"""The REST routes, read off the google.api.http annotations in proto/ (google/api/http.proto says what they mean)."""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

from google.api import annotations_pb2
from google.protobuf import descriptor_pb2

from nexus_grpc.pb.nexus.v1 import inference_pb2, keys_pb2, models_pb2, rest_pb2, system_pb2, traffic_pb2

FILES = (
    inference_pb2.DESCRIPTOR,
    models_pb2.DESCRIPTOR,
    traffic_pb2.DESCRIPTOR,
    keys_pb2.DESCRIPTOR,
    system_pb2.DESCRIPTOR,
    rest_pb2.DESCRIPTOR,
)
# What a POST to these asks for changes nothing.
PREDICTING = frozenset({"Inference", "Rest"})
# Under it the Open Inference Protocol's own shapes hold: any content type, and errors of a text alone.
V2_PREFIX = "/v2"
VERBS = ("get", "put", "post", "delete", "patch")
_PARAMETER = re.compile(r"\{([a-z_]+)\}")


@dataclasses.dataclass(frozen=True)
class Binding:
    """One way to call a method by HTTP: verb and path template, such as POST /v2/models/{model_name}/infer."""

    verb: str
    template: str

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of the path's parameters, in order."""
        return tuple(_PARAMETER.findall(self.template))

    @property
    def is_exact(self) -> bool:
        return not self.parameters

    @property
    def regex(self) -> str:
        """RE2 for the whole path; a parameter is one segment."""
        return "".join(
            "[^/]+" if number % 2 else re.escape(part) for number, part in enumerate(_PARAMETER.split(self.template))
        )


@dataclasses.dataclass(frozen=True)
class HttpMethod:
    """A method of proto/ with its HTTP bindings. `name` is that of its twin (twin.py), such as RestV2Infer."""

    name: str
    bindings: tuple[Binding, ...]
    # What the path or the query string carries, in the order of the twin's field numbers.
    parameters: tuple[str, ...]
    has_body: bool
    # Those of `parameters` that are in no path.
    query: tuple[str, ...] = ()
    # The body comes in pieces, as multipart/form-data; any other body is JSON.
    client_streaming: bool = False
    # It changes the server: models, records, traffic.
    is_change: bool = False

    @property
    def is_v2(self) -> bool:
        """Whether it is the Open Inference Protocol's, or an extension of that."""
        return self.bindings[0].template.startswith(V2_PREFIX)


def http_methods(files: Iterable[Any] = FILES) -> tuple[HttpMethod, ...]:
    """All methods that have a google.api.http annotation, in the order of the files.

    Raises ValueError for what the twin has no form for: a verb of its own, a body that is not the whole message.
    """
    found = []
    for file in files:
        for service in file.services_by_name.values():
            for method in service.methods:
                rule = _rule(method)
                if rule is not None:
                    found.append(_http_method(service.name, method, rule))
    return tuple(found)


def _rule(method: Any) -> Any:
    """The annotation. The options come from our own descriptor pool, so they are parsed anew with google's classes."""
    options = descriptor_pb2.MethodOptions.FromString(method.GetOptions().SerializeToString())
    return options.Extensions[annotations_pb2.http] if options.HasExtension(annotations_pb2.http) else None


def _http_method(service: str, method: Any, rule: Any) -> HttpMethod:
    name = service + method.name
    rules = (rule, *rule.additional_bindings)
    bindings = tuple(_binding(name, each) for each in rules)
    bodies = {each.body for each in rules}
    if bodies not in ({""}, {"*"}):
        raise ValueError(f"{name}: the body must be the whole message or nothing, in all bindings alike: {bodies}")
    has_body = bodies == {"*"}
    in_paths = tuple(dict.fromkeys(parameter for binding in bindings for parameter in binding.parameters))
    # Without a body, what is not in the path is in the query string.
    fields = () if has_body else [field.name for field in method.input_type.fields]
    return HttpMethod(
        name,
        bindings,
        parameters=tuple(dict.fromkeys((*in_paths, *fields))),
        has_body=has_body,
        query=tuple(field for field in fields if field not in in_paths),
        client_streaming=_is_client_streaming(name, method, has_body, in_paths),
        is_change=service not in PREDICTING and any(binding.verb != "GET" for binding in bindings),
    )


def _is_client_streaming(name: str, method: Any, has_body: bool, in_paths: tuple[str, ...]) -> bool:
    description = descriptor_pb2.MethodDescriptorProto()
    method.CopyToProto(description)
    if description.server_streaming:
        raise ValueError(f"{name}: a stream of answers has no form in HTTP here")
    if description.client_streaming and (in_paths or not has_body):
        raise ValueError(f"{name}: what comes in pieces is all in the body, without parameters")
    return description.client_streaming


def _binding(name: str, rule: Any) -> Binding:
    verb = rule.WhichOneof("pattern")
    if verb not in VERBS:
        raise ValueError(f"{name}: an HTTP verb is needed, not {verb}")
    return Binding(verb.upper(), getattr(rule, verb))

"""The Open Inference Protocol by REST, with Triton's extensions: the cold twins under /v2 (inference itself is hot).

Each is a form of a method of inference.GRPCInferenceService, which answers it (cold_methods.py); here JSON becomes that
method's request, and its answer JSON as Triton writes it: proto/'s names, defaults too, whole numbers as numbers.
"""

import base64
import binascii
from typing import Any

from google.protobuf import message_factory
from google.protobuf.message import Message

from nexus_grpc.front.cold_methods import InferenceService, answered, set_setting, setting_values
from nexus_grpc.front.http_calls import parse
from nexus_grpc.front.model_services import SystemService
from nexus_grpc.front.supervised import Caller
from nexus_grpc.ipc.errors import InvalidInput
from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from nexus_grpc.pb.nexus.v1 import system_pb2

Parameters = dict[str, str]
FILE_PREFIX = "file:"

_METHODS = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name


class V2Service:
    """One method per twin, by name: (the path's parameters, body, caller) → what becomes JSON. Raises NexusError."""

    def __init__(self, inference: InferenceService, system: SystemService) -> None:
        self._inference = inference
        self._system = system

    def _ask(self, name: str, caller: Caller, request: Message) -> Any:
        """What a gRPC method answers, for this caller."""
        return answered(self._inference, _METHODS[name], request, caller)

    # --- the protocol ---

    def RestV2Live(self, given: Parameters, body: bytes, caller: Caller) -> Any:  # noqa: N802
        return {"live": True}

    def RestV2Ready(self, given: Parameters, body: bytes, caller: Caller) -> Any:  # noqa: N802
        return {"ready": self._system.Ready(system_pb2.ReadyRequest()).ready}

    def RestV2Server(self, given: Parameters, body: bytes, caller: Caller) -> Any:  # noqa: N802
        return plain(self._ask("ServerMetadata", caller, pb.ServerMetadataRequest()))

    def RestV2Model(self, given: Parameters, body: bytes, caller: Caller) -> Any:  # noqa: N802
        return plain(self._ask("ModelMetadata", caller, pb.ModelMetadataRequest(**_named(given))))

    def RestV2ModelReady(self, given: Parameters, body: bytes, caller: Caller) -> Any:  # noqa: N802
        """Raises what the metadata of a model that is not ready do: by gRPC the answer could be false."""
        self._ask("ModelMetadata", caller, pb.ModelMetadataRequest(**_named(given)))
        return {"name": given.get("model_name", ""), "ready": True}

    # --- Triton's extensions ---

    def RestV2ModelConfig(self, given: Parameters, body: bytes, caller: Caller) -> Any:  # noqa: N802
        return plain(self._ask("ModelConfig", caller, pb.ModelConfigRequest(**_named(given))).config)

    def RestV2Statistics(self, given: Parameters, body: bytes, caller: Caller) -> Any:  # noqa: N802
        return plain(self._ask("ModelStatistics", caller, pb.ModelStatisticsRequest(**_named(given))))

    def RestV2RepositoryIndex(self, given: Parameters, body: bytes, caller: Caller) -> Any:  # noqa: N802
        content = _object(body, ("ready",))
        ready = content.get("ready", False)
        if not isinstance(ready, bool):
            raise InvalidInput('field "ready" must be true or false', field="ready")
        return plain(self._ask("RepositoryIndex", caller, pb.RepositoryIndexRequest(ready=ready)))["models"]

    def V2AdminLoad(self, given: Parameters, body: bytes, caller: Caller) -> Any:  # noqa: N802
        request = pb.RepositoryModelLoadRequest(model_name=given.get("model_name", ""))
        _fill_parameters(request, body)
        return plain(self._ask("RepositoryModelLoad", caller, request))

    def V2AdminUnload(self, given: Parameters, body: bytes, caller: Caller) -> Any:  # noqa: N802
        request = pb.RepositoryModelUnloadRequest(model_name=given.get("model_name", ""))
        _fill_parameters(request, body)
        return plain(self._ask("RepositoryModelUnload", caller, request))

    def RestV2Logging(self, given: Parameters, body: bytes, caller: Caller) -> Any:  # noqa: N802
        return setting_values(self._log_settings(caller, pb.LogSettingsRequest()))

    def V2AdminUpdateLogSettings(self, given: Parameters, body: bytes, caller: Caller) -> Any:  # noqa: N802
        request = pb.LogSettingsRequest()
        for name, value in _object(body).items():
            _check_setting(name, value)
            set_setting(request.settings[name], value)
        return setting_values(self._log_settings(caller, request))

    def _log_settings(self, caller: Caller, request: Message) -> Any:
        return self._ask("LogSettings", caller, request).settings

    def RestV2Tracing(self, given: Parameters, body: bytes, caller: Caller) -> Any:  # noqa: N802
        request = pb.TraceSettingRequest(model_name=given.get("model_name", ""))
        return _traces(self._ask("TraceSetting", caller, request))

    def V2AdminUpdateTraceSettings(self, given: Parameters, body: bytes, caller: Caller) -> Any:  # noqa: N802
        request = pb.TraceSettingRequest(model_name=given.get("model_name", ""))
        for name, value in _object(body, nulls=True).items():
            values = value if isinstance(value, list) else [] if value is None else [value]
            request.settings[name].value.extend(str(each) for each in values)
        return _traces(self._ask("TraceSetting", caller, request))

    def RestV2SystemSharedMemory(self, given: Parameters, body: bytes, caller: Caller) -> Any:  # noqa: N802
        return self._shared("SystemSharedMemoryStatus", given, caller)

    def RestV2CudaSharedMemory(self, given: Parameters, body: bytes, caller: Caller) -> Any:  # noqa: N802
        return self._shared("CudaSharedMemoryStatus", given, caller)

    def V2AdminSystemSharedMemoryRegister(self, given: Parameters, body: bytes, caller: Caller) -> Any:  # noqa: N802
        return self._shared("SystemSharedMemoryRegister", given, caller)

    def V2AdminCudaSharedMemoryRegister(self, given: Parameters, body: bytes, caller: Caller) -> Any:  # noqa: N802
        return self._shared("CudaSharedMemoryRegister", given, caller)

    def V2AdminSystemSharedMemoryUnregister(self, given: Parameters, body: bytes, caller: Caller) -> Any:  # noqa: N802
        return self._shared("SystemSharedMemoryUnregister", given, caller)

    def V2AdminCudaSharedMemoryUnregister(self, given: Parameters, body: bytes, caller: Caller) -> Any:  # noqa: N802
        return self._shared("CudaSharedMemoryUnregister", given, caller)

    def _shared(self, name: str, given: Parameters, caller: Caller) -> Any:
        request = message_factory.GetMessageClass(_METHODS[name].input_type)(name=given.get("region", ""))
        answer = plain(self._ask(name, caller, request))
        return list(answer["regions"].values()) if "regions" in answer else answer


def plain(message: Any) -> dict[str, Any]:
    """A message as Triton's JSON: what has a default is there, too; a oneof only with its choice."""
    return {
        field.name: _plain_field(field, getattr(message, field.name))
        for field in message.DESCRIPTOR.fields
        if not field.has_presence or message.HasField(field.name)
    }


def _plain_field(field: Any, value: Any) -> Any:
    if field.type == field.TYPE_MESSAGE and field.message_type.GetOptions().map_entry:
        kind = field.message_type.fields_by_name["value"]
        return {str(key): _plain_value(kind, each) for key, each in value.items()}
    return [_plain_value(field, each) for each in value] if field.is_repeated else _plain_value(field, value)


def _plain_value(field: Any, value: Any) -> Any:
    if field.type == field.TYPE_MESSAGE:
        return plain(value)
    if field.type == field.TYPE_ENUM:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known is not None else value
    return base64.b64encode(value).decode() if field.type == field.TYPE_BYTES else value


def _named(given: Parameters) -> dict[str, str]:
    return {"name": given.get("model_name", ""), "version": given.get("model_version", "")}


def _object(body: bytes, known: tuple[str, ...] = (), *, nulls: bool = False) -> dict[str, Any]:
    """A body's fields; none for an empty body. Null is as good as nothing, unless `nulls`. Raises InvalidInput.

    Args:
        known: the only names that it may have; any, where this is empty.
    """
    content = parse(body) if body.strip() else {}
    if not isinstance(content, dict):
        raise InvalidInput(f"the body must be a JSON object, got {type(content).__name__}")
    for name in content:
        if known and name not in known:
            raise InvalidInput(f'unknown field "{name}"; expected {", ".join(known)}', field=name)
    return content if nulls else {name: value for name, value in content.items() if value is not None}


def _fill_parameters(request: Any, body: bytes) -> None:
    """The parameters of a load or unload. Raises InvalidInput."""
    parameters = _object(body, ("parameters",)).get("parameters", {})
    if not isinstance(parameters, dict):
        raise InvalidInput('field "parameters" must be an object', field="parameters")
    for name, value in parameters.items():
        if name.startswith(FILE_PREFIX):
            request.parameters[name].bytes_param = _decoded(name, value)
        elif isinstance(value, bool):
            request.parameters[name].bool_param = value
        elif isinstance(value, int) and abs(value) < 1 << 63:
            request.parameters[name].int64_param = value
        elif isinstance(value, str):
            request.parameters[name].string_param = value
        elif value is not None:
            raise InvalidInput(f"parameter '{name}' must be a text, a whole number, true or false", field="parameters")


def _decoded(name: str, value: Any) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise InvalidInput(f"parameter '{name}' must be the file's content in base64", field="parameters") from None


def _check_setting(name: str, value: Any) -> None:
    is_whole = isinstance(value, int) and 0 <= value < 1 << 32
    if not (is_whole or isinstance(value, str)):
        raise InvalidInput(f"log setting '{name}' must be a text, a whole number, true or false", field=name)


def _traces(answer: Any) -> dict[str, Any]:
    """trace_level is a list, the others are texts."""
    return {
        name: list(each.value) if name == "trace_level" else "".join(each.value)
        for name, each in answer.settings.items()
    }

"""The cold methods of inference.GRPCInferenceService: metadata, configuration, statistics, the repository.

Served by the stock grpc.server. Each function takes the request message and returns the answer, or raises NexusError.
"""

import difflib
import importlib.metadata
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, Protocol

import grpc
import structlog
from google.protobuf import message_factory
from google.protobuf.message import Message

from nexus_grpc.front.caller import check_request, without_hidden
from nexus_grpc.front.catalogue import UNLOADED, Catalogue, CatalogueEntry
from nexus_grpc.front.hot_methods import REQUEST_ID_KEY, request_id_of
from nexus_grpc.front.offered import (
    NO_SHARED_MEMORY,
    REFUSED,
    check_log_change,
    check_trace_change,
    extensions,
    log_settings,
    trace_settings,
)
from nexus_grpc.front.request_ids import RequestIds
from nexus_grpc.front.supervised import Caller, Supervised, caller_of, forwarded
from nexus_grpc.ipc.errors import Code, InvalidInput, NexusError, UnknownModel, Unsupported
from nexus_grpc.ipc.rich_errors import DETAILS_KEY, status_bytes
from nexus_grpc.pb.inference import grpc_service_pb2 as pb

SERVER_NAME = "nexus-grpc"
ONE_REPOSITORY = "this server has one model repository, without a name; leave repository_name empty"
NO_OVERRIDES = (
    "parameter '{}' is not taken: this server serves what lies in its repository. Change config.pbtxt there, or upload "
    "a new version (nexus.v1.Models/Upload)"
)

_STATUS = {code.value[0]: code for code in grpc.StatusCode}
HOT = frozenset({"ModelInfer", "ModelStreamInfer"})
# Triton's requests that the supervisor carries out, and the parameters that each takes.
REPOSITORY_OPERATIONS = {
    "RepositoryModelLoad": ("Repository.Load", frozenset[str]()),
    "RepositoryModelUnload": ("Repository.Unload", frozenset({"unload_dependents"})),
}
METHODS = tuple(method.name for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods)


class Service(Protocol):
    """A service of proto/: methods of its own by their names, and the supervisor's by `forward`."""

    def forward(self, method: Any, request: Message, caller: Caller) -> Message: ...


def answered(service: Service, method: Any, request: Message, caller: Caller) -> Message:
    """What a method of a service answers a caller: by its own function or the supervisor, without what is hidden.

    Raises NexusError.
    """
    check_request(request, method)
    own = getattr(service, method.name, None)
    return without_hidden(own(request) if own is not None else service.forward(method, request, caller))


class InferenceService:
    """One method per cold RPC, named as in proto/inference/grpc_service.proto."""

    def __init__(self, catalogue: Catalogue, is_ready: Callable[[], bool], supervised: Supervised) -> None:
        self._catalogue = catalogue
        self._is_ready = is_ready
        self._supervised = supervised

    def forward(self, method: Any, request: Message, caller: Caller) -> Message:
        """RepositoryModelLoad and RepositoryModelUnload. Raises NexusError."""
        operation, parameters = REPOSITORY_OPERATIONS[method.name]
        _check_repository_request(request, parameters)
        forwarded(self._supervised, operation, request, caller)
        answer: Message = message_factory.GetMessageClass(method.output_type)()
        return answer

    def ServerLive(self, request: pb.ServerLiveRequest) -> pb.ServerLiveResponse:  # noqa: N802
        return pb.ServerLiveResponse(live=True)

    def ServerReady(self, request: pb.ServerReadyRequest) -> pb.ServerReadyResponse:  # noqa: N802
        return pb.ServerReadyResponse(ready=self._is_ready())

    def ModelReady(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:  # noqa: N802
        return pb.ModelReadyResponse(ready=self._catalogue.is_ready(request.name, request.version))

    def ServerMetadata(self, request: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:  # noqa: N802
        version = importlib.metadata.version(SERVER_NAME)
        return pb.ServerMetadataResponse(name=SERVER_NAME, version=version, extensions=extensions(METHODS))

    def ModelMetadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:  # noqa: N802
        entry = self._catalogue.find(request.name, request.version)
        metadata = pb.ModelMetadataResponse()
        metadata.CopyFrom(_present(entry.metadata))
        metadata.versions.extend(item.version for item in self._catalogue.ready_versions(request.name))
        return metadata

    def ModelConfig(self, request: pb.ModelConfigRequest) -> pb.ModelConfigResponse:  # noqa: N802
        entry = self._catalogue.find(request.name, request.version)
        return pb.ModelConfigResponse(config=_present(entry.config))

    def ModelStatistics(self, request: pb.ModelStatisticsRequest) -> pb.ModelStatisticsResponse:  # noqa: N802
        entries: Iterable[CatalogueEntry]
        if not request.name:
            entries = [entry for entry in self._catalogue.entries if entry.ready]
        elif request.version:
            entries = [self._catalogue.find(request.name, request.version)]
        else:
            self._catalogue.find(request.name, "")
            entries = self._catalogue.ready_versions(request.name)
        return pb.ModelStatisticsResponse(model_stats=[self._statistics_of(entry) for entry in entries])

    def _statistics_of(self, entry: CatalogueEntry) -> pb.ModelStatistics:
        stats = pb.ModelStatistics(name=entry.name, version=entry.version)
        snapshot = self._catalogue.statistics(entry.slot)
        if snapshot is None:
            return stats
        stats.last_inference = snapshot.last_inference_ns // 1_000_000
        stats.inference_count = snapshot.batch_size.sum
        stats.execution_count = snapshot.batch_size.count
        parts = {
            "success": (snapshot.success_count, snapshot.success_ns),
            "fail": (snapshot.fail_count, snapshot.fail_ns),
            "queue": (snapshot.queue.count, snapshot.queue.sum),
            "compute_input": (snapshot.compute_count, snapshot.compute_input_ns),
            "compute_infer": (snapshot.compute_count, snapshot.compute_infer_ns),
            "compute_output": (snapshot.compute_count, snapshot.compute_output_ns),
            "cache_hit": (0, 0),
            "cache_miss": (0, 0),
        }
        for name, (count, ns) in parts.items():
            getattr(stats.inference_stats, name).CopyFrom(pb.StatisticDuration(count=count, ns=ns))
        return stats

    def RepositoryIndex(self, request: pb.RepositoryIndexRequest) -> pb.RepositoryIndexResponse:  # noqa: N802
        if request.repository_name:
            raise Unsupported(ONE_REPOSITORY)
        response = pb.RepositoryIndexResponse()
        for entry in self._catalogue.entries:
            if entry.ready or not request.ready:
                # Triton knows no state UNLOADED: its clients see UNAVAILABLE, and a reason that begins so.
                state, reason = entry.state, entry.reason
                if state == UNLOADED:
                    state, reason = "UNAVAILABLE", _as_triton(reason)
                response.models.add(name=entry.name, version=entry.version, state=state, reason=reason)
        return response

    def SystemSharedMemoryUnregister(self, request: pb.SystemSharedMemoryUnregisterRequest) -> Message:  # noqa: N802
        """perf_analyzer unregisters everything before it begins; there is nothing, so that is fine."""
        _check_region(request.name)
        return pb.SystemSharedMemoryUnregisterResponse()

    def CudaSharedMemoryUnregister(self, request: pb.CudaSharedMemoryUnregisterRequest) -> Message:  # noqa: N802
        _check_region(request.name)
        return pb.CudaSharedMemoryUnregisterResponse()

    def SystemSharedMemoryStatus(self, request: pb.SystemSharedMemoryStatusRequest) -> Message:  # noqa: N802
        _check_region(request.name)
        return pb.SystemSharedMemoryStatusResponse()

    def CudaSharedMemoryStatus(self, request: pb.CudaSharedMemoryStatusRequest) -> Message:  # noqa: N802
        _check_region(request.name)
        return pb.CudaSharedMemoryStatusResponse()

    def SystemSharedMemoryRegister(self, request: Message) -> Message:  # noqa: N802
        raise Unsupported(REFUSED["SystemSharedMemoryRegister"])

    def CudaSharedMemoryRegister(self, request: Message) -> Message:  # noqa: N802
        raise Unsupported(REFUSED["CudaSharedMemoryRegister"])

    def TraceSetting(self, request: pb.TraceSettingRequest) -> Message:  # noqa: N802
        if request.model_name and request.model_name not in self._catalogue.names():
            self._catalogue.find(request.model_name, "")
        check_trace_change({name: each.value for name, each in request.settings.items()})
        response = pb.TraceSettingResponse()
        for name, values in trace_settings().items():
            response.settings[name].value.extend(values)
        return response

    def LogSettings(self, request: pb.LogSettingsRequest) -> Message:  # noqa: N802
        check_log_change(setting_values(request.settings))
        response = pb.LogSettingsResponse()
        for name, value in log_settings().items():
            set_setting(response.settings[name], value)
        return response


def setting_values(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Log settings as Python has them; None for one without a value."""
    kinds = {name: each.WhichOneof("parameter_choice") for name, each in settings.items()}
    return {name: kind and getattr(settings[name], kind) for name, kind in kinds.items()}


def set_setting(setting: Any, value: bool | int | str) -> None:
    kind = "bool_param" if isinstance(value, bool) else "uint32_param" if isinstance(value, int) else "string_param"
    setattr(setting, kind, value)


def _check_region(name: str) -> None:
    """There are none. Raises UnknownModel, whose code is the right one, for one by name."""
    if name:
        raise UnknownModel(f"Unable to find shared memory region: '{name}'; {NO_SHARED_MEMORY}", reason="NO_REGION")


def _as_triton(reason: str) -> str:
    """Triton's own reason is the one word."""
    return reason if reason.startswith("unloaded") else f"unloaded: {reason}" if reason else "unloaded"


def _present(message: Any) -> Any:
    assert message is not None, "a ready entry has metadata and config"
    return message


def _check_repository_request(request: Any, known: frozenset[str]) -> None:
    """Raises NexusError for what Triton's requests may ask and this server does not do."""
    if request.repository_name:
        raise Unsupported(ONE_REPOSITORY)
    if not request.model_name:
        raise InvalidInput("model_name is missing: it names the model", field="model_name")
    for name in sorted(set(request.parameters) - known):
        if name == "config" or name.startswith("file:"):
            raise Unsupported(NO_OVERRIDES.format(name), reason="NO_OVERRIDES")
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(sorted(known)) or 'none'}"
        raise InvalidInput(f"unknown parameter '{name}'{hint}", field="parameters")
    for name in sorted(set(request.parameters)):
        if request.parameters[name].WhichOneof("parameter_choice") != "bool_param":
            raise InvalidInput(f"parameter '{name}' must be a bool", field="parameters")


def _handler(method: Any, service: Service, ids: RequestIds) -> Callable[[Any, grpc.ServicerContext], Message]:
    def handle(request: Any, context: grpc.ServicerContext) -> Message:
        request_id = request_id_of(context.invocation_metadata() or (), ids).decode()
        try:
            answer = answered(service, method, request, caller_of(context, "grpc"))
        except NexusError as error:
            abort(context, error, request_id)
        except Exception as error:
            # A bug of ours: the client learns that, the log learns what.
            structlog.get_logger().error(
                "cold method failed", method=method.name, request_id=request_id, exc_info=error
            )
            abort(context, NexusError(f"internal error in {method.name}; see the server's log"), request_id)
        context.send_initial_metadata(((REQUEST_ID_KEY, request_id),))
        return answer

    return handle


def abort(context: grpc.ServicerContext, error: NexusError, request_id: str = "") -> NoReturn:
    """End a cold call with one of our errors, and the id by which people ask about it. Does not return."""
    code = error.code if error.code != Code.UNKNOWN else Code.INTERNAL
    context.set_trailing_metadata(((DETAILS_KEY, status_bytes(error)),))
    if request_id:
        context.send_initial_metadata(((REQUEST_ID_KEY, request_id),))
    context.abort(_STATUS[int(code)], error.message)


def cold_handlers(
    service: Service, descriptor: Any, ids: RequestIds, hot: frozenset[str] = frozenset()
) -> grpc.GenericRpcHandler:
    """Handlers for every method of a service but the hot ones, from the proto itself.

    Args:
        service: has a method of its own, named like it, for each that the supervisor does not carry out.
        descriptor: the service's.
        ids: for calls that bring no request id.
        hot: methods that are served elsewhere.
    """
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for method in descriptor.methods:
        if method.name not in hot:
            request_class = message_factory.GetMessageClass(method.input_type)
            handlers[method.name] = grpc.unary_unary_rpc_method_handler(
                _handler(method, service, ids),
                request_deserializer=request_class.FromString,
                response_serializer=lambda message: message.SerializeToString(),
            )
    return grpc.method_handlers_generic_handler(descriptor.full_name, handlers)

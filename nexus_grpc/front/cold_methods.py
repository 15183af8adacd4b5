"""The cold methods of inference.GRPCInferenceService: metadata, configuration, statistics, repository index.

Served by the stock grpc.server. Each function takes the request message and returns the answer, or raises NexusError.
"""

import importlib.metadata
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import grpc
import structlog
from google.protobuf import message_factory
from google.protobuf.message import Message

from nexus_grpc.front.catalogue import Catalogue, CatalogueEntry
from nexus_grpc.ipc.errors import Code, NexusError, Unsupported
from nexus_grpc.ipc.rich_errors import DETAILS_KEY, status_bytes
from nexus_grpc.pb.inference import grpc_service_pb2 as pb

SERVER_NAME = "nexus-grpc"
EXTENSIONS = ("classification", "model_configuration", "model_repository(index)", "statistics", "binary_tensor_data")
NO_SHARED_MEMORY = "this server takes no shared memory from clients; send tensors in raw_input_contents"
LATER = "loading and unloading at run time comes in a later version; restart the server to pick up models"
NO_SETTINGS = "this server has no trace or log settings to change at run time; see `nexus serve --help`"

_STATUS = {code.value[0]: code for code in grpc.StatusCode}
HOT = frozenset({"ModelInfer", "ModelStreamInfer"})


class InferenceService:
    """One method per cold RPC, named as in proto/inference/grpc_service.proto."""

    def __init__(self, catalogue: Catalogue, is_serving: Callable[[], bool]) -> None:
        self._catalogue = catalogue
        self._is_serving = is_serving

    def ServerLive(self, request: pb.ServerLiveRequest) -> pb.ServerLiveResponse:  # noqa: N802
        return pb.ServerLiveResponse(live=True)

    def ServerReady(self, request: pb.ServerReadyRequest) -> pb.ServerReadyResponse:  # noqa: N802
        return pb.ServerReadyResponse(ready=self._is_serving())

    def ModelReady(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:  # noqa: N802
        return pb.ModelReadyResponse(ready=self._catalogue.is_ready(request.name, request.version))

    def ServerMetadata(self, request: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:  # noqa: N802
        version = importlib.metadata.version(SERVER_NAME)
        return pb.ServerMetadataResponse(name=SERVER_NAME, version=version, extensions=EXTENSIONS)

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
        response = pb.RepositoryIndexResponse()
        for entry in self._catalogue.entries:
            if entry.ready or not request.ready:
                response.models.add(name=entry.name, version=entry.version, state=entry.state, reason=entry.reason)
        return response

    def RepositoryModelLoad(self, request: pb.RepositoryModelLoadRequest) -> Message:  # noqa: N802
        raise Unsupported(LATER)

    def RepositoryModelUnload(self, request: pb.RepositoryModelUnloadRequest) -> Message:  # noqa: N802
        raise Unsupported(LATER)

    def SystemSharedMemoryUnregister(self, request: pb.SystemSharedMemoryUnregisterRequest) -> Message:  # noqa: N802
        """perf_analyzer unregisters everything before it begins; there is nothing, so that is fine."""
        if request.name:
            raise Unsupported(NO_SHARED_MEMORY)
        return pb.SystemSharedMemoryUnregisterResponse()

    def CudaSharedMemoryUnregister(self, request: pb.CudaSharedMemoryUnregisterRequest) -> Message:  # noqa: N802
        if request.name:
            raise Unsupported(NO_SHARED_MEMORY)
        return pb.CudaSharedMemoryUnregisterResponse()

    def SystemSharedMemoryStatus(self, request: Message) -> Message:  # noqa: N802
        raise Unsupported(NO_SHARED_MEMORY)

    def SystemSharedMemoryRegister(self, request: Message) -> Message:  # noqa: N802
        raise Unsupported(NO_SHARED_MEMORY)

    def CudaSharedMemoryStatus(self, request: Message) -> Message:  # noqa: N802
        raise Unsupported(NO_SHARED_MEMORY)

    def CudaSharedMemoryRegister(self, request: Message) -> Message:  # noqa: N802
        raise Unsupported(NO_SHARED_MEMORY)

    def TraceSetting(self, request: pb.TraceSettingRequest) -> Message:  # noqa: N802
        if request.settings:
            raise Unsupported(NO_SETTINGS)
        return pb.TraceSettingResponse()

    def LogSettings(self, request: pb.LogSettingsRequest) -> Message:  # noqa: N802
        if request.settings:
            raise Unsupported(NO_SETTINGS)
        return pb.LogSettingsResponse()


def _present(message: Any) -> Any:
    assert message is not None, "a ready entry has metadata and config"
    return message


def _handler(function: Callable[[Any], Message]) -> Callable[[Any, grpc.ServicerContext], Message]:
    def handle(request: Any, context: grpc.ServicerContext) -> Message:
        try:
            return function(request)
        except NexusError as error:
            abort(context, error)
        except Exception as error:
            # A bug of ours: the client learns that, the log learns what.
            structlog.get_logger().error("cold method failed", method=function.__name__, exc_info=error)
            abort(context, NexusError(f"internal error in {function.__name__}; see the server's log"))

    return handle


def abort(context: grpc.ServicerContext, error: NexusError) -> NoReturn:
    """End a cold call with one of our errors. Does not return."""
    code = error.code if error.code != Code.UNKNOWN else Code.INTERNAL
    context.set_trailing_metadata(((DETAILS_KEY, status_bytes(error)),))
    context.abort(_STATUS[int(code)], error.message)


def cold_handlers(service: object, descriptor: Any, hot: frozenset[str] = frozenset()) -> grpc.GenericRpcHandler:
    """Handlers for every method of a service but the hot ones, from the proto itself.

    Args:
        service: has a method of its own for each, named like it.
        descriptor: the service's.
    """
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for method in descriptor.methods:
        if method.name not in hot:
            request_class = message_factory.GetMessageClass(method.input_type)
            handlers[method.name] = grpc.unary_unary_rpc_method_handler(
                _handler(getattr(service, method.name)),
                request_deserializer=request_class.FromString,
                response_serializer=lambda message: message.SerializeToString(),
            )
    return grpc.method_handlers_generic_handler(descriptor.full_name, handlers)

"""Server reflection, v1 and v1alpha, and health: what grpcurl and orchestrators ask for first.

grpcio-reflection offers v1alpha only. v1 has the same messages in another package, so the same servicer answers it;
its file descriptor is made from v1alpha's by renaming the package.
Source: https://github.com/grpc/grpc/blob/master/doc/server-reflection.md
"""

from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, duration_pb2
from google.rpc import error_details_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from nexus_grpc.front.catalogue import Catalogue
from nexus_grpc.front.hot_methods import PATHS
from nexus_grpc.pb import POOL
from nexus_grpc.rest import twin

V1 = "grpc.reflection.v1"
V1ALPHA = "grpc.reflection.v1alpha"
V1_SERVICE = f"{V1}.ServerReflection"


class Services:
    """A server, as handlers are added to it, and the names of the services that it so has."""

    def __init__(self, server: grpc.Server) -> None:
        self._server = server
        self._names = {_service_of(path) for path in PATHS.values()}

    @property
    def names(self) -> tuple[str, ...]:
        """All but the one that is Envoy's alone."""
        return tuple(sorted(self._names - {twin.SERVICE}))

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        handlers = tuple(handlers)
        for handler in handlers:
            assert isinstance(handler, grpc.ServiceRpcHandler), "a handler of no service is in no list of them"
            self._names.add(handler.service_name())
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service_name: str, method_handlers: Any) -> None:
        """Called by generated code."""
        self._names.add(service_name)
        self._server.add_registered_method_handlers(service_name, method_handlers)


def _service_of(path: str) -> str:
    return path.split("/")[1]


class _SymbolPool:
    """POOL, which also finds the file of a method or field: protobuf's Python pool knows services and messages only,
    and ghz asks for the method."""

    def __getattr__(self, name: str) -> Any:
        return getattr(POOL, name)

    def FindFileContainingSymbol(self, symbol: str) -> Any:  # noqa: N802  (the pool's own name)
        try:
            return POOL.FindFileContainingSymbol(symbol)
        except KeyError:
            parent, dot, _ = symbol.rpartition(".")
            if not dot:
                raise
            return POOL.FindFileContainingSymbol(parent)


def _v1_file() -> bytes:
    file = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    file.name = file.name.replace("v1alpha", "v1")
    file.package = V1
    file.ClearField("options")  # other languages' package names, and that v1alpha is deprecated
    for message in file.message_type:
        for field in [field for field in message.field if field.type_name]:
            field.type_name = field.type_name.replace(f".{V1ALPHA}.", f".{V1}.")
    for method in file.service[0].method:
        method.input_type = method.input_type.replace(f".{V1ALPHA}.", f".{V1}.")
        method.output_type = method.output_type.replace(f".{V1ALPHA}.", f".{V1}.")
    return bytes(file.SerializeToString())


def add_reflection(services: Services) -> None:
    """Serve both versions of reflection over all services: to be called when the others are there."""
    # The error details too, so that grpcurl can show them.
    for module in (health_pb2, reflection_pb2, duration_pb2, error_details_pb2):
        POOL.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    POOL.AddSerializedFile(_v1_file())
    own = (reflection.SERVICE_NAME, V1_SERVICE)
    servicer = reflection.ReflectionServicer((*services.names, *own), pool=_SymbolPool())
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    handlers = {"ServerReflectionInfo": handler}
    for service in own:
        services.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))


class Health:
    """grpc.health.v1 with one name per model and per service; "" is the server.

    Args:
        services: with handlers of all of them, before update() is called.
        patient: the server sends without waiting for clients (patient_pool.py). Otherwise each Watch has a thread, or
            one whose client takes nothing would stop all of this.
    """

    def __init__(self, services: Services, *, patient: bool) -> None:
        self._services = services
        self._servicer = health.HealthServicer(experimental_non_blocking=patient)
        self._models: set[str] = set()
        self._servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, services)

    def update(self, catalogue: Catalogue) -> None:
        """Take over the catalogue's states; models that are gone become SERVICE_UNKNOWN."""
        names = catalogue.names()
        for name in names | self._models:
            self._servicer.set(name, self._status(name, names, catalogue))
        for service in ("", *self._services.names):
            self._servicer.set(service, health_pb2.HealthCheckResponse.SERVING)
        self._models = names

    def _status(self, name: str, names: set[str], catalogue: Catalogue) -> int:
        if name not in names:
            return int(health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
        ready = bool(catalogue.ready_versions(name))
        response = health_pb2.HealthCheckResponse
        return int(response.SERVING if ready else response.NOT_SERVING)

    def drain(self) -> None:
        """Everything is NOT_SERVING from here on."""
        self._servicer.enter_graceful_shutdown()

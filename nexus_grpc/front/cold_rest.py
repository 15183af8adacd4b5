"""REST's GET routes: the cold methods of the HTTP twin (nexus_grpc/rest/twin.py). JSON out, errors in the one shape."""

import json
from collections.abc import Callable
from typing import Any

import grpc
import structlog
from google.protobuf import json_format

from nexus_grpc.front.catalogue import Catalogue
from nexus_grpc.front.cold_methods import EXTENSIONS
from nexus_grpc.front.hot_methods import HTTP_STATUS_KEY, PATHS, REQUEST_ID_KEY, request_id_of
from nexus_grpc.front.model_services import SERVER_NAME, ModelsService, SystemService, server_version
from nexus_grpc.front.request_ids import RequestIds
from nexus_grpc.ipc.errors import InferenceFailed, NexusError
from nexus_grpc.ipc.rich_errors import status_bytes
from nexus_grpc.ipc.wire import fields, json_body
from nexus_grpc.pb.nexus.v1 import models_pb2, system_pb2
from nexus_grpc.rest.errors import error_body, http_status
from nexus_grpc.rest.http_rules import HttpMethod, http_methods
from nexus_grpc.rest.twin import SERVICE, path_of

PLATFORM = "onnxruntime_onnx"

Parameters = dict[str, str]
Answer = Callable[[Parameters], Any]


class RestService:
    """One method per twin, named like it: parameters of the path and the query in, what becomes JSON out."""

    def __init__(self, catalogue: Catalogue, models: ModelsService, system: SystemService) -> None:
        self._catalogue = catalogue
        self._models = models
        self._system = system

    def ModelsList(self, given: Parameters) -> Any:  # noqa: N802
        return _json_of(self._models.List(models_pb2.ListModelsRequest()))

    def ModelsInfo(self, given: Parameters) -> Any:  # noqa: N802
        return _json_of(self._models.Info(models_pb2.ModelInfoRequest(id=given.get("id", ""))))

    def SystemHealth(self, given: Parameters) -> Any:  # noqa: N802
        return _json_of(self._system.Health(system_pb2.HealthRequest()))

    def SystemReady(self, given: Parameters) -> Any:  # noqa: N802
        return _json_of(self._system.Ready(system_pb2.ReadyRequest()))

    def SystemVersion(self, given: Parameters) -> Any:  # noqa: N802
        return _json_of(self._system.Version(system_pb2.VersionRequest()))

    def RestApiModel(self, given: Parameters) -> Any:  # noqa: N802
        info = self._models.Info(models_pb2.ModelInfoRequest(id=given.get("name", "")))
        tensors = {
            kind: [{"name": t.name, "dtype": t.datatype, "shape": list(t.shape)} for t in getattr(info, kind)]
            for kind in ("inputs", "outputs")
        }
        return {"name": info.name, "version": info.version, "status": info.state.lower(), **tensors}

    def RestV2Live(self, given: Parameters) -> Any:  # noqa: N802
        return {"live": True}

    def RestV2Ready(self, given: Parameters) -> Any:  # noqa: N802
        return {"ready": self._system.Ready(system_pb2.ReadyRequest()).ready}

    def RestV2Server(self, given: Parameters) -> Any:  # noqa: N802
        return {"name": SERVER_NAME, "version": server_version(), "extensions": list(EXTENSIONS)}

    def RestV2Model(self, given: Parameters) -> Any:  # noqa: N802
        name = given.get("model_name", "")
        metadata = self._catalogue.find(name, given.get("model_version", "")).metadata
        assert metadata is not None, "find() gives ready versions"
        tensors = {
            kind: [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in getattr(metadata, kind)]
            for kind in ("inputs", "outputs")
        }
        versions = [entry.version for entry in self._catalogue.ready_versions(name)]
        return {"name": name, "versions": versions, "platform": PLATFORM, **tensors}

    def RestV2ModelReady(self, given: Parameters) -> Any:  # noqa: N802
        name = given.get("model_name", "")
        self._catalogue.find(name, given.get("model_version", ""))
        return {"name": name, "ready": True}


def _json_of(message: Any) -> Any:
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def cold_rest_handlers(service: RestService, ids: RequestIds) -> grpc.GenericRpcHandler:
    """Handlers for every twin that is no hot method."""
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        method.name: grpc.unary_unary_rpc_method_handler(_handler(method, getattr(service, method.name), ids))
        for method in http_methods()
        if path_of(method.name) not in set(PATHS.values())
    }
    return grpc.method_handlers_generic_handler(SERVICE, handlers)


def _handler(method: HttpMethod, answer: Answer, ids: RequestIds) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    def handle(message: bytes, context: grpc.ServicerContext) -> bytes:
        request_id = request_id_of(context.invocation_metadata() or (), ids).decode()
        metadata = [(REQUEST_ID_KEY, request_id)]
        try:
            body = json.dumps(answer(_parameters(method, message)), ensure_ascii=False).encode()
        except NexusError as error:
            metadata.append((HTTP_STATUS_KEY, str(http_status(error.code))))
            body = error_body(error.code, error.message, request_id, status_bytes(error))
        except Exception as error:
            # A bug of ours: the client learns that, the log learns what.
            structlog.get_logger().error("cold method failed", method=method.name, exc_info=error)
            refusal = InferenceFailed(f"internal error in {method.name}; see the server's log")
            metadata.append((HTTP_STATUS_KEY, "500"))
            body = error_body(refusal.code, refusal.message, request_id, status_bytes(refusal))
        context.send_initial_metadata(tuple(metadata))
        return json_body(body)

    return handle


def _parameters(method: HttpMethod, message: bytes) -> Parameters:
    names = dict(enumerate(method.parameters, 1))
    return {
        names[number]: message[start:end].decode("utf-8", "replace")
        for number, _, start, end in fields(message)
        if number in names
    }

"""The cold methods of the HTTP twin (nexus_grpc/rest/twin.py): JSON in, JSON out, errors in the one shape.

Models, System and Traffic are those of the gRPC services: their requests are read by the messages in proto/
(json_requests.py). The Open Inference Protocol's are in v2_rest.py; the routes of other servers have a method each.
"""

import functools
import json
from collections.abc import Callable
from typing import Any

import grpc
import structlog
from google.protobuf import message_factory

from nexus_grpc.front.caller import check_named
from nexus_grpc.front.cold_methods import Service, answered
from nexus_grpc.front.hot_methods import HTTP_STATUS_KEY, PATHS, REQUEST_ID_KEY, request_id_of
from nexus_grpc.front.json_requests import read_request
from nexus_grpc.front.keys_service import KeysService
from nexus_grpc.front.model_services import ModelsService, SystemService
from nexus_grpc.front.request_ids import RequestIds
from nexus_grpc.front.supervised import Caller, as_uploaded, caller_of, json_of
from nexus_grpc.front.traffic_service import TrafficService
from nexus_grpc.front.v2_rest import V2Service
from nexus_grpc.ipc.errors import InferenceFailed, InvalidInput, NexusError
from nexus_grpc.ipc.rich_errors import status_bytes
from nexus_grpc.ipc.wire import HTTP_BODY_DATA, WireError, fields, json_body
from nexus_grpc.pb.nexus.v1 import keys_pb2, models_pb2, system_pb2, traffic_pb2
from nexus_grpc.rest.errors import error_body, http_status
from nexus_grpc.rest.http_rules import HttpMethod, http_methods
from nexus_grpc.rest.twin import BODY_FIELD, SERVICE, path_of

# Twin → the status of its success, where that is not 200.
STATUS = {"ModelsRegister": 201, "KeysCreate": 201}

Parameters = dict[str, str]
# (parameters, body, caller) → what becomes JSON.
Answer = Callable[[Parameters, bytes, Caller], Any]

_SERVICES = tuple(
    file.services_by_name[name]
    for file, name in (
        (models_pb2.DESCRIPTOR, "Models"),
        (system_pb2.DESCRIPTOR, "System"),
        (traffic_pb2.DESCRIPTOR, "Traffic"),
        (keys_pb2.DESCRIPTOR, "Keys"),
    )
)
# Twin → the method that it is the twin of.
_METHODS = {service.name + method.name: method for service in _SERVICES for method in service.methods}


def _allowed(given: Parameters) -> Parameters:
    """Raises PermissionDenied if the caller may not use the model that the path names."""
    if "name" in given:
        check_named(given["name"])
    return given


class RestService:
    """Answers the cold twins. Each answer raises NexusError."""

    def __init__(
        self, v2: V2Service, models: ModelsService, system: SystemService, traffic: TrafficService, keys: KeysService
    ) -> None:
        self._v2 = v2
        self._models = models
        self._services: dict[str, Service] = {"Models": models, "System": system, "Traffic": traffic, "Keys": keys}

    def answer_of(self, twin: str) -> Answer:
        """What answers a twin, by its name."""
        if twin not in _METHODS:
            protocol: Answer | None = getattr(self._v2, twin, None)
            if protocol is not None:
                return protocol
            own = getattr(self, twin)
            return lambda given, body, caller: own(_allowed(given))
        return functools.partial(self._typed, _METHODS[twin])

    def _typed(self, method: Any, given: Parameters, body: bytes, caller: Caller) -> Any:
        request = read_request(message_factory.GetMessageClass(method.input_type), body, given)
        service = self._services[method.containing_service.name]
        return json_of(as_uploaded(answered(service, method, request, caller)))

    def RestApiModel(self, given: Parameters) -> Any:  # noqa: N802
        info = self._models.Info(models_pb2.ModelInfoRequest(id=given.get("name", "")))
        tensors = {
            kind: [{"name": t.name, "dtype": t.datatype, "shape": list(t.shape)} for t in getattr(info, kind)]
            for kind in ("inputs", "outputs")
        }
        return {"name": info.name, "version": info.version, "status": info.state.lower(), **tensors}


def cold_rest_handlers(service: RestService, ids: RequestIds) -> grpc.GenericRpcHandler:
    """Handlers for every twin that is neither hot nor streamed."""
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        method.name: grpc.unary_unary_rpc_method_handler(_handler(method, service.answer_of(method.name), ids))
        for method in http_methods()
        if path_of(method.name) not in set(PATHS.values()) and not method.client_streaming
    }
    return grpc.method_handlers_generic_handler(SERVICE, handlers)


def _handler(method: HttpMethod, answer: Answer, ids: RequestIds) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    def handle(message: bytes, context: grpc.ServicerContext) -> bytes:
        request_id = request_id_of(context.invocation_metadata() or (), ids).decode()
        metadata = [(REQUEST_ID_KEY, request_id)]
        status = STATUS.get(method.name)
        try:
            given, content = _parts(method, message)
            answered = answer(given, content, caller_of(context, "rest"))
            body = json.dumps(answered, ensure_ascii=False).encode()
        except NexusError as error:
            status = http_status(error.code, error.reason)
            body = error_body(error.code, error.message, request_id, status_bytes(error), v2=method.is_v2)
        except Exception as error:
            # A bug of ours: the client learns that, the log learns what.
            structlog.get_logger().error("cold method failed", method=method.name, exc_info=error)
            refusal = InferenceFailed(f"internal error in {method.name}; see the server's log")
            status = 500
            body = error_body(refusal.code, refusal.message, request_id, status_bytes(refusal), v2=method.is_v2)
        if status is not None:
            metadata.append((HTTP_STATUS_KEY, str(status)))
        context.send_initial_metadata(tuple(metadata))
        return json_body(body)

    return handle


def _parts(method: HttpMethod, message: bytes) -> tuple[Parameters, bytes]:
    """(parameters of the path and the query, the body) of a twin's message. Raises InvalidInput."""
    names, given, body = dict(enumerate(method.parameters, 1)), {}, b""
    try:
        for number, _, start, end in fields(message):
            if number in names:
                given[names[number]] = message[start:end].decode("utf-8", "replace")
            elif number == BODY_FIELD:
                body += b"".join(
                    message[start + s : start + e] for n, _, s, e in fields(message[start:end]) if n == HTTP_BODY_DATA
                )
    except WireError:
        raise InvalidInput("the request is not a valid protobuf message") from None
    return given, body

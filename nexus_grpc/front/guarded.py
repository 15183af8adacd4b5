"""Cold methods behind the gate: none runs before its caller is known and may call it.

Wraps every handler of the stock server, whoever added it: a method without a rule in access/rules.py is nobody's.
"""

import functools
from collections.abc import Callable
from typing import Any

import grpc

from nexus_grpc.access.call import Admit
from nexus_grpc.access.identity import Identity, Scope
from nexus_grpc.access.rules import OPEN, TWIN_PREFIX, required
from nexus_grpc.front.caller import calling
from nexus_grpc.front.cold_methods import abort
from nexus_grpc.front.hot_methods import HTTP_STATUS_KEY, PATHS, REQUEST_ID_KEY, request_id_of
from nexus_grpc.front.request_ids import RequestIds
from nexus_grpc.ipc.errors import NexusError, PermissionDenied, RateLimited
from nexus_grpc.ipc.rich_errors import status_bytes
from nexus_grpc.ipc.wire import json_body
from nexus_grpc.limits.buckets import Headers
from nexus_grpc.rest.errors import error_body, error_headers, http_status
from nexus_grpc.rest.twin import v2_paths

_HOT = frozenset(PATHS.values())
_V2 = v2_paths()
# By whether requests and answers are streams: what makes a handler, and its behaviour's name.
_MAKERS = {
    (False, False): (grpc.unary_unary_rpc_method_handler, "unary_unary"),
    (False, True): (grpc.unary_stream_rpc_method_handler, "unary_stream"),
    (True, False): (grpc.stream_unary_rpc_method_handler, "stream_unary"),
    (True, True): (grpc.stream_stream_rpc_method_handler, "stream_stream"),
}
# (the caller) → headers for the answer, or raises NexusError: what else a call has to pass.
Further = Callable[[Identity], Headers]


class _Telling:
    """A call's context whose answer, or error, carries more headers: with the former at its beginning, with the latter
    at its end, whichever is spoken of first. All else is the context's own.
    """

    def __init__(self, context: grpc.ServicerContext, headers: Headers) -> None:
        self._context = context
        self._headers = headers
        self._begun = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def send_initial_metadata(self, metadata: tuple[Any, ...]) -> None:
        self._begun = True
        self._context.send_initial_metadata((*metadata, *self._once()))

    def set_trailing_metadata(self, metadata: tuple[Any, ...]) -> None:
        self._context.set_trailing_metadata((*metadata, *self._once()))

    def begin(self) -> None:
        """There is an answer."""
        if not self._begun:
            self.send_initial_metadata(())

    def _once(self) -> Headers:
        headers, self._headers = self._headers, ()
        return headers


def wrapped(handler: Any, around: Callable[..., Any], *arguments: Any) -> Any:
    """A handler with `around` as its behaviour, which gets the handler's own, `arguments`, request and context."""
    make, name = _MAKERS[handler.request_streaming, handler.response_streaming]
    behaviour = functools.partial(around, getattr(handler, name), *arguments)
    return make(behaviour, handler.request_deserializer, handler.response_serializer)


class GateInterceptor(grpc.ServerInterceptor):
    """Args:
    admit: recognises callers (access/gate.py).
    further: what else a caller has to pass, such as a rate limit, and what its answers tell of that.
    ids: for answers to callers who bring no request id.
    """

    def __init__(self, admit: Admit, further: Further, ids: RequestIds) -> None:
        self._admit = admit
        self._further = further
        self._ids = ids

    def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Any], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """grpc's hook: the handler of a method, guarded. The hot methods pass the gate by themselves."""
        handler = continuation(handler_call_details)
        path = handler_call_details.method
        if handler is None or path in _HOT:
            return handler
        scope = required(path)
        if scope == OPEN:
            return handler
        return wrapped(handler, self._call, scope, path)

    def _call(
        self, behaviour: Callable[..., Any], scope: Scope | None, path: str, request: Any, context: grpc.ServicerContext
    ) -> Any:
        try:
            if scope is None:
                raise PermissionDenied("this method is open to nobody", reason="NO_RULE")
            identity = self._admit(scope, context.invocation_metadata() or (), context)  # type: ignore[arg-type]
            headers = self._further(identity)
        except NexusError as error:
            return self._refuse(path, error, context)
        with calling(identity):
            if not headers:
                return behaviour(request, context)
            telling = _Telling(context, headers)
            answer = behaviour(request, telling)
            telling.begin()
            return answer

    def _refuse(self, path: str, error: NexusError, context: grpc.ServicerContext) -> bytes:
        """As the methods answer themselves: REST's by HttpBody."""
        headers = error.headers if isinstance(error, RateLimited) else ()
        request_id = request_id_of(context.invocation_metadata() or (), self._ids).decode()
        if not path.startswith(TWIN_PREFIX):
            abort(_Telling(context, headers), error, request_id)  # type: ignore[arg-type]
        details = status_bytes(error)
        status = (HTTP_STATUS_KEY, str(http_status(error.code, error.reason)))
        context.send_initial_metadata(
            ((REQUEST_ID_KEY, request_id), status, *error_headers(error.code, details), *headers)
        )
        return json_body(error_body(error.code, error.message, request_id, details, v2=path in _V2))

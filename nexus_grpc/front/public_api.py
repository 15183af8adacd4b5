"""The transport that uses grpcio's public API only: grpc.server with a thread pool. Slower, with the same answers.

It serves when grpcio's inside is not what completion_queue.py expects, or when `front_api = "public"` says so.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any

import grpc

from nexus_grpc.access.call import Admit
from nexus_grpc.access.identity import Identity
from nexus_grpc.access.rules import RULES
from nexus_grpc.front.cold_methods import abort
from nexus_grpc.front.dispatcher import Dispatcher
from nexus_grpc.front.flight import Flight
from nexus_grpc.front.hot_methods import (
    HTTP_STATUS_KEY,
    NO_DEADLINE_SECONDS,
    PATHS,
    REQUEST_ID_KEY,
    STREAMING,
    request_id_of,
)
from nexus_grpc.front.http_calls import as_hot_request
from nexus_grpc.front.request_ids import RequestIds
from nexus_grpc.front.streams import WRAP_ANSWER, wrap_error
from nexus_grpc.ipc.errors import NexusError
from nexus_grpc.ipc.record import Method, is_http
from nexus_grpc.ipc.rich_errors import DETAILS_KEY
from nexus_grpc.ipc.wire import ANSWER_HEADERS_TAG, answer_headers, json_body
from nexus_grpc.rest.errors import error_body, error_headers, http_status

# One thread per request in flight: the public API has no other way to wait.
THREADS = 128
_STATUS = {code.value[0]: code for code in grpc.StatusCode}


class PublicFlight(Flight):
    """A request whose handler thread waits for `done`."""

    __slots__ = ("code", "context", "details", "done", "error", "payload")

    def __init__(
        self, method: int, request_id: bytes, deadline_ns: int, message: bytes, context: grpc.ServicerContext
    ) -> None:
        super().__init__(method, request_id, deadline_ns, time.monotonic_ns())
        self.message = message
        self.context = context
        self.done = threading.Event()
        self.payload = b""
        self.code = 0
        self.error = ""
        self.details = b""

    def succeed(self, payload: bytes) -> None:
        self.payload = payload
        self.done.set()

    def fail(self, code: int, message: str, details: bytes) -> None:
        self.code, self.error, self.details = code, message, details
        self.done.set()

    def peer(self) -> str:
        return str(self.context.peer())

    def watch(self) -> None:
        """The handler registers for the client's going away itself."""


class HotHandlers(grpc.GenericRpcHandler):
    """Raw-bytes handlers for the hot methods."""

    def __init__(self, dispatcher: Dispatcher, ids: RequestIds, admit: Admit | None) -> None:
        self._dispatcher = dispatcher
        self._admit = admit
        self._ids = ids
        self._methods = {path: method for method, path in PATHS.items()}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = self._methods.get(handler_call_details.method)
        if method is None:
            return None
        if method in STREAMING:
            return grpc.stream_stream_rpc_method_handler(self._stream(int(method)))
        if is_http(method):
            return grpc.unary_unary_rpc_method_handler(self._http(int(method)))
        return grpc.unary_unary_rpc_method_handler(self._unary(int(method)))

    def _request_id(self, context: grpc.ServicerContext) -> bytes:
        return request_id_of(context.invocation_metadata() or (), self._ids)

    def _deadline_ns(self, context: grpc.ServicerContext) -> int:
        remaining = context.time_remaining()
        none = remaining is None or remaining >= NO_DEADLINE_SECONDS
        return 0 if none else time.monotonic_ns() + int(remaining * 1e9)

    def _answered(self, flight: PublicFlight) -> PublicFlight:
        context = flight.context
        context.add_callback(lambda: None if flight.done.is_set() else self._abandon(flight))
        flight.metadata = context.invocation_metadata() or ()
        try:
            flight.identity = self._admitted(flight.method, context)
            # Nothing of a message is looked at before its sender is known.
            if is_http(flight.method):
                flight.message = as_hot_request(flight.method, flight.message, flight.metadata)
        except NexusError as error:
            guard = self._dispatcher.guard
            with self._dispatcher.turn:
                self._dispatcher.refuse(flight, error if guard is None else guard.counted(flight, error))
        else:
            with self._dispatcher.turn:
                self._dispatcher.submit(flight)
        flight.done.wait()
        return flight

    def _admitted(self, method: int, context: grpc.ServicerContext) -> Identity | None:
        """Raises Unauthenticated or PermissionDenied."""
        if self._admit is None:
            return None
        return self._admit(RULES[PATHS[Method(method)]], context.invocation_metadata() or (), context)  # type: ignore[arg-type]

    def _abandon(self, flight: PublicFlight) -> None:
        self._dispatcher.command(lambda: self._dispatcher.cancel(flight))
        flight.done.set()

    def _unary(self, method: int) -> Callable[[bytes, grpc.ServicerContext], bytes]:
        def handle(message: bytes, context: grpc.ServicerContext) -> bytes:
            request_id = self._request_id(context)
            flight = self._answered(PublicFlight(method, request_id, self._deadline_ns(context), message, context))
            first = (REQUEST_ID_KEY, request_id.decode())
            if flight.code:
                context.send_initial_metadata((first,))
                details = ((DETAILS_KEY, flight.details),) if flight.details else ()
                context.set_trailing_metadata((*details, *flight.headers))
                context.abort(_STATUS[flight.code], flight.error)
            context.send_initial_metadata((first, *flight.headers))
            return flight.payload

        return handle

    def _http(self, method: int) -> Callable[[bytes, grpc.ServicerContext], bytes]:
        def handle(message: bytes, context: grpc.ServicerContext) -> bytes:
            request_id = self._request_id(context)
            flight = self._answered(PublicFlight(method, request_id, self._deadline_ns(context), message, context))
            metadata = [(REQUEST_ID_KEY, request_id.decode()), *flight.headers]
            if flight.code:
                metadata += [
                    (HTTP_STATUS_KEY, str(http_status(flight.code))),
                    *error_headers(flight.code, flight.details),
                ]
            elif flight.payload[0] == ANSWER_HEADERS_TAG:
                metadata += answer_headers(flight.payload)
            context.send_initial_metadata(tuple(metadata))
            if not flight.code:
                return flight.payload
            v2 = method == Method.HTTP_V2_INFER
            return json_body(error_body(flight.code, flight.error, request_id.decode(), flight.details, v2=v2))

        return handle

    def _stream(self, method: int) -> Callable[[Iterator[bytes], grpc.ServicerContext], Iterator[bytes]]:
        def handle(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            request_id, deadline_ns = self._request_id(context), self._deadline_ns(context)
            first = (REQUEST_ID_KEY, request_id.decode())
            try:
                identity = self._admitted(method, context)
            except NexusError as error:
                context.send_initial_metadata((first,))
                abort(context, error)
            guard = self._dispatcher.guard
            context.send_initial_metadata((first, *(guard.standing(identity) if guard is not None else ())))
            for message in messages:
                flight = self._answered(PublicFlight(method, request_id, deadline_ns, message, context))
                if flight.code:
                    yield wrap_error(flight, flight.code, flight.error)
                else:
                    yield WRAP_ANSWER[method](flight.payload)

        return handle


def public_server(
    dispatcher: Dispatcher,
    ids: RequestIds,
    thread_pool: futures.ThreadPoolExecutor,
    options: list[tuple[str, Any]],
    admit: Admit | None = None,
    interceptors: Sequence[grpc.ServerInterceptor] = (),
) -> grpc.Server:
    """A stock server with the hot methods' handlers."""
    server = grpc.server(thread_pool, interceptors=list(interceptors), options=options)
    server.add_generic_rpc_handlers((HotHandlers(dispatcher, ids, admit),))
    return server

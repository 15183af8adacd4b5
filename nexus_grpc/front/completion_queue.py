"""The fast transport: grpcio's own completion queue, driven by one thread.

The only module that touches grpcio's inside.

The stock grpc.server owns the port and serves every cold method with its own machinery. The hot methods are registered
with its core server; their events come out of the same queue and are handled here, without thread pool, futures or
per-call handlers. What that relies on is listed in `contract_mismatches`, which runs at start-up: where it finds
something else, the server serves through public_api.py instead, with the same answers. See docs/decisions/0001.

An RPC is three events: arrival → its message → its final batch done.
"""

import importlib
import inspect
import threading
import time
from concurrent import futures
from typing import Any

import grpc

from nexus_grpc.front.core_choice import CoreChoice
from nexus_grpc.front.dispatcher import Dispatcher
from nexus_grpc.front.flight import Flight
from nexus_grpc.front.hot_methods import (
    HTTP_STATUS_KEY,
    PATHS,
    REQUEST_ID_KEY,
    STREAMING,
    monotonic_deadline_ns,
    request_id_of,
)
from nexus_grpc.front.http_calls import as_hot_request
from nexus_grpc.front.request_ids import RequestIds
from nexus_grpc.front.streams import Stream
from nexus_grpc.ipc.errors import InvalidInput, NexusError
from nexus_grpc.ipc.record import Method, is_http
from nexus_grpc.ipc.rich_errors import DETAILS_KEY
from nexus_grpc.ipc.wire import json_body
from nexus_grpc.rest.errors import error_body, http_status

_server: Any = None
cygrpc: Any = None
_import_error = ""
try:
    _server = importlib.import_module("grpc._server")
    cygrpc = importlib.import_module("grpc._cython.cygrpc")
except ImportError as error:  # a grpcio that is built otherwise: the contract reports it
    _import_error = str(error)

GRPCIO_RANGE = ((1, 85, 1), (1, 86))
# Calls that the core may hand over before we ask again: above this they queue inside the core.
UNARY_OUTSTANDING = 256
STREAM_OUTSTANDING = 16


def _version_mismatch() -> str:
    try:
        version = tuple(int(part) for part in grpc.__version__.split(".")[:3])
    except ValueError:
        return f"grpcio {grpc.__version__} is no release"
    low, high = GRPCIO_RANGE
    return "" if low <= version < high else f"grpcio {grpc.__version__} is outside the tried range {low} to {high}"


_NAMES = {
    "Server": ("register_method", "request_registered_call", "shutdown", "start"),
    "CompletionQueue": ("poll",),
    "Call": ("start_server_batch",),
    "ReceiveMessageOperation": ("message",),
    "ReceiveCloseOnServerOperation": ("cancelled",),
    "SendInitialMetadataOperation": (),
    "SendMessageOperation": (),
    "SendStatusFromServerOperation": (),
    "StatusCode": ("ok",),
    "CompletionType": ("queue_timeout",),
}
_SERVER_PARAMETERS = (
    "self",
    "thread_pool",
    "generic_handlers",
    "interceptors",
    "options",
    "maximum_concurrent_rpcs",
    "compression",
    "xds",
)
_SERVER_FUNCTIONS = {
    "_process_event_and_continue": ("state", "event"),
    "_request_call": ("state",),
    "_request_registered_call": ("state", "method"),
}


def contract_mismatches() -> list[str]:
    """What of grpcio's inside is not as this module expects; empty when all is well."""
    if _import_error:
        return [f"grpcio's internals cannot be imported: {_import_error}"]
    found = [_version_mismatch()]
    for name, members in _NAMES.items():
        thing = getattr(cygrpc, name, None)
        if thing is None:
            found.append(f"grpc._cython.cygrpc has no {name}")
        found += [f"cygrpc.{name} has no {member}" for member in members if thing and not hasattr(thing, member)]
    parameters = tuple(inspect.signature(_server._Server.__init__).parameters)
    if parameters != _SERVER_PARAMETERS:
        found.append(f"grpc._server._Server takes {parameters}")
    for name, expected in _SERVER_FUNCTIONS.items():
        function = getattr(_server, name, None)
        if function is None or tuple(inspect.signature(function).parameters) != expected:
            found.append(f"grpc._server.{name} is missing or takes other parameters than {expected}")
    state = inspect.signature(_server._ServerState.__init__).parameters
    found += [
        f"grpc._server._ServerState takes no {name}" for name in ("completion_queue", "server") if name not in state
    ]
    return [line for line in found if line]


class UnaryFlight(Flight):
    """A unary call. Also the tag of its receive-message event."""

    __slots__ = ("call",)

    def __init__(self, call: Any, method: int, request_id: bytes, deadline_ns: int, arrived_ns: int) -> None:
        super().__init__(method, request_id, deadline_ns, arrived_ns)
        self.call = call

    def succeed(self, payload: bytes) -> None:
        send_metadata = cygrpc.SendInitialMetadataOperation(((REQUEST_ID_KEY, self.request_id),), 0)
        send_message = cygrpc.SendMessageOperation(payload, 0)
        send_status = cygrpc.SendStatusFromServerOperation((), _OK, b"", 0)
        if self.watched:
            self.call.start_server_batch((send_metadata, send_message, send_status), None)
        else:
            close = cygrpc.ReceiveCloseOnServerOperation(0)
            self.call.start_server_batch((send_metadata, send_message, send_status, close), None)

    def fail(self, code: int, message: str, details: bytes) -> None:
        trailing = ((DETAILS_KEY, details),) if details else ()
        operations: tuple[Any, ...] = (
            cygrpc.SendInitialMetadataOperation(((REQUEST_ID_KEY, self.request_id),), 0),
            cygrpc.SendStatusFromServerOperation(trailing, code, message, 0),
        )
        if not self.watched:
            operations += (cygrpc.ReceiveCloseOnServerOperation(0),)
        self.call.start_server_batch(operations, None)

    def watch(self) -> None:
        self.call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(0),), _UnaryClose(self))


class HttpFlight(UnaryFlight):
    """A unary call that Envoy made of a REST request: an error is an answer with an HTTP status."""

    __slots__ = ()

    def fail(self, code: int, message: str, details: bytes) -> None:
        payload = json_body(error_body(code, message, self.request_id.decode(), details))
        metadata = ((REQUEST_ID_KEY, self.request_id), (HTTP_STATUS_KEY, str(http_status(code))))
        operations: tuple[Any, ...] = (
            cygrpc.SendInitialMetadataOperation(metadata, 0),
            cygrpc.SendMessageOperation(payload, 0),
            cygrpc.SendStatusFromServerOperation((), _OK, b"", 0),
        )
        if not self.watched:
            operations += (cygrpc.ReceiveCloseOnServerOperation(0),)
        self.call.start_server_batch(operations, None)


class _UnaryClose:
    """Tag of a watched unary call's close event."""

    __slots__ = ("flight",)

    def __init__(self, flight: UnaryFlight) -> None:
        self.flight = flight


class _HotMethod:
    """Tag of a hot method's arrival events."""

    __slots__ = ("flight", "method", "outstanding", "path", "streaming")

    def __init__(self, method: Method) -> None:
        self.method = int(method)
        self.flight = HttpFlight if is_http(method) else UnaryFlight
        self.path = PATHS[method]
        self.streaming = method in STREAMING
        self.outstanding = STREAM_OUTSTANDING if self.streaming else UNARY_OUTSTANDING


class _StreamCall:
    """A streaming call's transport."""

    def __init__(self, call: Any, request_id: bytes) -> None:
        self.call = call
        self.stream: Any = None
        self._request_id = request_id

    def open(self, stream: Stream) -> None:
        self.stream = stream
        metadata = cygrpc.SendInitialMetadataOperation(((REQUEST_ID_KEY, self._request_id),), 0)
        self.call.start_server_batch((metadata,), None)
        self.call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(0),), _StreamEvent(self, _CLOSED))
        self.receive()

    def receive(self) -> None:
        self.call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), _StreamEvent(self, _RECEIVED))

    def send(self, message: bytes) -> None:
        self.call.start_server_batch((cygrpc.SendMessageOperation(message, 0),), _StreamEvent(self, _SENT))

    def finish(self, code: int, message: str) -> None:
        self.call.start_server_batch((cygrpc.SendStatusFromServerOperation((), code, message, 0),), None)


_RECEIVED, _SENT, _CLOSED = range(3)


class _StreamEvent:
    """Tag of a streaming call's events."""

    __slots__ = ("call", "kind")

    def __init__(self, call: _StreamCall, kind: int) -> None:
        self.call = call
        self.kind = kind


_OK = cygrpc.StatusCode.ok if hasattr(cygrpc, "StatusCode") else 0
_TIMEOUT = cygrpc.CompletionType.queue_timeout if hasattr(cygrpc, "CompletionType") else None


class CompletionQueueServer(_server._Server if _server is not None else object):  # type: ignore[misc]
    """grpc.Server whose hot methods bypass its machinery. Use like a grpc.Server: add handlers, add a port, start."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        ids: RequestIds,
        thread_pool: futures.ThreadPoolExecutor,
        options: list[tuple[str, Any]],
        stream_window: int,
        core: int,
        crowded: list[int],
    ) -> None:
        super().__init__(thread_pool, (), (), options, None, None, False)
        self._cores = (core, crowded)
        self._dispatcher = dispatcher
        self._ids = ids
        self._stream_window = stream_window
        self._draining = False
        self._streams: set[_StreamCall] = set()

    def start(self) -> None:
        state = self._state
        methods = [_HotMethod(method) for method in Method]
        for hot in methods:
            state.server.register_method(hot.path)
        with state.lock:
            state.server.start()
            state.stage = _server._ServerStage.STARTED
            for method in state.registered_method_handlers:
                _server._request_registered_call(state, method)
            _server._request_call(state)
        for hot in methods:
            for _ in range(hot.outstanding):
                self._request(hot)
        threading.Thread(target=self._ingress, daemon=True, name="ingress").start()

    def stop(self, grace: float | None) -> threading.Event:
        """As grpc.Server.stop; open streams are told to finish first."""
        self._draining = True
        self._dispatcher.command(self._drain_streams)
        stopped: threading.Event = super().stop(grace)
        return stopped

    def _drain_streams(self) -> None:
        for call in list(self._streams):
            call.stream.drain()

    def _request(self, hot: _HotMethod) -> None:
        """Ask the core for the next call of a hot method."""
        queue = self._state.completion_queue
        try:
            self._state.server.request_registered_call(queue, queue, hot.path, hot)
        except ValueError:
            if not self._draining:
                raise

    def _ingress(self) -> None:
        """Wait for an event; then, holding the turn, serve until nothing is left: events, answers, chores."""
        self._core_choice = CoreChoice(*self._cores)
        dispatcher, poll = self._dispatcher, self._state.completion_queue.poll
        arrived, submit, take_answers = self._arrived, dispatcher.submit, dispatcher.take_answers
        serving = True
        while serving:
            event = poll()
            if event.tag is None:  # a final batch is done
                continue
            with dispatcher.turn:
                dispatcher.begin()
                while serving:
                    tag = event.tag
                    kind = type(tag)
                    if kind is UnaryFlight:
                        tag.message = event.batch_operations[0].message()
                        if tag.message is None:
                            self._no_message(tag)
                        else:
                            submit(tag)
                            take_answers()
                    elif kind is _HotMethod:
                        if event.success:
                            arrived(tag, event)
                    elif kind is HttpFlight:
                        self._submit_http(tag, event.batch_operations[0].message())
                        take_answers()
                    elif tag is not None:
                        serving = self._handle(tag, kind, event)
                    elif event.completion_type != _TIMEOUT:
                        take_answers()
                    elif not dispatcher.work() and not dispatcher.linger():
                        break
                    # A call must not outlive its event through this frame.
                    event = tag = None
                    event = poll(0)
                dispatcher.end()
                event = None

    def _handle(self, tag: Any, kind: type, event: Any) -> bool:
        """The rarer events. False when the server has stopped."""
        if kind is _StreamEvent:
            self._stream_event(tag, event)
        elif kind is _UnaryClose:
            if event.batch_operations[0].cancelled():
                self._dispatcher.cancel(tag.flight)
        else:
            return bool(_server._process_event_and_continue(self._state, event))
        return True

    def _submit_http(self, flight: HttpFlight, message: bytes | None) -> None:
        if message is None:
            return self._no_message(flight)
        try:
            flight.message = as_hot_request(flight.method, message)
        except NexusError as error:
            return self._dispatcher.refuse(flight, error)
        self._dispatcher.submit(flight)

    def _no_message(self, flight: UnaryFlight) -> None:
        """The client closed without one, went away, or sent one over the limit (the core has answered that)."""
        flight.message = b""
        self._dispatcher.refuse(flight, InvalidInput("the call carried no message, or one over the server's limit"))

    def _arrived(self, hot: _HotMethod, event: Any) -> None:
        self._request(hot)
        now_ns = time.monotonic_ns()
        if now_ns >= self._dispatcher.next_sweep_ns:
            self._dispatcher.work()
        call = event.call
        request_id = request_id_of(event.invocation_metadata, self._ids)
        deadline_ns = monotonic_deadline_ns(event.call_details.deadline, now_ns)
        if hot.streaming:
            self._open_stream(hot, call, event.invocation_metadata, request_id, deadline_ns)
        else:
            self._core_choice.arrived(hot.flight is HttpFlight)
            flight = hot.flight(call, hot.method, request_id, deadline_ns, now_ns)
            if self._dispatcher.routes.reads_metadata:
                flight.metadata = event.invocation_metadata
            call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), flight)

    def _open_stream(self, hot: _HotMethod, call: Any, metadata: Any, request_id: bytes, deadline_ns: int) -> None:
        transport = _StreamCall(call, request_id)
        stream = Stream(self._dispatcher, transport, hot.method, request_id, deadline_ns, self._stream_window)
        stream.metadata = metadata
        self._streams.add(transport)
        self._dispatcher.streams_open = len(self._streams)
        transport.open(stream)

    def _stream_event(self, tag: _StreamEvent, event: Any) -> None:
        stream = tag.call.stream
        if stream is None:  # closed: this is what was under way then
            return
        if tag.kind == _RECEIVED:
            stream.on_message(event.batch_operations[0].message(), time.monotonic_ns())
        elif tag.kind == _SENT:
            stream.on_sent()
        else:
            self._streams.discard(tag.call)
            self._dispatcher.streams_open = len(self._streams)
            tag.call.stream = None  # the two know each other: left so, they would wait for the garbage collector
            stream.on_closed(event.batch_operations[0].cancelled())

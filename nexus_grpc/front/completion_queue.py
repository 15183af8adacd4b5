"""The fast transport: grpcio's own completion queue, driven by one thread.

With patient_pool.py the only module that uses grpcio's inside.

The stock grpc.server owns the port and serves every cold method with its own machinery. The hot methods are registered
with its core server; their events come out of the same queue and are handled here, without thread pool, futures or
per-call handlers. What that relies on is listed in grpcio_contract.py, which is checked at start-up: where it finds
something else, the server serves through public_api.py instead, with the same answers. See docs/decisions/0001.

An RPC is three events: arrival → its message → its final batch done.
"""

import dataclasses
import functools
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import grpc

from nexus_grpc.access.call import Admit
from nexus_grpc.access.rules import RULES
from nexus_grpc.front.core_choice import CoreChoice
from nexus_grpc.front.dispatcher import Dispatcher
from nexus_grpc.front.flight import Flight
from nexus_grpc.front.grpcio_contract import cygrpc
from nexus_grpc.front.grpcio_contract import server as _server
from nexus_grpc.front.hot_methods import (
    HTTP_STATUS_KEY,
    PATHS,
    REQUEST_ID_KEY,
    STREAMING,
    check_metadata,
    monotonic_deadline_ns,
    request_id_of,
)
from nexus_grpc.front.http_calls import as_hot_request
from nexus_grpc.front.patient_pool import PatientPool
from nexus_grpc.front.request_ids import RequestIds
from nexus_grpc.front.streams import Stream
from nexus_grpc.ipc.errors import InvalidInput, NexusError
from nexus_grpc.ipc.record import Method, is_http
from nexus_grpc.ipc.rich_errors import DETAILS_KEY
from nexus_grpc.ipc.wire import ANSWER_HEADERS_TAG, answer_headers, json_body
from nexus_grpc.rest.errors import error_body, error_headers, http_status

# Calls that the core may hand over before we ask again: above this they queue inside the core.
UNARY_OUTSTANDING = 256
STREAM_OUTSTANDING = 16


class UnaryFlight(Flight):
    """A unary call. Also the tag of its receive-message event."""

    __slots__ = ("call",)

    def __init__(self, call: Any, method: int, request_id: bytes, deadline_ns: int, arrived_ns: int) -> None:
        super().__init__(method, request_id, deadline_ns, arrived_ns)
        self.call = call

    def succeed(self, payload: bytes) -> None:
        message = cygrpc.SendMessageOperation(payload, 0)
        self._end((self.initial(), message, cygrpc.SendStatusFromServerOperation((), _OK, b"", 0)))

    def initial(self) -> Any:
        """What an answer begins with."""
        metadata: tuple[tuple[str, str | bytes], ...] = ((REQUEST_ID_KEY, self.request_id),)
        if self.headers:
            metadata = (*metadata, *self.headers)
        return cygrpc.SendInitialMetadataOperation(metadata, 0)

    def fail(self, code: int, message: str, details: bytes) -> None:
        metadata = cygrpc.SendInitialMetadataOperation(((REQUEST_ID_KEY, self.request_id),), 0)
        trailing = ((DETAILS_KEY, details), *self.headers) if details else self.headers
        self._end((metadata, cygrpc.SendStatusFromServerOperation(trailing, code, message, 0)))

    def _end(self, operations: tuple[Any, ...]) -> None:
        if not self.watched:
            operations += (cygrpc.ReceiveCloseOnServerOperation(0),)
        self.call.start_server_batch(operations, None)

    def watch(self) -> None:
        self.call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(0),), _UnaryClose(self))

    def peer(self) -> str:
        peer: bytes = self.call.peer()
        return peer.decode()

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return {key.decode(): values for key, values in cygrpc.auth_context(self.call).items()}


class HttpFlight(UnaryFlight):
    """A unary call that Envoy made of a REST request: an error is an answer with an HTTP status."""

    __slots__ = ()

    def succeed(self, payload: bytes) -> None:
        if payload[0] == ANSWER_HEADERS_TAG:
            self.headers = (*self.headers, *answer_headers(payload))
        super().succeed(payload)

    def fail(self, code: int, message: str, details: bytes) -> None:
        v2 = self.method == Method.HTTP_V2_INFER
        payload = json_body(error_body(code, message, self.request_id.decode(), details, v2=v2))
        status = (HTTP_STATUS_KEY, str(http_status(code)))
        metadata = ((REQUEST_ID_KEY, self.request_id), status, *error_headers(code, details), *self.headers)
        send_metadata = cygrpc.SendInitialMetadataOperation(metadata, 0)
        send_message = cygrpc.SendMessageOperation(payload, 0)
        self._end((send_metadata, send_message, cygrpc.SendStatusFromServerOperation((), _OK, b"", 0)))


@dataclasses.dataclass(slots=True, eq=False)
class _UnaryClose:
    """Tag of a watched unary call's close event."""

    flight: UnaryFlight


class _HotMethod:
    """Tag of a hot method's arrival events."""

    __slots__ = ("flight", "method", "outstanding", "path", "scope", "streaming")

    def __init__(self, method: Method) -> None:
        self.method = int(method)
        self.flight = HttpFlight if is_http(method) else UnaryFlight
        self.path = PATHS[method]
        self.scope = RULES[self.path]
        self.streaming = method in STREAMING
        self.outstanding = STREAM_OUTSTANDING if self.streaming else UNARY_OUTSTANDING


class _StreamCall:
    """A streaming call's transport."""

    def __init__(self, flight: UnaryFlight) -> None:
        self.call = flight.call
        self.stream: Any = None
        self._initial = flight.initial()

    def open(self, stream: Stream) -> None:
        self.stream = stream
        self.call.start_server_batch((self._initial,), None)
        self.call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(0),), _StreamEvent(self, _CLOSED))
        self.receive()

    def receive(self) -> None:
        self.call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), _StreamEvent(self, _RECEIVED))

    def send(self, message: bytes) -> None:
        self.call.start_server_batch((cygrpc.SendMessageOperation(message, 0),), _StreamEvent(self, _SENT))

    def finish(self, code: int, message: str) -> None:
        self.call.start_server_batch((cygrpc.SendStatusFromServerOperation((), code, message, 0),), None)

    def peer(self) -> str:
        peer: bytes = self.call.peer()
        return peer.decode()


_RECEIVED, _SENT, _CLOSED = range(3)


@dataclasses.dataclass(slots=True, eq=False)
class _StreamEvent:
    """Tag of a streaming call's events."""

    call: _StreamCall
    kind: int


_OK = cygrpc.StatusCode.ok if hasattr(cygrpc, "StatusCode") else 0
_TIMEOUT = cygrpc.CompletionType.queue_timeout if hasattr(cygrpc, "CompletionType") else None


class CompletionQueueServer:
    """A grpc.Server whose hot methods bypass its machinery.

    `stock` is that server: add handlers and ports to it, but start and stop this one.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        ids: RequestIds,
        pool: PatientPool,
        options: list[tuple[str, Any]],
        stream_window: int,
        core: int,
        crowded: list[int],
        admit: Admit | None = None,
        interceptors: Sequence[grpc.ServerInterceptor] = (),
    ) -> None:
        stock = _server._Server(pool, (), interceptors, options, None, None, False)
        self._admit = admit
        self.stock: grpc.Server = stock
        self._pool = pool
        self._state: Any = stock._state
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
        stopped: threading.Event = self.stock.stop(grace)
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
                event = None  # its answer may be large, and the next event a long time coming
                continue
            with dispatcher.turn:
                dispatcher.begin()
                while serving:
                    tag = event.tag
                    kind = type(tag)
                    if kind is UnaryFlight:
                        message = event.batch_operations[0].message()
                        if message is None:
                            self._no_message(tag)
                        else:
                            tag.message = message
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
                    event = tag = message = None
                    event = poll(0)
                dispatcher.end()
                event = None
        self._pool.shutdown()

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
            flight.message = as_hot_request(flight.method, message, flight.metadata)
        except NexusError as error:
            guard = self._dispatcher.guard
            return self._dispatcher.refuse(flight, error if guard is None else guard.counted(flight, error))
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
        flight = hot.flight(call, hot.method, request_id, deadline_ns, now_ns)
        try:
            check_metadata(event.invocation_metadata)
            if self._admit is not None:
                flight.identity = self._admit(hot.scope, event.invocation_metadata, flight)
        except NexusError as error:
            return self._dispatcher.refuse(flight, error)
        if hot.streaming:
            self._open_stream(hot, flight, event.invocation_metadata)
        else:
            self._core_choice.arrived(hot.flight is HttpFlight)
            flight.metadata = event.invocation_metadata
            call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), flight)

    def _open_stream(self, hot: _HotMethod, call: UnaryFlight, metadata: Any) -> None:
        guard = self._dispatcher.guard
        if guard is not None:
            call.headers = guard.standing(call.identity)
        transport = _StreamCall(call)
        stream = Stream(self._dispatcher, transport, hot.method, call.request_id, call.deadline_ns, self._stream_window)
        stream.metadata = metadata
        if self._admit is not None:
            # Anew for each message: a stream may be open for longer than its credential counts.
            stream.identify = functools.partial(self._admit, hot.scope, metadata, call)
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

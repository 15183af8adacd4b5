"""The life of a bidirectional stream of requests: answers in order, errors in the stream, bounded work in flight.

    open ──(client half-closes / drain)──▶ closing ──(last answer sent)──▶ finished
      └──────────────(client goes away)──▶ finished

This file owns that state machine; what moves bytes is the transport's business (StreamTransport). Everything happens
under the dispatcher's turn.
"""

import collections
from collections.abc import Callable
from typing import Protocol

from nexus_grpc.access.identity import Identity
from nexus_grpc.front.flight import Flight, Metadata
from nexus_grpc.ipc.errors import Code, NexusError
from nexus_grpc.ipc.record import Method
from nexus_grpc.ipc.wire import WireError, length_prefix, spans
from nexus_grpc.pb.inference import grpc_service_pb2 as infer_pb
from nexus_grpc.pb.nexus.v1 import inference_pb2 as predict_pb


class StreamTransport(Protocol):
    """What a stream needs of its call. Every call returns at once; completions come back as on_… calls."""

    def receive(self) -> None: ...

    def send(self, message: bytes) -> None: ...

    def finish(self, code: int, message: str) -> None: ...

    def peer(self) -> str: ...


class Submitter(Protocol):
    """The part of the dispatcher that a stream uses."""

    def submit(self, flight: Flight) -> None: ...

    def cancel(self, flight: Flight) -> None: ...

    def refuse(self, flight: Flight, error: NexusError) -> None: ...


class StreamFlight(Flight):
    """One request of a stream. `answer` is the wrapped answer once there is one."""

    __slots__ = ("answer", "stream")

    def __init__(self, stream: "Stream", message: bytes, now_ns: int) -> None:
        super().__init__(stream.method, stream.request_id, stream.deadline_ns, now_ns)
        self.message = message
        self.metadata = stream.metadata
        self.stream = stream
        self.answer: bytes | None = None

    def succeed(self, payload: bytes) -> None:
        self.answer = WRAP_ANSWER[self.method](payload)
        self.stream.advance()

    def fail(self, code: int, message: str, details: bytes) -> None:
        self.answer = wrap_error(self, code, message)
        self.stream.advance()

    def peer(self) -> str:
        return self.stream.peer()

    def watch(self) -> None:
        """The stream is watched as a whole."""


class Stream:
    """One open call of a streaming method."""

    def __init__(
        self,
        dispatcher: Submitter,
        transport: StreamTransport,
        method: int,
        request_id: bytes,
        deadline_ns: int,
        window: int,
    ) -> None:
        self.method = method
        self.request_id = request_id
        self.deadline_ns = deadline_ns
        self.metadata: Metadata = ()
        # Who sends; None where the server asks for no credentials.
        self.identify: Callable[[], Identity] | None = None
        self._dispatcher = dispatcher
        self._transport = transport
        self._window = window
        self._pending: collections.deque[StreamFlight] = collections.deque()
        self._receiving = True
        self._sending = False
        self._closing = False
        self._finished = False
        self._final = (int(Code.OK), "")

    def on_message(self, message: bytes | None, now_ns: int) -> None:
        """A message came, or None when the client has half-closed."""
        if message is None or self._closing:
            self._receiving = False
            self._closing = True
            self._finish_if_done()
            return
        flight = StreamFlight(self, message, now_ns)
        self._pending.append(flight)
        self._receiving = len(self._pending) < self._window
        if self._receiving:
            self._transport.receive()
        if self.identify is not None:
            try:
                flight.identity = self.identify()
            except NexusError as error:
                return self._dispatcher.refuse(flight, error)
        self._dispatcher.submit(flight)

    def peer(self) -> str:
        return self._transport.peer()

    def advance(self) -> None:
        """Send the next answer if its turn has come."""
        if self._sending or self._finished or not self._pending:
            return
        answer = self._pending[0].answer
        if answer is None:
            return
        self._pending.popleft()
        self._sending = True
        self._transport.send(answer)
        if not self._receiving and not self._closing and len(self._pending) < self._window:
            self._receiving = True
            self._transport.receive()

    def on_sent(self) -> None:
        self._sending = False
        self.advance()
        self._finish_if_done()

    def on_closed(self, cancelled: bool) -> None:
        """The call is over; when cancelled, nobody waits for what is still in flight."""
        self._finished = True
        abandoned = list(self._pending) if cancelled else []
        self._pending.clear()
        for flight in abandoned:
            if flight.answer is None:
                self._dispatcher.cancel(flight)

    def drain(self) -> None:
        """Take no more requests, answer those that are here, then end with UNAVAILABLE."""
        if not self._closing:
            self._closing = True
            self._final = (int(Code.UNAVAILABLE), "the server is shutting down")
        self._finish_if_done()

    def _finish_if_done(self) -> None:
        if self._closing and not self._pending and not self._sending and not self._finished:
            self._finished = True
            self._transport.finish(*self._final)


def _infer_answer(payload: bytes) -> bytes:
    return length_prefix(infer_pb.ModelStreamInferResponse.INFER_RESPONSE_FIELD_NUMBER, len(payload)) + payload


def wrap_error(flight: Flight, code: int, message: str) -> bytes:
    """An error as a message of the stream, with the request's own id: answers are told apart by nothing else."""
    if flight.method == Method.PREDICT_STREAM:
        request_id = _own_id(flight.message, _PREDICT_ID) or flight.request_id.decode()
        error = predict_pb.StreamError(code=Code(code).name, message=message, request_id=request_id)
        return predict_pb.PredictStreamResponse(error=error).SerializeToString()
    response = infer_pb.ModelStreamInferResponse(error_message=message)
    request_id = _own_id(flight.message, _INFER_ID)
    if request_id:
        response.infer_response.id = request_id
    return response.SerializeToString()


_INFER_ID = infer_pb.ModelInferRequest.ID_FIELD_NUMBER
_PREDICT_ID = predict_pb.PredictRequest.REQUEST_ID_FIELD_NUMBER


def _own_id(message: bytes, field: int) -> str:
    """What a request calls itself; empty where it has no name, or is no request."""
    try:
        found = spans(message, field)
        return message[found[-1][0] : found[-1][1]].decode() if found else ""
    except (WireError, UnicodeDecodeError):
        return ""


def _predict_answer(payload: bytes) -> bytes:
    return length_prefix(predict_pb.PredictStreamResponse.RESPONSE_FIELD_NUMBER, len(payload)) + payload


WRAP_ANSWER: dict[int, Callable[[bytes], bytes]] = {
    Method.MODEL_STREAM_INFER: _infer_answer,
    Method.PREDICT_STREAM: _predict_answer,
}

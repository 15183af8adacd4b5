"""The threads of the stock server's cold methods: a call has one once its message is here, not while it keeps one
waiting. The stock server gives each call a thread as it arrives, so some that never say what they want stop them all.

Calls that bring one message wait for it in the completion queue, as the hot ones do. Those that bring several need a
thread from the start, but none of the others':

* uploads: `uploads_max` at a time are received, within `upload_seconds`; upload.py refuses any more at once, for which
  some threads are spare. So nobody stands in line for long.
* all others, which is reflection: one of few. When they are all taken, the oldest makes room if it has had its time;
  otherwise the new one is refused.

Health's Watch answers again and again, but without a thread (grpc_health's experimental_non_blocking). It sends while
holding the lock that all of health needs, and the stock server waits until the client has room for what is sent: one
that never has would stop health for everybody, and whoever tells it of a change. `Latest` does not wait.

What is used of grpcio's inside is listed in grpcio_contract.py.
"""

import threading
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any, NamedTuple

from nexus_grpc.front import upload
from nexus_grpc.front.grpcio_contract import UNARY_REQUEST, cygrpc
from nexus_grpc.front.grpcio_contract import server as _server
from nexus_grpc.front.hot_methods import check_metadata
from nexus_grpc.ipc.errors import NexusError

COLD_THREADS = 24
# For uploads that are refused because `uploads_max` are under way, or because of their caller.
SPARE_UPLOAD_THREADS = 2
STREAM_THREADS = 8
# How long one of the other streams may have its thread while a new one wants it: grpcurl needs less than a second.
STREAM_SECONDS = 10.0
# As the core has them.
_UPLOADS = frozenset(path.encode() for path in upload.PATHS)


class Call(NamedTuple):
    """What the stock server submits for a call (_server._handle_unary_unary and its like)."""

    run: Callable[..., Any]
    in_pool: Callable[..., Any]
    event: Any
    state: Any
    behaviour: Callable[..., Any]
    argument: Callable[[], Any]
    read: Callable[[bytes], Any] | None
    write: Callable[[Any], bytes] | None

    def start(self, pool: futures.Executor) -> futures.Future[Any]:
        more = (self.state, self.behaviour, self.argument, self.read, self.write)
        return pool.submit(self.run, self.in_pool, self.event, *more)

    def refuse(self, code: Any, text: str) -> None:
        with self.state.condition:
            _server._abort(self.state, self.event.call, code, text.encode())


class PatientPool:
    """In place of the stock server's thread pool. Calls are submitted by the thread that polls the completion queue.

    Args:
        uploads_max: uploads that are received at a time.
    """

    def __init__(self, uploads_max: int) -> None:
        self._threads = futures.ThreadPoolExecutor(COLD_THREADS, thread_name_prefix="cold")
        self._uploads = futures.ThreadPoolExecutor(uploads_max + SPARE_UPLOAD_THREADS, thread_name_prefix="upload")
        self._streams = Streams()

    def submit(self, *work: Any) -> None:
        """Let it run, or refuse it. The stock server counts what it gets a future for, against a limit it has not."""
        call = Call(*work)
        try:
            # The core keeps to its limit only once a client has acknowledged it.
            check_metadata(call.event.invocation_metadata)
        except NexusError as error:
            call.refuse(cygrpc.StatusCode.resource_exhausted, error.message)
            return
        if call.argument.__name__ == UNARY_REQUEST:
            self._await_message(call)
        elif call.event.call_details.method in _UPLOADS:
            call.start(self._uploads)
        else:
            self._streams.submit(call)

    def shutdown(self) -> None:
        """Once the server has stopped: every call has ended."""
        for pool in (self._threads, self._uploads, self._streams.threads):
            pool.shutdown(wait=False)

    def _await_message(self, call: Call) -> None:
        """As _server._unary_request does it, which waits in a thread."""
        state = call.state
        receive = _server._receive_message(state, call.event.call, call.read)

        def received(event: Any) -> Any:
            """Its tag: stores the message in the state, or aborts the call; what it returns is the stock server's."""
            outcome = receive(event)
            self._received(call)
            return outcome

        with state.condition:
            call.event.call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), received)
            state.due.add(_server._RECEIVE_MESSAGE_TOKEN)

    def _received(self, call: Call) -> None:
        state = call.state
        with state.condition:
            request, state.request = state.request, None
            if request is None:
                # The client went away, or has said that there is no message; or nobody could read it, and it was told.
                if state.client is _server._CLOSED and not state.statused:
                    call.refuse(cygrpc.StatusCode.unimplemented, "the method takes one request message")
                return

        def argument() -> Any:
            # None: nobody waits for an answer any more.
            return request if _server._is_rpc_state_active(state) else None

        call = call._replace(argument=argument)
        if getattr(call.behaviour, "experimental_non_blocking", False):
            call = call._replace(behaviour=_unhurried(call))
        call.start(self._threads)


def _unhurried(call: Call) -> Callable[..., Any]:
    """A behaviour that is given what to send by: here, something that does not wait."""

    def behave(request: Any, context: Any, _: Callable[[Any], None]) -> Any:
        return call.behaviour(request, context, Latest(call))

    behave.experimental_non_blocking = True  # type: ignore[attr-defined]
    return behave


class Latest:
    """Sends a stream's answers one at a time, as its client takes them; of those that come meanwhile only the last."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._sending = False
        self._next: Any = None

    def __call__(self, answer: Any) -> None:
        """None stands for the end, which comes when the call is over anyway."""
        state = self._call.state
        with state.condition:
            if answer is None or not _server._is_rpc_state_active(state):
                return
            if self._sending:
                self._next = answer
            else:
                self._send(answer)

    def _send(self, answer: Any) -> None:
        call, state = self._call, self._call.state
        assert call.write is not None
        operations: tuple[Any, ...] = (cygrpc.SendMessageOperation(call.write(answer), 0),)
        if state.initial_metadata_allowed:
            operations = (cygrpc.SendInitialMetadataOperation((), 0), *operations)
            state.initial_metadata_allowed = False
        call.event.call.start_server_batch(operations, self._sent)
        state.due.add(_server._SEND_MESSAGE_TOKEN)
        self._sending = True

    def _sent(self, _: Any) -> Any:
        """The tag; what it returns is the stock server's."""
        state = self._call.state
        with state.condition:
            outcome = _server._possibly_finish_call(state, _server._SEND_MESSAGE_TOKEN)
            self._sending = False
            answer, self._next = self._next, None
            if answer is not None and _server._is_rpc_state_active(state):
                self._send(answer)
            return outcome


class Streams:
    """Few threads, of which nobody keeps one for ever while others want it."""

    def __init__(self) -> None:
        self.threads = futures.ThreadPoolExecutor(STREAM_THREADS, thread_name_prefix="stream")
        self._lock = threading.Lock()
        # By their states, those that have a thread, or that of one that was ended: since when. The oldest comes first.
        self._open: dict[Any, tuple[Call, float]] = {}

    def submit(self, call: Call) -> None:
        with self._lock:
            room = len(self._open) < STREAM_THREADS or self._end_oldest()
            if room:
                self._open[call.state] = (call, time.monotonic())
        if room:
            call.start(self.threads).add_done_callback(lambda _: self._ended(call))
        else:
            text = f"{STREAM_THREADS} streams of this kind are open; try again in {STREAM_SECONDS:g} s"
            call.refuse(cygrpc.StatusCode.resource_exhausted, text)

    def _end_oldest(self) -> bool:
        oldest, began_s = next(iter(self._open.values()))
        if time.monotonic() - began_s < STREAM_SECONDS:
            return False
        del self._open[oldest.state]
        # Its thread sees that at once, also when it waits for its client to read.
        oldest.event.call.cancel()
        return True

    def _ended(self, call: Call) -> None:
        with self._lock:
            self._open.pop(call.state, None)

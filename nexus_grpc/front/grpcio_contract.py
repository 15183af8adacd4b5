"""What the fast transport (completion_queue.py, patient_pool.py) relies on of grpcio's inside: is it there?"""

import importlib
import inspect
from types import SimpleNamespace
from typing import Any

import grpc

from nexus_grpc.front.grpcio_version import version_mismatch

server: Any = None
cygrpc: Any = None
_import_error = ""
try:
    server = importlib.import_module("grpc._server")
    cygrpc = importlib.import_module("grpc._cython.cygrpc")
except ImportError as error:  # a grpcio that is built otherwise: the contract reports it
    _import_error = str(error)

_NAMES = {
    "Server": ("register_method", "request_registered_call", "shutdown", "start"),
    "CompletionQueue": ("poll",),
    "Call": ("cancel", "start_server_batch"),
    "ReceiveMessageOperation": ("message",),
    "ReceiveCloseOnServerOperation": ("cancelled",),
    "SendInitialMetadataOperation": (),
    "SendMessageOperation": (),
    "SendStatusFromServerOperation": (),
    "StatusCode": ("ok", "resource_exhausted", "unimplemented"),
    "CompletionType": ("queue_timeout",),
}
_SERVER_PARAMETERS = (
    "self", "thread_pool", "generic_handlers", "interceptors", "options", "maximum_concurrent_rpcs", "compression",
    "xds",
)  # fmt: skip
_SERVER_FUNCTIONS = {
    "_abort": ("state", "call", "code", "details"),
    "_is_rpc_state_active": ("state",),
    "_possibly_finish_call": ("state", "token"),
    "_process_event_and_continue": ("state", "event"),
    "_request_call": ("state",),
    "_request_registered_call": ("state", "method"),
    "_receive_message": ("state", "call", "request_deserializer"),
    "_unary_request": ("rpc_event", "state", "request_deserializer"),
}
_SERVER_NAMES = (
    "_CLOSED", "_RECEIVE_MESSAGE_TOKEN", "_SEND_MESSAGE_TOKEN", "_stream_response_in_pool", "_unary_response_in_pool",
)  # fmt: skip
_STATE_NAMES = ("client", "condition", "context", "due", "initial_metadata_allowed", "request", "statused")
# What the function is called that waits for a call's one message, in its thread.
UNARY_REQUEST = "unary_request"
# The stock server's functions that submit calls of each kind, and what of the handler and of the server they submit.
_SUBMITTING = {
    "_handle_unary_unary": ("unary_unary", "_unary_response_in_pool"),
    "_handle_unary_stream": ("unary_stream", "_stream_response_in_pool"),
    "_handle_stream_unary": ("stream_unary", "_unary_response_in_pool"),
    "_handle_stream_stream": ("stream_stream", "_stream_response_in_pool"),
}


def contract_mismatches() -> list[str]:
    """What of grpcio's inside is not as it is expected; empty when all is well."""
    if _import_error:
        return [f"grpcio's internals cannot be imported: {_import_error}"]
    found = [version_mismatch()]
    for name, members in _NAMES.items():
        thing = getattr(cygrpc, name, None)
        if thing is None:
            found.append(f"grpc._cython.cygrpc has no {name}")
        found += [f"cygrpc.{name} has no {member}" for member in members if thing and not hasattr(thing, member)]
    parameters = tuple(inspect.signature(server._Server.__init__).parameters)
    if parameters != _SERVER_PARAMETERS:
        found.append(f"grpc._server._Server takes {parameters}")
    for name, expected in _SERVER_FUNCTIONS.items():
        function = getattr(server, name, None)
        if function is None or tuple(inspect.signature(function).parameters) != expected:
            found.append(f"grpc._server.{name} is missing or takes other parameters than {expected}")
    state = inspect.signature(server._ServerState.__init__).parameters
    found += [
        f"grpc._server._ServerState takes no {name}" for name in ("completion_queue", "server") if name not in state
    ]
    return [line for line in found if line] or _pool_mismatches()


class _Recorder:
    """A thread pool that keeps what it is given."""

    work: tuple[Any, ...] = ()

    def submit(self, *work: Any) -> None:
        self.work = work


def _pool_mismatches() -> list[str]:
    """Of what patient_pool.py relies on, once the functions that it uses are there."""
    found = [f"grpc._server has no {name}" for name in _SERVER_NAMES if not hasattr(server, name)]
    try:
        state = server._RPCState()
        found += [f"grpc._server._RPCState has no {name}" for name in _STATE_NAMES if name not in vars(state)]
        found += [f"grpc._server.{name} submits something else" for name in _SUBMITTING if not _submits(name, state)]
    except Exception as error:  # whatever another grpcio makes of this
        found.append(f"grpc._server cannot submit a call as expected: {error!r}")
    return found


def _submits(name: str, state: Any) -> bool:
    """Whether a call is submitted as patient_pool.Call has it, and one with a single message can be told."""
    kind, in_pool = _SUBMITTING[name]
    make = getattr(grpc, f"{kind}_rpc_method_handler")
    handler = make(print, request_deserializer=bytes, response_serializer=str)
    event, recorder = SimpleNamespace(call=None), _Recorder()
    getattr(server, name)(event, state, handler, recorder)
    run, function, given, its_state, behaviour, argument, read, write = recorder.work
    right = (state.context.run, getattr(server, in_pool), event, state, print, bytes, str)
    one = kind.startswith("unary")
    return (run, function, given, its_state, behaviour, read, write) == right and one == (
        argument.__name__ == UNARY_REQUEST
    )

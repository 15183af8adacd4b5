"""What the fast transport (completion_queue.py) relies on of grpcio's inside, and whether it is there."""

import importlib
import inspect
from typing import Any

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
    "self", "thread_pool", "generic_handlers", "interceptors", "options", "maximum_concurrent_rpcs", "compression",
    "xds",
)  # fmt: skip
_SERVER_FUNCTIONS = {
    "_process_event_and_continue": ("state", "event"),
    "_request_call": ("state",),
    "_request_registered_call": ("state", "method"),
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
    return [line for line in found if line]

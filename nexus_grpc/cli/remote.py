"""Calls to a running server, with errors as one line."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from nexus_grpc import variables
from nexus_grpc.cli.credentials import (
    API_KEY_VARIABLE,
    TOKEN_VARIABLE,
    call_metadata,
    channel_credentials,
    has_credential,
)
from nexus_grpc.cli.output import fail

if TYPE_CHECKING:
    import grpc
    from google.protobuf.message import Message

DEFAULT_ADDRESS = "127.0.0.1:8001"

Address = Annotated[
    str,
    typer.Option("--address", envvar=variables.ADDRESS, metavar="HOST:PORT", help="Address of the server's gRPC port."),
]
Timeout = Annotated[
    float, typer.Option("--timeout", min=0.001, metavar="SECONDS", help="How long to wait, in seconds.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
# For changes, which end when the models are loaded.
CHANGE_SECONDS = 600.0
# Where the methods of nexus.v1.Models are called.
MODELS = "/nexus.v1.Models/"

_Answer = TypeVar("_Answer", bound="Message")


@contextmanager
def connected(address: str) -> "Iterator[grpc.Channel]":
    """A channel to the server; errors of the calls made inside end the command.

    Raises:
        typer.Exit: a call failed, or credentials.py refused the environment; the error has been printed.
    """
    import grpc

    from nexus_grpc.client.addresses import why_not

    wrong = why_not(address)
    if wrong:
        fail(wrong)
    for name, meant in variables.misspelt(os.environ).items():
        typer.echo(f"nexus: {variables.warning(name, meant)}", err=True)
    # The answer's size is the server's to limit; a proxy is for other machines.
    options: list[tuple[str, Any]] = [("grpc.max_receive_message_length", -1)]
    if address.startswith(("127.", "localhost:", "[::1]")):
        options.append(("grpc.enable_http_proxy", 0))
    credentials = channel_credentials()
    if credentials is None:
        opened = grpc.insecure_channel(address, options=options)
    else:
        opened = grpc.secure_channel(address, credentials, options=options)
    try:
        with opened as channel:
            yield channel
    except grpc.RpcError as error:
        fail(describe(error, address))


def call(
    channel: "grpc.Channel", method: str, request: "Message", answer_type: type[_Answer], timeout: float
) -> _Answer:
    """One unary call, with the environment's credential.

    Args:
        channel: a `connected` one.
        method: the full name, `/package.Service/Method`.
        request: its message.
        answer_type: its answer's message type.
        timeout: the deadline, in seconds from now.

    Raises:
        grpc.RpcError: it failed; `connected` turns that into a message.
    """
    invoke = channel.unary_unary(
        method,
        request_serializer=type(request).SerializeToString,
        response_deserializer=answer_type.FromString,
    )
    answer: _Answer = invoke(request, timeout=timeout, metadata=call_metadata())
    return answer


def ask(address: str, method: str, request: "Message", answer_type: type[_Answer], timeout: float) -> _Answer:
    """One unary call on a connection of its own. See `call` and `connected`.

    Raises:
        typer.Exit: it failed; its error has been printed.
    """
    with connected(address) as channel:
        return call(channel, method, request, answer_type, timeout)


def json_of(message: "Message") -> dict[str, Any]:
    """A message as JSON with all its fields, by their names in proto/."""
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def describe(error: "grpc.RpcError", address: str) -> str:
    """The error as one line: the code and the server's message, or that there is no server."""
    import grpc

    from nexus_grpc.client.addresses import unreachable

    if not isinstance(error, grpc.Call):
        return str(error)
    code, details = error.code(), error.details() or ""
    if code == grpc.StatusCode.UNAVAILABLE and "handshake failed" in details:
        return f"{address}: TLS failed: {' '.join(details.split())}"
    if code == grpc.StatusCode.UNAVAILABLE and "Socket closed" in details:
        return f"{address} closes the connection at once; if its port has TLS, add --tls-ca FILE"
    nobody = unreachable(address, details) if code == grpc.StatusCode.UNAVAILABLE else ""
    if nobody:
        return nobody
    # One line, whatever the server wrote.
    line = f"{code.name if code is not None else 'UNKNOWN'}: {' '.join(details.split())}"
    refused = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
    if code in refused and not has_credential():
        line += f" (this command sends the one in {API_KEY_VARIABLE} or {TOKEN_VARIABLE}; neither is set)"
    return line

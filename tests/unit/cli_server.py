"""A gRPC server on a real port, which answers `nexus` commands from a script."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc
from google.protobuf.message import Message
from typer.testing import CliRunner

from nexus_grpc.cli.main import app


@dataclass
class Server:
    """A server whose answers are set by the test, by method: a message, or a status code with its text."""

    address: str = ""
    answers: dict[str, Message | tuple[grpc.StatusCode, str]] = field(default_factory=dict)
    requests: list[bytes] = field(default_factory=list)

    def answer(self, method: str, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.requests.append(request)
        answer = self.answers[method]
        if isinstance(answer, tuple):
            context.abort(*answer)
        return answer.SerializeToString()


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, server: Server) -> None:
        self._server = server

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:  # type: ignore[type-arg]
        method = details.method.rpartition("/")[2]
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: self._server.answer(method, request, context)
        )


@contextlib.contextmanager
def scripted_server() -> Iterator[Server]:
    script = Server()
    grpc_server = grpc.server(ThreadPoolExecutor(2), handlers=[_Handlers(script)])
    script.address = f"127.0.0.1:{grpc_server.add_insecure_port('127.0.0.1:0')}"
    grpc_server.start()
    yield script
    grpc_server.stop(None).wait()


def nexus_command(server: Server, *arguments: str, stdin: str | None = None) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of a command that asks `server`."""
    result = CliRunner().invoke(app, [*arguments, "--address", server.address], input=stdin)
    return result.exit_code, result.stdout, result.stderr

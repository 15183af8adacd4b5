"""The reference every ratio stands on: the least a grpc.aio server can do, which is to send the bytes back.

One process, asyncio's own event loop (not uvloop), no protobuf: what a Python gRPC server pays before it does any work.
Prints its port on the first line of stdout once it is listening.
"""

import asyncio
import signal
from collections.abc import AsyncIterator
from typing import Any

import grpc


async def _echo(request: bytes, _context: Any) -> bytes:
    return request


async def _echo_stream(requests: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request


class EchoHandler(grpc.GenericRpcHandler):
    """Answers every method, so the reference is called with the same path and the same bytes as the server."""

    def __init__(self) -> None:
        # Without (de)serializers grpc hands over raw bytes.
        self._unary: Any = grpc.unary_unary_rpc_method_handler(_echo)
        self._stream: Any = grpc.stream_stream_rpc_method_handler(_echo_stream)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._stream if handler_call_details.method.endswith("Stream") else self._unary


async def serve() -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((EchoHandler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    print(port, flush=True)
    await stop.wait()
    await server.stop(grace=1.0)


if __name__ == "__main__":
    asyncio.run(serve())

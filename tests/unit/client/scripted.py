"""A real gRPC server in this process that answers as its script says, and remembers what it was asked."""

import concurrent.futures
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from nexus_grpc.pb.inference import grpc_service_pb2 as pb

SERVICE = "inference.GRPCInferenceService"


@dataclasses.dataclass(frozen=True)
class Refuse:
    """End the call with this status."""

    code: grpc.StatusCode
    message: str = "as the script says"
    retry_after_s: float | None = None
    trailers: tuple[tuple[str, bytes], ...] = ()

    def metadata(self) -> tuple[tuple[str, bytes], ...]:
        if self.retry_after_s is None:
            return self.trailers
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(self.retry_after_s * 1e9))
        packed = any_pb2.Any()
        packed.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        status = status_pb2.Status(code=self.code.value[0], message=self.message, details=[packed])
        return (("grpc-status-details-bin", status.SerializeToString()),)


@dataclasses.dataclass(frozen=True)
class Sleep:
    """Answer well, but late."""

    seconds: float


@dataclasses.dataclass(frozen=True)
class Asked:
    """One call as it arrived. `remaining_s` is None without a deadline."""

    at_s: float
    remaining_s: float | None
    metadata: dict[str, Any]


class ScriptedServer:
    """Serves ModelInfer: the first calls as in `script`, all later ones with `answer`.

    Args:
        script: what becomes of the first calls.
        answer: of a good call.
        credentials: TLS, or None.
        port: 0 for a free one.
    """

    def __init__(
        self,
        *script: Refuse | Sleep,
        answer: pb.ModelInferResponse | None = None,
        credentials: grpc.ServerCredentials | None = None,
        port: int = 0,
    ) -> None:
        self._script = list(script)
        self._answer = answer if answer is not None else pb.ModelInferResponse(model_name="m", model_version="1")
        self._lock = threading.Lock()
        self.asked: list[Asked] = []
        self._server = grpc.server(concurrent.futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        handler = grpc.unary_unary_rpc_method_handler(
            self._model_infer,
            request_deserializer=pb.ModelInferRequest.FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"ModelInfer": handler}),))
        place = f"127.0.0.1:{port}"
        if credentials is None:
            self.port = self._server.add_insecure_port(place)
        else:
            self.port = self._server.add_secure_port(place, credentials)
        self.address = f"127.0.0.1:{self.port}"

    def __enter__(self) -> "ScriptedServer":
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait(5)

    def gaps_s(self) -> Iterator[float]:
        """Seconds between the calls' arrivals."""
        for before, after in zip(self.asked, self.asked[1:], strict=False):
            yield after.at_s - before.at_s

    def _model_infer(self, request: pb.ModelInferRequest, context: grpc.ServicerContext) -> pb.ModelInferResponse:
        remaining_s = context.time_remaining()
        metadata = dict(context.invocation_metadata() or ())
        with self._lock:
            self.asked.append(Asked(time.monotonic(), remaining_s, metadata))
            step = self._script.pop(0) if self._script else None
        context.send_initial_metadata((("x-request-id", metadata.get("x-request-id", "made-by-the-server")),))
        if isinstance(step, Refuse):
            context.set_trailing_metadata(step.metadata())
            context.abort(step.code, step.message)
        if isinstance(step, Sleep):
            time.sleep(step.seconds)
        return self._answer


Ask = Callable[..., Any]

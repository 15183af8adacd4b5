"""A real gRPC client, for what h2load cannot see: whether the answers to these very bytes are OK, and right."""

import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from loadtest import payloads

TIMEOUT_S = 10.0

Check = Callable[[bytes], None]


class NotReadyError(Exception):
    pass


class VerificationError(Exception):
    """A call failed, or its answer is wrong."""


@dataclass(frozen=True)
class Call:
    """One method with the bytes sent to it; `messages` has several entries only for a stream."""

    path: str
    messages: tuple[bytes, ...]
    check: Check

    @property
    def is_stream(self) -> bool:
        return self.path.endswith("Stream")

    @property
    def body(self) -> bytes:
        return payloads.frames(self.messages)


def verify(target: str, call: Call, key: str = "") -> int:
    """Sends the call and checks every answer; returns the bytes of the answers on the wire, prefixes included.
    `key`: an API key to send."""
    with grpc.insecure_channel(target) as channel:
        try:
            answers = _send(channel, call, (("x-api-key", key),) if key else ())
        except grpc.RpcError as error:
            raise VerificationError(f"{call.path}: {_describe(error)}") from error
    if len(answers) != len(call.messages):
        raise VerificationError(f"{call.path}: {len(answers)} answers to {len(call.messages)} messages")
    for answer in answers:
        try:
            call.check(answer)
        except Exception as error:  # a DecodeError of protobuf is a wrong answer too
            raise VerificationError(f"{call.path}: {error}") from error
    return len(payloads.frames(answers))


def _send(channel: Any, call: Call, metadata: tuple[tuple[str, str], ...]) -> list[bytes]:
    # No serializers: the bytes go out as they are, the same ones that h2load sends.
    if call.is_stream:
        return list(channel.stream_stream(call.path)(iter(call.messages), timeout=TIMEOUT_S, metadata=metadata))
    return [channel.unary_unary(call.path)(call.messages[0], timeout=TIMEOUT_S, metadata=metadata)]


def verify_rest(origin: str, call: Call) -> bytes:
    """Sends the call's JSON by POST and checks the answer; returns it."""
    request = urllib.request.Request(
        origin + call.path, data=call.messages[0], headers={"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            answer: bytes = response.read()
    except OSError as error:
        raise VerificationError(f"POST {call.path}: {error}") from error
    try:
        call.check(answer)
    except Exception as error:
        raise VerificationError(f"POST {call.path}: {error}") from error
    return answer


def wait_for(target: str, ready: Callable[[grpc.Channel], bool], is_alive: Callable[[], bool], limit_s: float) -> None:
    """Until `ready` says so; raises when the server ends first or the time is up."""
    deadline = time.monotonic() + limit_s
    last = "no answer"
    with grpc.insecure_channel(target, options=[("grpc.max_reconnect_backoff_ms", 200)]) as channel:
        while time.monotonic() < deadline:
            if not is_alive():
                raise NotReadyError("the server ended before it was ready")
            try:
                if ready(channel):
                    return
                last = "it says not ready"
            except grpc.RpcError as error:
                last = _describe(error)
            time.sleep(0.1)
    raise NotReadyError(f"the server was not ready after {limit_s:.0f} s: {last}")


def _describe(error: grpc.RpcError) -> str:
    if isinstance(error, grpc.Call):
        return f"{error.code().name} {error.details()}"
    return repr(error)

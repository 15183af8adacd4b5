"""Calls of the supervisor, which alone changes models and traffic: sent on the control channel, waited for in a thread.

front → supervisor   call      id, operation, arguments (the request message as JSON), actor
supervisor → front   returned  id, result (the answer's message as JSON)
                     raised    id, code, message, reason, field, meant (of a model that is not there)
"""

import itertools
import math
import threading
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass
from typing import Any, Protocol

from google.protobuf import json_format, message_factory
from google.protobuf.message import Message

from nexus_grpc.access.call import caller_address
from nexus_grpc.front.caller import caller_name, hinted
from nexus_grpc.ipc import control
from nexus_grpc.ipc.control import ChannelClosed
from nexus_grpc.ipc.errors import (
    Code,
    DeadlinePassed,
    InvalidInput,
    ModelUnavailable,
    NexusError,
    Overloaded,
    TooLarge,
    UnknownModel,
)
from nexus_grpc.pb.nexus.v1 import models_pb2

# (operation, arguments, actor, timeout in seconds) → the result. Raises NexusError.
Supervised = Callable[[str, dict[str, Any], str, float], dict[str, Any]]

# How long a call may take whose client sets no deadline: longer than any load, so that threads come back.
CALL_SECONDS_MAX = 600.0
# Waiting at once, in one front; each holds a thread.
CALLS_MAX = 256
# Requests are a few names and labels. JSON may be six times as long, and the control channel's frames are limited too.
REQUEST_BYTES_MAX = 256 << 10
ACTOR_MAX_CHARACTERS = 128

_CLASSES = NexusError.__subclasses__()
_BY_REASON = {kind.reason: kind for kind in _CLASSES}
# Of several with one code the first: the class only says how it is caught.
_BY_CODE = {kind.code: kind for kind in reversed(_CLASSES)}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks for a change, for the audit log, and how long they wait."""

    actor: str
    timeout_s: float = CALL_SECONDS_MAX


class CallContext(Protocol):
    """What is read off grpc.ServicerContext."""

    def peer(self) -> str: ...
    def time_remaining(self) -> float | None: ...
    def invocation_metadata(self) -> Any: ...


def caller_of(context: CallContext, interface: str) -> Caller:
    """The caller as "grpc 127.0.0.1:5000", or "rest 10.0.0.7" for one who came through Envoy.

    Args:
        interface: "grpc" or "rest".
    """
    address = caller_address(context.peer(), context.invocation_metadata() or ())
    actor = " ".join(part for part in (caller_name(), interface, address) if part and part.isprintable())
    remaining = context.time_remaining()
    timeout_s = CALL_SECONDS_MAX if remaining is None else min(max(remaining, 0.0), CALL_SECONDS_MAX)
    return Caller(actor[:ACTOR_MAX_CHARACTERS], timeout_s)


class Sender(Protocol):
    """The control channel's sending half."""

    def send(self, message: control.Message) -> None: ...


class SupervisedCalls:
    """A `Supervised`. Any number of threads call; the control thread brings the answers."""

    def __init__(self, channel: Sender) -> None:
        self._channel = channel
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._waiting: dict[int, futures.Future[dict[str, Any]]] = {}

    def __call__(self, operation: str, arguments: dict[str, Any], actor: str, timeout_s: float) -> dict[str, Any]:
        """Have the supervisor do it, and wait for the end.

        Raises:
            NexusError: the supervisor's own, with its code, reason and field.
            DeadlinePassed: no answer after `timeout_s`; the operation goes on nevertheless.
            ModelUnavailable: there is no supervisor any more.
            Overloaded: CALLS_MAX are waiting.
        """
        answer: futures.Future[dict[str, Any]] = futures.Future()
        with self._lock:
            if len(self._waiting) >= CALLS_MAX:
                raise Overloaded(f"{CALLS_MAX} changes are under way; send it again later")
            number = next(self._numbers)
            self._waiting[number] = answer
        try:
            self._channel.send(
                {"type": "call", "id": number, "operation": operation, "arguments": arguments, "actor": actor}
            )
            return answer.result(timeout_s)
        except ChannelClosed:
            raise ModelUnavailable("the server is stopping") from None
        except futures.TimeoutError:
            raise DeadlinePassed(
                f"{operation} is not done after {timeout_s:g} s; it goes on: ask for the model's state, or its history"
            ) from None
        finally:
            with self._lock:
                self._waiting.pop(number, None)

    def answered(self, message: control.Message) -> None:
        """Take `returned` or `raised`; one that nobody waits for any more is dropped."""
        with self._lock:
            answer = self._waiting.pop(message["id"], None)
        if answer is None:
            return
        if message["type"] == "returned":
            answer.set_result(message["result"])
        else:
            answer.set_exception(error_of(message))


def error_of(message: control.Message) -> NexusError:
    """The error that a `raised` message tells of."""
    code, reason = Code(message["code"]), message.get("reason", "")
    kind = _BY_REASON.get(reason)
    if kind is None or kind.code != code:
        kind = _BY_CODE.get(code, NexusError)
    meant = {"meant": message["meant"]} if message.get("meant") else {}
    error = kind(message["message"], reason=reason, field=message.get("field", ""), **meant)
    error.code = code
    return error


def forwarded(supervised: Supervised, operation: str, request: Message, caller: Caller) -> dict[str, Any]:
    """Have the supervisor carry out a request. Returns the answer's JSON form.

    Raises NexusError, also for values that nothing can hold, and for a request of absurd size.
    """
    if request.ByteSize() > REQUEST_BYTES_MAX:
        raise TooLarge(f"the request has {request.ByteSize()} bytes; expected at most {REQUEST_BYTES_MAX}")
    _check_values(request)
    try:
        return supervised(operation, json_of(request), caller.actor, caller.timeout_s)
    except UnknownModel as error:
        raise hinted(error) from None


def forward(supervised: Supervised, method: Any, request: Message, caller: Caller) -> Message:
    """`forwarded` for a method of proto/, by its descriptor: the operation is Service.Method."""
    result = forwarded(supervised, f"{method.containing_service.name}.{method.name}", request, caller)
    return json_format.ParseDict(result, message_factory.GetMessageClass(method.output_type)())


def json_of(message: Message) -> dict[str, Any]:
    """A message as JSON with all its fields, also the empty ones, by their names in proto/."""
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def as_uploaded(answer: Any) -> Any:
    """An answer as model-nexus has it, for REST: a model's version is what its uploader called it, if anything."""
    if isinstance(answer, models_pb2.ListModelsResponse):
        for entry in answer.models:
            as_uploaded(entry)
    elif isinstance(answer, models_pb2.UploadResponse):
        answer.model.version = answer.model.version_name or answer.model.version
    elif isinstance(answer, (models_pb2.ModelEntry, models_pb2.ModelInfo)):
        answer.version = answer.version_name or answer.version
        answer.ClearField("version_name")
    return answer


def _check_values(message: Any) -> None:
    """Raises InvalidInput for what JSON or the registry's databases cannot hold: NaN, infinities, NUL characters."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE and field.message_type.GetOptions().map_entry:
            values: Any = [*value.keys(), *value.values()]
        else:
            values = value if field.is_repeated else (value,)
        for each in values:
            if isinstance(each, Message):
                _check_values(each)
            elif isinstance(each, float) and not math.isfinite(each):
                raise InvalidInput(f'"{field.name}" must be a finite number', field=field.name)
            elif isinstance(each, str) and "\0" in each:
                raise InvalidInput(f'"{field.name}" has a NUL character in it', field=field.name)

"""Calls of the supervisor: the real control channel, and a supervisor's end that the test plays."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from nexus_grpc.access.identity import Identity, Scope
from nexus_grpc.front import supervised
from nexus_grpc.front.caller import calling
from nexus_grpc.front.supervised import Caller, SupervisedCalls, caller_of, error_of, forward, forwarded
from nexus_grpc.ipc.control import ChannelClosed, ControlChannel
from nexus_grpc.ipc.errors import (
    AlreadyExists,
    Code,
    DeadlinePassed,
    InvalidInput,
    ModelNotServable,
    ModelUnavailable,
    NexusError,
    Overloaded,
    StateConflict,
    StorageFailed,
    TooLarge,
    UnknownModel,
)
from nexus_grpc.pb.inference import grpc_service_pb2
from nexus_grpc.pb.nexus.v1 import models_pb2, traffic_pb2
from nexus_grpc.supervisor.operations import _raised as raised_message

MODELS = models_pb2.DESCRIPTOR.services_by_name["Models"]


class Ends:
    """A front's calls, and the supervisor's end of their channel."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self._sockets = (ours, theirs)
        self.front, self.supervisor = ControlChannel(ours), ControlChannel(theirs)
        self.calls = SupervisedCalls(self.front)
        self._control = threading.Thread(target=self._obey)
        self._control.start()

    def _obey(self) -> None:
        while True:
            try:
                message, _ = self.front.receive()
            except ChannelClosed:
                return
            self.calls.answered(message)

    def close(self) -> None:
        for each in self._sockets:
            each.close()

    def hang_up(self) -> None:
        self._sockets[1].close()

    def join(self) -> None:
        for each in self._sockets:
            with contextlib.suppress(OSError):  # closed by the test
                each.shutdown(socket.SHUT_RDWR)
        self._control.join(10)
        self.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.join()


@pytest.fixture
def begin(ends: Ends) -> Iterator[Callable[..., Future[dict[str, Any]]]]:
    with ThreadPoolExecutor(8) as pool:
        yield lambda operation, **arguments: pool.submit(ends.calls, operation, arguments, "test", 20.0)


Begin = Callable[..., "Future[dict[str, Any]]"]


def test_a_call_returns_what_the_supervisor_returned(ends: Ends, begin: Begin) -> None:
    answer = begin("Models.Load", id="iris")
    message, _ = ends.supervisor.receive()
    assert message["type"] == "call"
    assert (message["operation"], message["arguments"], message["actor"]) == ("Models.Load", {"id": "iris"}, "test")
    ends.supervisor.send({"type": "returned", "id": message["id"], "result": {"state": "READY"}})
    assert answer.result(10) == {"state": "READY"}


def test_answers_find_their_calls_in_any_order(ends: Ends, begin: Begin) -> None:
    answers = {name: begin("Models.Load", id=name) for name in ("a", "b", "c")}
    messages = [ends.supervisor.receive()[0] for _ in answers]
    for message in reversed(messages):
        result = {"id": message["arguments"]["id"]}
        ends.supervisor.send({"type": "returned", "id": message["id"], "result": result})
    assert {name: answer.result(10)["id"] for name, answer in answers.items()} == {"a": "a", "b": "b", "c": "c"}


@pytest.mark.parametrize(
    "error",
    [
        InvalidInput("no such thing", field="version"),
        InvalidInput("not an ONNX file", reason="NOT_ONNX"),
        UnknownModel("it is not there"),
        AlreadyExists("it is there already"),
        StateConflict("no experiment runs"),
        ModelNotServable("it crashed", reason="MODEL_REFUSED"),
        TooLarge("too large"),
        StorageFailed("no space"),
    ],
    ids=lambda error: f"{type(error).__name__}-{error.reason}",
)
def test_errors_come_as_they_were_raised(ends: Ends, begin: Begin, error: NexusError) -> None:
    answer = begin("Models.Load")
    message, _ = ends.supervisor.receive()
    ends.supervisor.send(raised_message(message["id"], error))
    with pytest.raises(NexusError) as caught:
        answer.result(10)
    found = caught.value
    assert (found.code, found.message, found.reason, found.field) == (
        error.code,
        error.message,
        error.reason,
        error.field,
    )
    assert isinstance(found, type(error)) or error.reason == "MODEL_REFUSED"


@pytest.mark.parametrize("code", list(Code)[1:])
def test_any_code_survives(code: Code) -> None:
    found = error_of({"type": "raised", "id": 1, "code": int(code), "message": "m", "reason": "SOME", "field": "f"})
    assert (found.code, found.message, found.reason, found.field) == (code, "m", "SOME", "f")


def test_a_call_that_takes_too_long_ends_and_its_late_answer_is_dropped(ends: Ends, begin: Begin) -> None:
    with pytest.raises(DeadlinePassed, match=r"Models.Load is not done after 0.05 s; it goes on"):
        ends.calls("Models.Load", {}, "test", 0.05)
    late, _ = ends.supervisor.receive()
    ends.supervisor.send({"type": "returned", "id": late["id"], "result": {"late": True}})
    answer = begin("Models.Unload")
    message, _ = ends.supervisor.receive()
    ends.supervisor.send({"type": "returned", "id": message["id"], "result": {"late": False}})
    assert answer.result(10) == {"late": False}


def test_without_a_supervisor_a_call_is_unavailable(ends: Ends) -> None:
    ends.hang_up()
    with pytest.raises(ModelUnavailable, match="the server is stopping"):
        ends.calls("Models.Load", {}, "test", 20.0)


def test_too_many_calls_are_refused(ends: Ends, begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervised, "CALLS_MAX", 2)
    waiting = [begin("Models.Load"), begin("Models.Load")]
    messages = [ends.supervisor.receive()[0] for _ in waiting]
    with pytest.raises(Overloaded, match="2 changes are under way"):
        ends.calls("Models.Load", {}, "test", 1)
    for message in messages:
        ends.supervisor.send({"type": "returned", "id": message["id"], "result": {}})
    assert [answer.result(10) for answer in waiting] == [{}, {}]


class Recorder:
    """A `Supervised` that gives a prepared result."""

    def __init__(self, result: dict[str, Any]) -> None:
        self.result = result
        self.calls: list[tuple[str, dict[str, Any], str, float]] = []

    def __call__(self, operation: str, arguments: dict[str, Any], actor: str, timeout_s: float) -> dict[str, Any]:
        self.calls.append((operation, arguments, actor, timeout_s))
        return self.result


def test_a_forwarded_method_keeps_every_field() -> None:
    recorder = Recorder({"id": "iris", "versions": [{"version": "2", "state": "READY"}], "max_batch_size": 8})
    method = MODELS.methods_by_name["Load"]
    answer = forward(recorder, method, models_pb2.LoadModelRequest(id="iris"), Caller("grpc x", 7.0))
    assert recorder.calls == [("Models.Load", {"id": "iris", "version": ""}, "grpc x", 7.0)]
    expected = models_pb2.ModelInfo(id="iris", max_batch_size=8)
    expected.versions.add(version="2", state="READY")
    assert answer == expected


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_are_refused(number: float) -> None:
    requests = [
        traffic_pb2.SplitTrafficRequest(model="iris", percent=number),
        traffic_pb2.SplitTrafficRequest(shares=[traffic_pb2.VariantShare(version="2", percent=number)]),
        traffic_pb2.RampTrafficRequest(steps=[5, number]),
    ]
    for request in requests:
        with pytest.raises(InvalidInput, match="must be a finite number"):
            forwarded(Recorder({}), "Traffic.Split", request, Caller("test"))


def test_nul_characters_are_refused() -> None:
    for labels in ({"a\0": "b"}, {"a": "b\0"}):
        with pytest.raises(InvalidInput, match='"labels" has a NUL character'):
            forwarded(Recorder({}), "Models.Register", models_pb2.RegisterModelRequest(labels=labels), Caller("test"))
    request = grpc_service_pb2.RepositoryModelUnloadRequest(model_name="a")
    request.parameters["x"].string_param = "\0"
    with pytest.raises(InvalidInput, match="NUL"):
        forwarded(Recorder({}), "Repository.Unload", request, Caller("test"))


def test_a_request_of_absurd_size_never_reaches_the_control_channel() -> None:
    recorder = Recorder({})
    request = models_pb2.RegisterModelRequest(description="x" * supervised.REQUEST_BYTES_MAX)
    with pytest.raises(TooLarge, match="expected at most"):
        forwarded(recorder, "Models.Register", request, Caller("test"))
    assert recorder.calls == []


class Call:
    """What caller_of reads off a grpc.ServicerContext."""

    def __init__(self, peer: str, remaining: float | None, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        self._peer, self._remaining, self._metadata = peer, remaining, metadata

    def peer(self) -> str:
        return self._peer

    def time_remaining(self) -> float | None:
        return self._remaining

    def invocation_metadata(self) -> Any:
        return self._metadata


@pytest.mark.parametrize(
    ("peer", "metadata", "actor"),
    [
        ("ipv4:127.0.0.1:5000", (), "grpc 127.0.0.1:5000"),
        ("ipv6:%5B::1%5D:5000", (), "grpc [::1]:5000"),
        # Only Envoy, on its socket, says whom it speaks for: the last of the addresses is the one that it saw.
        ("unix:", (("x-forwarded-for", "6.6.6.6, 10.0.0.7"),), "grpc 10.0.0.7"),
        ("ipv4:127.0.0.1:5000", (("x-forwarded-for", "6.6.6.6"),), "grpc 127.0.0.1:5000"),
        ("unix:", (), "grpc unix"),
        ("unix:", (("x-forwarded-for", "\n"),), "grpc"),
        ("unix:", (("x-forwarded-for", "\x07bell"),), "grpc"),
    ],
)
def test_the_actor_is_the_clients_address(peer: str, metadata: tuple[tuple[str, str], ...], actor: str) -> None:
    assert caller_of(Call(peer, 5.0, metadata), "grpc").actor == actor


@pytest.mark.parametrize(
    ("remaining", "timeout_s"),
    [(None, supervised.CALL_SECONDS_MAX), (9e18, supervised.CALL_SECONDS_MAX), (2.5, 2.5), (-1.0, 0.0)],
)
def test_a_call_waits_as_long_as_its_client(remaining: float | None, timeout_s: float) -> None:
    assert caller_of(Call("ipv4:1.2.3.4:5", remaining), "rest").timeout_s == timeout_s


@pytest.mark.parametrize(("models", "shown"), [(("*",), True), (("churn", "churn2"), True), (("churn2",), False)])
def test_the_model_that_was_meant_is_named_to_those_who_may_use_it(
    ends: Ends, models: tuple[str, ...], shown: bool
) -> None:
    missing = UnknownModel("there is no 'churn2'", meant="churn")

    def refused(operation: str, arguments: Any, actor: str, timeout_s: float) -> dict[str, Any]:
        raise error_of(raised_message(1, missing))

    with calling(Identity("key:5f", Scope.ADMIN, models)), pytest.raises(UnknownModel) as caught:
        forwarded(refused, "Models.Unload", models_pb2.UnloadModelRequest(id="churn2"), Caller("test"))
    assert caught.value.message == "there is no 'churn2'" + ("; did you mean 'churn'?" if shown else "")

"""The life of a stream, with a transport and a dispatcher that write down what the stream asks of them."""

from typing import Any

import pytest

from nexus_grpc.front.flight import Flight
from nexus_grpc.front.streams import Stream, StreamFlight, wrap_error
from nexus_grpc.ipc.errors import Code, InvalidInput
from nexus_grpc.ipc.record import Method
from nexus_grpc.pb.inference import grpc_service_pb2 as infer_pb
from nexus_grpc.pb.nexus.v1 import inference_pb2 as predict_pb


class Call:
    """Both ends of what a stream talks to: events in, what it did out."""

    def __init__(self, window: int = 2, method: int = Method.MODEL_STREAM_INFER) -> None:
        self.receives = 1  # the one that the transport asks for when it opens the stream
        self.sent: list[bytes] = []
        self.finished: list[tuple[int, str]] = []
        self.submitted: list[StreamFlight] = []
        self.cancelled: list[Flight] = []
        self.stream = Stream(self, self, method, b"an-id", 99, window)

    def receive(self) -> None:
        self.receives += 1

    def send(self, message: bytes) -> None:
        assert not self.finished, "nothing may follow the status"
        self.sent.append(message)

    def finish(self, code: int, message: str) -> None:
        self.finished.append((code, message))

    def submit(self, flight: Flight) -> None:
        assert isinstance(flight, StreamFlight)
        self.submitted.append(flight)

    def cancel(self, flight: Flight) -> None:
        self.cancelled.append(flight)

    def message(self, content: bytes | None) -> None:
        """The client sends a message (or half-closes); only after having been asked for one."""
        assert self.receives > 0, "the stream did not ask for a message"
        self.receives -= 1
        self.stream.on_message(content, 5)

    def answer(self, index: int) -> None:
        self.submitted[index].succeed(infer_pb.ModelInferResponse(id=str(index)).SerializeToString())

    def answered(self) -> list[str]:
        return [infer_pb.ModelStreamInferResponse.FromString(message).infer_response.id for message in self.sent]


def test_answers_go_out_in_the_order_of_the_requests_one_at_a_time() -> None:
    call = Call(window=3)
    for content in (b"a", b"b", b"c"):
        call.message(content)
    call.answer(2)
    call.answer(1)
    assert call.sent == []
    call.answer(0)
    assert call.answered() == ["0"]
    call.stream.on_sent()
    assert call.answered() == ["0", "1"]
    call.stream.on_sent()
    call.stream.on_sent()
    assert call.answered() == ["0", "1", "2"]
    assert call.finished == []


def test_a_flight_carries_what_the_call_carries() -> None:
    call = Call()
    call.message(b"content")
    [flight] = call.submitted
    assert (flight.message, flight.request_id, flight.deadline_ns, flight.arrived_ns) == (b"content", b"an-id", 99, 5)
    assert flight.method == Method.MODEL_STREAM_INFER


def test_no_more_is_received_than_the_window_holds() -> None:
    call = Call(window=2)
    call.message(b"a")
    assert call.receives == 1
    call.message(b"b")
    assert call.receives == 0
    call.answer(0)
    assert call.receives == 1
    call.message(b"c")
    assert call.receives == 0


def test_half_close_ends_the_stream_after_its_last_answer() -> None:
    call = Call()
    call.message(b"a")
    call.message(None)
    assert call.finished == []
    call.answer(0)
    assert call.finished == []
    call.stream.on_sent()
    assert call.finished == [(0, "")]
    call.stream.on_closed(False)
    assert call.cancelled == []


def test_an_empty_stream_ends_at_once() -> None:
    call = Call()
    call.message(None)
    assert call.finished == [(0, "")]


def test_draining_answers_what_is_here_and_ends_with_unavailable() -> None:
    call = Call()
    call.message(b"a")
    call.stream.drain()
    call.message(b"too late")
    assert len(call.submitted) == 1
    call.answer(0)
    call.stream.on_sent()
    assert call.finished == [(int(Code.UNAVAILABLE), "the server is shutting down")]
    call.stream.drain()
    assert len(call.finished) == 1


def test_draining_an_idle_stream_ends_it_at_once() -> None:
    call = Call()
    call.stream.drain()
    assert [code for code, _ in call.finished] == [int(Code.UNAVAILABLE)]


def test_draining_after_half_close_does_not_spoil_the_end() -> None:
    call = Call()
    call.message(b"a")
    call.message(None)
    call.stream.drain()
    call.answer(0)
    call.stream.on_sent()
    assert call.finished == [(0, "")]


def test_a_client_that_goes_away_cancels_what_is_unanswered() -> None:
    call = Call(window=4)
    for content in (b"a", b"b", b"c"):
        call.message(content)
    call.answer(1)
    call.stream.on_closed(True)
    assert call.cancelled == [call.submitted[0], call.submitted[2]]
    call.answer(0)
    call.stream.on_sent()
    assert (call.sent, call.finished) == ([], [])


def test_errors_travel_in_the_stream_and_do_not_end_it() -> None:
    call = Call()
    call.message(b"a")
    call.submitted[0].fail(int(Code.INVALID_ARGUMENT), "wrong shape", b"")
    answer = infer_pb.ModelStreamInferResponse.FromString(call.sent[0])
    assert (answer.error_message, answer.HasField("infer_response")) == ("wrong shape", False)  # b"a" has no id
    call.stream.on_sent()
    call.message(b"b")
    assert len(call.submitted) == 2
    assert call.finished == []


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 300_000])
def test_predict_answers_are_wrapped_as_protobuf_would(size: int) -> None:
    call = Call(method=Method.PREDICT_STREAM)
    call.message(b"a")
    response = predict_pb.PredictResponse(model_id="x" * size)
    call.submitted[0].succeed(response.SerializeToString())
    assert call.sent == [predict_pb.PredictStreamResponse(response=response).SerializeToString()]


def test_predict_errors_carry_the_code_s_name() -> None:
    call = Call(method=Method.PREDICT_STREAM)
    call.message(b"a")
    call.submitted[0].fail(int(Code.NOT_FOUND), InvalidInput("no").message, b"")
    error = predict_pb.PredictStreamResponse.FromString(call.sent[0]).error
    assert (error.code, error.message) == ("NOT_FOUND", "no")


@pytest.mark.parametrize(
    ("method", "message", "expected"),
    [
        (Method.MODEL_STREAM_INFER, infer_pb.ModelInferRequest(id="seven"), "seven"),
        (Method.MODEL_STREAM_INFER, infer_pb.ModelInferRequest(), ""),
        (Method.PREDICT_STREAM, predict_pb.PredictRequest(request_id="seven"), "seven"),
        (Method.PREDICT_STREAM, predict_pb.PredictRequest(), "call"),
    ],
)
def test_an_error_carries_its_requests_id(method: Method, message: Any, expected: str) -> None:
    call = Call(method=method)
    call.stream.request_id = b"call"
    call.message(message.SerializeToString())
    wrapped = wrap_error(call.submitted[0], int(Code.INTERNAL), "no")
    if method is Method.PREDICT_STREAM:
        assert predict_pb.PredictStreamResponse.FromString(wrapped).error.request_id == expected
    else:
        assert infer_pb.ModelStreamInferResponse.FromString(wrapped).infer_response.id == expected

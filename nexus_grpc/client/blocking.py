"""The blocking client, over grpc."""

import math
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, TypeVar

import grpc
import numpy.typing as npt

from nexus_grpc.client import calls, casting
from nexus_grpc.client.calls import Call, Feed, Inputs, Outputs, StreamCall, serialised
from nexus_grpc.client.casting import Deadline
from nexus_grpc.client.connection import ClientBase
from nexus_grpc.client.errors import (
    DeadlineExceeded,
    InvalidInput,
    NexusClientError,
    Unavailable,
    closed,
    from_rpc,
    request_id_of,
)
from nexus_grpc.client.results import (
    BatchPrediction,
    InferResult,
    ModelInfo,
    ModelState,
    Parameter,
    Prediction,
)
from nexus_grpc.client.retry import NO_RETRY, Retry
from nexus_grpc.client.uploads import METHOD, Source, Upload, Uploaded, uploaded
from nexus_grpc.pb.nexus.v1.models_pb2 import UploadResponse

Answer = TypeVar("Answer")


def _same(message: Any) -> Any:
    return message


class Answers(Iterator[Answer]):
    """The answers of a stream, in the order of its requests.

    An error of one request is raised by the `next` that would have given its answer; the stream goes on, and the next
    `next` gives the next answer. (A `for` loop ends with it, as with any exception.) When the stream itself breaks, the
    error is raised and after it only StopIteration. When a request can't be had or encoded, the answers to those before
    it come first, then its error. `close()` or leaving the `with` block gives up what is still under way.
    """

    def __init__(self, call: Any, feed: Feed, stream: StreamCall[Answer], request_id: str) -> None:
        self._call = call
        self._feed = feed
        self._stream = stream
        self._request_id = request_id
        self._over = False

    def __iter__(self) -> "Answers[Answer]":
        return self

    def __next__(self) -> Answer:
        """Raises NexusClientError (see the class)."""
        if self._over:
            raise StopIteration
        try:
            message = next(self._call)
        except StopIteration:
            self._over = True
            if self._feed.failure is not None:
                raise self._feed.failure from None
            raise
        except grpc.RpcError as error:
            if self._over:  # close() in another thread
                raise StopIteration from None
            self._over = True
            raise from_rpc(error, self._request_id) from None
        return self._stream.decode(message, request_id_of(self._call.initial_metadata(), self._request_id))

    def close(self) -> None:
        """Cancels what is still under way. May be called again, and from another thread."""
        self._over = True
        self._call.cancel()

    def __enter__(self) -> "Answers[Answer]":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Client(ClientBase[grpc.Channel]):
    """A blocking client. Its arguments are ClientBase's; it connects with the first call.

    Any number of threads may use one client at once; it must not be used across a fork. Every call takes

    * `timeout_s`: seconds for the call with all its retries; the client's own where None;
    * `request_id`: sent as x-request-id; the server makes one where it is empty. It is in results and errors.

    and raises NexusClientError or one of its subclasses (errors.py): InvalidInput, NotFound, Unavailable, Overloaded,
    DeadlineExceeded; on a closed client, NexusClientError with reason CLIENT_CLOSED.
    """

    def infer(
        self,
        model: str,
        inputs: Inputs | npt.ArrayLike,
        *,
        outputs: Outputs = (),
        version: str = "",
        timeout_s: float | None = None,
        request_id: str = "",
        parameters: Mapping[str, Parameter] | None = None,
        datatypes: Mapping[str, str] | None = None,
        timing: bool = False,
    ) -> InferResult:
        """One inference (ModelInfer), its tensors in raw contents.

        Args:
            model: the model's name.
            inputs: arrays by input name, of the shape that the model's metadata says, batch dimension included; or one
                array, where the model has one input. dtype bool, (u)int8–64, float16–64, ml_dtypes' bfloat16; text as
                object array of str or bytes. float64 and int64 are cast to what the model takes where that changes no
                number, else InvalidInput says so.
            outputs: the names wanted, all where empty; as a mapping, with parameters for each, such as
                `{"probabilities": {"classification": 3}}`.
            version: the newest ready one where empty.
            parameters: of the request.
            datatypes: by input name, for what a dtype can't tell: "BF16" for a uint16 array of bit patterns.
            timing: have the server tell its stage timings.

        Returns:
            The outputs by name (see InferResult).
        """
        key, deadline = (model, version), Deadline(timeout_s)

        def once(fitted: Inputs) -> InferResult:
            call = calls.infer(model, fitted, outputs, version, parameters, datatypes, timing)
            return self._call(call, deadline.remaining_s(), request_id)

        known = self._known_inputs.get(key)
        if known is None and not isinstance(inputs, Mapping):
            known = (self.model(model, version=version, timeout_s=deadline.remaining_s())).inputs
        try:
            answer = once(inputs if known is None else casting.fit(inputs, known, datatypes))  # type: ignore[arg-type]
            if known is not None:
                self._known_inputs.keep(key, known)
            return answer
        except InvalidInput as error:
            self._known_inputs.drop(key)
            if known is not None or not casting.may_help(inputs, datatypes, error):
                raise
            refused = error
        known = (self.model(model, version=version, timeout_s=deadline.remaining_s())).inputs
        fitted = casting.fit(inputs, known, datatypes)
        if casting.is_unchanged(inputs, fitted):
            raise refused
        self._known_inputs.keep(key, known)
        return once(fitted)

    def infer_stream(
        self,
        model: str,
        requests: Iterable[Inputs | npt.ArrayLike],
        *,
        outputs: Outputs = (),
        version: str = "",
        timeout_s: float | None = None,
        request_id: str = "",
        parameters: Mapping[str, Parameter] | None = None,
        datatypes: Mapping[str, str] | None = None,
        timing: bool = False,
    ) -> Answers[InferResult]:
        """One inference per item of `requests`, each as `infer` takes its inputs, over one stream; see Answers.

        One array for the only input, and casts that change no number, need the model's inputs: they are asked for once.
        A cast that would change a number ends the stream there, with InvalidInput.

        `requests` is read in another thread, as far ahead as the server takes them. `timeout_s` is for the whole
        stream, and unlimited where None. Nothing is retried. Errors within the stream have the code UNKNOWN: the
        protocol gives only their message.
        """
        stream = calls.infer_stream(model, outputs, version, parameters, datatypes, timing)
        deadline, casts = Deadline(timeout_s), casting.StreamCasting(datatypes)

        def fitted() -> Iterator[Inputs]:
            for inputs in requests:
                if casts.asks(inputs):
                    try:
                        casts.learn(self.model(model, version=version, timeout_s=deadline.remaining_s()).inputs)
                    except NexusClientError as error:
                        casts.failed(inputs, error)
                yield casts.fit(inputs)

        return self._stream(stream, fitted(), timeout_s, request_id)

    def predict(
        self,
        model: str,
        features: npt.ArrayLike,
        *,
        version: str = "",
        timeout_s: float | None = None,
        request_id: str = "",
        timing: bool = False,
    ) -> Prediction:
        """One row through a model with one input (Predict).

        Args:
            model: the model's name.
            features: the row's numbers, any shape, flattened row-major; or its texts.
            version: the newest ready one where empty.
            timing: have the server tell its stage timings.
        """
        return self._call(calls.predict(model, features, version, timing), timeout_s, request_id)

    def predict_batch(
        self,
        model: str,
        rows: Iterable[npt.ArrayLike],
        *,
        version: str = "",
        timeout_s: float | None = None,
        request_id: str = "",
        timing: bool = False,
    ) -> BatchPrediction:
        """Several rows (BatchPredict), such as an array of shape [rows, features]; each as `predict` takes one."""
        return self._call(calls.predict_batch(model, rows, version, timing), timeout_s, request_id)

    def predict_stream(
        self,
        model: str,
        rows: Iterable[npt.ArrayLike],
        *,
        version: str = "",
        timeout_s: float | None = None,
        request_id: str = "",
        timing: bool = False,
    ) -> Answers[Prediction]:
        """One prediction per row over one stream; otherwise as `infer_stream`, but errors have their codes."""
        return self._stream(calls.predict_stream(model, version, timing), rows, timeout_s, request_id)

    def upload(
        self,
        model: str,
        file: Source,
        *,
        version: str = "",
        name: str = "",
        labels: Mapping[str, str] | None = None,
        store_only: bool = False,
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> Uploaded:
        """A new model, or a new version of one. Returns when it answers requests; nothing is retried.

        Args:
            model: the model's id.
            file: the ONNX file's path, or its content.
            version: a number, or any other name, which gets the next number; the next number where empty.
            name: for people; the id where empty.
            labels: of the version.
            store_only: neither load it nor have it answer.
            timeout_s: unlimited where None (the server has limits of its own).

        Raises:
            AlreadyExists: the model has that version.
            NexusClientError: as any call; with reason MODEL_REFUSED where the model can't be served.
            OSError: the file can't be read.
        """
        upload = Upload(model, file, name=name, version=version, labels=labels, store_only=store_only)
        limit = self._begin(math.inf if timeout_s is None else timeout_s)
        feed = Feed(_same, upload)
        method = self._next_channel().stream_unary(METHOD, serialised, UploadResponse.FromString)
        call = method.future(iter(feed), limit.remaining_s(), self._call_metadata(request_id))
        try:
            answer = call.result()
        except grpc.RpcError as error:
            if feed.failure is not None:
                raise feed.failure from None
            raise from_rpc(error, request_id) from None
        except grpc.FutureCancelledError:
            raise closed() from None
        finally:
            # Where something else was raised meanwhile (Ctrl-C), the server must not wait for the rest.
            call.cancel()
        return uploaded(answer, request_id_of(call.initial_metadata(), request_id))

    def models(self, *, timeout_s: float | None = None) -> list[ModelState]:
        """Every version in the server's repository, whatever its state."""
        return self._call(calls.models(), timeout_s)

    def model(self, name: str, *, version: str = "", timeout_s: float | None = None) -> ModelInfo:
        """A model's inputs, outputs and ready versions."""
        return self._call(calls.model(name, version), timeout_s)

    def ready(self, model: str = "", *, version: str = "", timeout_s: float | None = None) -> bool:
        """Whether the server, or this model, takes requests. False, without retries, also when nobody answers."""
        try:
            return self._call(calls.ready(model, version), timeout_s, retry=NO_RETRY)
        except (Unavailable, DeadlineExceeded):
            return False

    def live(self, *, timeout_s: float | None = None) -> bool:
        """Whether the server answers at all. False, without retries, when nobody does."""
        try:
            return self._call(calls.live(), timeout_s, retry=NO_RETRY)
        except (Unavailable, DeadlineExceeded):
            return False

    def close(self) -> None:
        """Closes the connections; calls under way fail. May be called again."""
        for channel in self._take_channels():
            channel.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _call(
        self, call: Call[Answer], timeout_s: float | None, request_id: str = "", retry: Retry | None = None
    ) -> Answer:
        attempts = self._begin(timeout_s, retry)
        for attempt in attempts.contexts():
            with attempt:
                metadata = self._call_metadata(request_id)
                try:
                    method = self._next_channel().unary_unary(call.path, serialised, call.answer_type.FromString)
                    message, done = method.with_call(call.request, attempts.remaining_s(), metadata)
                except grpc.RpcError as error:
                    raise from_rpc(error, request_id) from None
                attempts.succeeded()
                return call.decode(message, request_id_of(done.initial_metadata(), request_id))
        raise AssertionError("the last attempt returns or raises")

    def _stream(
        self, stream: StreamCall[Answer], items: Iterable[Any], timeout_s: float | None, request_id: str
    ) -> Answers[Answer]:
        limit = self._begin(math.inf if timeout_s is None else timeout_s)
        feed = Feed(stream.encode, items)
        method = self._next_channel().stream_stream(stream.path, serialised, stream.answer_type.FromString)
        call = method(iter(feed), limit.remaining_s(), self._call_metadata(request_id))
        return Answers(call, feed, stream, request_id)

    def _open_channel(self) -> grpc.Channel:
        if self._credentials is None:
            return grpc.insecure_channel(self.address, self._options)
        return grpc.secure_channel(self.address, self._credentials, self._options)

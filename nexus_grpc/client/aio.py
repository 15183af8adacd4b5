"""The asyncio client, over grpc.aio: the methods of blocking.py, awaited. What they mean is told there."""

import asyncio
import math
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, TypeVar

import grpc
import numpy.typing as npt

from nexus_grpc.client import calls, casting
from nexus_grpc.client.calls import Call, Feed, Inputs, Outputs, StreamCall, each_of, serialised
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
from nexus_grpc.pb.nexus.v1.models_pb2 import UploadRequest, UploadResponse

Answer = TypeVar("Answer")


def _is_cancelled() -> bool:
    """Whether this task is; grpc.aio raises CancelledError also where only the call was cancelled."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


async def _from_thread(messages: Iterator[UploadRequest]) -> AsyncIterator[UploadRequest]:
    """The loop does not wait for the disk."""
    while (message := await asyncio.to_thread(next, messages, None)) is not None:
        yield message


class AsyncAnswers(AsyncIterator[Answer]):
    """The answers of a stream, in the order of its requests; errors as Answers tells."""

    def __init__(self, call: Any, feed: Feed, stream: StreamCall[Answer], request_id: str) -> None:
        self._call = call
        self._messages = call.__aiter__()
        self._feed = feed
        self._stream = stream
        self._request_id = request_id
        self._over = False

    def __aiter__(self) -> "AsyncAnswers[Answer]":
        return self

    async def __anext__(self) -> Answer:
        """Raises NexusClientError (see Answers)."""
        if self._over:
            raise StopAsyncIteration
        try:
            message = await anext(self._messages)
        except StopAsyncIteration:
            self._over = True
            if self._feed.failure is not None:
                raise self._feed.failure from None
            raise
        except grpc.RpcError as error:
            self._over = True
            raise from_rpc(error, self._request_id) from None
        except asyncio.CancelledError:
            self._over, was_over = True, self._over
            if _is_cancelled():
                raise
            # Nobody wanted this task to end: the stream was closed, or the client.
            raise (StopAsyncIteration if was_over else closed()) from None
        return self._stream.decode(message, request_id_of(await self._call.initial_metadata(), self._request_id))

    async def close(self) -> None:
        """Cancels what is still under way. May be called again."""
        self._over = True
        self._call.cancel()

    async def __aenter__(self) -> "AsyncAnswers[Answer]":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()


class AsyncClient(ClientBase[grpc.aio.Channel]):
    """An asyncio client with the methods and errors of Client. Its arguments are ClientBase's.

    Belongs to the event loop in which its first call is made. Any number of tasks may use it at once. A task that is
    cancelled cancels its call.
    """

    async def infer(
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
        """As Client.infer."""
        key, deadline = (model, version), Deadline(timeout_s)

        async def once(fitted: Inputs) -> InferResult:
            call = calls.infer(model, fitted, outputs, version, parameters, datatypes, timing)
            return await self._call(call, deadline.remaining_s(), request_id)

        known = self._known_inputs.get(key)
        if known is None and not isinstance(inputs, Mapping):
            known = (await self.model(model, version=version, timeout_s=deadline.remaining_s())).inputs
        try:
            answer = await once(inputs if known is None else casting.fit(inputs, known, datatypes))  # type: ignore[arg-type]
            if known is not None:
                self._known_inputs.keep(key, known)
            return answer
        except InvalidInput as error:
            self._known_inputs.drop(key)
            if known is not None or not casting.may_help(inputs, datatypes, error):
                raise
            refused = error
        known = (await self.model(model, version=version, timeout_s=deadline.remaining_s())).inputs
        fitted = casting.fit(inputs, known, datatypes)
        if casting.is_unchanged(inputs, fitted):
            raise refused
        self._known_inputs.keep(key, known)
        return await once(fitted)

    def infer_stream(
        self,
        model: str,
        requests: Iterable[Inputs | npt.ArrayLike] | AsyncIterable[Inputs | npt.ArrayLike],
        *,
        outputs: Outputs = (),
        version: str = "",
        timeout_s: float | None = None,
        request_id: str = "",
        parameters: Mapping[str, Parameter] | None = None,
        datatypes: Mapping[str, str] | None = None,
        timing: bool = False,
    ) -> AsyncAnswers[InferResult]:
        """As Client.infer_stream; `requests` may be asynchronous, and is read by a task of this loop."""
        stream = calls.infer_stream(model, outputs, version, parameters, datatypes, timing)
        deadline, casts = Deadline(timeout_s), casting.StreamCasting(datatypes)

        async def fitted() -> AsyncIterator[Inputs]:
            async for inputs in each_of(requests):
                if casts.asks(inputs):
                    try:
                        info = await self.model(model, version=version, timeout_s=deadline.remaining_s())
                        casts.learn(info.inputs)
                    except NexusClientError as error:
                        casts.failed(inputs, error)
                yield casts.fit(inputs)

        return self._stream(stream, fitted(), timeout_s, request_id)

    async def predict(
        self,
        model: str,
        features: npt.ArrayLike,
        *,
        version: str = "",
        timeout_s: float | None = None,
        request_id: str = "",
        timing: bool = False,
    ) -> Prediction:
        """As Client.predict."""
        return await self._call(calls.predict(model, features, version, timing), timeout_s, request_id)

    async def predict_batch(
        self,
        model: str,
        rows: Iterable[npt.ArrayLike],
        *,
        version: str = "",
        timeout_s: float | None = None,
        request_id: str = "",
        timing: bool = False,
    ) -> BatchPrediction:
        """As Client.predict_batch."""
        return await self._call(calls.predict_batch(model, rows, version, timing), timeout_s, request_id)

    def predict_stream(
        self,
        model: str,
        rows: Iterable[npt.ArrayLike] | AsyncIterable[npt.ArrayLike],
        *,
        version: str = "",
        timeout_s: float | None = None,
        request_id: str = "",
        timing: bool = False,
    ) -> AsyncAnswers[Prediction]:
        """As Client.predict_stream; `rows` may be asynchronous, and is read by a task of this loop."""
        return self._stream(calls.predict_stream(model, version, timing), rows, timeout_s, request_id)

    async def upload(
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
        """As Client.upload; the file is read by other threads."""
        upload = await asyncio.to_thread(
            Upload, model, file, name=name, version=version, labels=labels, store_only=store_only
        )
        limit = self._begin(math.inf if timeout_s is None else timeout_s)
        feed = Feed(lambda message: message, _from_thread(iter(upload)))
        method = self._next_channel().stream_unary(METHOD, serialised, UploadResponse.FromString)
        call = method(aiter(feed), timeout=limit.remaining_s(), metadata=self._call_metadata(request_id))
        try:
            answer = await call
        except grpc.RpcError as error:
            if feed.failure is not None:
                raise feed.failure from None
            raise from_rpc(error, request_id) from None
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            raise closed() from None
        return uploaded(answer, request_id_of(await call.initial_metadata(), request_id))

    async def models(self, *, timeout_s: float | None = None) -> list[ModelState]:
        """As Client.models."""
        return await self._call(calls.models(), timeout_s)

    async def model(self, name: str, *, version: str = "", timeout_s: float | None = None) -> ModelInfo:
        """As Client.model."""
        return await self._call(calls.model(name, version), timeout_s)

    async def ready(self, model: str = "", *, version: str = "", timeout_s: float | None = None) -> bool:
        """As Client.ready."""
        try:
            return await self._call(calls.ready(model, version), timeout_s, retry=NO_RETRY)
        except (Unavailable, DeadlineExceeded):
            return False

    async def live(self, *, timeout_s: float | None = None) -> bool:
        """As Client.live."""
        try:
            return await self._call(calls.live(), timeout_s, retry=NO_RETRY)
        except (Unavailable, DeadlineExceeded):
            return False

    async def close(self) -> None:
        """Closes the connections; calls under way fail. May be called again."""
        for channel in self._take_channels():
            await channel.close()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(
        self, call: Call[Answer], timeout_s: float | None, request_id: str = "", retry: Retry | None = None
    ) -> Answer:
        attempts = self._begin(timeout_s, retry)
        async for attempt in attempts.contexts():
            with attempt:
                metadata = self._call_metadata(request_id)
                try:
                    method = self._next_channel().unary_unary(call.path, serialised, call.answer_type.FromString)
                    done = method(call.request, timeout=attempts.remaining_s(), metadata=metadata)
                    message = await done
                except grpc.RpcError as error:
                    raise from_rpc(error, request_id) from None
                except asyncio.CancelledError:
                    if _is_cancelled():
                        raise
                    raise closed() from None
                attempts.succeeded()
                return call.decode(message, request_id_of(await done.initial_metadata(), request_id))
        raise AssertionError("the last attempt returns or raises")

    def _stream(
        self, stream: StreamCall[Answer], items: Any, timeout_s: float | None, request_id: str
    ) -> AsyncAnswers[Answer]:
        limit = self._begin(math.inf if timeout_s is None else timeout_s)
        feed = Feed(stream.encode, items)
        method = self._next_channel().stream_stream(stream.path, serialised, stream.answer_type.FromString)
        call = method(aiter(feed), timeout=limit.remaining_s(), metadata=self._call_metadata(request_id))
        return AsyncAnswers(call, feed, stream, request_id)

    def _open_channel(self) -> grpc.aio.Channel:
        if self._credentials is None:
            return grpc.aio.insecure_channel(self.address, self._options)
        return grpc.aio.secure_channel(self.address, self._credentials, self._options)

"""Uploads: nexus.v1.Models/Upload and its twin, POST /models/upload. What arrives is hashed and written to the staging
folder (nexus_grpc/staging.py); when it is complete and as announced, the supervisor takes it over.

A front receives `uploads_max` at a time, each within `upload_seconds`. Whatever goes wrong before the supervisor has
it, the staged file is removed.
"""

import contextlib
import json
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import structlog
from google.api import httpbody_pb2
from google.protobuf import json_format

from nexus_grpc.front.caller import check_named
from nexus_grpc.front.cold_methods import abort
from nexus_grpc.front.hot_methods import HTTP_STATUS_KEY, REQUEST_ID_KEY, request_id_of
from nexus_grpc.front.multipart_upload import Form
from nexus_grpc.front.request_ids import RequestIds
from nexus_grpc.front.supervised import Caller, Supervised, as_uploaded, caller_of, json_of
from nexus_grpc.ipc.errors import (
    Cancelled,
    DeadlinePassed,
    InferenceFailed,
    InvalidInput,
    NexusError,
    Overloaded,
    TooLarge,
)
from nexus_grpc.ipc.model_names import check_model_name
from nexus_grpc.ipc.rich_errors import status_bytes
from nexus_grpc.ipc.wire import json_body
from nexus_grpc.pb.nexus.v1.models_pb2 import UploadHeader, UploadRequest, UploadResponse
from nexus_grpc.rest.errors import error_body, http_status
from nexus_grpc.rest.twin import SERVICE, path_of
from nexus_grpc.staging import StagedFile

if TYPE_CHECKING:
    from nexus_grpc.settings import Settings

MODELS_SERVICE = "nexus.v1.Models"
METHOD, TWIN = "Upload", "ModelsUpload"
PATHS: frozenset[str] = frozenset((f"/{MODELS_SERVICE}/{METHOD}", path_of(TWIN)))
OPERATION = "Models.Upload"
CHUNK_BYTES_MAX = 4 << 20
# What a form has around its file.
FORM_BYTES_MAX = 4 << 20
NAME_CHARACTERS_MAX = 200
VERSION_CHARACTERS_MAX = 64
LABELS_MAX, LABEL_CHARACTERS_MAX, LABEL_VALUE_CHARACTERS_MAX = 64, 128, 1024
# Other uploads' trials come first.
QUEUE_SECONDS = 30.0
# How long after the last message a client's cancellation may become known.
CANCELLATION_SECONDS = 0.25
# A refused form is read on for a while: most clients look for an answer only when they have sent all.
DRAIN_BYTES_MAX, DRAIN_SECONDS_MAX = 256 << 20, 30.0
_SHA256 = re.compile(r"[0-9a-fA-F]{64}", re.ASCII)
Message = TypeVar("Message")


class Reception:
    """One file on its way to the disk: a header, then bytes. Nothing is written before there is a valid header, if one
    comes first. `close` removes what the supervisor has not taken.
    """

    def __init__(self, repository: Path, size_max: int) -> None:
        # The supervisor may have another working directory.
        self._repository = repository.absolute()
        self._size_max = size_max
        self._staged: StagedFile | None = None

    def announce(self, header: UploadHeader) -> None:
        """Raises InvalidInput, TooLarge or PermissionDenied for what need not be received at all."""
        check_named(header.id)
        check_header(header, self._size_max)

    def write(self, chunk: bytes) -> None:
        """The file's next bytes. Raises TooLarge or StorageFailed."""
        if chunk and self._staged is None:
            self._staged = StagedFile.create(self._repository, self._size_max)
        if self._staged is not None:
            self._staged.write(chunk)

    def finish(self, header: UploadHeader) -> dict[str, Any]:
        """The arguments of Models.Upload. Raises NexusError when what came is not what the header says."""
        self.announce(header)
        if self._staged is None:
            raise InvalidInput("the file is empty; expected an ONNX model", reason="NOT_ONNX", field="file")
        path, sha256, size_bytes = self._staged.finish()
        if header.size_bytes and header.size_bytes != size_bytes:
            text = f"the file has {size_bytes} bytes, but size_bytes says {header.size_bytes:.0f}; send it again"
            raise InvalidInput(text, reason="SIZE_MISMATCH", field="size_bytes")
        if header.sha256 and header.sha256.lower() != sha256:
            text = f"the file's SHA-256 is {sha256}, not {header.sha256.lower()}; send it again"
            raise InvalidInput(text, reason="SHA256_MISMATCH", field="sha256")
        return {"staged": str(path), "header": json_of(header), "sha256": sha256, "size_bytes": size_bytes}

    def give_away(self) -> None:
        """From now on the file is the supervisor's."""
        self._staged = None

    def close(self) -> None:
        if self._staged is not None:
            self._staged.discard()


def check_header(header: UploadHeader, size_max: int) -> None:
    """Raises InvalidInput or TooLarge."""
    check_model_name(header.id)
    _check_text("name", header.name, NAME_CHARACTERS_MAX)
    _check_text("version", header.version, VERSION_CHARACTERS_MAX)
    if header.sha256 and not _SHA256.fullmatch(header.sha256):
        raise InvalidInput("sha256 must be 64 hexadecimal digits, or empty", field="sha256")
    size = header.size_bytes
    if not math.isfinite(size) or size < 0 or size != int(size):
        raise InvalidInput("size_bytes must be a whole number, or 0 when it is not known", field="size_bytes")
    if size > size_max:
        raise TooLarge(f"the file has {size:.0f} bytes; expected at most {size_max} (upload_max_bytes)")
    if len(header.labels) > LABELS_MAX:
        raise InvalidInput(f"there are {len(header.labels)} labels; expected at most {LABELS_MAX}", field="labels")
    for key, value in header.labels.items():
        if not key:
            raise InvalidInput("a label has no name", field="labels")
        _check_text("labels", key, LABEL_CHARACTERS_MAX)
        _check_text("labels", value, LABEL_VALUE_CHARACTERS_MAX)


def _check_text(field: str, text: str, characters_max: int) -> None:
    if len(text) > characters_max or not text.isprintable():
        raise InvalidInput(f"{field}: expected at most {characters_max} printable characters", field=field)


class Messages(Iterator[Message]):
    """A call's messages, waited for until a deadline: grpcio's own iterator waits for ever.

    `next` raises DeadlinePassed, or Cancelled when the client is gone.
    """

    def __init__(self, messages: Iterator[Message], pool: futures.Executor, seconds: float) -> None:
        self._messages = messages
        self._pool = pool
        self._seconds = seconds
        self._deadline_s = time.monotonic() + seconds
        self._over = False

    def __next__(self) -> Message:
        if self._over:
            raise StopIteration
        # On a deadline the thread waits on; it comes back when the call ends, which is soon.
        arriving: futures.Future[Message | None] = self._pool.submit(next, self._messages, None)
        message = None
        try:
            message = arriving.result(max(0.0, self._deadline_s - time.monotonic()))
        except futures.TimeoutError:
            raise DeadlinePassed(f"the upload is not complete after {self._seconds:g} s (upload_seconds)") from None
        except grpc.RpcError:
            raise Cancelled("the client went away") from None
        finally:
            self._over = message is None
        if message is None:
            raise StopIteration
        return message

    def drain(self, size_of: Callable[[Message], int]) -> None:
        """Read on and forget, within limits."""
        self._deadline_s = min(self._deadline_s, time.monotonic() + DRAIN_SECONDS_MAX)
        left = DRAIN_BYTES_MAX
        with contextlib.suppress(DeadlinePassed, Cancelled):
            for message in self:
                left -= size_of(message)
                if left < 0:
                    return


class Uploads:
    """Both ways to upload."""

    def __init__(self, settings: "Settings", supervised: Supervised, ids: RequestIds) -> None:
        self._settings = settings
        self._supervised = supervised
        self._ids = ids
        self._slots = threading.BoundedSemaphore(settings.uploads_max)
        self._pool = futures.ThreadPoolExecutor(settings.uploads_max, thread_name_prefix="upload")

    def by_grpc(self, messages: Iterator[UploadRequest], context: grpc.ServicerContext) -> UploadResponse:
        request_id = request_id_of(context.invocation_metadata() or (), self._ids).decode()
        context.send_initial_metadata(((REQUEST_ID_KEY, request_id),))
        caller = caller_of(context, "grpc")
        try:
            with self._slot(), self._reception() as reception:
                header = _receive(self._timed(messages, context), reception)
                _check_complete(header, context)
                return self._hand_over(reception, header, caller)
        except NexusError as error:
            abort(context, error)
        except Exception as error:
            abort(context, _bug(error))

    def by_form(self, messages: Iterator[httpbody_pb2.HttpBody], context: grpc.ServicerContext) -> bytes:
        request_id = request_id_of(context.invocation_metadata() or (), self._ids).decode()
        caller = caller_of(context, "rest")
        try:
            with self._slot():
                answer = self._form(self._timed(messages, context), caller)
            status, body = 201, json.dumps(json_of(as_uploaded(answer)), ensure_ascii=False).encode()
        except Exception as failure:
            error = failure if isinstance(failure, NexusError) else _bug(failure)
            status = http_status(error.code, error.reason)
            body = error_body(error.code, error.message, request_id, status_bytes(error))
        context.send_initial_metadata(((REQUEST_ID_KEY, request_id), (HTTP_STATUS_KEY, str(status))))
        return json_body(body)

    def _form(self, messages: Messages[httpbody_pb2.HttpBody], caller: Caller) -> UploadResponse:
        try:
            with self._reception() as reception:
                header = _receive_form(messages, reception, self._settings.upload_max_bytes + FORM_BYTES_MAX)
                return self._hand_over(reception, header, caller)
        except NexusError:
            messages.drain(lambda message: len(message.data))
            raise

    def _timed(self, messages: Iterator[Message], context: grpc.ServicerContext) -> Messages[Message]:
        remaining = context.time_remaining()
        limit = self._settings.upload_seconds
        return Messages(messages, self._pool, limit if remaining is None else min(limit, remaining))

    @contextlib.contextmanager
    def _slot(self) -> Iterator[None]:
        if not self._slots.acquire(blocking=False):
            raise Overloaded(
                f"{self._settings.uploads_max} uploads are under way (uploads_max); send it again when one is done"
            )
        try:
            yield
        finally:
            self._slots.release()

    @contextlib.contextmanager
    def _reception(self) -> Iterator[Reception]:
        with contextlib.closing(
            Reception(Path(self._settings.model_repository), self._settings.upload_max_bytes)
        ) as reception:
            yield reception

    def _hand_over(self, reception: Reception, header: UploadHeader, caller: Caller) -> UploadResponse:
        arguments = reception.finish(header)
        seconds = self._settings.trial_seconds + self._settings.model_load_seconds + QUEUE_SECONDS
        reception.give_away()
        try:
            result = self._supervised(OPERATION, arguments, caller.actor, min(caller.timeout_s, seconds))
        except DeadlinePassed:
            # The supervisor goes on with it.
            raise
        except Exception:
            # Either it has removed the file, or it has never heard of it.
            with contextlib.suppress(OSError):
                os.unlink(arguments["staged"])
            raise
        return json_format.ParseDict(result, UploadResponse())


def _receive(messages: Messages[UploadRequest], reception: Reception) -> UploadHeader:
    header: UploadHeader | None = None
    for message in messages:
        part = message.WhichOneof("part")
        if part is None:
            raise InvalidInput("a message has neither `header` nor `chunk`")
        if (part == "header") != (header is None):
            raise InvalidInput("the first message, and no other, has the `header`; the file's bytes follow", field=part)
        if header is None:
            header = message.header
            reception.announce(header)
        elif len(message.chunk) > CHUNK_BYTES_MAX:
            raise InvalidInput(f"a chunk may have {CHUNK_BYTES_MAX} bytes; 1 MiB is a good size", field="chunk")
        else:
            reception.write(message.chunk)
    if header is None:
        raise InvalidInput("the upload is empty: send the `header`, then the file's bytes", field="header")
    return header


def _check_complete(header: UploadHeader, context: grpc.ServicerContext) -> None:
    """A cancelled call's messages end like a complete call's, and grpcio learns of the cancellation a moment later. A
    file whose size or hash is announced is checked by that; for another one, wait that moment. Raises Cancelled.
    """
    if header.size_bytes or header.sha256:
        return
    over = threading.Event()
    if not context.add_callback(over.set) or over.wait(CANCELLATION_SECONDS):
        raise Cancelled("the client went away")


def _receive_form(messages: Messages[httpbody_pb2.HttpBody], reception: Reception, size_max: int) -> UploadHeader:
    form: Form | None = None
    size = 0
    for message in messages:
        if form is None:
            form = Form(message.content_type, reception)
        size += len(message.data)
        if size > size_max:
            raise TooLarge(f"the form is larger than the largest file and {FORM_BYTES_MAX} bytes (upload_max_bytes)")
        form.write(message.data)
    return (form or Form("", reception)).finish()


def _bug(error: Exception) -> NexusError:
    """A bug of ours: the client learns that, the log learns what."""
    structlog.get_logger().error("upload failed", exc_info=error)
    return InferenceFailed("internal error in the upload; see the server's log", reason="INTERNAL")


def upload_handlers(
    settings: "Settings", supervised: Supervised, ids: RequestIds
) -> tuple[grpc.GenericRpcHandler, ...]:
    """The handlers of nexus.v1.Models/Upload and of its twin."""
    uploads = Uploads(settings, supervised, ids)
    by_grpc: grpc.RpcMethodHandler[Any, Any] = grpc.stream_unary_rpc_method_handler(
        uploads.by_grpc, UploadRequest.FromString, lambda message: message.SerializeToString()
    )
    by_form: grpc.RpcMethodHandler[Any, Any] = grpc.stream_unary_rpc_method_handler(
        uploads.by_form, httpbody_pb2.HttpBody.FromString
    )
    return (
        grpc.method_handlers_generic_handler(MODELS_SERVICE, {METHOD: by_grpc}),
        grpc.method_handlers_generic_handler(SERVICE, {TWIN: by_form}),
    )

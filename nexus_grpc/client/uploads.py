"""Uploads: a model's file on its way to the server, and what it says when it has it."""

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nexus_grpc.client.errors import invalid
from nexus_grpc.client.results import TensorInfo
from nexus_grpc.pb.nexus.v1.models_pb2 import UploadHeader, UploadRequest, UploadResponse

METHOD = "/nexus.v1.Models/Upload"
# As proto/nexus/v1/models.proto advises.
CHUNK_BYTES = 1 << 20
# A path, or the content.
Source = str | os.PathLike[str] | bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Uploaded:
    """The answer to `upload`."""

    model: str
    name: str
    version: str
    """The version's number, by which requests name it."""
    version_name: str
    """What it was called at the upload, where that is no number; requests may name it so, too."""
    path: str
    """Of its file, in the server's repository."""
    sha256: str
    size_bytes: int
    state: str
    """READY, UNLOADED (stored only) or UNAVAILABLE."""
    active: bool
    """Whether it answers requests that name no version."""
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    request_id: str
    note: str = ""
    """Where it is not active: why, and what to do."""


class Upload:
    """The messages of one upload, in order: what it is, with the file's SHA-256, then the file.

    Raises:
        OSError: the file can't be read.
        InvalidInput: a text has no UTF-8 form.
    """

    def __init__(
        self,
        model: str,
        source: Source,
        *,
        name: str = "",
        version: str = "",
        labels: Mapping[str, str] | None = None,
        store_only: bool = False,
    ) -> None:
        self._source = source if isinstance(source, bytes) else Path(source)
        digest, self.size_bytes = hashlib.sha256(), 0
        for chunk in self.chunks():
            digest.update(chunk)
            self.size_bytes += len(chunk)
        try:
            self.header = UploadHeader(
                id=model,
                name=name,
                version=version,
                sha256=digest.hexdigest(),
                size_bytes=self.size_bytes,
                labels=labels or {},
                store_only=store_only,
            )
        except (TypeError, ValueError) as error:
            raise invalid(f"the upload's header can't be encoded: {error}") from None

    def chunks(self) -> Iterator[bytes]:
        """The file's bytes. Raises OSError."""
        if isinstance(self._source, bytes):
            for offset in range(0, len(self._source), CHUNK_BYTES):
                yield self._source[offset : offset + CHUNK_BYTES]
            return
        with self._source.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def __iter__(self) -> Iterator[UploadRequest]:
        """Raises OSError."""
        yield UploadRequest(header=self.header)
        for chunk in self.chunks():
            yield UploadRequest(chunk=chunk)


def uploaded(answer: UploadResponse, request_id: str) -> Uploaded:
    model = answer.model
    return Uploaded(
        model=model.id,
        name=model.name,
        version=model.version,
        version_name=model.version_name,
        path=model.path,
        sha256=model.sha256,
        size_bytes=int(model.size_bytes),
        state=answer.state,
        active=answer.active,
        inputs=_tensors(answer.info.inputs),
        outputs=_tensors(answer.info.outputs),
        request_id=request_id,
        note=answer.note,
    )


def _tensors(of: Any) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(item.name, item.datatype, tuple(item.shape)) for item in of)

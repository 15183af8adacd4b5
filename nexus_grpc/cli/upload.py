"""`nexus models upload`: a model's file to a running server."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated

import typer

from nexus_grpc.cli.arguments import parse_labels
from nexus_grpc.cli.credentials import call_metadata
from nexus_grpc.cli.output import fail, print_json, print_table
from nexus_grpc.cli.records import Labels
from nexus_grpc.cli.remote import DEFAULT_ADDRESS, Address, AsJson, Timeout, connected, json_of

if TYPE_CHECKING:
    import grpc

    from nexus_grpc.client.uploads import Upload
    from nexus_grpc.pb.nexus.v1.models_pb2 import UploadRequest, UploadResponse

# More than a server gives an upload, its trial and its loading together, unless its settings say otherwise.
UPLOAD_SECONDS = 900.0


def upload(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, readable=True, help="An ONNX file.")
    ],
    model: Annotated[str, typer.Option("--id", metavar="ID", help="The model's id; a new one makes a new model.")],
    name: Annotated[str, typer.Option("--name", help="A name for people; the id if left out.")] = "",
    version: Annotated[
        str, typer.Option("--version", help="A number, or any name such as 1.0.0; the next number if left out.")
    ] = "",
    labels: Labels = None,
    store_only: Annotated[
        bool, typer.Option("--store-only", help="Neither load it nor have it answer (see `nexus models load`).")
    ] = False,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = UPLOAD_SECONDS,
    as_json: AsJson = False,
) -> None:
    """Upload a model, or a new version of one.

    nexus models upload churn.onnx --id churn

    nexus models upload churn.onnx --id churn --version 1.1.0 --label team=growth

    The server checks the file and tries it in a process of its own; what fails there changes nothing. It ends when the
    version is ready: requests that name no version then get its answers, unless `nexus models activate` has chosen
    another one. A version that is there already is never replaced.
    """
    given = parse_labels(labels or ())
    from nexus_grpc.client.errors import NexusClientError
    from nexus_grpc.client.uploads import Upload

    try:
        with connected(address) as channel, _Bar(file.stat().st_size) as bar:
            messages = Upload(model, file, name=name, version=version, labels=given, store_only=store_only)
            answer = _send(channel, messages, bar, timeout)
    except NexusClientError as error:
        fail(error.message)
    except OSError as error:
        fail(f"{file}: {error.strerror or error}")
    if as_json:
        print_json(json_of(answer))
    else:
        _print_answer(answer)


class _Bar:
    """What a person sees meanwhile, on standard error; nothing where that is no terminal."""

    def __init__(self, size_bytes: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
        self._progress = Progress(
            *columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
        )
        self._size_bytes = size_bytes
        self._task = self._progress.add_task("reading", total=size_bytes)

    def __enter__(self) -> "_Bar":
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._progress.stop()

    def sent(self, size_bytes: int) -> None:
        """So many bytes are on their way."""
        what = "the server tries it" if size_bytes >= self._size_bytes else "sending"
        self._progress.update(self._task, description=what, completed=size_bytes)


def _send(channel: "grpc.Channel", upload: "Upload", bar: _Bar, timeout: float) -> "UploadResponse":
    """Raises grpc.RpcError, or OSError when the file cannot be read to its end."""
    import grpc

    from nexus_grpc.client.calls import Feed
    from nexus_grpc.client.uploads import METHOD
    from nexus_grpc.pb.nexus.v1.models_pb2 import UploadRequest, UploadResponse

    feed = Feed(lambda message: message, _watched(upload, bar.sent))
    method = channel.stream_unary(METHOD, UploadRequest.SerializeToString, UploadResponse.FromString)
    call = method.future(iter(feed), timeout=timeout, metadata=call_metadata())
    try:
        answer: UploadResponse = call.result()
    except grpc.RpcError:
        if feed.failure is not None:
            raise feed.failure from None
        raise
    finally:
        # Ctrl-C: the server learns at once that there is no more to come.
        call.cancel()
    return answer


def _watched(upload: "Upload", sent: Callable[[int], None]) -> "Iterator[UploadRequest]":
    total = 0
    for message in upload:
        yield message
        # gRPC asks for the next one when it has taken this one.
        total += len(message.chunk)
        sent(total)


def _print_answer(answer: "UploadResponse") -> None:
    model = answer.model
    called = f" ({model.version_name})" if model.version_name else ""
    active = "; it answers requests that name no version" if answer.active else ""
    typer.echo(f"uploaded {model.id}, version {model.version}{called}: {answer.state}{active}")
    if answer.note:
        typer.echo(answer.note)
    rows = [
        (direction, tensor.name, tensor.datatype, list(tensor.shape))
        for direction, tensors in (("input", answer.info.inputs), ("output", answer.info.outputs))
        for tensor in tensors
    ]
    print_table(("", "tensor", "datatype", "shape"), rows)

"""`nexus models`: the models of a running server: look at them, load and unload, choose which version answers."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from nexus_grpc.cli import records, upload
from nexus_grpc.cli.credentials import RemoteTyper
from nexus_grpc.cli.output import print_json, print_table
from nexus_grpc.cli.remote import (
    CHANGE_SECONDS,
    DEFAULT_ADDRESS,
    MODELS,
    Address,
    AsJson,
    Timeout,
    ask,
    call,
    connected,
    json_of,
)

if TYPE_CHECKING:
    from nexus_grpc.pb.inference.grpc_service_pb2 import ModelMetadataResponse
    from nexus_grpc.pb.inference.model_config_pb2 import ModelConfig
    from nexus_grpc.pb.nexus.v1.models_pb2 import ListRecordsResponse, ModelInfo

app = RemoteTyper(
    help="Look at the models of a running server, and change them.", no_args_is_help=True, rich_markup_mode=None
)

_SERVICE = "/inference.GRPCInferenceService/"

Model = Annotated[str, typer.Argument(metavar="MODEL", help="The model's id.")]


@app.command("list")
def list_models(address: Address = DEFAULT_ADDRESS, timeout: Timeout = 10.0, as_json: AsJson = False) -> None:
    """List models and versions.

    "*" marks the version that answers requests which name none.
    """
    from nexus_grpc.pb.inference.grpc_service_pb2 import RepositoryIndexRequest, RepositoryIndexResponse
    from nexus_grpc.pb.nexus.v1.models_pb2 import ListRecordsRequest, ListRecordsResponse

    with connected(address) as channel:
        answer = call(channel, MODELS + "ListRecords", ListRecordsRequest(), ListRecordsResponse, timeout)
        index = call(channel, _SERVICE + "RepositoryIndex", RepositoryIndexRequest(), RepositoryIndexResponse, timeout)
    rows = _listed(answer)
    recorded = {(row["name"], row["version"]) for row in rows}
    # A folder so broken that it has no version has no version's record either.
    rows += [
        {**_NOTHING, "name": model.name, "version": model.version, "state": model.state, "reason": model.reason}
        for model in index.models
        if (model.name, model.version) not in recorded
    ]
    rows.sort(key=lambda row: row["name"])
    if as_json:
        print_json({"models": rows})
    elif rows:
        shown = [
            (
                r["name"],
                r["version"],
                "*" if r["active"] else "",
                _shown_state(r["state"], r.get("circuit", "")),
                r["version_name"],
                r["stage"],
                r["reason"],
            )
            for r in rows
        ]
        print_table(("model", "version", "active", "state", "called", "stage", "reason"), shown)
    else:
        typer.echo("The server's model repository is empty.")


_NOTHING: dict[str, Any] = {"active": False, "version_name": "", "stage": "none"}


def _listed(answer: "ListRecordsResponse") -> list[dict[str, Any]]:
    return [
        {
            "name": model.id,
            "version": each.version,
            "state": each.state,
            "circuit": each.circuit,
            "reason": each.reason,
            "active": each.version == model.active_version,
            "version_name": each.version_name,
            "stage": each.stage or "none",
        }
        for model in answer.models
        for each in model.versions
    ]


@app.command("info")
def info(
    name: Model,
    version: Annotated[str, typer.Option("--version", help="A version; the one that answers if left out.")] = "",
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 10.0,
    as_json: AsJson = False,
) -> None:
    """Show a model's inputs, outputs and configuration."""
    from google.protobuf.json_format import MessageToDict

    from nexus_grpc.pb.inference import grpc_service_pb2 as pb

    with connected(address) as channel:
        metadata_request = pb.ModelMetadataRequest(name=name, version=version)
        metadata = call(channel, _SERVICE + "ModelMetadata", metadata_request, pb.ModelMetadataResponse, timeout)
        config_request = pb.ModelConfigRequest(name=name, version=version)
        config = call(channel, _SERVICE + "ModelConfig", config_request, pb.ModelConfigResponse, timeout).config
    if as_json:
        print_json(
            {
                "metadata": MessageToDict(metadata, preserving_proto_field_name=True),
                "config": MessageToDict(config, preserving_proto_field_name=True),
            }
        )
    else:
        _print_info(metadata, config)


def _print_info(metadata: "ModelMetadataResponse", config: "ModelConfig") -> None:
    rows = [
        (direction, tensor.name, tensor.datatype, list(tensor.shape))
        for direction, tensors in (("input", metadata.inputs), ("output", metadata.outputs))
        for tensor in tensors
    ]
    print_table(("", "tensor", "datatype", "shape"), rows, title=metadata.name)
    facts: list[tuple[str, object]] = [
        ("versions", ", ".join(metadata.versions)),
        ("platform", metadata.platform),
        ("max_batch_size", config.max_batch_size),
    ]
    if config.HasField("dynamic_batching"):
        facts.append(("max_queue_delay", f"{config.dynamic_batching.max_queue_delay_microseconds} µs"))
    facts += [(name, parameter.string_value) for name, parameter in sorted(config.parameters.items())]
    print_table(("configuration", ""), facts)


@app.command("load")
def load(
    name: Model,
    version: Annotated[
        str, typer.Option("--version", help="A version; what the model's version policy selects if left out.")
    ] = "",
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = CHANGE_SECONDS,
    as_json: AsJson = False,
) -> None:
    """Load a version.

    nexus models load iris --version 2

    Those that answer go on doing so until it is ready.
    """
    from nexus_grpc.pb.nexus.v1.models_pb2 import LoadModelRequest, ModelInfo

    request = LoadModelRequest(id=name, version=version)
    print_versions(ask(address, MODELS + "Load", request, ModelInfo, timeout), as_json)


@app.command("unload")
def unload(
    name: Model,
    version: Annotated[str, typer.Option("--version", help="A version; all of them if left out.")] = "",
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = CHANGE_SECONDS,
    as_json: AsJson = False,
) -> None:
    """Take a version out of memory.

    It stays so until it is loaded again. A version that takes traffic beside others is protected.
    """
    from nexus_grpc.pb.nexus.v1.models_pb2 import ModelInfo, UnloadModelRequest

    request = UnloadModelRequest(id=name, version=version)
    print_versions(ask(address, MODELS + "Unload", request, ModelInfo, timeout), as_json)


@app.command("activate")
def activate(
    name: Model,
    version: Annotated[
        str, typer.Argument(metavar="[VERSION]", help="The version; the newest, now and always, if left out.")
    ] = "",
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = CHANGE_SECONDS,
    as_json: AsJson = False,
) -> None:
    """Choose the version that answers.

    nexus models activate iris 2

    It is loaded first where need be; then requests that name no version go to it. An experiment ends.
    """
    from nexus_grpc.pb.nexus.v1.models_pb2 import ActivateModelRequest, ModelInfo

    request = ActivateModelRequest(id=name, version=version)
    print_versions(ask(address, MODELS + "Activate", request, ModelInfo, timeout), as_json)


@app.command("delete")
def delete(
    name: Model,
    version: Annotated[str, typer.Option("--version", help="A version; the whole model if left out.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = CHANGE_SECONDS,
    as_json: AsJson = False,
) -> None:
    """Delete a version, or a model, files included. What answers requests is protected."""
    from nexus_grpc.pb.nexus.v1.models_pb2 import DeleteModelRequest, DeleteModelResponse

    what = f"version {version} of model {name}" if version else f"model {name} with all its versions"
    if not yes:
        typer.confirm(f"Delete {what} and its files?", abort=True, err=True)
    request = DeleteModelRequest(id=name, version=version)
    answer = ask(address, MODELS + "Delete", request, DeleteModelResponse, timeout)
    if as_json:
        print_json(json_of(answer))
    else:
        versions = ", ".join(answer.versions) or "none"
        typer.echo(f"deleted {answer.id}, versions: {versions}")


def print_versions(answer: "ModelInfo", as_json: bool) -> None:
    """A model after a change: its versions, "*" at the one that answers requests which name none."""
    if as_json:
        print_json(json_of(answer))
        return
    rows = [
        (
            each.version,
            "*" if each.version == answer.active_version else "",
            _shown_state(each.state, each.circuit),
            each.version_name,
            each.reason,
        )
        for each in answer.versions
    ]
    print_table(("version", "active", "state", "called", "reason"), rows, title=answer.id)


def _shown_state(state: str, circuit: str) -> str:
    return f"{state}, circuit {circuit.replace('_', '-')}" if circuit not in ("", "closed") else state


app.command("upload")(upload.upload)
app.command("history")(records.history)
app.command("register")(records.register)
app.command("update")(records.update)

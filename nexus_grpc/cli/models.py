"""`nexus models`: what a running server serves."""

from typing import TYPE_CHECKING, Annotated

import typer

from nexus_grpc.cli.output import print_json, print_table
from nexus_grpc.cli.remote import DEFAULT_ADDRESS, Address, AsJson, Timeout, call, connected

if TYPE_CHECKING:
    from nexus_grpc.pb.inference.grpc_service_pb2 import ModelMetadataResponse
    from nexus_grpc.pb.inference.model_config_pb2 import ModelConfig

app = typer.Typer(help="Look at the models of a running server.", no_args_is_help=True, rich_markup_mode=None)

_SERVICE = "/inference.GRPCInferenceService/"


@app.command("list")
def list_models(address: Address = DEFAULT_ADDRESS, timeout: Timeout = 10.0, as_json: AsJson = False) -> None:
    """List the models of the repository, with their state."""
    from nexus_grpc.pb.inference.grpc_service_pb2 import RepositoryIndexRequest, RepositoryIndexResponse

    with connected(address) as channel:
        answer = call(channel, _SERVICE + "RepositoryIndex", RepositoryIndexRequest(), RepositoryIndexResponse, timeout)
    rows = [
        {"name": model.name, "version": model.version, "state": model.state, "reason": model.reason}
        for model in answer.models
    ]
    if as_json:
        print_json({"models": rows})
    elif rows:
        print_table(("model", "version", "state", "reason"), [tuple(row.values()) for row in rows])
    else:
        typer.echo("The server's model repository is empty.")


@app.command("info")
def info(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="The model's name.")],
    version: Annotated[str, typer.Option("--version", help="A version; the newest ready one if left out.")] = "",
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

"""`nexus health`: is a server ready, by the gRPC health protocol? For probes: it exits with 0 if so, else with 1."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from nexus_grpc.cli.output import fail, print_json
from nexus_grpc.cli.remote import DEFAULT_ADDRESS, Address, AsJson, Timeout, call, connected

if TYPE_CHECKING:
    import grpc


def health(
    service: Annotated[
        str, typer.Argument(metavar="[SERVICE]", help="A service's full name; the server as a whole if left out.")
    ] = "",
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 3.0,
    as_json: AsJson = False,
) -> None:
    """Ask a running server whether it is ready (grpc.health.v1)."""
    from grpc_health.v1 import health_pb2

    request = health_pb2.HealthCheckRequest(service=service)
    with connected(address) as channel:
        answer = _asked(channel, request, timeout)
    status: str = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    serving = answer.status == health_pb2.HealthCheckResponse.SERVING
    if as_json:
        print_json({"service": service, "status": status})
    elif serving:
        typer.echo(status)
    else:
        fail(f"{service or 'the server'} is {status}")
    if not serving:
        raise typer.Exit(1)


def _asked(channel: "grpc.Channel", request: Any, timeout: float) -> Any:
    """Raises grpc.RpcError; ends the command where the server knows no such service, for which it has no words."""
    import grpc
    from grpc_health.v1 import health_pb2

    try:
        return call(channel, "/grpc.health.v1.Health/Check", request, health_pb2.HealthCheckResponse, timeout)
    except grpc.RpcError as error:
        if isinstance(error, grpc.Call) and error.code() == grpc.StatusCode.NOT_FOUND:
            fail(
                f"NOT_FOUND: the server has no service {request.service!r}; expected a full name such as"
                " inference.GRPCInferenceService, or none for the whole server (models: `nexus models list`)"
            )
        raise

"""`nexus health`: is a server ready, by the gRPC health protocol? For probes: it exits with 0 if so, else with 1."""

from typing import Annotated

import typer

from nexus_grpc.cli.output import fail, print_json
from nexus_grpc.cli.remote import DEFAULT_ADDRESS, Address, AsJson, Timeout, call, connected


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
        answer = call(channel, "/grpc.health.v1.Health/Check", request, health_pb2.HealthCheckResponse, timeout)
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

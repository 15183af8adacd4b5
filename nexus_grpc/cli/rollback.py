"""`nexus rollback`: back to the version that answered before."""

from typing import Annotated

import typer

from nexus_grpc.cli.models import print_versions
from nexus_grpc.cli.remote import CHANGE_SECONDS, DEFAULT_ADDRESS, MODELS, Address, AsJson, Timeout, ask


def rollback(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="The model's id.")],
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = CHANGE_SECONDS,
    as_json: AsJson = False,
) -> None:
    """Go back to the version that answered before.

    It takes effect at once and ends a running experiment. `nexus models history` shows what there is to go back to.
    """
    from nexus_grpc.pb.nexus.v1.models_pb2 import ModelInfo, RollbackModelRequest

    answer = ask(address, MODELS + "Rollback", RollbackModelRequest(id=name), ModelInfo, timeout)
    print_versions(answer, as_json)

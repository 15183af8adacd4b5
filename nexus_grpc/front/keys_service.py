"""nexus.v1.Keys: the supervisor's, but that nobody gives away more than they have, which only the front knows."""

from typing import Any

from google.protobuf.message import Message

from nexus_grpc.access.keys import DEFAULT_SCOPES, scope_names
from nexus_grpc.access.rules import check_granted
from nexus_grpc.front.caller import caller_identity
from nexus_grpc.front.supervised import Caller, Supervised, forward
from nexus_grpc.ipc.errors import InvalidInput
from nexus_grpc.pb.nexus.v1 import keys_pb2


class KeysService:
    """nexus.v1.Keys."""

    def __init__(self, supervised: Supervised) -> None:
        self._supervised = supervised

    def forward(self, method: Any, request: Message, caller: Caller) -> Message:
        """Any of its methods. Raises NexusError."""
        if isinstance(request, keys_pb2.CreateKeyRequest):
            _check(request)
        return forward(self._supervised, method, request, caller)


def _check(request: keys_pb2.CreateKeyRequest) -> None:
    """Raises InvalidInput or PermissionDenied."""
    if not request.name:
        raise InvalidInput("name is missing: what people call the key, such as webshop", field="name")
    identity = caller_identity()
    if identity is not None:
        check_granted(identity, request.scopes or scope_names(DEFAULT_SCOPES))

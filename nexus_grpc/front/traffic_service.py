"""nexus.v1.Traffic: all of it is the supervisor's."""

from typing import Any

from google.protobuf.message import Message

from nexus_grpc.front.supervised import Caller, Supervised, forward


class TrafficService:
    """nexus.v1.Traffic."""

    def __init__(self, supervised: Supervised) -> None:
        self._supervised = supervised

    def forward(self, method: Any, request: Message, caller: Caller) -> Message:
        """Any of its methods. Raises NexusError."""
        return forward(self._supervised, method, request, caller)

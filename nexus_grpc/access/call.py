"""What is known of a call before anything of it is read: its headers and its connection.

Light: every process imports it. What recognises credentials (gate.py) brings cryptography along, and is imported only
where callers need any.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol
from urllib.parse import unquote

from nexus_grpc.access.identity import Identity, Scope

AUTHORIZATION, API_KEY, FORWARDED_FOR = "authorization", "x-api-key", "x-forwarded-for"
# Our own Envoy's word that it has written the other one: a secret of each start (supervisor/envoy.py).
ENVOY_WORD, FORWARDED_CERTIFICATE = "x-nexus-envoy", "x-forwarded-client-cert"

Metadata = Iterable[tuple[str, str | bytes]]


class Connection(Protocol):
    """What is asked of a call besides its headers: grpc.ServicerContext has both."""

    def peer(self) -> str:
        """The other end, as gRPC writes it: ipv4:127.0.0.1:5000."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """What TLS knows of it; empty without TLS."""


# Gate.admit: (what the call needs, its headers, its connection) → the caller. Raises Unauthenticated, PermissionDenied.
Admit = Callable[[Scope, Metadata, Connection], Identity]


def caller_address(peer: str, metadata: Metadata, *, port: bool = True) -> str:
    """The caller's IP address; "unix" for one that has none.

    Args:
        peer: as gRPC writes it.
        metadata: says whom Envoy forwards, where the peer is Envoy's socket.
        port: with the port, where it is known.
    """
    peer = unquote(peer)
    if not peer.startswith("unix"):
        address = peer.partition(":")[2]
        return address if port else address.rpartition(":")[0].strip("[]")
    # The last address in this header is the one that Envoy itself saw (of a client on Envoy's own machine, that
    # machine's address).
    forwarded = [value for key, value in metadata if key == FORWARDED_FOR]
    return str(forwarded[-1]).rpartition(",")[2].strip() if forwarded else "unix"

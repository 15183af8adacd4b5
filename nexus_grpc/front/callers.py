"""Who counts as one caller: where a failure may be the model's or the caller's, it matters how many callers see it.

A credential is one caller, whoever holds it. Without credentials an IP address is one, of IPv6 its /64; by REST that is
the address that Envoy saw. So all who come through one proxy or gateway of somebody else's are one caller: give them
credentials where that matters.
"""

import ipaddress
import zlib

from nexus_grpc.access.call import caller_address
from nexus_grpc.access.identity import ANONYMOUS
from nexus_grpc.front.flight import Flight

IPV6_PREFIX = 64


def caller_of(flight: Flight) -> int:
    """A number, the same in every front; hardly ever that of another caller."""
    identity = flight.identity
    if identity is not None and not identity.name.startswith(ANONYMOUS):
        return zlib.crc32(identity.name.encode())
    return zlib.crc32(_network(caller_address(flight.peer(), flight.metadata, port=False)).encode())


def _network(address: str) -> str:
    if ":" not in address:
        return address
    try:
        return str(ipaddress.ip_network((address, IPV6_PREFIX), strict=False))
    except ValueError:
        return address

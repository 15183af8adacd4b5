"""Addresses that people get wrong, and what is wrong with them."""

import re

EXPECTED = "expected HOST:PORT of the server's gRPC port, such as 127.0.0.1:8001"
_URL = re.compile(r"(?:https?|grpcs?)://", re.IGNORECASE)
# What gRPC's core says, whatever its version.
_UNRESOLVED = ("errors resolving", "DNS resolution failed", "lookup failed", "Name or service not known")
_NO_GRPC = ("Failed parsing HTTP/2", "http1.x server", "http2 handshake")
_NOBODY = ("Connection refused", "failed to connect")


def why_not(address: str) -> str:
    """What is wrong with an address, as it is written; nothing if it may be one."""
    if _URL.match(address):
        return f"{address!r} is a URL; {EXPECTED}, with TLS or without"
    return "" if address else f"the address is empty; {EXPECTED}"


def unreachable(address: str, details: str) -> str:
    """Why nobody answers at an address, and what to do; nothing if that is not what is wrong.

    Args:
        details: what gRPC's core said of an UNAVAILABLE. (A server's own has the server's words.)
    """
    if any(words in details for words in _UNRESOLVED):
        return f"there is no machine called as in {address}; {EXPECTED}"
    if any(words in details for words in _NO_GRPC):
        return f"what listens at {address} speaks no gRPC; {EXPECTED}"
    if any(words in details for words in _NOBODY):
        where = "" if ":" in address else f" (without a port it is 443; {EXPECTED})"
        return f"no server at {address}{where}: start one with `make serve` or `nexus serve`"
    return ""

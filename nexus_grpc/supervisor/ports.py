"""Claiming the gRPC port before anything is started, so that a second start fails at once and disturbs nothing.

The fronts bind with SO_REUSEPORT, which would let a second server of the same user join in silence. So a server holds
an abstract Unix socket named after its port (same network namespace, exclusive, gone with its holder), and looks
whether anything else listens on the port.
"""

import errno
import socket


class PortTaken(Exception):
    """Somebody listens there already. The message says where and what to do."""


def claim_port(host: str, port: int, option: str) -> socket.socket:
    """Make sure that the port is ours alone. The claim lasts as long as the returned socket.

    Raises PortTaken, or OSError for an address that cannot be bound at all.
    """
    taken = PortTaken(f"{host}:{port} is in use by another process; stop it or choose another {option}")
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        claim.bind(f"\0nexus-grpc port {port}")
        _listen_once(host, port)
    except OSError as error:
        claim.close()
        if error.errno == errno.EADDRINUSE:
            raise taken from None
        raise
    return claim


def _listen_once(host: str, port: int) -> None:
    """Raises OSError (EADDRINUSE) when somebody listens there.

    SO_REUSEADDR looks past connections of a server that has just ended (TIME_WAIT); listen() does not look past a
    listener.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        probe.listen(0)

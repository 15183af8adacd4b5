"""Claiming the server's ports before anything is started, so that a second start fails at once and disturbs nothing."""

import errno
import socket


class PortTaken(Exception):
    """Somebody listens there already. The message says where and what to do."""


def claim_port(host: str, port: int, option: str) -> socket.socket:
    """Bind a port exclusively, then open it to the fronts' SO_REUSEPORT sockets. Keep the socket: it holds the claim.

    A plain bind fails when anyone holds the port, even with SO_REUSEPORT; set afterwards, the option lets our fronts
    (same user) join, while another start's plain bind fails. The socket never listens, so it gets no connections.

    Raises PortTaken, or OSError for an address that cannot be bound at all.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    claim = socket.socket(family, socket.SOCK_STREAM)
    try:
        claim.bind((host, port))
    except OSError as error:
        claim.close()
        if error.errno == errno.EADDRINUSE:
            raise PortTaken(f"{host}:{port} is in use by another process; stop it or choose another {option}") from None
        raise
    claim.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return claim

"""Claiming the ports before anything is started, so that a second start fails at once and disturbs nothing.

The fronts and Envoy bind with SO_REUSEPORT, which would let a second server of the same user join in silence. So a
server holds an abstract Unix socket named after its port (same network namespace, exclusive, gone with its holder), and
looks whether anything else listens on the port.
"""

import contextlib
import errno
import socket
from collections.abc import Callable

from nexus_grpc.access.call import Admit
from nexus_grpc.settings import Settings, is_loopback
from nexus_grpc.supervisor.envoy_setup import has_sidecar
from nexus_grpc.supervisor.metrics import MetricsSources
from nexus_grpc.supervisor.metrics_server import MetricsServer, serve


class PortTaken(Exception):
    """Somebody listens there already. The message says where and what to do."""


def claim_ports(settings: Settings) -> contextlib.ExitStack:
    """Make sure that the gRPC port and, with a sidecar, the REST port are ours alone, until the result is closed.

    Raises PortTaken, or OSError for an address that cannot be bound at all.
    """
    with contextlib.ExitStack() as claims:
        claims.enter_context(claim_port(settings.host, settings.grpc_port, "--grpc-port"))
        if has_sidecar(settings):
            option = "--rest-port (0 = no REST)"
            claims.enter_context(claim_port(settings.rest_address, settings.rest_port, option))
        return claims.pop_all()


def serve_metrics(
    settings: Settings, current: Callable[[], MetricsSources], admit: Admit | None
) -> MetricsServer | None:
    """Answer on the metrics port, unless it is 0. Raises PortTaken."""
    if not settings.metrics_port:
        return None
    try:
        # Who is on this machine may look.
        is_local = is_loopback(settings.host) and is_loopback(settings.rest_address)
        return serve(current, settings.host, settings.metrics_port, None if is_local else admit)
    except OSError as error:
        raise PortTaken(
            f"{settings.host}:{settings.metrics_port} cannot be bound for metrics ({error.strerror}); stop what listens"
            " there or choose another --metrics-port (0 = off)"
        ) from None


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

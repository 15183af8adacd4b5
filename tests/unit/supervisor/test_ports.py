"""Claiming ports."""

import errno
import socket
import subprocess
import sys

import pytest

from nexus_grpc.supervisor.ports import PortTaken, claim_port

HOST = "127.0.0.1"
CLAIM = """
import sys
from nexus_grpc.supervisor.ports import PortTaken, claim_port
try:
    claim_port("127.0.0.1", int(sys.argv[1]), "--grpc-port")
except PortTaken as error:
    sys.exit(str(error))
"""


def port_of(claim: socket.socket) -> int:
    return int(claim.getsockname()[1])


def test_a_second_claim_fails_and_says_what_to_do() -> None:
    with claim_port(HOST, 0, "--grpc-port") as claim:
        port = port_of(claim)
        with pytest.raises(PortTaken, match=f"{HOST}:{port} is in use by another process; .* another --grpc-port"):
            claim_port(HOST, port, "--grpc-port")
        done = subprocess.run([sys.executable, "-c", CLAIM, str(port)], capture_output=True, text=True, timeout=30)
        assert done.returncode == 1
        assert "is in use" in done.stderr
    claim_port(HOST, port, "--grpc-port").close()


def test_our_fronts_join_and_get_the_connections() -> None:
    with claim_port(HOST, 0, "--grpc-port") as claim, socket.socket() as front, socket.socket() as client:
        front.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        front.bind((HOST, port_of(claim)))
        front.listen()
        client.connect((HOST, port_of(claim)))
        accepted, _ = front.accept()
        accepted.close()
        # While a front listens the claim still stands.
        with pytest.raises(PortTaken):
            claim_port(HOST, port_of(claim), "--grpc-port")


def test_a_socket_without_reuseport_cannot_join() -> None:
    with claim_port(HOST, 0, "--grpc-port") as claim, socket.socket() as other:
        with pytest.raises(OSError) as caught:
            other.bind((HOST, port_of(claim)))
        assert caught.value.errno == errno.EADDRINUSE


def test_an_address_that_is_not_ours() -> None:
    with pytest.raises(OSError):
        claim_port("192.0.2.1", 0, "--grpc-port")

"""Claiming ports."""

import socket
import subprocess
import sys

import pytest

from nexus_grpc.supervisor.ports import PortTaken, claim_port
from tests.harness import free_port
from tests.unit.support import ROOT, open_descriptors

HOST = "127.0.0.1"
CLAIM = """
import sys
from nexus_grpc.supervisor.ports import PortTaken, claim_port
try:
    claim_port("127.0.0.1", int(sys.argv[1]), "--grpc-port")
except PortTaken as error:
    sys.exit(str(error))
"""


def test_a_second_claim_fails_and_says_what_to_do() -> None:
    port = free_port()
    with claim_port(HOST, port, "--grpc-port"):
        before = open_descriptors()
        with pytest.raises(PortTaken, match=f"{HOST}:{port} is in use by another process; .* another --grpc-port"):
            claim_port(HOST, port, "--grpc-port")
        assert open_descriptors() == before
        command = [sys.executable, "-c", CLAIM, str(port)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
        assert done.returncode == 1
        assert "is in use" in done.stderr
    claim_port(HOST, port, "--grpc-port").close()


def test_our_fronts_join_and_get_the_connections() -> None:
    port = free_port()
    with claim_port(HOST, port, "--grpc-port"), socket.socket() as one, socket.socket() as other:
        for front in (one, other):
            front.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            front.bind((HOST, port))
            front.listen()
        with socket.create_connection((HOST, port), timeout=10):
            pass
        # While fronts listen the claim still stands.
        with pytest.raises(PortTaken):
            claim_port(HOST, port, "--grpc-port")


@pytest.mark.parametrize("option", [None, socket.SO_REUSEADDR, socket.SO_REUSEPORT])
def test_somebody_else_s_server(option: int | None) -> None:
    with socket.socket() as other:
        if option is not None:
            other.setsockopt(socket.SOL_SOCKET, option, 1)
        other.bind((HOST, 0))
        other.listen()
        before = open_descriptors()
        with pytest.raises(PortTaken):
            claim_port(HOST, other.getsockname()[1], "--grpc-port")
        assert open_descriptors() == before


def test_an_address_that_is_not_ours() -> None:
    with pytest.raises(OSError, match="assign requested address"):
        claim_port("192.0.2.1", free_port(), "--grpc-port")

"""Slow clients and floods on both ports: a client that behaves is served all the while, and nothing is left of them.

Its figures before, during and after each attack are printed, and are properties of the test in pytest's reports. The
attackers use the server's own machine here, so the figures are no promise; that it is served is.
"""

import dataclasses
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from tests.chaos.census import assert_settled, clean_server, take_census
from tests.chaos.floods import SLOW_CONNECTIONS, STREAMS
from tests.chaos.ledger import wait_until
from tests.chaos.steady import SteadyClient
from tests.harness import ROOT, Server

pytestmark = [pytest.mark.timeout(120), pytest.mark.alone]
MIB = 1 << 20
BEFORE_SECONDS, ATTACK_SECONDS, AFTER_SECONDS = 0.8, 1.8, 0.3
# A client that waits as long as this for one answer in a hundred is not being served. Some tenths of a second are usual
# where server and attacker have two cores to themselves; the rest is for those that they share with others.
P99_MAX_MS = 5000.0
# What an attack may leave behind in a process: pools and arenas that are used again.
GROWTH_MAX_BYTES = 64 * MIB
# ...and what it may make it hold meanwhile.
PEAK_MAX_BYTES = 256 * MIB
ROLES = ("front", "envoy")
GRPC_STREAMS_MAX, REST_STREAMS_MAX = 1024, 100


@dataclasses.dataclass
class Site:
    """A server, and somebody who uses it all the time."""

    server: Server
    client: SteadyClient

    def pids(self) -> dict[str, list[int]]:
        return {role: [child.pid for child in self.server.children(role)] for role in ("front", "worker", "envoy")}

    def resident(self) -> dict[str, int]:
        return {role: self.server.children(role)[0].memory_info().rss for role in ROLES}

    def tcp(self) -> int:
        """TCP sockets that the front and Envoy have."""
        processes = [psutil.Process(self.server.children(role)[0].pid) for role in ROLES]
        return sum(len(process.net_connections("tcp")) for process in processes)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, repository: pathlib.Path) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("floods")
    with (
        clean_server(folder, repository, "--workers=1", "--log-sample=0", rest=True) as server,
        SteadyClient(server.address, server.rest_port) as client,
    ):
        client.watch(0.5)
        yield Site(server, client)


def attack(site: Site, name: str, port: int, seconds: float) -> tuple[dict[str, int], dict[str, int]]:
    """What the attacker tells, and the most memory that each process held meanwhile."""
    command = [sys.executable, "-m", "tests.chaos.floods", name, str(port), str(seconds)]
    peak = site.resident()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as attacker:
        try:
            while attacker.poll() is None:
                peak = {role: max(peak[role], now) for role, now in site.resident().items()}
                time.sleep(0.1)
        finally:
            attacker.kill()
        assert attacker.stdout is not None
        told = attacker.stdout.read()
    assert attacker.returncode == 0, told
    tally: dict[str, int] = json.loads(told)
    return tally, peak


@dataclasses.dataclass
class Attacked:
    """The server after an attack that it has stood: what the attacker saw."""

    tally: dict[str, int]

    def count(self, name: str) -> int:
        return self.tally.get(name, 0)


Stand = Callable[..., Attacked]


@pytest.fixture
def stand(site: Site, record_property: Callable[[str, object], None]) -> Stand:
    """Attack and check all that holds whatever the attack: stand(name, port)."""

    def run(name: str, port: int, seconds: float = ATTACK_SECONDS) -> Attacked:
        census, pids, tcp, resident = take_census(site.server), site.pids(), site.tcp(), site.resident()
        times = {"before": site.client.watch(BEFORE_SECONDS)}
        with site.client.watching() as times["during"]:
            tally, peak = attack(site, name, port, seconds)
        times["after"] = site.client.watch(AFTER_SECONDS)
        for when, figures in times.items():
            for kind, each in figures.items():
                print(f"{name}, {kind} {when}: {each}")
                record_property(f"{kind} {when}", str(each))
        growth = {role: peak[role] - resident[role] for role in ROLES}
        print(f"{name}: {tally}, grew at most by { ({role: size // MIB for role, size in growth.items()}) } MiB")
        record_property("attacker", json.dumps(tally))
        for figures in times.values():
            for kind, each in figures.items():
                assert not each.wrong, (kind, each.wrong[:3])
                assert each.p99_ms < P99_MAX_MS, (kind, str(each))
        assert max(growth.values()) < PEAK_MAX_BYTES
        assert site.pids() == pids, "somebody died"
        assert_settled(site.server, census)
        wait_until(lambda: site.tcp() <= tcp + 2, 10, "the attacker's connections are gone")
        left = {role: now - resident[role] for role, now in site.resident().items()}
        assert max(left.values()) < GROWTH_MAX_BYTES, left
        return Attacked(tally)

    return run


def port_of(site: Site, transport: str) -> int:
    return site.server.port if transport == "grpc" else site.server.rest_port


both = pytest.mark.parametrize("transport", ["grpc", "rest"])
# What Envoy, or grpcio's core, bounds by itself: by one way each day, by both in the long run.
mostly_grpc = pytest.mark.parametrize("transport", ["grpc", pytest.param("rest", marks=pytest.mark.long)])


def test_slow_http1_clients(site: Site, stand: Stand) -> None:
    seen = stand("slow_rest", site.server.rest_port)
    assert seen.count("connections") == SLOW_CONNECTIONS
    assert seen.count("sent") > SLOW_CONNECTIONS


@both
def test_slow_http2_clients(site: Site, stand: Stand, transport: str) -> None:
    seen = stand("slow_streams", port_of(site, transport))
    assert seen.count("connections") == SLOW_CONNECTIONS
    assert seen.count("sent") == SLOW_CONNECTIONS * 3 // 4


@both
def test_slow_clients_of_a_cold_method(site: Site, stand: Stand, transport: str) -> None:
    """Nobody has a thread who has not said what he wants."""
    seen = stand("slow_cold_streams", port_of(site, transport), 3.5)
    assert seen.count("sent") == SLOW_CONNECTIONS * 3 // 4


@both
def test_rapid_reset(site: Site, stand: Stand, transport: str) -> None:
    seen = stand("rapid_reset", port_of(site, transport), 3.0)
    assert seen.count("sent") > 1000
    if transport == "rest":
        # Envoy closes connections on which most streams end too early.
        assert seen.count("closed") >= 1


@mostly_grpc
def test_more_streams_than_announced(site: Site, stand: Stand, transport: str) -> None:
    seen = stand("streams", port_of(site, transport))
    most = GRPC_STREAMS_MAX if transport == "grpc" else REST_STREAMS_MAX
    assert seen.count("sent") > most
    # Envoy does not go on with such a connection.
    assert seen.count("closed") or seen.count("refused") >= STREAMS - most


@mostly_grpc
def test_pings_and_settings(site: Site, stand: Stand, transport: str) -> None:
    assert stand("pings", port_of(site, transport)).count("sent") > 1000


@both
def test_large_headers(site: Site, stand: Stand, transport: str) -> None:
    seen = stand("large_headers", port_of(site, transport))
    assert seen.count("sent") >= 10
    # Envoy ends the connection after some.
    assert seen.count("refused") >= (10 if transport == "grpc" else 1)
    # None was a request that anything looked at.
    assert not any(name.startswith("status") and name != "status 8" for name in seen.tally), seen


@pytest.mark.long
def test_large_headers_by_http1(site: Site, stand: Stand) -> None:
    seen = stand("large_headers_http1", site.server.rest_port)
    assert seen.count("sent") >= 10
    assert seen.count("refused") == seen.count("sent")


def test_large_headers_of_one_who_knows_no_limit(site: Site, stand: Stand) -> None:
    """The core keeps to its limit only once a client says that it knows it; the front keeps to it always."""
    seen = stand("large_headers_unacknowledged", site.server.port)
    assert seen.count("status 8") >= 100


@mostly_grpc
def test_headers_without_an_end(site: Site, stand: Stand, transport: str) -> None:
    seen = stand("continuation", port_of(site, transport))
    assert seen.count("sent") > 100
    assert seen.count("closed") + seen.count("refused") + seen.count("status 8") >= 1


@mostly_grpc
def test_names_that_nobody_has_seen(site: Site, stand: Stand, transport: str) -> None:
    seen = stand("names", port_of(site, transport))
    assert seen.count("sent") > 100
    assert not seen.count("refused")

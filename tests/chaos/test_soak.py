"""A soak: mixed traffic for minutes while versions change and processes die. Nothing is lost, nothing grows."""

import itertools
import os
import pathlib
import random
import signal
import time
from collections.abc import Callable

import psutil
import pytest

from tests.chaos.census import assert_settled, clean_server, take_census, wait_replaced
from tests.chaos.ledger import UNAVAILABLE, Ledger
from tests.chaos.rest_ledger import RestLedger
from tests.harness import Server
from tests.lifecycle import Admin, put

SECONDS = 300.0
# A process of each role dies by turns; Envoy's clients see a connection that breaks, so it is let alone.
ROLES = ("worker", "front", "worker")
PAUSE_SECONDS = 10.0
WARM_UP_SECONDS = 60.0
# What allocators may keep after the warm-up, per process.
GROWTH_MAX_BYTES = 24 << 20


def resident(server: Server) -> dict[str, int]:
    """Bytes in memory of the processes that are never replaced here."""
    envoy = server.children("envoy")[0]
    return {"supervisor": psutil.Process(server.process.pid).memory_info().rss, "envoy": envoy.memory_info().rss}


@pytest.mark.long
@pytest.mark.timeout(SECONDS + 120)
def test_nothing_is_lost_and_nothing_grows(
    tmp_path: pathlib.Path, repository: pathlib.Path, record_property: Callable[[str, object], None]
) -> None:
    for version in (1, 2):
        put(repository, version, name="changing")
    options = ("--workers=2", "--fronts=2", "--keep-previous-seconds=0")
    with clean_server(tmp_path, repository, *options, rest=True) as server, Admin(server.address) as admin:
        before = take_census(server)
        began_s = time.monotonic()
        roles, versions = itertools.cycle(ROLES), itertools.cycle(("1", "2"))
        warm: dict[str, int] = {}
        with Ledger(server.address, clients=8) as ledger, RestLedger(server.rest_port, clients=4) as rest_ledger:
            while time.monotonic() - began_s < SECONDS:
                admin.models("Activate", id="changing", version=next(versions))
                role = next(roles)
                index = random.randrange(len(server.children(role)))
                pid = server.children(role)[index].pid
                os.kill(pid, signal.SIGKILL)
                wait_replaced(server, role, index, pid, 10)
                time.sleep(PAUSE_SECONDS)
                if not warm and time.monotonic() - began_s > WARM_UP_SECONDS:
                    warm = resident(server)
            ledger.wait_for(50)
            rest_ledger.wait_for(50)
        after = resident(server)
        record_property("requests", len(ledger.entries) + len(rest_ledger.entries))
        record_property("RSS after a minute, at the end", f"{warm} {after}")
        # Whoever was connected to a front that was killed may learn so.
        ledger.check(UNAVAILABLE)
        rest_ledger.check(503)
        for name, size in after.items():
            assert size - warm[name] < GROWTH_MAX_BYTES, f"{name} grew from {warm[name]} to {size} bytes"
        assert_settled(server, before)

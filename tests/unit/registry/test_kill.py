"""kill -9 of a writing process at any moment: the registry is as before the change or as after it."""

import random
import subprocess
import sys
import time

from nexus_grpc.registry.records import Change
from tests.harness import ROOT
from tests.unit.registry.conftest import Place
from tests.unit.registry.writer import versions_of

ROUNDS = 12
CHANGES_MAX = 8
# A change takes less: the kill falls anywhere in one.
CHANGE_SECONDS_MAX = 0.004


def killed_writer(place: Place, rng: random.Random) -> int:
    """The last change that the writer knew of."""
    command = [sys.executable, "-m", "tests.unit.registry.writer", place.url, str(place.folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, bufsize=0) as writer:
        assert writer.stdout is not None
        made = 0
        for _ in range(rng.randint(1, CHANGES_MAX)):
            made = int(writer.stdout.readline())
        until_s = time.perf_counter() + rng.uniform(0, CHANGE_SECONDS_MAX)
        while time.perf_counter() < until_s:
            pass
        writer.kill()
        rest = writer.stdout.read().split()
    return int(rest[-1]) if rest else made


def test_a_killed_writer_leaves_whole_changes(place: Place) -> None:
    rng = random.Random(4)
    for _ in range(ROUNDS):
        known = killed_writer(place, rng)
        registry = place.open()
        # In PostgreSQL a commit may still be under way: whoever holds the writers' lock next comes after it.
        registry.apply(Change("test", "wait", audited=False))
        history = registry.history(limit=1_000_000)
        made = len(history)
        assert made in (known, known + 1)
        assert [row.sequence for row in history] == list(range(made, 0, -1))
        assert [row.detail["k"] for row in history] == list(range(made, 0, -1))
        assert [row.labels for row in registry.models()] == [{"k": str(made)}]
        assert [(row.version, row.labels) for row in registry.versions()] == [
            (number, {"k": str(made)}) for number in versions_of(made)
        ]
        registry.close()

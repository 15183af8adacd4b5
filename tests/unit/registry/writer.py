"""Writes changes until it is killed: python -m tests.unit.registry.writer URL FOLDER. Prints the number of each.

Change k replaces the model and all versions that are there by ones that carry k: a state with two numbers in it, or
with other versions than k's, is one between changes.
"""

import os
import pathlib
import sys

from nexus_grpc.registry.open import open_registry
from nexus_grpc.registry.records import Change, ModelRow, VersionRow

VERSIONS_MAX = 5


def versions_of(k: int) -> range:
    return range(1 + k % VERSIONS_MAX, 1 + k % VERSIONS_MAX + VERSIONS_MAX)


def change(k: int) -> Change:
    labels = {"k": str(k)}
    return Change(
        actor="writer",
        action="write",
        model="m",
        detail={"k": k},
        put_models=(ModelRow("m", labels=labels),),
        put_versions=tuple(VersionRow("m", number, labels=labels) for number in versions_of(k)),
        delete_versions=tuple(("m", number) for number in set(versions_of(k - 1)) - set(versions_of(k))),
    )


if __name__ == "__main__":
    registry = open_registry(sys.argv[1], pathlib.Path(sys.argv[2]))
    k = len(registry.history(limit=1_000_000))
    while True:
        k += 1
        registry.apply(change(k))
        os.write(1, f"{k}\n".encode())

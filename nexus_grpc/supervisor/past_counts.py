"""What slots had counted when they were given back: a version's counters must not fall when an experiment's arm of it
ends, or when it is loaded anew. (Prometheus takes a fall for a restart, and adds all that is left once more.)
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from nexus_grpc.ipc.snapshots import FrontModelSnapshot, ModelSnapshot
from nexus_grpc.ipc.stats import read_front_model, read_model
from nexus_grpc.supervisor.catalogue import Catalogue, Version
from nexus_grpc.supervisor.metrics import ModelVersion
from nexus_grpc.supervisor.pool import FrontSlot, WorkerSlot


class PastCounts:
    """By version, as long as it has a slot. What a front has not counted yet when a slot is given back is missed."""

    def __init__(self) -> None:
        self.fronts: dict[ModelVersion, FrontModelSnapshot] = {}
        self.workers: dict[ModelVersion, ModelSnapshot] = {}

    def keep(self, version: Version, fronts: Sequence[FrontSlot], workers: Sequence[WorkerSlot]) -> None:
        """A slot is about to be given back."""
        name = ModelVersion(version.name, version.version)
        for front in fronts:
            # Its circuit's state goes with it.
            seen = dataclasses.replace(read_front_model(front.page, version.slot), circuit=0)
            self.fronts[name] = self.fronts[name] + seen if name in self.fronts else seen
        for worker in workers:
            done = _without_shadow(read_model(worker.page, version.slot))
            self.workers[name] = self.workers[name] + done if name in self.workers else done

    def forget_unless_in(self, catalogue: Catalogue) -> None:
        """Versions that have no slot any more are in no metric; their counts begin anew when they come back."""
        names = {ModelVersion(version.name, version.version) for version in catalogue.versions if version.slot}
        self.fronts = {name: counts for name, counts in self.fronts.items() if name in names}
        self.workers = {name: counts for name, counts in self.workers.items() if name in names}


def _without_shadow(counts: ModelSnapshot) -> ModelSnapshot:
    """A shadow's counts are those of the slots that it has now, as in an experiment's status."""
    names = (field.name for field in dataclasses.fields(counts) if field.name.startswith("shadow_"))
    cleared: dict[str, Any] = dict.fromkeys(names, 0)
    return dataclasses.replace(counts, **cleared)

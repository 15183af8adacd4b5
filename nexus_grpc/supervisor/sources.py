"""What a scrape of the metrics reads, from the supervisor's state."""

import os
from collections.abc import Sequence

from nexus_grpc.supervisor.catalogue import Catalogue
from nexus_grpc.supervisor.envoy import Sidecar
from nexus_grpc.supervisor.metrics import MetricsSources, ModelVersion, ProcessSource, Role
from nexus_grpc.supervisor.past_counts import PastCounts
from nexus_grpc.supervisor.pool import FrontSlot, WorkerSlot
from nexus_grpc.supervisor.variant_metrics import Variant


def sources_of(
    fronts: Sequence[FrontSlot],
    workers: Sequence[WorkerSlot],
    catalogue: Catalogue,
    past: PastCounts,
    sidecar: Sidecar | None,
    started_at_s: float,
) -> MetricsSources:
    """The processes that live, the slots' names, and the counts that only the supervisor knows."""
    roles = ((Role.FRONT, fronts), (Role.WORKER, workers))
    living = [
        ProcessSource(role, slot.index, slot.child.pid, slot.page)
        for role, slots in roles
        for slot in slots
        if slot.child is not None
    ]
    if sidecar is not None and sidecar.pid is not None:
        living.append(ProcessSource(Role.ENVOY, 0, sidecar.pid))
    return MetricsSources(
        processes=(ProcessSource(Role.SUPERVISOR, 0, os.getpid()), *living),
        models={v.slot: ModelVersion(v.name, v.version) for v in catalogue.versions if v.slot and v.version},
        variants={v.slot: Variant(v.name, v.variant, v.version) for v in catalogue.versions if v.variant},
        past_fronts=past.fronts.copy(),
        past_workers=past.workers.copy(),
        models_ready_count=catalogue.ready_count,
        worker_restarts={worker.index: worker.restarts for worker in workers},
        envoy_restarts=sidecar.restarts if sidecar is not None else None,
        started_at_s=started_at_s,
    )

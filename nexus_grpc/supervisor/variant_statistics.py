"""What each variant of a running experiment has done so far, read off the processes' statistics pages; and kept in the
registry now and then, so that a restart continues the count.
"""

import time
from collections.abc import Sequence
from typing import Any

from nexus_grpc.ipc.stats import read_front_model, read_model
from nexus_grpc.supervisor import model_state
from nexus_grpc.supervisor.apart import apart
from nexus_grpc.supervisor.catalogue import Catalogue
from nexus_grpc.supervisor.lifecycle import Lifecycle
from nexus_grpc.supervisor.model_state import ModelState
from nexus_grpc.supervisor.pool import FrontSlot, WorkerSlot
from nexus_grpc.traffic.statistics import ShadowCounts, VariantStats

KEEP_SECONDS = 5.0


class VariantStatistics:
    """All experiments'. Counts are those of this run plus those that the registry kept of earlier ones."""

    def __init__(self, lifecycle: Lifecycle, fronts: Sequence[FrontSlot], workers: Sequence[WorkerSlot]) -> None:
        self._lifecycle = lifecycle
        self._fronts = fronts
        self._workers = workers
        # Model → (experiment, variant → what it had done before this run).
        self._before: dict[str, tuple[str, dict[str, VariantStats]]] = {}
        # Model → what each variant had done when the ramp's step began.
        self._step: dict[str, dict[str, VariantStats]] = {}
        self._kept_at_s: dict[str, float] = {}
        self._kept: dict[str, dict[str, VariantStats]] = {}

    def restore(self) -> None:
        """At the start: what the registry kept. An experiment whose counts cannot be read begins to count anew."""
        for state in self._lifecycle.states.values():
            with apart("an experiment's counts cannot be read: it counts anew", model=state.name):
                self._restore(state)

    def _restore(self, state: ModelState) -> None:
        experiment = state.traffic.experiment
        kept = self._lifecycle.registry.statistics(state.name) if experiment is not None else {}
        if experiment is not None and kept.get("experiment") == experiment.id:
            counts = {name: VariantStats.from_json(each) for name, each in kept["variants"].items()}
            step = {name: VariantStats.from_json(each) for name, each in kept.get("step", {}).items()}
            self._before[state.name], self._step[state.name] = (experiment.id, counts), step

    def begin(self, model: str, experiment: str) -> None:
        """An experiment begins: from nothing."""
        self._before[model] = (experiment, {})
        self._step.pop(model, None)
        self._kept.pop(model, None)

    def begin_step(self, model: str) -> None:
        """A ramp's step begins: since_step() counts from here."""
        self._step[model] = self.of(self._lifecycle.find(model))

    def of(self, state: ModelState) -> dict[str, VariantStats]:
        """By variant. Empty without an experiment."""
        experiment = state.traffic.experiment
        if experiment is None:
            return {}
        known, before = self._before.get(state.name, ("", {}))
        before = before if known == experiment.id else {}
        counts = {arm.variant: before.get(arm.variant, VariantStats()) for arm in experiment.arms}
        for arm in self._lifecycle.catalogue.arms_of(state.name):
            if arm.variant in counts and not arm.retiring:
                counts[arm.variant] = counts[arm.variant] + self._read(arm.slot)
        return counts

    def since_step(self, state: ModelState) -> dict[str, VariantStats]:
        """As `of`, from the ramp's present step on."""
        step = self._step.get(state.name, {})
        return {name: stats - step.get(name, VariantStats()) for name, stats in self.of(state).items()}

    def _read(self, slot: int) -> VariantStats:
        total = VariantStats()
        for front in self._fronts:
            total = total + VariantStats.from_snapshots(read_front_model(front.page, slot), None)
        for worker in self._workers:
            total = total + VariantStats.from_snapshots(None, read_model(worker.page, slot))
        return total

    def labels(self, state: ModelState) -> tuple[str, ...]:
        """What the buckets of `predictions` are called."""
        ready = model_state.loaded(self._lifecycle.catalogue, state.name)
        return next((version.prediction_labels for version in ready.values() if version.prediction_labels), ())

    def shadow(self, state: ModelState) -> ShadowCounts | None:
        """Counts of the shadow, over all workers; None without one."""
        catalogue: Catalogue = self._lifecycle.catalogue
        number = model_state.serving(state, catalogue)
        if state.traffic.shadow is None or number is None:
            return None
        slot = model_state.loaded(catalogue, state.name)[number].slot
        slots = [slot, *(arm.slot for arm in catalogue.arms_of(state.name) if arm.of == slot)]
        found = [read_model(worker.page, each) for worker in self._workers for each in slots]
        return ShadowCounts(
            compared=sum(each.shadow_compared for each in found),
            disagreed=sum(each.shadow_disagreed for each in found),
            errors=sum(each.shadow_errors for each in found),
            dropped=sum(each.shadow_dropped for each in found),
            primary_ns=sum(each.shadow_primary_ns for each in found),
            candidate_ns=sum(each.shadow_candidate_ns for each in found),
        )

    async def keep(self, state: ModelState) -> None:
        """Write a running experiment's counts into the registry, every few seconds and when they have changed."""
        experiment = state.traffic.experiment
        now_s = time.monotonic()
        if experiment is None or now_s - self._kept_at_s.get(state.name, 0.0) < KEEP_SECONDS:
            return
        counts = self.of(state)
        if counts == self._kept.get(state.name):
            return
        self._kept_at_s[state.name], self._kept[state.name] = now_s, counts
        kept: dict[str, Any] = {
            "experiment": experiment.id,
            "variants": {name: stats.to_json() for name, stats in counts.items()},
            "step": {name: stats.to_json() for name, stats in self._step.get(state.name, {}).items()},
        }
        registry = self._lifecycle.registry
        await self._lifecycle.registry_call(registry.save_statistics, state.name, kept)

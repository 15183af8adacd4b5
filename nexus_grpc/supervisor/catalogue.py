"""Which model versions there are, where they are to live, and how far they have got. The supervisor is its only writer.

version:  LOADING ──▶ READY          (at least one worker holds it)
             └──────▶ UNAVAILABLE    (with the reason)
"""

import base64
import dataclasses
from collections.abc import Sequence
from typing import Any

from nexus_grpc.ipc.stats import MODEL_SLOTS
from nexus_grpc.repository import ModelEntry

LOADING, READY, UNAVAILABLE = "LOADING", "READY", "UNAVAILABLE"
# A version that takes its worker down this often while loading is not tried again.
LOAD_CRASHES_MAX = 2


@dataclasses.dataclass(slots=True)
class Version:
    """One version of one model. `workers` is where it is to be loaded, `held_by` where it is."""

    entry: ModelEntry
    version: str
    path: str
    slot: int
    workers: frozenset[int]
    state: str = LOADING
    reason: str = ""
    metadata: str = ""
    config: str = ""
    held_by: set[int] = dataclasses.field(default_factory=set)
    load_crashes: int = 0

    @property
    def name(self) -> str:
        return self.entry.name

    def load_order(self, default_max_batch_size: int) -> dict[str, Any]:
        """The control message that has a worker load it."""
        config = self.entry.config
        return {
            "type": "load",
            "slot": self.slot,
            "name": self.name,
            "version": self.version,
            "path": self.path,
            "config": base64.b64encode(config.SerializeToString()).decode() if config is not None else None,
            "policy": dataclasses.asdict(self.entry.policy),
            "labels": dict(self.entry.labels),
            "warmup_files": {name: str(path) for name, path in self.entry.warmup_files.items()},
            "default_max_batch_size": default_max_batch_size,
        }

    def as_message(self) -> dict[str, Any]:
        """What fronts are told."""
        return {
            "name": self.name,
            "version": self.version,
            "state": self.state,
            "reason": self.reason,
            "slot": self.slot,
            "workers": sorted(self.held_by),
            "metadata": self.metadata,
            "config": self.config,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Placement:
    """Which workers there are: `shared` hold every model that asks for nothing else, a dedicated one holds one."""

    shared: int
    dedicated: tuple[str, ...]

    @property
    def workers(self) -> int:
        return self.shared + len(self.dedicated)


def place(entries: Sequence[ModelEntry], shared: int) -> Placement:
    """One worker per instance of each model with `isolation: dedicated`, after the shared ones."""
    dedicated: list[str] = []
    for entry in entries:
        if entry.policy.isolation == "dedicated" and entry.versions:
            dedicated += [entry.name] * max(1, entry.policy.instances)
    return Placement(shared, tuple(dedicated))


class Catalogue:
    """All versions, by slot."""

    def __init__(self, entries: Sequence[ModelEntry], placement: Placement) -> None:
        self._placement = placement
        self.versions: list[Version] = []
        for number, entry in enumerate(entries):
            workers = self._workers_of(entry, number)
            for item in entry.versions:
                self._add(entry, str(item.version), str(item.path.resolve()), workers)
            if not entry.versions:
                self._add(entry, "", "", frozenset())
                self.versions[-1].state = UNAVAILABLE
                self.versions[-1].reason = entry.error or "the model has no versions"

    def _add(self, entry: ModelEntry, version: str, path: str, workers: frozenset[int]) -> None:
        slot = len(self.versions) + 1  # slot 0 counts requests for unknown models
        added = Version(entry, version, path, slot, workers)
        if slot >= MODEL_SLOTS:
            added.slot, added.state = 0, UNAVAILABLE
            added.reason = f"the server holds at most {MODEL_SLOTS - 1} model versions"
        self.versions.append(added)

    def _workers_of(self, entry: ModelEntry, number: int) -> frozenset[int]:
        shared = self._placement.shared
        if entry.policy.isolation == "dedicated":
            own = [index for index, name in enumerate(self._placement.dedicated) if name == entry.name]
            return frozenset(shared + index for index in own)
        count = min(entry.policy.instances or shared, shared)
        return frozenset((number + offset) % shared for offset in range(count))

    def for_worker(self, worker: int) -> list[Version]:
        """What a worker is to load."""
        return [version for version in self.versions if worker in version.workers and version.state != UNAVAILABLE]

    def by_slot(self, slot: int) -> Version:
        return self.versions[slot - 1]

    def loaded(self, slot: int, worker: int, metadata: str, config: str) -> None:
        version = self.by_slot(slot)
        version.held_by.add(worker)
        version.state, version.reason = READY, ""
        version.metadata, version.config = metadata, config

    def failed(self, slot: int, reason: str, worker: int | None = None) -> None:
        """A version cannot be loaded: by this worker (others may hold it), or, without one, by any."""
        version = self.by_slot(slot)
        if worker is None:
            version.held_by.clear()
        else:
            version.held_by.discard(worker)
        if not version.held_by:
            version.state, version.reason = UNAVAILABLE, reason

    def worker_gone(self, worker: int) -> None:
        """A dead worker holds nothing. Versions keep their state: its successor loads them again."""
        for version in self.versions:
            version.held_by.discard(worker)

    def crashed_while_loading(self, slot: int) -> None:
        """A worker died while it loaded this version."""
        version = self.by_slot(slot)
        version.load_crashes += 1
        if version.load_crashes >= LOAD_CRASHES_MAX:
            self.failed(slot, f"loading it crashed the worker {version.load_crashes} times")

    @property
    def ready_count(self) -> int:
        return sum(version.state == READY for version in self.versions)

    def as_message(self) -> dict[str, Any]:
        return {"type": "routes", "catalogue": [version.as_message() for version in self.versions]}

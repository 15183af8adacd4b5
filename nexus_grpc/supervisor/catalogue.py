"""Which model versions are in memory, or on the way there, and where. The supervisor is its only writer.

    version:  LOADING ──▶ READY ──▶ (retiring) ──▶ gone
                 └──────▶ UNAVAILABLE    (with the reason)

Each version in memory has a slot: its number in rings, routing tables and statistics. An experiment's arm is a slot of
its own, which shares the version's session (`of`): so each arm has its own queue, batches and statistics, which begin
with the experiment. Slots are used again; `incarnation` tells one owner of a slot from the next. A version that is
loaded anew (its file changed) gets a slot beside the old one.
"""

import base64
import collections
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from nexus_grpc.ipc.errors import ModelNotServable
from nexus_grpc.ipc.stats import MODEL_SLOTS
from nexus_grpc.limits.circuit import State
from nexus_grpc.repository import ModelEntry

LOADING, READY, UNAVAILABLE, UNLOADED = "LOADING", "READY", "UNAVAILABLE", "UNLOADED"
# A version that takes its worker down this often while loading is not tried again.
LOAD_CRASHES_MAX = 2


@dataclasses.dataclass(frozen=True, slots=True)
class Findings:
    """What a trial found of a file that workers are to know.

    Attributes:
        batching_veto: why requests must not be batched, whatever is proved of the graph; empty: nothing against it.
        sample_runs: whether the model took the trial's sample, so that workers may run it, too.
    """

    batching_veto: str = ""
    sample_runs: bool = False


@dataclasses.dataclass(slots=True, eq=False)
class Version:
    """One version of one model, or an experiment's arm of it.

    Attributes:
        entry: the model as the repository had it when this was made.
        slot, incarnation: see above; slot 0 for what was never given one.
        workers: where it is to be loaded; `held_by`: where it is.
        variant, of: the arm's name and the slot that it shares a session with; empty and 0 for a plain version.
        fingerprint: of the model's files, to see that they have changed.
        version_name: what its uploader called it, if that was no number.
        findings: what its trial found, if there was one.
        retiring: it gets no more requests, and is on its way out.
        pending: workers that have not answered yet whether they could load it.
    """

    entry: ModelEntry
    version: str
    path: str
    slot: int
    workers: frozenset[int]
    incarnation: int = 0
    variant: str = ""
    of: int = 0
    fingerprint: str = ""
    state: str = LOADING
    reason: str = ""
    metadata: str = ""
    config: str = ""
    prediction_labels: tuple[str, ...] = ()
    held_by: set[int] = dataclasses.field(default_factory=set)
    pending: set[int] = dataclasses.field(default_factory=set)
    load_crashes: int = 0
    retiring: bool = False
    version_name: str = ""
    findings: Findings = Findings()

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def number(self) -> int:
        return int(self.version or 0)

    def load_order(self, default_max_batch_size: int) -> dict[str, Any]:
        """The control message that has a worker load it."""
        if self.variant:
            order = {"type": "alias", "slot": self.slot, "of": self.of, "variant": self.variant}
            return {**order, "incarnation": self.incarnation}
        config = self.entry.config
        return {
            "type": "load",
            "slot": self.slot,
            "incarnation": self.incarnation,
            "name": self.name,
            "version": self.version,
            # Its working directory is another one.
            "path": os.path.abspath(self.path),
            "config": base64.b64encode(config.SerializeToString()).decode() if config is not None else None,
            "policy": dataclasses.asdict(self.entry.policy),
            "labels": dict(self.entry.labels),
            "warmup_files": {name: os.path.abspath(path) for name, path in self.entry.warmup_files.items()},
            "default_max_batch_size": default_max_batch_size,
            "variant": "",
            "version_name": self.version_name,
            "batching_veto": self.findings.batching_veto,
            "sample_runs": self.findings.sample_runs,
        }

    def as_message(self) -> dict[str, Any]:
        """What fronts are told."""
        return {
            "name": self.name,
            "version": self.version,
            "version_name": self.version_name,
            "file": self.entry.relative_path(self.version),
            "state": self.state,
            "reason": self.reason,
            "slot": self.slot,
            "incarnation": self.incarnation,
            "variant": self.variant,
            "of": self.of,
            "workers": sorted(self.held_by),
            "metadata": self.metadata,
            "config": self.config,
            "max_in_flight": self.entry.policy.max_in_flight,
            "fallback": self.entry.policy.fallback_version,
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
    """All versions that have a slot, and what else is shown of models: broken ones, unloaded versions."""

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self._by_slot: dict[int, Version] = {}
        # Slot 0 counts requests for unknown models. First in, first out: a slot rests as long as possible.
        self._free = collections.deque(range(1, MODEL_SLOTS))
        self._incarnation = 0
        # What is not in memory, by model: shown, never routed to.
        self._shown: dict[str, list[Version]] = {}
        # The state of a slot's circuit (limits/circuit.py): whoever has the fronts' pages knows.
        self.circuit_of: Callable[[int], int] = lambda slot: 0
        # Models in the order in which they came, for placing those with few instances.
        self._numbers: dict[str, int] = {}

    @property
    def versions(self) -> list[Version]:
        """Those with a slot, arms included, and those that are only shown."""
        return [*self._by_slot.values(), *(version for shown in self._shown.values() for version in shown)]

    @property
    def listed(self) -> list[Version]:
        """Plain versions as people see them, by model and number; none that is on its way out."""
        plain = [version for version in self.versions if not version.variant and not version.retiring]
        return sorted(plain, key=lambda version: (version.name, version.number, version.incarnation))

    def add(self, entry: ModelEntry, version: str, path: str, fingerprint: str = "", version_name: str = "") -> Version:
        """A version to be loaded. Raises ModelNotServable when there is no slot, or no worker that it may live in."""
        workers = self._workers_of(entry)
        return self._put(Version(entry, version, path, 0, workers, fingerprint=fingerprint, version_name=version_name))

    def add_arm(self, base: Version, variant: str) -> Version:
        """An arm over a version in memory. Raises ModelNotServable when there is no slot."""
        arm = Version(base.entry, base.version, base.path, 0, base.workers, variant=variant, of=base.slot)
        arm.prediction_labels = base.prediction_labels
        return self._put(arm)

    def _put(self, version: Version) -> Version:
        if not self._free:
            raise ModelNotServable(f"the server holds at most {MODEL_SLOTS - 1} model versions; unload one first")
        self._incarnation += 1
        version.slot, version.incarnation = self._free.popleft(), self._incarnation
        self._by_slot[version.slot] = version
        return version

    def drop(self, version: Version) -> None:
        """It is out of every worker's memory; its slot may be used again."""
        if self._by_slot.pop(version.slot, None) is version:
            self._free.append(version.slot)

    def show(self, entry: ModelEntry, versions: Sequence[tuple[str, str, str]]) -> None:
        """What is known of a model beside what is in memory: (version, state, reason)."""
        self._shown[entry.name] = [
            Version(entry, number, "", 0, frozenset(), state=state, reason=reason) for number, state, reason in versions
        ]
        if not versions:
            del self._shown[entry.name]

    def forget(self, name: str) -> None:
        """A model is gone from the repository."""
        self._shown.pop(name, None)

    def _workers_of(self, entry: ModelEntry) -> frozenset[int]:
        shared = self._placement.shared
        if entry.policy.isolation == "dedicated":
            own = [index for index, name in enumerate(self._placement.dedicated) if name == entry.name]
            if not own:
                raise ModelNotServable("a model with `isolation: dedicated` gets its worker when the server starts")
            return frozenset(shared + index for index in own)
        number = self._numbers.setdefault(entry.name, len(self._numbers))
        count = min(entry.policy.instances or shared, shared)
        return frozenset((number + offset) % shared for offset in range(count))

    def for_worker(self, worker: int) -> list[Version]:
        """What a worker is to load: versions first, then arms, which need them."""
        wanted = [
            v for v in self._by_slot.values() if worker in v.workers and v.state != UNAVAILABLE and not v.retiring
        ]
        return sorted(wanted, key=lambda version: bool(version.variant))

    def by_slot(self, slot: int) -> Version | None:
        return self._by_slot.get(slot)

    def of_model(self, name: str) -> Iterator[Version]:
        """A model's plain versions with a slot."""
        return (v for v in list(self._by_slot.values()) if v.name == name and not v.variant)

    def circuit_name(self, version: Version) -> str:
        """The worst state of a version's circuits: its own and its arms'."""
        slots = [version.slot, *(arm.slot for arm in self.arms_of(version.name) if arm.of == version.slot)]
        return State(max(self.circuit_of(slot) for slot in slots)).name.lower()

    def arms_of(self, name: str) -> Iterator[Version]:
        """A model's arms."""
        return (v for v in list(self._by_slot.values()) if v.name == name and v.variant)

    def loaded(self, slot: int, worker: int, metadata: str, config: str, labels: Sequence[str] = ()) -> None:
        """A worker holds it. It is READY with the last of its workers that can have it ."""
        version = self._by_slot[slot]
        version.held_by.add(worker)
        version.pending.discard(worker)
        version.metadata, version.config, version.prediction_labels = metadata, config, tuple(labels)
        self._settle(version)

    def failed(self, slot: int, reason: str, worker: int | None = None) -> None:
        """A version cannot be loaded: by this worker (others may hold it), or, without one, by any."""
        version = self._by_slot.get(slot)
        if version is None:
            return
        if worker is None:
            version.held_by.clear()
            version.pending.clear()
        else:
            version.held_by.discard(worker)
            version.pending.discard(worker)
        if not version.held_by:
            version.reason = reason
        self._settle(version)

    def _settle(self, version: Version) -> None:
        if version.held_by and (version.state == READY or not version.pending):
            version.state, version.reason = READY, ""
        elif not version.held_by and not version.pending:
            version.state = UNAVAILABLE

    def worker_gone(self, worker: int) -> None:
        """A dead worker holds nothing. Versions keep their state: its successor loads them again."""
        for version in self._by_slot.values():
            version.held_by.discard(worker)

    def crashed_while_loading(self, slot: int) -> None:
        """A worker died while it loaded this version."""
        version = self._by_slot.get(slot)
        if version is None:
            return
        version.load_crashes += 1
        if version.load_crashes >= LOAD_CRASHES_MAX:
            self.failed(slot, f"loading it crashed the worker {version.load_crashes} times")

    @property
    def ready_count(self) -> int:
        return sum(version.state == READY and not version.variant for version in self._by_slot.values())

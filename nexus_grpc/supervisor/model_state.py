"""A model as the supervisor knows it: what lies in the repository, what the registry says, what is to be in memory.

Pure: no process, no file. lifecycle.py brings the world in line with it.
"""

import asyncio
import collections
import dataclasses
import os
import re
import time
from typing import Any

from nexus_grpc.ipc.errors import InvalidInput, UnknownModel
from nexus_grpc.registry.records import ModelRow, VersionRow
from nexus_grpc.repository import CONFIG_FILE, ModelEntry
from nexus_grpc.supervisor.catalogue import LOADING, READY, UNAVAILABLE, UNLOADED, Catalogue, Findings, Version
from nexus_grpc.supervisor.reasons import reason_of
from nexus_grpc.traffic import policy, residency
from nexus_grpc.traffic.policy import LINK_UNSEEN, ModelTraffic

_NUMBER = re.compile(r"[vV]?([1-9][0-9]{0,17})", re.ASCII)


@dataclasses.dataclass(slots=True, eq=False)
class ModelState:
    """One model.

    Attributes:
        entry: as the repository had it last; None when there is no folder.
        row, rows: the registry's record of the model and, by number, of its versions.
        traffic: which version answers; also in `row`.
        failures: why a version could not be loaded, by number; not tried again before its files change or one asks.
        tried: fingerprints of files that have passed a trial load, with what it found.
        loading: versions being loaded now.
        pinned: versions that somebody needs in memory until his change is made; how many do.
        current: where the `current` link led when it was last looked at; LINK_UNSEEN before that.
        chosen: the version that answers requests which name none, as it was decided last.
        lock: who holds it may change the model; never held during a load.
        load_lock: one load at a time.
        users: how many have it in hand; with none of them an unknown model is forgotten.
        on_request: only what was asked for is loaded of it (--model-control explicit without its name in --load-model).
        keep_s: how long versions that answered before stay in memory.
    """

    name: str
    on_request: bool = False
    keep_s: float = 0.0
    entry: ModelEntry | None = None
    row: ModelRow | None = None
    rows: dict[int, VersionRow] = dataclasses.field(default_factory=dict)
    traffic: ModelTraffic = dataclasses.field(default_factory=ModelTraffic)
    lock: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock)
    load_lock: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock)
    users: int = 0
    failures: dict[int, tuple[str, str]] = dataclasses.field(default_factory=dict)
    tried: dict[str, Findings] = dataclasses.field(default_factory=dict)
    loading: set[int] = dataclasses.field(default_factory=set)
    pinned: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    current: int | None = LINK_UNSEEN
    chosen: int | None = None

    @property
    def is_known(self) -> bool:
        """Whether it is in the repository or in the registry."""
        return self.entry is not None or self.row is not None

    def path_of(self, number: int) -> str:
        """The version's file. Raises UnknownModel when there is none."""
        for present in self.entry.present if self.entry is not None else ():
            if present.version == number:
                return str(present.path.resolve())
        raise self.unknown_version(number)

    def unknown_version(self, number: int) -> UnknownModel:
        """The error for a version that is not there."""
        return UnknownModel(f"model '{self.name}' has no version {number}; {self._known()}")

    def _known(self) -> str:
        numbers = ", ".join(str(number) for number in sorted(self.present))
        return f"there is: {numbers or 'none'}"

    @property
    def present(self) -> frozenset[int]:
        return frozenset(each.version for each in self.entry.present) if self.entry is not None else frozenset()

    def number_of(self, text: str) -> int:
        """The number that a version's name means: "2", "v2" or what its uploader called it.

        Raises InvalidInput or UnknownModel.
        """
        for number, row in self.rows.items():
            if text and row.version_name == text:
                return number
        match = _NUMBER.fullmatch(text)
        if match is None:
            raise InvalidInput(f"'{text}' is no version of model '{self.name}'; {self._known()}", field="version")
        return int(match[1])

    def name_of(self, number: int) -> str:
        row = self.rows.get(number)
        return row.version_name if row is not None else ""

    @property
    def by_policy(self) -> frozenset[int]:
        """The versions that the version policy selects."""
        return frozenset(each.version for each in self.entry.versions) if self.entry is not None else frozenset()

    def why_failed(self, number: int) -> str:
        """Why a version cannot be loaded as its files are now; empty when nothing is known against it."""
        fingerprint, reason = self.failures.get(number, ("", ""))
        return reason if reason and number in self.present and fingerprint == self.fingerprint(number) else ""

    def fingerprint(self, number: int) -> str:
        """Changes when the version's file does, or what all versions are loaded with: the model's configuration, and
        the labels and warm-up values that it names."""
        entry = self.entry
        if entry is None:
            return ""
        outputs = entry.config.output if entry.config is not None else ()
        labels = [entry.path / output.label_filename for output in outputs if output.label_filename]
        shared = (entry.path / CONFIG_FILE, *labels, *entry.warmup_files.values())
        return " ".join(map(file_fingerprint, (self.path_of(number), *map(str, shared))))


def file_fingerprint(path: str) -> str:
    """Modification time, size, inode and whether it may be read; empty when there is no such file."""
    try:
        found = os.stat(path)
    except OSError:
        return ""
    closed = "" if os.access(path, os.R_OK) else "-closed"
    return f"{found.st_mtime_ns:x}-{found.st_size:x}-{found.st_ino:x}{closed}"


def loaded(catalogue: Catalogue, name: str) -> dict[int, Version]:
    """A model's READY versions by number; of two of one number the later one."""
    return {
        version.number: version
        for version in sorted(in_memory(catalogue, name), key=lambda version: version.incarnation)
    }


def serving(state: ModelState, catalogue: Catalogue) -> int | None:
    """The version that answers requests which name none. Decided anew only by who changes the model (`choose`), or when
    it is no longer there: a version that is just being prepared takes no traffic."""
    if state.traffic.primary is None and state.chosen in set(loaded(catalogue, state.name)) & state.present:
        return state.chosen
    return choose(state, catalogue)


def choose(state: ModelState, catalogue: Catalogue) -> int | None:
    """Which version is to answer them, of those that are ready."""
    return residency.answering(record(state, catalogue), loaded(catalogue, state.name))


def record(state: ModelState, catalogue: Catalogue) -> residency.Record:
    """All that decides which versions belong in memory."""
    ready = loaded(catalogue, state.name)
    failed = {number for number in state.failures if number not in ready and state.why_failed(number)}
    return residency.Record(
        present=state.present,
        by_policy=state.by_policy,
        fallback=state.entry.policy.fallback_version if state.entry is not None else 0,
        marks={number: row.wanted for number, row in state.rows.items()},
        traffic=state.traffic,
        on_request=state.on_request,
        kept=policy.kept(state.traffic, time.time(), state.keep_s),
        failed=frozenset(failed),
    )


def routing(state: ModelState, catalogue: Catalogue) -> dict[str, Any]:
    """The model's part of the fronts' table (see front/routes.py)."""
    ready, number = loaded(catalogue, state.name), serving(state, catalogue)
    message: dict[str, Any] = {
        "serving": ready[number].slot if number is not None else 0,
        "serving_version": str(number) if number is not None else "",
        "balance": state.traffic.balance,
        "title": state.row.name if state.row is not None else "",
    }
    experiment = state.traffic.experiment
    if experiment is not None and number is not None:
        arms = [arm for arm in catalogue.arms_of(state.name) if arm.state == READY and not arm.retiring]
        slots = {arm.variant: arm.slot for arm in arms}
        message["arms"] = [slots.get(arm.variant, ready[number].slot) for arm in experiment.arms]
        message["assignment"], message["salt"] = experiment.assignment, experiment.id
        message["candidate_version"] = str(experiment.arms[1].version)
        sticky = experiment.sticky
        message["sticky"] = [sticky.kind, sticky.name] if sticky is not None else None
    return message


def not_in_memory(state: ModelState, catalogue: Catalogue) -> list[tuple[str, str, str]]:
    """(version, state, reason) of what is known of a model and not in memory, nor on the way there."""
    there = {version.number for version in catalogue.of_model(state.name) if not version.retiring}
    found, said = [], record(state, catalogue)
    for number in sorted(state.present - there):
        if number in state.loading:
            found.append((str(number), LOADING, ""))
        elif number in state.failures:
            found.append((str(number), UNAVAILABLE, state.failures[number][1]))
        else:
            found.append((str(number), UNLOADED, reason_of(said, number, state.rows.get(number))))
    memory = {str(number) for number in there} | ({""} if there else set())
    return found + [each for each in broken_ones(state) if each[0] not in memory]


def broken_ones(state: ModelState) -> list[tuple[str, str, str]]:
    """(version, state, reason) of what is asked for and has no file; of the model itself when none has."""
    if state.entry is None:
        return []
    if not state.present:
        return [("", UNAVAILABLE, state.entry.error or "the model has no versions")]
    return [(str(number), UNAVAILABLE, reason) for number, reason in sorted(state.entry.broken.items())]


def in_memory(catalogue: Catalogue, name: str) -> list[Version]:
    """A model's READY versions; also the older one of two of one number."""
    return [v for v in catalogue.of_model(name) if v.state == READY and not v.retiring]


def all_of(catalogue: Catalogue, name: str) -> dict[int, Version]:
    """A model's versions by number, ready or not."""
    return {version.number: version for version in catalogue.of_model(name)}

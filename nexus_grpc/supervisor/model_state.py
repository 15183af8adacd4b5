"""A model as the supervisor knows it: what lies in the repository, what the registry says, what is to be in memory.

Pure: no process, no file. lifecycle.py brings the world in line with it.
"""

import asyncio
import collections
import dataclasses
import os
import re
from collections.abc import Iterable
from typing import Any

from nexus_grpc.ipc.errors import InvalidInput, UnknownModel
from nexus_grpc.registry.records import ModelRow, VersionRow
from nexus_grpc.repository import CONFIG_FILE, ModelEntry
from nexus_grpc.supervisor.catalogue import LOADING, READY, UNAVAILABLE, UNLOADED, Catalogue, Version
from nexus_grpc.traffic.policy import ModelTraffic, versions

_NUMBER = re.compile(r"[vV]?([1-9][0-9]{0,17})", re.ASCII)


@dataclasses.dataclass(slots=True, eq=False)
class ModelState:
    """One model.

    Attributes:
        entry: as the repository had it last; None when there is no folder.
        row, rows: the registry's record of the model and, by number, of its versions.
        traffic: which version answers; also in `row`.
        lingering: versions that stay loaded for a while, for a rollback: until when (CLOCK_MONOTONIC seconds).
        failures: why a version could not be loaded, by number; not tried again before its files change or one asks.
        tried: fingerprints of files that have passed a trial load, with what it said against batching, if anything.
        loading: versions being loaded now.
        pinned: versions that somebody needs in memory until his change is made; how many do.
        current: where the `current` link led when it was last looked at.
        chosen: the version that answers requests which name none, as it was decided last.
        lock: who holds it may change the model; never held during a load.
        load_lock: one load at a time.
        users: how many have it in hand; with none of them an unknown model is forgotten.
    """

    name: str
    entry: ModelEntry | None = None
    row: ModelRow | None = None
    rows: dict[int, VersionRow] = dataclasses.field(default_factory=dict)
    traffic: ModelTraffic = dataclasses.field(default_factory=ModelTraffic)
    lock: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock)
    load_lock: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock)
    users: int = 0
    lingering: dict[int, float] = dataclasses.field(default_factory=dict)
    failures: dict[int, tuple[str, str]] = dataclasses.field(default_factory=dict)
    tried: dict[str, str] = dataclasses.field(default_factory=dict)
    loading: set[int] = dataclasses.field(default_factory=set)
    pinned: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    current: int | None = None
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

    def wanted(self, explicit: bool, started_with: Iterable[str] = ()) -> set[int]:
        """The versions that are to be in memory, of those that have a file.

        Args:
            explicit: only what was asked for (--model-control explicit).
            started_with: the models that --load-model names; "*" for all.
        """
        by_policy = self.by_policy
        if explicit and not {self.name, "*"} & set(started_with):
            by_policy = set()
        answering = by_policy | self._that_are("loaded") | versions(self.traffic)
        return ((answering | self._fallback if answering else answering) - self._that_are("unloaded")) & self.present

    @property
    def _fallback(self) -> set[int]:
        """The version that stands by for the others, if the configuration names one."""
        number = self.entry.policy.fallback_version if self.entry is not None else 0
        return {number} if number else set()

    @property
    def by_policy(self) -> set[int]:
        """The versions that the version policy selects."""
        return {each.version for each in self.entry.versions} if self.entry is not None else set()

    def _that_are(self, wanted: str) -> set[int]:
        return {number for number, row in self.rows.items() if row.wanted == wanted}

    @property
    def eligible(self) -> set[int]:
        """The versions that may answer requests which name none: of the policy's and those loaded by name."""
        return (self.by_policy | self._that_are("loaded")) - self._that_are("unloaded")

    def fingerprint(self, number: int) -> str:
        """Changes when the version's file, or the model's configuration, does."""
        if self.entry is None:
            return ""
        return f"{file_fingerprint(self.path_of(number))} {file_fingerprint(str(self.entry.path / CONFIG_FILE))}"


def file_fingerprint(path: str) -> str:
    """Modification time, size and inode; empty when there is no such file."""
    try:
        found = os.stat(path)
    except OSError:
        return ""
    return f"{found.st_mtime_ns:x}-{found.st_size:x}-{found.st_ino:x}"


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
    """Which version is to answer them: the primary, or else the newest that is ready of those that policy and people
    chose; when none of these is, the newest that is left, unless it is only there as a shadow."""
    ready = set(loaded(catalogue, state.name)) & state.present
    primary = state.traffic.primary
    if primary is not None:
        return primary if primary in ready else None
    shadow = {state.traffic.shadow.version} if state.traffic.shadow is not None else set()
    return max(ready & state.eligible or ready - shadow, default=None)


def routing(state: ModelState, catalogue: Catalogue) -> dict[str, Any]:
    """The model's part of the fronts' table (see front/routes.py)."""
    ready, number = loaded(catalogue, state.name), serving(state, catalogue)
    message: dict[str, Any] = {
        "serving": ready[number].slot if number is not None else 0,
        "serving_version": str(number) if number is not None else "",
        "balance": state.traffic.balance,
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
    found = []
    for number in sorted(state.present - there):
        if number in state.loading:
            found.append((str(number), LOADING, ""))
        elif number in state.failures:
            found.append((str(number), UNAVAILABLE, state.failures[number][1]))
        else:
            found.append((str(number), UNLOADED, "unloaded"))
    if state.entry is not None and not state.present and not there:
        found.append(("", UNAVAILABLE, state.entry.error or "the model has no versions"))
    return found


def in_memory(catalogue: Catalogue, name: str) -> list[Version]:
    """A model's READY versions; also the older one of two of one number."""
    return [v for v in catalogue.of_model(name) if v.state == READY and not v.retiring]


def all_of(catalogue: Catalogue, name: str) -> dict[int, Version]:
    """A model's versions by number, ready or not."""
    return {version.number: version for version in catalogue.of_model(name)}

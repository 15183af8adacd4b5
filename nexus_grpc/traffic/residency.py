"""Which versions of a model belong in memory, and which one answers: one rule, and everything follows it.

    Record ──wanted──▶ what is to be in memory      after each operation, each look at the files and each start
      │  └──answering──▶ who answers requests that name no version
      └──entrusted──▶ what an operation must have in memory before it is committed, or it is refused

A record is what the registry, the repository and the settings say; how it came about is of no account. So a restart, or
another order of the same decisions, gives the same.

Traffic comes first: the primary, an experiment's arms, a shadow and the version that stands by (`fallback_version`) are
wanted whatever their marks say. "unloaded" is a mark for versions without traffic; a model that was unloaded as a whole
is `closed`, and then none of its versions is wanted.
"""

import dataclasses
from collections.abc import Collection, Mapping

from nexus_grpc.traffic.policy import ModelTraffic, shares, versions

AUTO, LOADED, UNLOADED = "auto", "loaded", "unloaded"


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One model.

    Attributes:
        present: versions that have a file.
        by_policy: those that the version policy selects.
        fallback: the version that stands by for the others; 0 = none.
        marks: what people said of versions: loaded or unloaded; of all others, auto.
        traffic: which versions answer.
        on_request: the policy does not count: only what was asked for (--model-control explicit).
        kept: versions that stay for a while because they answered before.
        failed: versions that cannot be loaded as their files are now.
    """

    present: frozenset[int]
    by_policy: frozenset[int] = frozenset()
    fallback: int = 0
    marks: Mapping[int, str] = dataclasses.field(default_factory=dict)
    traffic: ModelTraffic = dataclasses.field(default_factory=ModelTraffic)
    on_request: bool = False
    kept: frozenset[int] = frozenset()
    failed: frozenset[int] = frozenset()

    def _marked(self, mark: str) -> frozenset[int]:
        return frozenset(number for number, said in self.marks.items() if said == mark)

    @property
    def refused(self) -> frozenset[int]:
        """Versions that somebody unloaded, or only stored."""
        return self._marked(UNLOADED)

    @property
    def eligible(self) -> frozenset[int]:
        """Versions that may answer without being named by anybody: the policy's, and those that were asked for."""
        by_policy = frozenset() if self.on_request else self.by_policy
        return ((by_policy | self._marked(LOADED)) - self.refused) & self.present


def needed(record: Record) -> frozenset[int]:
    """Versions that traffic names, as far as they have a file."""
    return frozenset() if record.traffic.closed else versions(record.traffic) & record.present


def wanted(record: Record) -> frozenset[int]:
    """Versions that are to be in memory."""
    if not _is_served(record):
        return frozenset()
    answers = answering(record, record.present - record.failed)
    found = needed(record) | record.eligible | record.kept | ({answers} if answers is not None else frozenset())
    return (found | ({record.fallback} if found else frozenset())) & record.present


def answering(record: Record, usable: Collection[int]) -> int | None:
    """Which of these versions is to answer requests that name none.

    The primary. Where nobody chose one, or it cannot be had: what answered before it, then the newest of those that
    policy and people want, then the newest that is left, but for what somebody unloaded or has as a shadow.
    """
    if not _is_served(record):
        return None
    traffic, there = record.traffic, frozenset(usable) & record.present
    if traffic.primary is not None:
        for number in (traffic.primary, *reversed(traffic.earlier)):
            if number in there and (number == traffic.primary or number not in record.refused):
                return number
    shadow = {traffic.shadow.version} if traffic.shadow is not None else set()
    return max(there & record.eligible or there - record.refused - shadow, default=None)


def _is_served(record: Record) -> bool:
    """Whether anything is to be in memory. On request: only if somebody asked, or chose a version at some time."""
    if record.traffic.closed is not None:
        return False
    return not record.on_request or record.traffic.primary is not None or bool(needed(record) | record.eligible)


def protected(record: Record) -> frozenset[int]:
    """Versions that may not be unloaded or deleted one by one."""
    return needed(record) | ({record.fallback} & record.present if record.traffic.closed is None else frozenset())


def entrusted(before: ModelTraffic, after: ModelTraffic) -> frozenset[int]:
    """Versions that get more traffic than before, or begin to: they must be in memory before that is committed. The end
    of an experiment entrusts nobody: what answered before answers, or what stands in for it."""
    if after.closed is not None:
        return frozenset()
    ends = before.experiment is not None and after.experiment is None and after.primary == before.primary
    old = {} if before.closed is not None else shares(before)
    found = set() if ends else {number for number, share in shares(after).items() if share > old.get(number, 0)}
    if after.shadow is not None and (before.closed is not None or after.shadow != before.shadow):
        found.add(after.shadow.version)
    return frozenset(found)


def mendable(traffic: ModelTraffic) -> frozenset[int]:
    """The versions of an experiment and a shadow."""
    return versions(dataclasses.replace(traffic, primary=None))


def mended(traffic: ModelTraffic, dead: Mapping[int, str]) -> ModelTraffic:
    """Without an experiment or a shadow that one of these versions is part of; the same if none is.

    Args:
        dead: versions without a file, or that cannot be loaded, with the reason.
    """
    experiment, shadow = traffic.experiment, traffic.shadow
    if experiment is not None and (gone := [arm.version for arm in experiment.arms if arm.version in dead]):
        outcome = f"the experiment ended: version {gone[0]} {dead[gone[0]]}"
        traffic = dataclasses.replace(traffic, experiment=None, last_outcome=outcome)
    if shadow is not None and shadow.version in dead:
        outcome = f"shadow ended: version {shadow.version} {dead[shadow.version]}"
        traffic = dataclasses.replace(traffic, shadow=None, last_outcome=outcome)
    return traffic

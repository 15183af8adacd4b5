"""What a model's versions do, told as plainly as possible: the rules of README and residency.py, written a second time.

With the default version policy (the newest), and versions that answered before kept for ever. State machines compare it
with the supervisor alone (tests/property/test_residency.py) and with a running server
(tests/chaos/test_residency_death.py).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

VERSIONS = (1, 2, 3)
versions = st.sampled_from(VERSIONS)
shares = st.sampled_from((0, 1, 50, 100))


class Refused(Exception):
    """The operation must not do anything."""


def must(condition: object) -> None:
    if not condition:
        raise Refused


@dataclasses.dataclass
class Plain:
    """One model, which has version 1 at first.

    Attributes:
        files: versions that have a file; bad: those of them that cannot be loaded; known: those that have a record.
        stored, asked: versions that somebody unloaded or only stored; that somebody loaded by name.
        kept: versions that answered before.
        chosen: who answered at last.
    """

    files: set[int] = dataclasses.field(default_factory=lambda: {1})
    bad: set[int] = dataclasses.field(default_factory=set)
    known: set[int] = dataclasses.field(default_factory=lambda: {1})
    stored: set[int] = dataclasses.field(default_factory=set)
    asked: set[int] = dataclasses.field(default_factory=set)
    kept: set[int] = dataclasses.field(default_factory=set)
    earlier: list[int] = dataclasses.field(default_factory=list)
    primary: int | None = None
    arms: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    closed: bool = False
    chosen: int | None = 1

    # --- what follows from it ---

    @property
    def good(self) -> set[int]:
        return self.files - self.bad

    @property
    def eligible(self) -> set[int]:
        newest = {max(self.files)} if self.files else set()
        return ((newest | self.asked) & self.files) - self.stored

    @property
    def named(self) -> set[int]:
        return {version for version, _ in self.arms} | ({self.primary} if self.primary else set())

    @property
    def answers(self) -> int | None:
        if self.closed:
            return None
        if self.primary in self.good:
            return self.primary
        before = [each for each in reversed(self.earlier) if each in self.good - self.stored]
        if self.primary is not None and before:
            return before[0]
        return max(self.good & self.eligible or self.good - self.stored, default=None)

    @property
    def memory(self) -> set[int]:
        if self.closed:
            return set()
        return (self.named | self.eligible | self.kept | {self.answers or 0}) & self.good

    # --- what people do ---

    def upload(self, version: int, store_only: bool, good: bool = True) -> None:
        must(version not in self.files and good)
        must(not (store_only and not self.closed and version in self.named))
        must(store_only or not self.closed or not self.named & self.bad)
        self.files.add(version)
        self.known.add(version)
        self._mark(version, stored=store_only)
        if not store_only:
            self._open()

    def load(self, version: int | None) -> None:
        must(self.files)
        number = max(self.files) if version is None else version
        must(number in self.good)
        must(not self.closed or not self.named & self.bad)
        self._mark(number, asked=version is not None)
        self._open()

    def unload(self, version: int | None) -> None:
        if version is None:
            must(not self.arms)
            self.stored = self.files | self.known
            self.asked, self.kept, self.closed = set(), set(), True
            return
        self._must_be_unused(version)
        self._mark(version, stored=True)
        self.kept.discard(version)

    def activate(self, version: int | None) -> None:
        serving = self.answers
        if version is None:
            would_be = dataclasses.replace(self, primary=None, arms=[], closed=False)
            must(would_be.answers is not None)
        else:
            must(version in self.good)
        if serving is not None and serving != version:
            self._remember(serving)
        self._answer_with(version)

    def start(self, version: int, share: int) -> None:
        serving = self.answers
        must(serving is not None and not self.arms and version in self.good and version != serving)
        self._answer_with(serving)
        self.arms = [(serving or 0, 100 - share), (version, share)]

    def split(self, share: int) -> None:
        must(self.arms and {version for version, _ in self.arms} <= self.good)
        (first, _), (second, _) = self.arms
        self.arms = [(first, 100 - share), (second, share)]

    def ramp(self, share: int) -> None:
        """Its first step."""
        must(0 < share < 100)
        self.split(share)

    def promote(self) -> None:
        must(self.arms and {version for version, _ in self.arms} <= self.good)
        (before, _), (candidate, _) = self.arms
        self._remember(before)
        self._answer_with(candidate)

    def abort(self) -> None:
        must(self.arms)
        self.arms = []

    def rollback(self) -> None:
        earlier = [each for each in self.earlier if each in self.files]
        while earlier and earlier[-1] == self.answers:
            earlier.pop()
        must(earlier and earlier[-1] in self.good)
        self._answer_with(earlier.pop())
        self.earlier = earlier

    def delete(self, version: int) -> None:
        self._must_be_unused(version)
        if self.primary == version:
            self.primary = self.answers
            self.stored.discard(self.primary or 0)
        for each in (self.files, self.bad, self.known, self.stored, self.asked, self.kept):
            each.discard(version)
        self.earlier = [each for each in self.earlier if each != version]

    # --- what happens to the files ---

    def put(self, version: int, good: bool) -> None:
        self.files.add(version)
        self.known.add(version)
        if not good:
            self.bad.add(version)

    def remove(self, version: int) -> None:
        self.files.discard(version)
        self.bad.discard(version)

    # --- the end of each ---

    def settle(self) -> None:
        if self.files and not {version for version, _ in self.arms} <= self.good:
            self.arms = []
        before, self.chosen = self.chosen, self.answers
        if before in self.files and before and self.chosen is not None and self.chosen != before:
            self.kept = (self.kept | {before}) - {self.chosen}
            if self.primary is None:
                self._remember(before)

    def _mark(self, version: int, *, stored: bool = False, asked: bool = False) -> None:
        for marked, yes in ((self.stored, stored), (self.asked, asked)):
            (marked.add if yes else marked.discard)(version)

    def _open(self) -> None:
        if self.closed:
            self.closed = False
            self.stored.discard(self.primary or 0)

    def _must_be_unused(self, version: int) -> None:
        must(version in self.files | self.known)
        must(self.closed or version not in self.named & self.files)
        must(version != self.answers)

    def _remember(self, version: int) -> None:
        self.earlier = [*(each for each in self.earlier if each != version), version]

    def _answer_with(self, version: int | None) -> None:
        self.primary, self.arms, self.closed = version, [], False
        self.stored.discard(version or 0)


@dataclasses.dataclass(frozen=True)
class Seen:
    """What can be seen of a model: versions in memory, who answers, and the shares of an experiment in percent."""

    memory: frozenset[int]
    answers: int | None
    arms: tuple[tuple[int, int], ...]


class ResidencyMachine(RuleBasedStateMachine):
    """Whatever is done, in whatever order: the server does what the plain model does, or refuses what that refuses.

    Subclasses have `real`, whose methods are called as the plain model's are, raise Refused, and have taken up what
    happened to the files when they return; `restart(kill)`; and `seen()`.
    """

    real: Any

    def __init__(self) -> None:
        super().__init__()
        self.plain = Plain()

    def both(self, what: str, *arguments: Any) -> None:
        outcomes = [_outcome(getattr(each, what), arguments) for each in (self.plain, self.real)]
        assert outcomes[0] == outcomes[1], f"{what}{arguments}: the plain model {outcomes[0]}, the server {outcomes[1]}"
        self.plain.settle()

    @invariant()
    def it_is_as_the_plain_model_says(self) -> None:
        seen = self.real.seen()
        assert seen == Seen(frozenset(self.plain.memory), self.plain.answers, tuple(self.plain.arms))
        if self.plain.files:
            taking = {version for version, share in seen.arms if share} | ({seen.answers} if seen.answers else set())
            assert taking <= seen.memory

    @rule(version=versions, store_only=st.booleans())
    def upload(self, version: int, store_only: bool) -> None:
        self.both("upload", version, store_only)

    @rule(version=st.none() | versions)
    def load(self, version: int | None) -> None:
        self.both("load", version)

    @rule(version=versions)
    def unload(self, version: int) -> None:
        self.both("unload", version)

    @rule()
    def unload_all(self) -> None:
        self.both("unload", None)

    @rule(version=st.none() | versions)
    def activate(self, version: int | None) -> None:
        self.both("activate", version)

    @precondition(lambda self: not self.plain.arms)
    @rule(version=versions, share=shares)
    def start(self, version: int, share: int) -> None:
        self.both("start", version, share)

    @precondition(lambda self: self.plain.arms)
    @rule(share=shares)
    def split(self, share: int) -> None:
        self.both("split", share)

    @precondition(lambda self: self.plain.arms)
    @rule(share=shares)
    def ramp(self, share: int) -> None:
        self.both("ramp", share)

    @precondition(lambda self: self.plain.arms)
    @rule()
    def promote(self) -> None:
        self.both("promote")

    @rule()
    def abort(self) -> None:
        self.both("abort")

    @precondition(lambda self: self.plain.earlier)
    @rule()
    def rollback(self) -> None:
        self.both("rollback")

    @rule(version=versions)
    def delete(self, version: int) -> None:
        self.both("delete", version)

    @rule(version=versions, good=st.sampled_from((True, True, False)))
    def put_by_hand(self, version: int, good: bool) -> None:
        if version not in self.plain.files:
            self.both("put", version, good)

    @rule(version=versions)
    def delete_by_hand(self, version: int) -> None:
        if version in self.plain.files:
            self.both("remove", version)

    @precondition(lambda self: self.may_restart())
    @rule(kill=st.booleans())
    def restart(self, kill: bool) -> None:
        before = self.real.seen()
        self.real.restart(kill)
        assert self.real.seen() == before, "a restart changed something"

    def may_restart(self) -> bool:
        return True


def _outcome(function: Callable[..., None], arguments: tuple[Any, ...]) -> str:
    try:
        function(*arguments)
    except Refused:
        return "refuses it"
    return "does it"

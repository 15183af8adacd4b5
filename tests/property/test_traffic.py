"""Shares are exact, as little as possible moves, a sticky key never flaps; and a ramp moves only what it must."""

import itertools
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from nexus_grpc.ipc.errors import NexusError
from nexus_grpc.traffic import policy
from nexus_grpc.traffic.assignment import ARMS_MAX, BUCKETS, bucket_of, decode, encode, initial, reassigned
from nexus_grpc.traffic.policy import ModelTraffic
from tests.effort import examples

NOW_S = 1_700_000_000.0


@st.composite
def weights(draw: st.DrawFn, arms: int | None = None) -> list[int]:
    """Basis points by arm, of any number of arms; some with nothing."""
    count = arms or draw(st.integers(1, ARMS_MAX))
    cuts = draw(st.lists(st.integers(0, BUCKETS), min_size=count - 1, max_size=count - 1).map(sorted))
    return [high - low for low, high in itertools.pairwise([0, *cuts, BUCKETS])]


histories = st.lists(weights(), min_size=1, max_size=6)


def tables(history: list[list[int]]) -> list[bytes]:
    """One table after the other."""
    found = [initial(history[0])]
    for each in history[1:]:
        found.append(reassigned(found[-1], each))
    return found


def moved(before: bytes, after: bytes) -> list[tuple[int, int]]:
    """(from, to) of each bucket that changed hands."""
    return [(old, new) for old, new in zip(before, after, strict=True) if old != new]


@given(histories)
@settings(deadline=None, max_examples=examples(150))
def test_shares_are_exact_after_any_changes(history: list[list[int]]) -> None:
    for shares, table in zip(history, tables(history), strict=True):
        assert len(table) == BUCKETS
        assert [table.count(arm) for arm in range(ARMS_MAX)] == [*shares, *[0] * (ARMS_MAX - len(shares))]
        assert decode(encode(table)) == table


@given(histories)
@settings(deadline=None, max_examples=examples(150))
def test_as_few_buckets_move_as_shares_changed(history: list[list[int]]) -> None:
    for (old, new), (before, after) in zip(
        itertools.pairwise(history), itertools.pairwise(tables(history)), strict=True
    ):
        width = max(len(old), len(new))
        old, new = old + [0] * (width - len(old)), new + [0] * (width - len(new))
        moves = moved(before, after)
        # What grew is what moved: less cannot be.
        assert len(moves) == sum(max(0, b - a) for a, b in zip(old, new, strict=True))
        # From those that shrank to those that grew, and nobody else.
        assert all(new[source] < old[source] and new[target] > old[target] for source, target in moves)


@given(histories, st.lists(st.binary(max_size=40), min_size=1, max_size=30), st.text(max_size=80))
@settings(deadline=None, max_examples=examples(150))
def test_a_sticky_key_keeps_its_variant_unless_that_shrinks(
    history: list[list[int]], keys: list[bytes], salt: str
) -> None:
    found = tables(history)
    for key in keys:
        bucket = bucket_of(key, salt)
        assert bucket == bucket_of(key, salt)
        for (old, new), (before, after) in zip(itertools.pairwise(history), itertools.pairwise(found), strict=True):
            source, target = before[bucket], after[bucket]
            if source < len(new) and new[source] >= old[source]:
                assert target == source


@given(st.lists(st.integers(0, BUCKETS), min_size=1, max_size=8).map(sorted), st.booleans())
@settings(deadline=None, max_examples=examples(150))
def test_a_share_that_only_rises_moves_no_key_twice(shares: list[int], falls: bool) -> None:
    """And one that only falls gives back each key once, for good."""
    path = shares[::-1] if falls else shares
    found = tables([[BUCKETS - share, share] for share in path])
    for bucket in range(0, BUCKETS, 7):
        arms = [table[bucket] for table in found]
        assert arms == sorted(arms, reverse=falls)


@given(st.lists(st.binary(min_size=1, max_size=20), min_size=50, max_size=200, unique=True))
@settings(deadline=None, max_examples=examples(50))
def test_a_ramp_from_5_to_25_percent_moves_only_the_20(keys: list[bytes]) -> None:
    begun = policy.start(ModelTraffic(), 1, [(2, 0)], policy.Sticky("header", "x-user"), NOW_S)
    first = policy.begin_ramp(begun, [500, 2_500], 60.0, (), 50, NOW_S)
    second = policy.advance_ramp(first, NOW_S)
    assert first.experiment is not None
    assert second.experiment is not None
    assert first.experiment.id == second.experiment.id == (begun.experiment and begun.experiment.id)
    before, after = decode(first.experiment.assignment), decode(second.experiment.assignment)
    assert moved(before, after) == [(0, 1)] * 2_000
    for key in keys:
        bucket = bucket_of(key, first.experiment.id)
        assert (before[bucket], after[bucket]) in ((0, 0), (1, 1), (0, 1))


changes = st.lists(
    st.one_of(
        st.tuples(st.just("split"), st.dictionaries(st.integers(1, 4), st.integers(0, BUCKETS), max_size=3)),
        st.tuples(st.just("ramp"), st.lists(st.integers(1, BUCKETS), min_size=1, max_size=4).map(sorted)),
        st.tuples(st.just("advance"), st.none()),
        st.tuples(st.just("start"), st.lists(st.integers(0, 5_000), min_size=1, max_size=3)),
        st.tuples(st.just("promote"), st.none() | st.integers(1, 5)),
        st.tuples(st.just("abort"), st.none()),
        st.tuples(st.just("activate"), st.none() | st.integers(1, 5)),
        st.tuples(st.just("rollback"), st.none()),
        st.tuples(st.just("shadow"), st.integers(2, 5)),
    ),
    max_size=15,
)


def changed(traffic: ModelTraffic, kind: str, value: Any) -> ModelTraffic:
    serving = traffic.primary or 1
    numbers = [number for number in range(1, 6) if number != serving]
    made: dict[str, Callable[[], ModelTraffic]] = {
        "split": lambda: policy.split(traffic, value),
        "ramp": lambda: policy.begin_ramp(traffic, value, 60.0, (), 1, NOW_S),
        "advance": lambda: policy.advance_ramp(traffic, NOW_S),
        "start": lambda: policy.start(traffic, serving, [*zip(numbers, value, strict=False)], None, NOW_S),
        "promote": lambda: policy.promote(traffic, value),
        "abort": lambda: policy.abort(traffic),
        "activate": lambda: policy.activate(traffic, serving, value),
        "rollback": lambda: policy.rollback(traffic, serving),
        "shadow": lambda: policy.with_shadow(traffic, policy.Shadow(value, 100)),
    }
    return made[kind]()


@given(changes)
@settings(deadline=None, max_examples=examples(300))
def test_whatever_is_done_the_policy_stays_whole(steps: list[tuple[str, Any]]) -> None:
    traffic = ModelTraffic()
    for kind, value in steps:
        try:
            traffic = changed(traffic, kind, value)
        except NexusError:
            continue
        assert ModelTraffic.from_json(traffic.to_json()) == traffic
        assert len(set(traffic.earlier)) == len(traffic.earlier)
        experiment = traffic.experiment
        if experiment is None:
            continue
        table = decode(experiment.assignment)
        assert [table.count(arm) for arm in range(len(experiment.arms))] == [
            arm.basis_points for arm in experiment.arms
        ]
        assert experiment.arms[0].version == traffic.primary
        assert policy.versions(traffic) >= {arm.version for arm in experiment.arms}
        if experiment.ramp is not None:
            assert experiment.arms[1].basis_points == experiment.ramp.steps[experiment.ramp.step]

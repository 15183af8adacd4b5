"""Which versions belong in memory, and which one answers: the rule, case by case."""

import dataclasses
from typing import Any

import pytest

from nexus_grpc.traffic import links, policy, residency
from nexus_grpc.traffic.policy import Closed, ModelTraffic, Shadow
from nexus_grpc.traffic.residency import LOADED, UNLOADED, Record

NOW_S = 1_700_000_000.0


def of(*present: int, traffic: ModelTraffic | None = None, **fields: Any) -> Record:
    """A record with the newest version selected, unless told otherwise."""
    given = {"by_policy": frozenset({max(present, default=0)}) & frozenset(present), **fields}
    return Record(frozenset(present), traffic=traffic or ModelTraffic(), **given)


def experiment(share: int, *, serving: int = 1, candidate: int = 2) -> ModelTraffic:
    return policy.start(ModelTraffic(), serving, [(candidate, share)], None, NOW_S)


def test_the_policys_versions_and_those_asked_for() -> None:
    assert residency.wanted(of(1, 2, 3)) == {3}
    assert residency.wanted(of(1, 2, 3, marks={1: LOADED})) == {1, 3}
    assert residency.wanted(of(1, 2, 3, by_policy=frozenset({2, 3}), marks={3: UNLOADED})) == {2}


@pytest.mark.parametrize("share", [0, 1, 10_000])
def test_an_arm_is_wanted_whatever_its_mark_says(share: int) -> None:
    record = of(1, 2, traffic=experiment(share), marks={2: UNLOADED, 1: UNLOADED})
    assert residency.wanted(record) == {1, 2} == residency.protected(record)
    promoted = dataclasses.replace(record, traffic=policy.promote(record.traffic, None))
    assert residency.wanted(promoted) == {2}
    assert residency.answering(promoted, {1, 2}) == 2


def test_a_version_that_is_only_stored_leaves_the_one_before() -> None:
    """Though the version policy selects it."""
    record = of(1, 2, marks={2: UNLOADED})
    assert residency.wanted(record) == {1}
    assert residency.answering(record, {1}) == 1
    assert residency.wanted(of(1, marks={1: UNLOADED})) == frozenset()


def test_a_shadow_and_a_fallback_are_wanted() -> None:
    traffic = ModelTraffic(primary=3, shadow=Shadow(1, 100))
    record = of(1, 2, 3, traffic=traffic, fallback=2, marks={1: UNLOADED, 2: UNLOADED})
    assert residency.wanted(record) == {1, 2, 3} == residency.protected(record)
    assert residency.wanted(of(1, 2, fallback=2, on_request=True)) == frozenset(), "it stands by for nobody"


def test_a_closed_model_wants_nothing_and_comes_back_as_it_was() -> None:
    traffic = ModelTraffic(primary=1, shadow=Shadow(2, 100))
    record = of(1, 2, 3, traffic=policy.close(traffic, "ada", "now"), marks={1: LOADED}, fallback=3)
    assert residency.wanted(record) == frozenset() == residency.protected(record)
    assert residency.answering(record, {1, 2, 3}) is None
    assert policy.reopen(record.traffic) == traffic
    assert residency.entrusted(record.traffic, traffic) == {1, 2}


def test_an_experiment_keeps_a_model_open() -> None:
    with pytest.raises(Exception, match="promote it first"):
        policy.close(experiment(5), "ada", "now")


def test_on_request() -> None:
    assert residency.wanted(of(1, 2, on_request=True)) == frozenset()
    assert residency.answering(of(1, 2, on_request=True), {1, 2}) is None
    assert residency.wanted(of(1, 2, on_request=True, marks={1: LOADED})) == {1}
    assert residency.wanted(of(1, 2, on_request=True, traffic=ModelTraffic(primary=1))) == {1}


def test_others_stand_in_for_what_cannot_be_loaded() -> None:
    chosen = ModelTraffic(primary=3, earlier=(1, 2))
    assert residency.wanted(of(1, 2, 3, traffic=chosen, failed=frozenset({3}))) == {2, 3}
    assert residency.answering(of(1, 2, 3, traffic=chosen), {1, 2}) == 2
    assert residency.answering(of(1, 2, 3, traffic=chosen), {1, 2, 3}) == 3, "back again"
    assert residency.wanted(of(1, traffic=chosen)) == {1}, "its file is gone"
    assert residency.wanted(of(1, 2, failed=frozenset({2}))) == {1, 2}
    assert residency.answering(of(1, 2, failed=frozenset({2}), marks={1: UNLOADED}), {1}) is None
    assert residency.answering(of(1, 2, traffic=ModelTraffic(shadow=Shadow(1, 1))), {1}) is None


def test_what_answered_before_is_kept_for_a_while() -> None:
    traffic = policy.replaced(ModelTraffic(primary=2), 1, 2, NOW_S)
    assert policy.kept(traffic, NOW_S + 9, 10) == {1}
    assert policy.kept(traffic, NOW_S + 10, 10) == frozenset()
    assert residency.wanted(of(1, 2, traffic=traffic, kept=frozenset({1}))) == {1, 2}
    back = policy.replaced(traffic, 2, 1, NOW_S + 1)
    assert policy.kept(back, NOW_S + 1, 10) == {2}
    assert policy.kept(policy.forgetting(back, [2]), NOW_S + 1, 10) == frozenset()
    assert policy.replaced(ModelTraffic(), 1, 2, NOW_S).earlier == (1,)


def test_who_gets_more_traffic_must_be_there() -> None:
    running, plain = experiment(500), ModelTraffic(primary=1)
    assert residency.entrusted(plain, running) == {2}
    assert residency.entrusted(running, policy.split(running, {2: 600})) == {2}
    assert residency.entrusted(running, policy.split(running, {2: 400})) == {1}
    assert residency.entrusted(running, policy.promote(running, None)) == {2}
    assert residency.entrusted(running, policy.abort(running)) == frozenset(), "that is never refused"
    assert residency.entrusted(running, policy.with_balance(running, "round_robin")) == frozenset()
    assert residency.entrusted(plain, policy.with_shadow(plain, Shadow(3, 1))) == {3}
    assert residency.entrusted(plain, policy.close(plain, "", "")) == frozenset()


def test_an_experiment_or_shadow_that_lost_a_version_ends() -> None:
    for version in (1, 2):
        ended = residency.mended(experiment(500), {version: "has no file any more"})
        assert (ended.experiment, ended.primary) == (None, 1)
        assert ended.last_outcome == f"the experiment ended: version {version} has no file any more"
    shadowed = policy.with_shadow(ModelTraffic(primary=1), Shadow(2, 5))
    assert residency.mended(shadowed, {2: "is gone"}).shadow is None
    for traffic in (experiment(500), shadowed):
        assert residency.mended(traffic, {3: "is gone"}) == traffic
        assert residency.mendable(traffic) >= {2}


def test_a_link_says_once_which_version_answers() -> None:
    seen = links.noted(ModelTraffic(primary=2), 1)
    assert not links.is_news(seen, 1), "somebody said otherwise since"
    assert links.is_news(seen, 3)
    assert not links.is_news(seen, 2), "that one answers"
    assert not links.is_news(seen, None)
    assert links.is_news(links.noted(seen, None), 1), "made anew"
    old = ModelTraffic.from_json({k: v for k, v in seen.to_json().items() if k not in ("link", "left", "closed")})
    assert not links.is_news(old, 1), "of before links were remembered"
    assert links.is_news(dataclasses.replace(old, primary=None), 1)


def test_json_brings_it_back() -> None:
    full = ModelTraffic(primary=2, closed=Closed("ada", "now"), left=(policy.Left(1, NOW_S),), link=2)
    assert ModelTraffic.from_json(full.to_json()) == full

"""Changes of a model's traffic policy: what each does, and what it refuses, which changes nothing."""

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from nexus_grpc.ipc.errors import InvalidInput, NexusError, StateConflict
from nexus_grpc.traffic import policy
from nexus_grpc.traffic.assignment import ARMS_MAX, BUCKETS, decode
from nexus_grpc.traffic.policy import Experiment, ModelTraffic, Shadow, Sticky

NOW_S = 1_700_000_000.5


def started(*shares: int, traffic: ModelTraffic | None = None, sticky: Sticky | None = None) -> ModelTraffic:
    """Version 1 answers; versions 2, 3, … are tried with these shares."""
    return policy.start(traffic or ModelTraffic(), 1, list(enumerate(shares, 2)), sticky, NOW_S)


def ramping(*steps: int) -> ModelTraffic:
    return policy.begin_ramp(started(0), steps, 60.0, ("p99<20ms",), 50, NOW_S)


def experiment_of(traffic: ModelTraffic) -> Experiment:
    assert traffic.experiment is not None
    return traffic.experiment


def shares_of(traffic: ModelTraffic) -> list[int]:
    """As the arms say, which is what the table holds."""
    experiment = experiment_of(traffic)
    shares = [arm.basis_points for arm in experiment.arms]
    table = decode(experiment.assignment)
    assert [table.count(arm) for arm in range(len(shares))] == shares
    return shares


# --- experiments ---


def test_an_experiment_starts() -> None:
    traffic = started(500, 1_000, sticky=Sticky("header", "x-user"))
    experiment = experiment_of(traffic)
    assert [(arm.variant, arm.version) for arm in experiment.arms] == [("A", 1), ("B", 2), ("C", 3)]
    assert shares_of(traffic) == [8_500, 500, 1_000]
    assert (traffic.primary, traffic.earlier, experiment.started_at_s) == (1, (), NOW_S)
    assert (experiment.sticky, experiment.ramp) == (Sticky("header", "x-user"), None)
    assert policy.versions(traffic) == {1, 2, 3}


def test_every_experiment_has_a_salt_of_its_own() -> None:
    assert len({experiment_of(started(500)).id for _ in range(100)}) == 100


def test_the_most_candidates() -> None:
    traffic = started(*[100] * (ARMS_MAX - 1))
    assert experiment_of(traffic).arms[-1].variant == "Z"
    assert shares_of(traffic)[0] == BUCKETS - 100 * (ARMS_MAX - 1)
    with pytest.raises(InvalidInput, match="1 to 25 candidates"):
        started(*[100] * ARMS_MAX)


@pytest.mark.parametrize(
    "candidates",
    [[], [(1, 500)], [(2, 500), (2, 500)], [(2, 500), (1, 500)], [(2, 10_001)], [(2, 9_000), (3, 1_001)]],
    ids=str,
)
def test_an_experiment_that_cannot_be(candidates: list[tuple[int, int]]) -> None:
    with pytest.raises(InvalidInput):
        policy.start(ModelTraffic(), 1, candidates, None, NOW_S)


def test_one_experiment_at_a_time() -> None:
    with pytest.raises(StateConflict, match=r"A: version 1, B: version 2.*promote or abort"):
        started(500, traffic=started(500))


def test_a_split() -> None:
    traffic = started(500, 1_000)
    assert shares_of(policy.split(traffic, {2: 2_000})) == [7_000, 2_000, 1_000]
    assert shares_of(policy.split(traffic, {3: 0})) == [9_500, 500, 0]
    assert shares_of(policy.split(traffic, {2: 4_000, 3: 6_000})) == [0, 4_000, 6_000]
    assert shares_of(policy.split(traffic, {1: 8_000, 2: 1_000, 3: 1_000})) == [8_000, 1_000, 1_000]
    assert experiment_of(policy.split(traffic, {2: 0})).id == experiment_of(traffic).id


def test_a_split_ends_a_ramp() -> None:
    assert experiment_of(policy.split(ramping(500, 2_500), {2: 1_000})).ramp is None


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ({4: 100}, "version 4 is no candidate of this experiment; candidates: 2, 3"),
        ({2: 9_001}, "sum up to 100.01 percent"),
        ({1: 9_000, 2: 500}, "version 1 would get 85"),
        ({1: 100}, "version 1 would get 85"),
    ],
    ids=str,
)
def test_a_split_that_cannot_be(shares: dict[int, int], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        policy.split(started(500, 1_000), shares)


def test_promotion() -> None:
    traffic = policy.promote(started(500), None)
    assert (traffic.primary, traffic.earlier, traffic.experiment) == (2, (1,), None)
    assert traffic.last_outcome == "version 2 was promoted over version 1"
    assert policy.promote(started(500, 500), 3).primary == 3
    assert policy.versions(traffic) == {2}


def test_a_promotion_that_cannot_be() -> None:
    with pytest.raises(InvalidInput, match="one of 2, 3"):
        policy.promote(started(500, 500), None)
    for version in (1, 4):
        with pytest.raises(InvalidInput, match=f"version {version} is no candidate"):
            policy.promote(started(500, 500), version)


def test_taking_back() -> None:
    traffic = policy.abort(started(500, 500), "at 5 %: too slow")
    assert (traffic.primary, traffic.earlier, traffic.experiment) == (1, (), None)
    assert traffic.last_outcome == "version 2, 3 was taken back: at 5 %: too slow"
    assert policy.abort(started(500)).last_outcome == "version 2 was taken back"
    # The next one begins with a clean slate.
    assert started(500, traffic=traffic).last_outcome == ""


@pytest.mark.parametrize(
    "change",
    [
        lambda traffic: policy.split(traffic, {2: 100}),
        lambda traffic: policy.begin_ramp(traffic, [500], 60.0, (), 50, NOW_S),
        lambda traffic: policy.advance_ramp(traffic, NOW_S),
        lambda traffic: policy.promote(traffic, None),
        lambda traffic: policy.abort(traffic),
    ],
    ids=["split", "begin_ramp", "advance_ramp", "promote", "abort"],
)
def test_nothing_can_be_done_to_an_experiment_that_is_not(change: Callable[[ModelTraffic], ModelTraffic]) -> None:
    with pytest.raises(StateConflict, match="no experiment runs"):
        change(ModelTraffic(primary=1))


# --- ramps ---


def test_a_ramp_takes_its_steps() -> None:
    traffic = ramping(500, 2_500, 10_000)
    assert shares_of(traffic) == [9_500, 500]
    for step, share in ((1, 2_500), (2, 10_000)):
        traffic = policy.advance_ramp(traffic, NOW_S + step)
        plan = experiment_of(traffic).ramp
        assert plan is not None
        assert (plan.step, plan.step_started_at_s, plan.state) == (step, NOW_S + step, "running")
        assert shares_of(traffic) == [BUCKETS - share, share]
    with pytest.raises(StateConflict, match="no further step"):
        policy.advance_ramp(traffic, NOW_S)


def test_a_ramp_needs_one_candidate() -> None:
    with pytest.raises(StateConflict, match="one candidate"):
        policy.begin_ramp(started(500, 500), [500], 60.0, (), 50, NOW_S)


@pytest.mark.parametrize("steps", [[], [0], [0, 500], [500, 500], [500, 400], [10_001], [-1]], ids=str)
def test_steps_that_do_not_rise(steps: list[int]) -> None:
    with pytest.raises(InvalidInput, match="steps must rise") as caught:
        policy.begin_ramp(started(500), steps, 60.0, (), 50, NOW_S)
    assert caught.value.field == "steps"


@pytest.mark.parametrize("seconds", [0.0, -1.0, 0.09, math.nan, math.inf, policy.RAMP_SECONDS_MAX + 1])
def test_a_ramp_of_no_or_endless_time(seconds: float) -> None:
    with pytest.raises(InvalidInput, match="every must be between"):
        policy.begin_ramp(started(500), [500], seconds, (), 50, NOW_S)


def test_a_ramp_needs_requests_and_guards_that_can_be_read() -> None:
    with pytest.raises(InvalidInput, match="min_requests"):
        policy.begin_ramp(started(500), [500], 60.0, (), 0, NOW_S)
    with pytest.raises(InvalidInput, match="p98"):
        policy.begin_ramp(started(500), [500], 60.0, ("p98<20ms",), 50, NOW_S)


# --- which version answers ---


def test_activation_remembers_what_answered() -> None:
    traffic = policy.activate(ModelTraffic(), 3, 2)
    assert (traffic.primary, traffic.earlier) == (2, (3,))
    assert policy.activate(traffic, 2, 2).earlier == (3,)
    newest = policy.activate(traffic, 2, None)
    assert (newest.primary, newest.earlier) == (None, (3, 2))
    assert policy.activate(ModelTraffic(), None, 1).earlier == ()


def test_activation_ends_an_experiment() -> None:
    traffic = policy.activate(started(500), 1, 5)
    assert (traffic.primary, traffic.experiment) == (5, None)
    assert traffic.last_outcome == "ended by activating version 5"
    assert policy.activate(traffic, 5, 1).last_outcome == traffic.last_outcome


def test_what_answered_before_is_remembered_once_and_not_for_ever() -> None:
    traffic, serving = ModelTraffic(), 0
    for version in [*range(1, 60), 50, 59]:
        traffic, serving = policy.activate(traffic, serving or None, version), version
    assert len(traffic.earlier) == policy.EARLIER_MAX
    assert traffic.earlier[-2:] == (59, 50)
    assert len(set(traffic.earlier)) == len(traffic.earlier)


def test_rolling_back() -> None:
    traffic = ModelTraffic(primary=3, earlier=(1, 2))
    for expected, earlier in ((2, (1,)), (1, ())):
        traffic = policy.rollback(traffic, traffic.primary)
        assert (traffic.primary, traffic.earlier) == (expected, earlier)
        assert traffic.last_outcome == f"rolled back to version {expected}"
    with pytest.raises(StateConflict, match="no earlier version"):
        policy.rollback(traffic, 1)


def test_rolling_back_passes_over_the_version_that_answers() -> None:
    assert policy.rollback(ModelTraffic(primary=None, earlier=(1, 2)), 2).primary == 1
    with pytest.raises(StateConflict, match="no earlier version"):
        policy.rollback(ModelTraffic(earlier=(2,)), 2)


def test_rolling_back_a_promotion_and_an_experiment() -> None:
    promoted = policy.promote(started(500), None)
    assert policy.rollback(promoted, 2).primary == 1
    again = policy.start(promoted, 2, [(3, 500)], None, NOW_S)
    back = policy.rollback(again, 2)
    assert (back.primary, back.experiment) == (1, None)


def test_a_version_that_answers_is_nobodys_shadow() -> None:
    shadow = Shadow(2, 1_000)
    traffic = policy.with_shadow(ModelTraffic(primary=1, earlier=(2,)), shadow)
    assert policy.versions(traffic) == {1, 2}
    assert policy.activate(traffic, 1, 2).shadow is None
    assert policy.activate(traffic, 1, 3).shadow == shadow
    assert policy.rollback(traffic, 1).shadow is None
    assert policy.promote(started(500, traffic=traffic), None).shadow is None
    assert policy.with_shadow(traffic, None).shadow is None


def test_balances() -> None:
    for balance in policy.BALANCES:
        assert policy.with_balance(ModelTraffic(), balance).balance == balance
    with pytest.raises(InvalidInput, match="least_busy, round_robin"):
        policy.with_balance(ModelTraffic(), "random")


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 0), (0.01, 1), (5, 500), (33.33, 3333), (99.99, 9999), (100, 10_000)]
)
def test_percents(percent: float, expected: int) -> None:
    assert policy.basis_points(percent) == expected


def test_every_percent_of_two_decimals_is_itself() -> None:
    assert [policy.basis_points(float(f"{number / 100:.2f}")) for number in range(BUCKETS + 1)] == [*range(BUCKETS + 1)]


@pytest.mark.parametrize("percent", [-0.01, 100.01, 0.005, 33.333, math.nan, math.inf, -math.inf])
def test_percents_that_are_none(percent: float) -> None:
    with pytest.raises(InvalidInput, match="percent") as caught:
        policy.basis_points(percent)
    assert caught.value.field == "percent"


# --- as JSON ---

EVERYTHING = dataclasses.replace(
    policy.begin_ramp(started(0, sticky=Sticky("parameter", "user")), [500, 10_000], 60.0, ("p99<20ms",), 50, NOW_S),
    earlier=(7, 1),
    shadow=Shadow(9, 100),
    balance="round_robin",
    last_outcome="ä",
)


@pytest.mark.parametrize("traffic", [ModelTraffic(), started(500, 500), ramping(500, 10_000), EVERYTHING])
def test_json_brings_it_back(traffic: ModelTraffic) -> None:
    assert ModelTraffic.from_json(json.loads(json.dumps(traffic.to_json()))) == traffic


@pytest.mark.parametrize("value", [{}, 5, "text", ["x"]], ids=str)
@pytest.mark.parametrize("key", ["experiment", "sticky", "ramp", "shadow", "arms"])
def test_json_that_it_did_not_write(key: str, value: Any) -> None:
    content = json.loads(json.dumps(EVERYTHING.to_json()))
    holder = content if key in content else content["experiment"]
    holder[key] = [value] if key == "arms" else value
    with pytest.raises((KeyError, TypeError, ValueError)):
        ModelTraffic.from_json(content)


def test_json_with_more_or_less_or_another_table() -> None:
    content = json.loads(json.dumps(EVERYTHING.to_json()))
    with pytest.raises(TypeError):
        ModelTraffic.from_json({**content, "more": 1})
    with pytest.raises(KeyError):
        ModelTraffic.from_json({})
    with pytest.raises(ValueError, match="buckets"):
        ModelTraffic.from_json({**content, "experiment": {**content["experiment"], "assignment": "0x1"}})


def test_what_is_refused_changes_nothing() -> None:
    before = started(500, 1_000)
    kept = before.to_json()
    refused: list[Callable[[], ModelTraffic]] = [
        lambda: policy.split(before, {2: 9_999}),
        lambda: policy.promote(before, None),
        lambda: policy.with_balance(before, ""),
        lambda: policy.rollback(before, 1),
    ]
    for change in refused:
        with pytest.raises(NexusError):
            change()
    assert before.to_json() == kept

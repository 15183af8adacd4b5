"""A ramp's next move."""

import dataclasses

import pytest

from nexus_grpc.ipc.snapshots import Histogram
from nexus_grpc.ipc.stats import LATENCY_BUCKETS
from nexus_grpc.traffic.policy import RampPlan
from nexus_grpc.traffic.ramp import GUARD_REQUESTS_MIN, Advance, Promote, RollBack, Wait, decide
from nexus_grpc.traffic.statistics import VariantStats

START_S, EVERY_S = 1_700_000_000.0, 60.0
OVER_S = START_S + EVERY_S
PLAN = RampPlan((500, 2_500, 10_000), EVERY_S, ("error_rate<5%", "mean<2x"), 50, 0, START_S)


def at(step: int, **changes: object) -> RampPlan:
    return dataclasses.replace(PLAN, step=step, **changes)  # type: ignore[arg-type]


def stats(requests: int, errors: int = 0, mean_ms: int = 1) -> VariantStats:
    latency = Histogram((requests, *[0] * (LATENCY_BUCKETS - 1)), mean_ms * 1_000_000 * requests)
    return VariantStats(requests, errors, latency)


BASELINE = stats(1_000)


def test_a_step_has_its_time() -> None:
    assert decide(PLAN, OVER_S - 0.001, BASELINE, stats(50)) == Wait("the step's time is not over")
    assert isinstance(decide(PLAN, OVER_S, BASELINE, stats(50)), Advance)
    # A server that was away for long takes one step, and then sees.
    assert isinstance(decide(PLAN, OVER_S + 1e6, BASELINE, stats(50)), Advance)


def test_a_clock_that_was_set_back_means_waiting() -> None:
    assert isinstance(decide(PLAN, START_S - 1e6, BASELINE, stats(50)), Wait)


def test_a_step_waits_for_requests() -> None:
    assert decide(PLAN, OVER_S, BASELINE, stats(49)) == Wait("49 of 50 requests in this step")
    assert decide(PLAN, OVER_S, VariantStats(), VariantStats()) == Wait("0 of 50 requests in this step")


def test_every_step_but_the_last_is_followed_by_the_next() -> None:
    assert decide(at(0), OVER_S, BASELINE, stats(50)) == Advance("all guards held at 5 % over 50 requests")
    assert decide(at(1), OVER_S, BASELINE, stats(50)) == Advance("all guards held at 25 % over 50 requests")
    assert decide(at(2), OVER_S, BASELINE, stats(70)) == Promote("all guards held at 100 % over 70 requests")


def test_a_last_step_below_everything_is_not_promoted() -> None:
    decision = decide(at(1, steps=(500, 2_550)), OVER_S, BASELINE, stats(50))
    assert decision == Wait(
        "all guards held at 25.5 % over 50 requests; the last step is below 100 %: promote or abort"
    )


def test_a_failed_guard_takes_the_candidate_back_at_once() -> None:
    for now_s in (START_S, OVER_S):
        decision = decide(at(1), now_s, BASELINE, stats(40, errors=4))
        assert decision == RollBack("at 25 %: error_rate<5% failed: error_rate is 10%, limit 5% (40 requests)")
    assert decide(at(2), OVER_S, BASELINE, stats(50, mean_ms=3)) == RollBack(
        "at 100 %: mean<2x failed: mean is 3 ms, limit 2 ms (50 requests)"
    )


@pytest.mark.parametrize(("min_requests", "enough"), [(50, GUARD_REQUESTS_MIN), (1_000, GUARD_REQUESTS_MIN), (5, 5)])
def test_a_guard_waits_for_a_few_requests(min_requests: int, enough: int) -> None:
    plan = at(0, min_requests=min_requests)
    assert isinstance(decide(plan, START_S, BASELINE, stats(enough - 1, errors=enough - 1)), Wait)
    assert isinstance(decide(plan, START_S, BASELINE, stats(enough, errors=enough)), RollBack)


def test_at_everything_there_is_no_first_variant_to_be_measured_by() -> None:
    assert isinstance(decide(at(2), OVER_S, VariantStats(), stats(50, mean_ms=3)), Promote)


def test_a_ramp_without_guards() -> None:
    assert isinstance(decide(at(2, guards=()), OVER_S, BASELINE, stats(50, errors=50)), Promote)

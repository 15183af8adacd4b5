"""A ramp's next move, decided from the plan, the clock and what both variants did in the present step."""

import dataclasses

from nexus_grpc.traffic.assignment import BUCKETS
from nexus_grpc.traffic.guards import parse_guards
from nexus_grpc.traffic.policy import RampPlan
from nexus_grpc.traffic.statistics import VariantStats

# A guard counts once the candidate has answered this many requests in a step, or min_requests if that is less.
GUARD_REQUESTS_MIN = 20


@dataclasses.dataclass(frozen=True, slots=True)
class Wait:
    """Nothing yet; `reason` says for what."""

    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Advance:
    """To the next step."""

    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Promote:
    """The last step held."""

    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class RollBack:
    """A guard failed."""

    reason: str


Decision = Wait | Advance | Promote | RollBack


def decide(plan: RampPlan, now_s: float, baseline: VariantStats, candidate: VariantStats) -> Decision:
    """What to do now.

    Args:
        now_s: seconds since the epoch.
        baseline, candidate: what they did since the step began.
    """
    if candidate.requests >= min(plan.min_requests, GUARD_REQUESTS_MIN):
        for guard in parse_guards(plan.guards):
            violation = guard.violation(baseline, candidate)
            if violation:
                share = plan.steps[plan.step] / 100
                return RollBack(f"at {share:g} %: {violation} ({candidate.requests} requests)")
    left_s = plan.step_started_at_s + plan.every_seconds - now_s
    if left_s > 0:
        return Wait("the step's time is not over")
    if candidate.requests < plan.min_requests:
        return Wait(f"{candidate.requests} of {plan.min_requests} requests in this step")
    share = plan.steps[plan.step] / 100
    held = f"all guards held at {share:g} % over {candidate.requests} requests"
    if plan.step + 1 < len(plan.steps):
        return Advance(held)
    if plan.steps[plan.step] == BUCKETS:
        return Promote(held)
    return Wait(f"{held}; the last step is below 100 %: promote or abort")

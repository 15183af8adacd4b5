"""A model's traffic policy: which versions answer the requests that name none. Values, and the changes between them.

    activate, rollback ──▶ no experiment ──start──▶ experiment ──promote──▶ no experiment, the candidate is primary
                              │  ▲   ▲                │  ▲ split, ramp ┘
                        close │  │   └──────abort─────┘
                              ▼  │ reopen, activate, rollback
                             closed

Every change is a function from one policy to the next; what it refuses changes nothing. Which versions are to be in
memory for it is residency.py's.
"""

import dataclasses
import math
import secrets
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from nexus_grpc.ipc.errors import InvalidInput, StateConflict
from nexus_grpc.traffic.assignment import ARMS_MAX, BUCKETS, decode, encode, initial, reassigned
from nexus_grpc.traffic.guards import parse_guards

BALANCES = ("least_busy", "round_robin", "least_latency")
EARLIER_MAX = 20
RAMP_SECONDS_MAX = 30 * 86_400.0
# Of a policy written before links were remembered.
LINK_UNSEEN = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Arm:
    """One variant: "A" is what answered before."""

    variant: str
    version: int
    basis_points: int


@dataclasses.dataclass(frozen=True, slots=True)
class Sticky:
    """Where a request carries its key: `kind` is header or parameter."""

    kind: str
    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class Shadow:
    """A version that gets copies of so many requests."""

    version: int
    basis_points: int


@dataclasses.dataclass(frozen=True, slots=True)
class RampPlan:
    """Shares of the candidate in basis points, rising; `step` is the index of the one that runs.

    `state` is running or waiting (for requests). Times are seconds since the epoch: a plan outlives the server.
    """

    steps: tuple[int, ...]
    every_seconds: float
    guards: tuple[str, ...]
    min_requests: int
    step: int
    step_started_at_s: float
    state: str = "running"
    reason: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Experiment:
    """`id` is also the salt of sticky keys; `assignment` the table of buckets as text (assignment.py)."""

    id: str
    arms: tuple[Arm, ...]
    sticky: Sticky | None
    assignment: str
    started_at_s: float
    ramp: RampPlan | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Closed:
    """The model was unloaded as a whole: by whom, and when (RFC 3339, UTC)."""

    by: str
    at: str


@dataclasses.dataclass(frozen=True, slots=True)
class Left:
    """A version that answered until then (seconds since the epoch)."""

    version: int
    at_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class ModelTraffic:
    """The whole policy.

    Attributes:
        primary: the version that answers; None = the newest ready one.
        earlier: the versions that answered before, newest last.
        last_outcome: how the last experiment ended, in words.
        closed: nobody answers, until the model is loaded again.
        left: when versions ceased to answer, for keeping them a while; the latest last.
        link: where the `current` link led when that was last taken into account; None = there was none.
    """

    primary: int | None = None
    earlier: tuple[int, ...] = ()
    experiment: Experiment | None = None
    shadow: Shadow | None = None
    balance: str = "least_busy"
    last_outcome: str = ""
    closed: Closed | None = None
    left: tuple[Left, ...] = ()
    link: int | None = None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "ModelTraffic":
        """Raises KeyError, TypeError or ValueError for what to_json() did not write."""
        values: dict[str, Any] = {"link": LINK_UNSEEN, **content}
        if values["experiment"] is not None:
            values["experiment"] = _experiment_of(values["experiment"])
        if values["shadow"] is not None:
            values["shadow"] = Shadow(**values["shadow"])
        if values.get("closed") is not None:
            values["closed"] = Closed(**values["closed"])
        values["earlier"] = tuple(values["earlier"])
        values["left"] = tuple(Left(**each) for each in values.get("left", ()))
        return cls(**values)


def _experiment_of(content: Mapping[str, Any]) -> Experiment:
    values: dict[str, Any] = dict(content)
    values["arms"] = tuple(Arm(**arm) for arm in values["arms"])
    if values["sticky"] is not None:
        values["sticky"] = Sticky(**values["sticky"])
    if values["ramp"] is not None:
        ramp = dict(values["ramp"])
        values["ramp"] = RampPlan(**{**ramp, "steps": tuple(ramp["steps"]), "guards": tuple(ramp["guards"])})
    decode(values["assignment"])
    return Experiment(**values)


def versions(traffic: ModelTraffic) -> frozenset[int]:
    """All versions that must stay loaded for it."""
    found = {traffic.primary} if traffic.primary is not None else set()
    if traffic.experiment is not None:
        found |= {arm.version for arm in traffic.experiment.arms}
    if traffic.shadow is not None:
        found.add(traffic.shadow.version)
    return frozenset(found)


def shares(traffic: ModelTraffic) -> dict[int, int]:
    """What versions that somebody chose get, in basis points; arms without a share are there with 0."""
    if traffic.experiment is not None:
        return {arm.version: arm.basis_points for arm in traffic.experiment.arms}
    return {traffic.primary: BUCKETS} if traffic.primary is not None else {}


def basis_points(percent: float) -> int:
    """0 to 100 percent, in steps of 0.01. Raises InvalidInput."""
    if not 0 <= percent <= 100 or not math.isclose(percent * 100, round(percent * 100), abs_tol=1e-6):
        raise InvalidInput(f"percent is {percent:g}; expected 0 to 100 with at most two decimals", field="percent")
    return round(percent * 100)


def start(
    traffic: ModelTraffic,
    serving: int,
    candidates: Sequence[tuple[int, int]],
    sticky: Sticky | None,
    now_s: float,
) -> ModelTraffic:
    """An experiment between the version that serves and (version, basis points) of each candidate."""
    if traffic.experiment is not None:
        names = ", ".join(f"{arm.variant}: version {arm.version}" for arm in traffic.experiment.arms)
        raise StateConflict(f"an experiment runs already ({names}): promote or abort it first")
    numbers = [version for version, _ in candidates]
    if not numbers or len(numbers) >= ARMS_MAX:
        raise InvalidInput(f"an experiment has 1 to {ARMS_MAX - 1} candidates")
    if serving in numbers or len(set(numbers)) < len(numbers):
        raise InvalidInput(
            f"version {serving} answers already; candidates must be other versions, each once",
            field="candidate_version",
        )
    shares = [share for _, share in candidates]
    weights = _weights(shares)
    arms = tuple(
        Arm(chr(ord("A") + index), version, weight)
        for index, (version, weight) in enumerate(zip((serving, *numbers), weights, strict=True))
    )
    experiment = Experiment(secrets.token_hex(8), arms, sticky, encode(initial(weights)), now_s)
    return dataclasses.replace(traffic, primary=serving, experiment=experiment, last_outcome="")


def _weights(shares: Sequence[int]) -> list[int]:
    """The first variant gets what the others leave."""
    if sum(shares) > BUCKETS:
        raise InvalidInput(f"the candidates' shares sum up to {sum(shares) / 100:g} percent; expected at most 100")
    return [BUCKETS - sum(shares), *shares]


def _running(traffic: ModelTraffic) -> Experiment:
    if traffic.experiment is None:
        raise StateConflict("no experiment runs")
    return traffic.experiment


def split(traffic: ModelTraffic, shares: Mapping[int, int]) -> ModelTraffic:
    """Other shares: basis points by candidate version; candidates that are not named keep theirs. Ends a ramp."""
    experiment = _running(traffic)
    candidates = experiment.arms[1:]
    unknown = set(shares) - {arm.version for arm in experiment.arms}
    if unknown:
        names = ", ".join(f"{arm.version}" for arm in candidates)
        raise InvalidInput(f"version {min(unknown)} is no candidate of this experiment; candidates: {names}")
    first = experiment.arms[0].version
    weights = _weights([shares.get(arm.version, arm.basis_points) for arm in candidates])
    if first in shares and shares[first] != weights[0]:
        raise InvalidInput(f"the shares must sum up to 100 percent; version {first} would get {weights[0] / 100:g}")
    return dataclasses.replace(traffic, experiment=_with_weights(experiment, weights, None))


def _with_weights(experiment: Experiment, weights: Sequence[int], ramp: RampPlan | None) -> Experiment:
    arms = tuple(
        dataclasses.replace(arm, basis_points=weight) for arm, weight in zip(experiment.arms, weights, strict=True)
    )
    table = reassigned(decode(experiment.assignment), weights)
    return dataclasses.replace(experiment, arms=arms, assignment=encode(table), ramp=ramp)


def begin_ramp(
    traffic: ModelTraffic,
    steps: Sequence[int],
    every_seconds: float,
    guards: Sequence[str],
    min_requests: int,
    now_s: float,
) -> ModelTraffic:
    """Take the first step of a ramp."""
    experiment = _running(traffic)
    if len(experiment.arms) != 2:
        raise StateConflict("a ramp needs an experiment with one candidate")
    if not steps or list(steps) != sorted(set(steps)) or steps[0] <= 0 or steps[-1] > BUCKETS:
        raise InvalidInput("steps must rise, above 0 and up to 100, such as 5,25,50,100", field="steps")
    if not 0.1 <= every_seconds <= RAMP_SECONDS_MAX:
        raise InvalidInput("every must be between 0.1 seconds and 30 days", field="every_seconds")
    if min_requests < 1:
        raise InvalidInput("min_requests must be at least 1", field="min_requests")
    parse_guards(guards)
    plan = RampPlan(tuple(steps), every_seconds, tuple(guards), min_requests, 0, now_s)
    return dataclasses.replace(traffic, experiment=_with_weights(experiment, _weights([steps[0]]), plan))


def advance_ramp(traffic: ModelTraffic, now_s: float) -> ModelTraffic:
    """Take a ramp's next step."""
    experiment = _running(traffic)
    if experiment.ramp is None or experiment.ramp.step + 1 >= len(experiment.ramp.steps):
        raise StateConflict("the ramp has no further step")
    plan = dataclasses.replace(experiment.ramp, step=experiment.ramp.step + 1, step_started_at_s=now_s, state="running")
    weights = _weights([plan.steps[plan.step]])
    return dataclasses.replace(traffic, experiment=_with_weights(experiment, weights, plan))


def promote(traffic: ModelTraffic, version: int | None) -> ModelTraffic:
    """A candidate becomes primary: the only one unless named."""
    experiment = _running(traffic)
    candidates = [arm.version for arm in experiment.arms[1:]]
    if version is None and len(candidates) > 1:
        raise InvalidInput(f"name the version to promote: one of {', '.join(map(str, candidates))}", field="version")
    chosen = candidates[0] if version is None else version
    if chosen not in candidates:
        raise InvalidInput(
            f"version {chosen} is no candidate; there is: {', '.join(map(str, candidates))}", field="version"
        )
    before = experiment.arms[0].version
    return dataclasses.replace(
        _without_shadow_of(traffic, chosen),
        primary=chosen,
        earlier=_remembering(traffic.earlier, before),
        experiment=None,
        last_outcome=f"version {chosen} was promoted over version {before}",
    )


def abort(traffic: ModelTraffic, reason: str = "") -> ModelTraffic:
    """Everything goes back to the first variant."""
    experiment = _running(traffic)
    names = ", ".join(str(arm.version) for arm in experiment.arms[1:])
    outcome = f"version {names} was taken back" + (f": {reason}" if reason else "")
    return dataclasses.replace(traffic, experiment=None, last_outcome=outcome)


def activate(traffic: ModelTraffic, serving: int | None, version: int | None) -> ModelTraffic:
    """Have a version answer; None = always the newest. Ends an experiment."""
    earlier = traffic.earlier
    if serving is not None and version != serving:
        earlier = _remembering(earlier, serving)
    outcome = f"ended by activating version {version or 'newest'}" if traffic.experiment is not None else ""
    base = traffic if version is None else _without_shadow_of(traffic, version)
    return dataclasses.replace(
        base,
        primary=version,
        earlier=earlier,
        experiment=None,
        last_outcome=outcome or traffic.last_outcome,
        closed=None,
    )


def rollback(traffic: ModelTraffic, serving: int | None) -> ModelTraffic:
    """The version that answered before the present one answers again. Ends an experiment."""
    earlier = list(traffic.earlier)
    while earlier and earlier[-1] == serving:
        earlier.pop()
    if not earlier:
        raise StateConflict(
            "there is no earlier version to go back to: no other one was active; activate one by its number"
        )
    chosen = earlier.pop()
    return dataclasses.replace(
        _without_shadow_of(traffic, chosen),
        primary=chosen,
        earlier=tuple(earlier),
        experiment=None,
        last_outcome=f"rolled back to version {chosen}",
        closed=None,
    )


def with_shadow(traffic: ModelTraffic, shadow: Shadow | None) -> ModelTraffic:
    return dataclasses.replace(traffic, shadow=shadow)


def close(traffic: ModelTraffic, by: str, at: str) -> ModelTraffic:
    """The model is unloaded as a whole. What was chosen stays chosen."""
    if traffic.experiment is not None:
        raise StateConflict("an experiment runs: abort or promote it first")
    return dataclasses.replace(traffic, closed=Closed(by, at), left=())


def reopen(traffic: ModelTraffic) -> ModelTraffic:
    return dataclasses.replace(traffic, closed=None)


def replaced(traffic: ModelTraffic, before: int, now: int, at_s: float) -> ModelTraffic:
    """A version answers instead of another. Where nobody chose either, that one is what a rollback goes back to."""
    left = tuple(each for each in traffic.left if each.version not in (before, now))
    earlier = traffic.earlier if traffic.primary is not None else _remembering(traffic.earlier, before)
    return dataclasses.replace(traffic, left=(*left, Left(before, at_s))[-EARLIER_MAX:], earlier=earlier)


def forgetting(traffic: ModelTraffic, numbers: Collection[int]) -> ModelTraffic:
    """These versions are not kept any longer."""
    return dataclasses.replace(traffic, left=tuple(each for each in traffic.left if each.version not in numbers))


def without(traffic: ModelTraffic, numbers: Collection[int]) -> ModelTraffic:
    """These versions are deleted: there is no way back to them."""
    earlier = tuple(each for each in traffic.earlier if each not in numbers)
    return dataclasses.replace(forgetting(traffic, numbers), earlier=earlier)


def kept(traffic: ModelTraffic, now_s: float, keep_s: float) -> frozenset[int]:
    """Versions that answered less than so many seconds ago."""
    return frozenset(each.version for each in traffic.left if each.at_s + keep_s > now_s)


def with_balance(traffic: ModelTraffic, balance: str) -> ModelTraffic:
    if balance not in BALANCES:
        raise InvalidInput(f'balance is "{balance}"; expected one of {", ".join(BALANCES)}', field="balance")
    return dataclasses.replace(traffic, balance=balance)


def _without_shadow_of(traffic: ModelTraffic, version: int) -> ModelTraffic:
    """A version that answers is nobody's shadow."""
    shadowed = traffic.shadow is not None and traffic.shadow.version == version
    return dataclasses.replace(traffic, shadow=None) if shadowed else traffic


def _remembering(earlier: Sequence[int], version: int) -> tuple[int, ...]:
    kept = [each for each in earlier if each != version]
    return (*kept, version)[-EARLIER_MAX:]

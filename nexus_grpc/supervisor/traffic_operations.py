"""Experiments as people run them: start, split, ramp, promote, abort, shadow; and the ramp's own steps.

The policy itself (nexus_grpc/traffic/) is pure; here a change is checked, its versions are loaded, it is committed, and
only then takes effect: in one table for each front.
"""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator
from typing import Any

from nexus_grpc import logs
from nexus_grpc.ipc.errors import InvalidInput, StateConflict
from nexus_grpc.supervisor.apart import apart
from nexus_grpc.supervisor.catalogue import Version
from nexus_grpc.supervisor.experiments import status
from nexus_grpc.supervisor.lifecycle import Lifecycle
from nexus_grpc.supervisor.model_state import ModelState
from nexus_grpc.supervisor.settling import SERVER_ACTOR
from nexus_grpc.supervisor.variant_statistics import VariantStatistics
from nexus_grpc.traffic import policy
from nexus_grpc.traffic import ramp as ramps
from nexus_grpc.traffic.guards import parse_guards
from nexus_grpc.traffic.policy import ModelTraffic, Sticky, basis_points
from nexus_grpc.traffic.statistics import VariantStats

RAMP_ACTOR = "ramp"
TICK_SECONDS = 0.5


class TrafficOperations:
    """One method per operation of nexus.v1.Traffic: (arguments, actor) → ExperimentStatus as JSON."""

    def __init__(self, lifecycle: Lifecycle, statistics: VariantStatistics) -> None:
        self._lifecycle = lifecycle
        self._statistics = statistics
        self._log = logs.logger()

    # --- operations ---

    async def setup(self, arguments: dict[str, Any], actor: str) -> dict[str, Any]:
        async with self._hold(arguments["model"], needs_experiment=False) as state:
            serving = self._serving(state)
            candidates = [(arguments["candidate_version"], arguments["percent"])]
            candidates += [(each["version"], each["percent"]) for each in arguments["more"]]
            if not arguments["candidate_version"]:
                text = "candidate_version is missing: it names the version to try"
                raise InvalidInput(text, field="candidate_version")
            shares = [(state.number_of(text), basis_points(percent)) for text, percent in candidates]
            sticky = _sticky(arguments.get("sticky"))
            policy.start(state.traffic, serving, shares, sticky, time.time())
        numbers = [number for number, _ in shares]
        async with self._lifecycle.prepared(state.name, *numbers), self._lifecycle.hold(state.name) as state:
            traffic = policy.start(state.traffic, self._serving(state), shares, sticky, time.time())
            detail = {"shares": {str(number): share / 100 for number, share in shares}}
            version = str(shares[0][0])
            return await self._commit(state, "experiment", actor, traffic, version=version, detail=detail)

    async def split(self, arguments: dict[str, Any], actor: str) -> dict[str, Any]:
        async with self._hold_arms(arguments["model"]) as state:
            candidate, given = _experiment(state).arms[1].version, arguments["shares"]
            if ("percent" in arguments) == bool(given):
                text = "expected either percent, the candidate's share, or shares by version"
                raise InvalidInput(text, field="percent")
            shares = {state.number_of(each["version"]): basis_points(each["percent"]) for each in given}
            shares = shares or {candidate: basis_points(arguments["percent"])}
            traffic = policy.split(state.traffic, shares)
            detail = {"shares": {str(number): share / 100 for number, share in shares.items()}}
            return await self._commit(state, "split", actor, traffic, detail=detail)

    async def ramp(self, arguments: dict[str, Any], actor: str) -> dict[str, Any]:
        async with self._hold_arms(arguments["model"]) as state:
            _experiment(state)
            guards = tuple(arguments["guards"])
            parse_guards(guards)
            traffic = policy.begin_ramp(
                state.traffic,
                tuple(basis_points(step) for step in arguments["steps"]),
                arguments["every_seconds"],
                guards,
                arguments["min_requests"] or 50,
                time.time(),
            )
            self._statistics.begin_step(state.name)
            detail = {"steps": arguments["steps"], "every_seconds": arguments["every_seconds"], "guards": list(guards)}
            return await self._commit(state, "ramp", actor, traffic, detail=detail)

    async def promote(self, arguments: dict[str, Any], actor: str) -> dict[str, Any]:
        async with self._hold_arms(arguments["model"]) as state:
            _experiment(state)
            number = state.number_of(arguments["version"]) if arguments["version"] else None
            traffic = policy.promote(state.traffic, number)
            version = str(traffic.primary)
            return await self._commit(state, "promote", actor, traffic, version=version)

    async def abort(self, arguments: dict[str, Any], actor: str) -> dict[str, Any]:
        async with self._hold(arguments["model"]) as state:
            _experiment(state)
            return await self._commit(state, "abort", actor, policy.abort(state.traffic))

    async def shadow(self, arguments: dict[str, Any], actor: str) -> dict[str, Any]:
        if "percent" not in arguments:
            raise InvalidInput("percent is missing: the share of requests to copy; 0 ends the shadow", field="percent")
        share = basis_points(arguments["percent"])
        async with self._hold(arguments["model"], needs_experiment=False) as state:
            if not share:
                return await self._shadow(state, None, 0, actor)
            number = state.number_of(arguments["candidate_version"])
            if number == self._serving(state):
                raise InvalidInput(f"version {number} answers already: a shadow is another version")
        async with self._lifecycle.prepared(state.name, number), self._lifecycle.hold(state.name) as state:
            return await self._shadow(state, number, share, actor)

    async def _shadow(self, state: ModelState, number: int | None, share: int, actor: str) -> dict[str, Any]:
        traffic = policy.with_shadow(state.traffic, policy.Shadow(number, share) if number is not None else None)
        detail = {"percent": share / 100}
        return await self._commit(state, "shadow", actor, traffic, version=str(number or ""), detail=detail)

    async def end_shadow(self, shadow: Version, worker: int) -> None:
        """It took a worker down: it would do so again."""
        async with self._lifecycle.hold(shadow.name) as state:
            if state.traffic.shadow is None or state.traffic.shadow.version != shadow.number:
                return
            reason = f"shadow ended: worker {worker} died while version {shadow.version} ran a copy"
            self._log.error("shadow ended", model=state.name, version=shadow.version, reason=reason)
            traffic = dataclasses.replace(policy.with_shadow(state.traffic, None), last_outcome=reason)
            detail = {"percent": 0, "reason": reason}
            await self._commit(state, "shadow", SERVER_ACTOR, traffic, version=shadow.version, detail=detail)

    async def balance(self, arguments: dict[str, Any], actor: str) -> dict[str, Any]:
        async with self._hold(arguments["model"], needs_experiment=False) as state:
            traffic = policy.with_balance(state.traffic, arguments["balance"])
            return await self._commit(state, "balance", actor, traffic, detail={"balance": arguments["balance"]})

    async def status(self, arguments: dict[str, Any], actor: str) -> dict[str, Any]:
        return await self._status(self._model(arguments["model"], needs_experiment=False))

    # --- common ---

    def _model(self, name: str, *, needs_experiment: bool = True) -> ModelState:
        """The model that is meant; the only one when none is named.

        Raises UnknownModel, InvalidInput or StateConflict.
        """
        if name:
            return self._lifecycle.find(name)
        states = [state for state in self._lifecycle.states.values() if state.entry is not None]
        running = [state for state in states if state.traffic.experiment is not None]
        if len(running) == 1:
            return running[0]
        if len(states) == 1 and not (needs_experiment and not running):
            return states[0]
        if needs_experiment and not running:
            raise StateConflict("no experiment runs: start one with POST /admin/ab/setup or `nexus ab start`")
        names = ", ".join(sorted(state.name for state in (running or states))[:20])
        raise InvalidInput(f'name the model: "model" is one of {names}', field="model")

    def _hold(self, name: str, *, needs_experiment: bool = True) -> contextlib.AbstractAsyncContextManager[ModelState]:
        return self._lifecycle.hold(self._model(name, needs_experiment=needs_experiment).name)

    @contextlib.asynccontextmanager
    async def _hold_arms(self, name: str) -> AsyncIterator[ModelState]:
        """With all versions of the experiment in memory: who gets more traffic is there. Raises NexusError."""
        state = self._model(name)
        arms = [arm.version for arm in _experiment(state).arms]
        async with self._lifecycle.prepared(state.name, *arms), self._lifecycle.hold(state.name) as held:
            yield held

    def _serving(self, state: ModelState) -> int:
        number = self._lifecycle.serving(state)
        if number is None:
            raise StateConflict(f"no version of model '{state.name}' answers requests: load one first")
        return number

    async def _commit(
        self,
        state: ModelState,
        action: str,
        actor: str,
        traffic: ModelTraffic,
        *,
        version: str = "",
        detail: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        before = state.traffic.experiment
        await self._lifecycle.commit(state, action, actor, version=version, detail=detail, traffic=traffic)
        await self._lifecycle.settle(state)
        if before is None and traffic.experiment is not None:
            self._statistics.begin(state.name, traffic.experiment.id)
        return await self._status(state)

    async def _status(self, state: ModelState) -> dict[str, Any]:
        variants = self._statistics.of(state)
        return await asyncio.to_thread(
            status,
            state.name,
            state.traffic,
            self._lifecycle.serving(state),
            variants,
            self._statistics.labels(state),
            self._statistics.shadow(state),
            time.time(),
        )

    # --- ramps ---

    async def run(self) -> None:
        """For ever: let ramps take their steps, and keep statistics over a restart."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            for state in list(self._lifecycle.states.values()):
                experiment = state.traffic.experiment
                if experiment is None or state.lock.locked():
                    continue
                with apart("a ramp could not take its step", model=state.name):
                    await self._statistics.keep(state)
                    if experiment.ramp is not None and experiment.ramp.state in ("running", "waiting"):
                        await self._step(state)

    async def _step(self, state: ModelState) -> None:
        async with self._lifecycle.hold(state.name) as held:
            state, experiment = held, held.traffic.experiment
            if experiment is None or experiment.ramp is None:
                return
            since = self._statistics.since_step(state)
            nothing = VariantStats()
            baseline, candidate = (since.get(arm.variant, nothing) for arm in experiment.arms[:2])
            decision = ramps.decide(experiment.ramp, time.time(), baseline, candidate)
            await self._follow(state, decision)

    async def _follow(self, state: ModelState, decision: ramps.Decision) -> None:
        if isinstance(decision, ramps.Wait):
            return
        if isinstance(decision, ramps.Advance):
            traffic = policy.advance_ramp(state.traffic, time.time())
            action = "ramp_step"
            self._statistics.begin_step(state.name)
        elif isinstance(decision, ramps.Promote):
            traffic, action = policy.promote(state.traffic, None), "promote"
        else:
            traffic, action = policy.abort(state.traffic, decision.reason), "abort"
        reason = getattr(decision, "reason", "")
        await self._commit(state, action, RAMP_ACTOR, traffic, detail={"reason": reason})


def _experiment(state: ModelState) -> policy.Experiment:
    if state.traffic.experiment is None:
        text = f"no experiment runs on model '{state.name}': start one with POST /admin/ab/setup or `nexus ab start`"
        raise StateConflict(text)
    return state.traffic.experiment


def _sticky(given: dict[str, str] | None) -> Sticky | None:
    header, parameter = (given or {}).get("header", ""), (given or {}).get("parameter", "")
    if header and parameter:
        raise InvalidInput("sticky is either by header or by parameter", field="sticky")
    if header:
        return Sticky("header", header.lower())
    return Sticky("parameter", parameter) if parameter else None

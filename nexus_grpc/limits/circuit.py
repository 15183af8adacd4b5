"""A circuit breaker: a model version that keeps failing is left alone for a while, then tried with a few requests.

    CLOSED     all requests pass                    enough of the window's requests failed     → OPEN
    OPEN       none passes                          open_ns have passed, a request comes       → HALF_OPEN
    HALF_OPEN  `probes` requests pass               one of them failed                         → OPEN
                                                    all of them went well                      → CLOSED

A failure is proved where the model did not run on a known good input either (workers/witness.py). Others are doubtful:
a crash may be the model's fault or its input's. No single caller may open a circuit for everybody, so a caller's
doubtful failures count as far as all others together have as many; and a caller whose probe failed so gets no further
one.

Pure: time is an argument. This module owns the state machine; one thread at a time (the dispatcher's turn).
The states are those of sony/gobreaker (https://github.com/sony/gobreaker); the numbers are those of the predecessor
distributed-ai-platform: at least 3 requests and 60 % failures, open for 30 s, 3 probes.
"""

import dataclasses
import enum
from collections.abc import Callable

from nexus_grpc.limits.buckets import SECOND_NS

# The window of requests that count, and the steps in which it moves.
WINDOW_NS = 10 * SECOND_NS
STEPS = 10
# Callers whose doubtful failures are told apart, in each step; more than that are taken for one.
DOUBTED_MAX = 64
_OTHERS = -1


class State(enum.IntEnum):
    """In the order of a gauge: 0 is well."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


@dataclasses.dataclass(frozen=True, slots=True)
class CircuitPolicy:
    """When a circuit opens and closes.

    Attributes:
        requests: that must have ended within the window before it may open.
        failures: share of them, 0 to 1, that opens it; 0 = never.
        open_ns: how long it stays open.
        probes: requests that must go well, one after the other or at once, before it closes.
        window_ns: how long a request that ended counts.
    """

    requests: int = 3
    failures: float = 0.6
    open_ns: int = 30 * SECOND_NS
    probes: int = 3
    window_ns: int = WINDOW_NS


class Circuit:
    """One model version's. `open` is what a front looks at for every request: False as long as all is well.

    Args:
        policy: when it opens and closes.
        changed: called with (circuit, old state, new state) for logs and metrics.

    Attributes:
        open: whether `allow` must be asked.
        opened_count: how many times it has opened.
    """

    __slots__ = (
        "_changed", "_doubted", "_ended", "_ended_sum", "_failed", "_failed_sum", "_opened_ns", "_passed", "_policy",
        "_probing_ns", "_step", "_step_ns", "_unlucky", "_well", "open", "opened_count", "state",
    )  # fmt: skip

    def __init__(self, policy: CircuitPolicy, changed: Callable[["Circuit", State, State], None] | None = None) -> None:
        self.state = State.CLOSED
        self.open = False
        self.opened_count = 0
        self._policy = policy
        self._changed = changed
        self._step_ns = max(1, policy.window_ns // STEPS)
        # Ended and failed requests of each step, and of all.
        self._ended, self._failed = [0] * STEPS, [0] * STEPS
        self._ended_sum = self._failed_sum = self._step = 0
        # Doubtful failures of each step, by caller; and the callers of such probes.
        self._doubted: list[dict[int, int]] = [{} for _ in range(STEPS)]
        self._unlucky: set[int] = set()
        self._opened_ns = self._probing_ns = 0
        # Probes that were let through, and that went well.
        self._passed = self._well = 0

    def allow(self, now_ns: int, caller: int = 0) -> bool:
        """Whether a request may pass. One that passes must be told of by ended(), doubtful() or dropped()."""
        if not self.open:
            return True
        if self.state is State.OPEN:
            if now_ns - self._opened_ns < self._policy.open_ns:
                return False
            self._probe_from(now_ns)
        elif now_ns - self._probing_ns >= self._policy.open_ns:
            # Probes that never ended must not keep it half open for good.
            self._probe_from(now_ns)
        if self._passed >= self._policy.probes or caller in self._unlucky:
            return False
        self._passed += 1
        return True

    def ended(self, failed: bool, now_ns: int, arrived_ns: int) -> None:
        """A request that had passed ended. `failed`: by the model's fault, which is proved.

        One that arrived before the circuit opened says nothing about how the model is now.
        """
        if not self.open:
            step = now_ns // self._step_ns
            if step != self._step:
                self._turn(step)
            at = step % STEPS
            self._ended[at] += 1
            self._ended_sum += 1
            if failed:
                self._failed[at] += 1
                self._failed_sum += 1
                self._judge(now_ns)
        elif self.state is State.HALF_OPEN and arrived_ns >= self._opened_ns:
            self._probed(failed, now_ns)

    def doubtful(self, caller: int, now_ns: int, arrived_ns: int) -> None:
        """A request that had passed failed, by the fault of the model or of what was asked; `caller`: any number."""
        if not self.open:
            step = now_ns // self._step_ns
            if step != self._step:
                self._turn(step)
            doubted = self._doubted[step % STEPS]
            caller = caller if caller in doubted or len(doubted) < DOUBTED_MAX else _OTHERS
            doubted[caller] = doubted.get(caller, 0) + 1
            self._judge(now_ns)
        elif self.state is State.HALF_OPEN and arrived_ns >= self._opened_ns:
            self._unlucky.add(caller)
            if len(self._unlucky) > 1:
                self._open_at(now_ns)
            else:
                self.dropped(arrived_ns)

    def dropped(self, arrived_ns: int) -> None:
        """A request that had passed ended without saying anything about the model: the client went away."""
        if self.state is State.HALF_OPEN and arrived_ns >= self._opened_ns and self._passed > self._well:
            self._passed -= 1

    def retry_after_s(self, now_ns: int) -> float:
        """Seconds until it lets a probe through; 0 when it is not open."""
        if self.state is not State.OPEN:
            return 0.0
        return max(0.0, (self._opened_ns + self._policy.open_ns - now_ns) / SECOND_NS)

    def _turn(self, step: int) -> None:
        """Time has gone on: what has left the window counts no more."""
        for gone in range(max(self._step + 1, step - STEPS + 1), step + 1):
            at = gone % STEPS
            self._ended_sum -= self._ended[at]
            self._failed_sum -= self._failed[at]
            self._ended[at] = self._failed[at] = 0
            self._doubted[at] = {}
        self._step = max(step, self._step)

    def _judge(self, now_ns: int) -> None:
        policy, doubted = self._policy, self._believed()
        failed, ended = self._failed_sum + doubted, self._ended_sum + doubted
        if ended >= policy.requests and policy.failures and failed >= policy.failures * ended:
            self._open_at(now_ns)

    def _believed(self) -> int:
        """How many of the window's doubtful failures count: a caller's as far as all others have as many."""
        callers: dict[int, int] = {}
        for doubted in self._doubted:
            for caller, count in doubted.items():
                callers[caller] = callers.get(caller, 0) + count
        if len(callers) < 2:
            return 0
        total = sum(callers.values())
        return min(total, 2 * (total - max(callers.values())))

    def _probed(self, failed: bool, now_ns: int) -> None:
        if failed:
            self._open_at(now_ns)
            return
        self._well += 1
        if self._well >= self._policy.probes:
            self._forget()
            self._become(State.CLOSED)

    def _probe_from(self, now_ns: int) -> None:
        self._probing_ns = now_ns
        self._passed = self._well = 0
        self._unlucky = set()
        self._become(State.HALF_OPEN)

    def _open_at(self, now_ns: int) -> None:
        self._opened_ns = now_ns
        self.opened_count += 1
        self._become(State.OPEN)

    def _forget(self) -> None:
        self._ended, self._failed = [0] * STEPS, [0] * STEPS
        self._ended_sum = self._failed_sum = 0
        self._doubted = [{} for _ in range(STEPS)]

    def _become(self, state: State) -> None:
        before, self.state = self.state, state
        self.open = state is not State.CLOSED
        if self._changed is not None and before is not state:
            self._changed(self, before, state)

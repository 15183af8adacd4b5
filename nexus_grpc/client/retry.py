"""When a failed call is tried again, and how long one waits first. The loop itself is stamina's."""

import dataclasses
import math
import random
import time
from typing import Any

import stamina

from nexus_grpc.client.errors import NexusClientError, Overloaded, Unavailable, invalid
from nexus_grpc.client.retry_budget import MAX_TOKENS, RetryBudget

# How grpc says that nobody was reached. Trying that again burdens no server, so it takes nothing from the budget.
_NOT_SENT = ("failed to connect to all addresses", "connections to all backends failing")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often and how patiently. Inference changes nothing on the server, so trying it again is safe.

    Tried again: UNAVAILABLE (a connection that failed or broke, a server that restarts, a model not ready yet) and
    RESOURCE_EXHAUSTED that says when to come back. Nothing else, and streams never. Before attempt n + 1 the client
    waits wait_initial_s · 2^(n-1), at most wait_max_s, times a random factor between 0.5 and 1, and never less than
    the server asked for: by default 1.5 to 3.1 s over all attempts where no server is reached. All attempts and waits
    share the call's timeout; a wait that would end after it is not begun, and the last error is raised at once.

    All calls of a client share a budget of retries (retry_budget.py): each attempt that fails takes a token out of
    `budget_tokens`, each that goes well gives a tenth of one back, and with half of them or fewer nothing is tried
    again (by default after four retries in a row). So a server that refuses everything is not asked more than once for
    each request. Where no server was reached at all, that takes nothing. `math.inf`: no such limit.

    `attempts` counts the first one: 1 means no retries. stamina's own switches (`stamina.set_active`, its hooks for
    logging and metrics) hold here too.
    """

    attempts: int = 6
    wait_initial_s: float = 0.1
    wait_max_s: float = 2.0
    budget_tokens: float = MAX_TOKENS

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.wait_initial_s < 0 or self.wait_max_s < 0:
            raise ValueError("attempts must be at least 1, and waits must not be negative")
        if not self.budget_tokens > 0:
            raise ValueError("budget_tokens must be positive")

    def wait_s(self, failures: int) -> float:
        """A random wait after so many failures (1 for the first)."""
        longest = min(self.wait_max_s, self.wait_initial_s * 2.0 ** min(failures - 1, 62))
        return longest * random.uniform(0.5, 1.0)


DEFAULT_RETRY = Retry()
NO_RETRY = Retry(attempts=1)


class Attempts:
    """The attempts of one call, their deadline, and the budget that they share with the client's other calls."""

    def __init__(self, policy: Retry, timeout_s: float, budget: RetryBudget | None = None) -> None:
        if not timeout_s > 0:
            raise invalid(f"timeout_s must be positive, got {timeout_s}")
        self._policy = policy
        self._budget = budget if budget is not None else RetryBudget(policy.budget_tokens)
        self._deadline_s = time.monotonic() + timeout_s
        self._failures = 0

    def remaining_s(self) -> float | None:
        """Seconds left for the attempt that begins now, as grpc takes it; None without a deadline."""
        return None if self._deadline_s == math.inf else max(0.0, self._deadline_s - time.monotonic())

    def contexts(self) -> Any:
        """stamina's iterator of one context manager per attempt, for `for` as for `async for`."""
        return stamina.retry_context(on=self._next_wait, attempts=self._policy.attempts, timeout=None)

    def succeeded(self) -> None:
        """The attempt went well."""
        self._budget.succeeded()

    def _next_wait(self, error: Exception) -> float | bool:
        """stamina's back-off hook: seconds to wait before the next attempt, or False for none."""
        self._failures += 1
        if not isinstance(error, NexusClientError) or not is_retryable(error):
            return False
        if not error.message.startswith(_NOT_SENT) and not self._budget.failed():
            return False
        wait_s = max(self._policy.wait_s(self._failures), error.retry_after_s or 0.0)
        return wait_s if time.monotonic() + wait_s < self._deadline_s else False


def is_retryable(error: NexusClientError) -> bool:
    """Whether asking again may help and can do no harm."""
    return isinstance(error, Unavailable) or (isinstance(error, Overloaded) and error.retry_after_s is not None)

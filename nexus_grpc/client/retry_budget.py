"""How many retries a client may make in all, so that retries never multiply an overload.

A budget of tokens for all calls of a client: a failure that could be retried takes one, a success gives a tenth back,
and retries are made only while more than half of the tokens are there. So a server that refuses everything gets each
request once, after the first few; and while some pass, at most one attempt in ten is a retry.
Source: https://github.com/grpc/proposal/blob/master/A6-client-retries.md, "Throttling Retry Attempts and Hedged RPCs"
(the numbers are those of its example).
"""

import math
import threading

MAX_TOKENS = 10.0
TOKEN_RATIO = 0.1


class RetryBudget:
    """One per client, for all its threads and tasks.

    Args:
        max_tokens: how many there are at first and at most; retries stop at half of them. `math.inf`: no budget.
        token_ratio: what a success gives back.

    Raises ValueError when max_tokens is not positive or token_ratio is negative.
    """

    def __init__(self, max_tokens: float = MAX_TOKENS, token_ratio: float = TOKEN_RATIO) -> None:
        if not max_tokens > 0 or not token_ratio >= 0:
            raise ValueError("max_tokens must be positive, and token_ratio must not be negative")
        self._max_tokens = max_tokens
        self._token_ratio = token_ratio
        self._tokens = max_tokens
        self._lock = threading.Lock()

    @property
    def tokens(self) -> float:
        """What is left."""
        return self._tokens

    def failed(self) -> bool:
        """A call failed in a way that could be retried; whether the budget allows it."""
        with self._lock:
            self._tokens = max(0.0, self._tokens - 1.0)
            return self._tokens > self._max_tokens / 2 or self._max_tokens == math.inf

    def succeeded(self) -> None:
        """A call went well."""
        if self._tokens < self._max_tokens:
            with self._lock:
                self._tokens = min(self._max_tokens, self._tokens + self._token_ratio)

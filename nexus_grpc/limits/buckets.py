"""Token buckets by GCRA, in whole nanoseconds.

A bucket is one number: the theoretical arrival time (TAT), when it will be full again. A request moves it on by the
rate's interval and is refused while it lies more than (burst - 1) intervals ahead. So between any two moments at most
burst + rate · time requests pass. A bucket whose TAT has passed is full: nothing tells it from one never used, and it
may be forgotten (shared.py does).
Source: https://en.wikipedia.org/wiki/Generic_cell_rate_algorithm (virtual scheduling).
"""

import dataclasses
import math
from typing import Protocol

MINUTE_NS = 60_000_000_000
SECOND_NS = 1_000_000_000
# burst · interval stays below this, so that a TAT always fits a 64-bit word.
_SPAN_MAX_NS = 1 << 60
# RateLimit headers, for gRPC metadata and REST alike.
Headers = tuple[tuple[str, str], ...]
# Without a burst of its own a bucket holds what its rate gives in ten seconds.
_BURST_PART_OF_A_MINUTE = 6


@dataclasses.dataclass(frozen=True, slots=True)
class Rate:
    """How fast a bucket fills, and how much it holds.

    Attributes:
        per_minute: as it was asked for; for people and headers.
        burst: requests that a full bucket lets through at once.
        interval_ns: from one request to the next at the full rate, rounded up.
        tolerance_ns: how far TAT may lie ahead of a request that is let through.
        headers: those that say what the limit is.
    """

    per_minute: float
    burst: int
    interval_ns: int
    tolerance_ns: int
    headers: tuple[tuple[str, str], tuple[str, str]]


def rate_of(per_minute: float, burst: int = 0) -> Rate:
    """The rate of so many requests in a minute; burst 0 means a sixth of them, at least 1.

    Raises ValueError when `per_minute` is not positive and finite or `burst` is negative.
    """
    if not 0 < per_minute < math.inf or burst < 0:
        raise ValueError(f"a rate needs a positive number of requests in a minute, got {per_minute} (burst {burst})")
    interval_ns = min(_SPAN_MAX_NS, math.ceil(MINUTE_NS / per_minute))
    burst = burst or max(1, int(per_minute / _BURST_PART_OF_A_MINUTE))
    burst = max(1, min(burst, _SPAN_MAX_NS // interval_ns))
    headers = (("ratelimit-limit", str(burst)), ("ratelimit-policy", f"{per_minute:g};w=60;burst={burst}"))
    return Rate(per_minute, burst, interval_ns, (burst - 1) * interval_ns, headers)


class Bucket(Protocol):
    """What all kinds of buckets do. Times are CLOCK_MONOTONIC."""

    @property
    def rate(self) -> Rate:
        """What it was made with."""

    def take(self, now_ns: int) -> int:
        """Take a token: 0 when there was one, else after how many nanoseconds there will be."""

    def put_back(self) -> None:
        """Undo a take that was for nothing, as something else refused the request."""

    def level_ns(self, now_ns: int) -> int:
        """After how many nanoseconds without a take it is full."""


class TokenBucket:
    """A bucket of one process. One thread at a time."""

    __slots__ = ("_interval_ns", "_tat_ns", "_tolerance_ns", "rate")

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self._interval_ns = rate.interval_ns
        self._tolerance_ns = rate.tolerance_ns
        self._tat_ns = 0

    def take(self, now_ns: int) -> int:
        """Take a token: 0 when there was one, else after how many nanoseconds there will be."""
        tat_ns = self._tat_ns
        if tat_ns < now_ns:
            tat_ns = now_ns
        wait_ns = tat_ns - now_ns - self._tolerance_ns
        if wait_ns > 0:
            return wait_ns
        self._tat_ns = tat_ns + self._interval_ns
        return 0

    def put_back(self) -> None:
        """Undo a take that was for nothing, as something else refused the request."""
        self._tat_ns = max(0, self._tat_ns - self._interval_ns)

    def level_ns(self, now_ns: int) -> int:
        """After how many nanoseconds without a take it is full."""
        return max(0, self._tat_ns - now_ns)


def remaining(bucket: Bucket, now_ns: int) -> int:
    """Requests that it would let through at once."""
    rate = bucket.rate
    full_ns = rate.tolerance_ns + rate.interval_ns
    return max(0, (full_ns - bucket.level_ns(now_ns)) // rate.interval_ns)


def rate_headers(bucket: Bucket, now_ns: int, refused: bool = False) -> Headers:
    """The headers that tell a client where it stands, with answers and refusals alike.

    The limit is the burst: what "remaining" counts down from; the rate stands in the policy. The reset is when all of
    it will be there again, not the next request (that is Retry-After), as in other servers that go by GCRA.

    Args:
        refused: nothing remains for this client, also where a part of the burst is kept for other servers.

    Sources: draft-ietf-httpapi-ratelimit-headers-06 (RateLimit-Limit, -Remaining, -Reset in seconds, -Policy);
    https://github.com/brandur/redis-cell#response (what GCRA makes of them).
    """
    level_ns = bucket.level_ns(now_ns)
    rate = bucket.rate
    left = 0 if refused else max(0, (rate.tolerance_ns + rate.interval_ns - level_ns) // rate.interval_ns)
    limit, policy = rate.headers
    return limit, ("ratelimit-remaining", str(left)), ("ratelimit-reset", str(-(-level_ns // SECOND_NS))), policy

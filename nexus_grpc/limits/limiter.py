"""What a front asks before it takes a request: whether the caller's and the model's rates allow one more.

`take_both` asks; it does not raise: a refusal is a wait, which `rate_limited` makes an error of. `standing` tells a
client where it is afterwards.
"""

from typing import Protocol

from nexus_grpc.ipc.errors import RateLimited
from nexus_grpc.limits.buckets import SECOND_NS, Bucket, Headers, Rate, rate_headers, rate_of, remaining
from nexus_grpc.limits.shared import AloneBucket, BucketTable

# Buckets that are looked up by name. They may be forgotten at any time: what they hold is in the table.
BUCKETS_MAX = 16_384
# A client that comes back at once only finds the same.
RETRY_MIN_S = 0.001


class Share(Protocol):
    """What shares limits between servers: redis_share.RedisShare, which only those import that have a Redis."""

    def bucket(self, name: str, rate: Rate, local: AloneBucket) -> Bucket:
        """The bucket of that name; `local` decides while the others are out of reach."""


class Limiter:
    """One per front. With a table that is shared, or with Redis, any thread; with one that is not, the turn's holder.

    Args:
        table: the server's buckets.
        share: where several servers share their limits.
    """

    def __init__(self, table: BucketTable, share: Share | None = None) -> None:
        self._table = table
        self._share = share
        # name → bucket, and what it was asked for with.
        self._buckets: dict[str, tuple[Bucket, float, int]] = {}

    def bucket(self, name: str, per_minute: float, burst: int = 0) -> Bucket | None:
        """The bucket of that name: None for a rate of 0, which is no limit. `burst` 0: a sixth of the rate.

        Names of callers and of models must differ ("key:…", "model:…"). Raises ValueError for a rate that is none.
        """
        if not per_minute:
            return None
        known = self._buckets.get(name)
        if known is not None and known[1] == per_minute and known[2] == burst:
            return known[0]
        rate = rate_of(per_minute, burst)
        local = self._table.bucket(name, rate)
        bucket: Bucket = local if self._share is None else self._share.bucket(name, rate, local)
        if len(self._buckets) >= BUCKETS_MAX:
            self._buckets.clear()
        self._buckets[name] = bucket, per_minute, burst
        return bucket


def take_both(caller: Bucket | None, model: Bucket | None, now_ns: int) -> tuple[Bucket, int] | None:
    """Take a token from each that there is; None when that went well, else who refused and for how long (ns).

    A request that the model's limit refuses costs its caller nothing.
    """
    if caller is not None and (wait_ns := caller.take(now_ns)):
        return caller, wait_ns
    if model is not None and (wait_ns := model.take(now_ns)):
        if caller is not None:
            caller.put_back()
        return model, wait_ns
    return None


def standing(caller: Bucket | None, model: Bucket | None, now_ns: int) -> Headers:
    """The headers of whichever has less left; none where there is neither."""
    if model is None:
        return rate_headers(caller, now_ns) if caller is not None else ()
    if caller is None or remaining(model, now_ns) < remaining(caller, now_ns):
        return rate_headers(model, now_ns)
    return rate_headers(caller, now_ns)


def rate_limited(whose: str, bucket: Bucket, wait_ns: int, now_ns: int) -> RateLimited:
    """The error of a refused request, with retry_after_s and its headers.

    Args:
        whose: such as "caller 'key:7f'" or "model 'iris'".
    """
    wait_s = max(RETRY_MIN_S, wait_ns / SECOND_NS)
    rate = bucket.rate
    error = RateLimited(
        f"the limit of {rate.per_minute:g} requests per minute (at most {rate.burst} at once) of {whose} is used up;"
        f" try again in {wait_s:.3g} s",
        retry_after_s=wait_s,
    )
    error.headers = rate_headers(bucket, now_ns, refused=True)
    return error

"""Rate limits that several servers share through Redis, without a round trip in any request's way.

A thread lends tokens to this process's buckets ahead of need and reports what they have spent (leases.py has the rules
and why the limit is exact). It asks while something is in use, many buckets in one round trip: at most every
GAP_S, at least every ROUND_NS; and once in HEARTBEAT_S otherwise, which is how servers know how many they are.

Redis keeps, for each bucket, a hash: `t` (the TAT of what was spent) and a field for each borrower (tokens, end of the
loan), in microseconds of the Redis server's clock, the only one that counts. Keys are hashes of the buckets' names, as
these may name people. Needs Redis 5 or Valkey, not a cluster. What Redis forgets (a restart without persistence) it is
told by whoever remembers.

Redis away: the local buckets decide at once, from what this server has let through, until it is back. No error text of
the driver is passed on: it may quote the URL and its password.
"""

import dataclasses
import hashlib
import math
import secrets
import threading
import time
from collections.abc import Callable, Sequence

import redis
import redis.backoff
import redis.retry

from nexus_grpc.limits.buckets import Rate
from nexus_grpc.limits.leases import (
    LEASE_NS,
    ROUND_NS,
    Answer,
    Desk,
    LeasedBucket,
    Report,
    credit_of,
)
from nexus_grpc.limits.shared import AloneBucket

KEY_PREFIX = "nexus:limit:"
SERVERS_KEY = "nexus:limits:servers"
# No two round trips closer than this: what bounds the thread's share of a core.
GAP_S = 0.005
HEARTBEAT_S = 1.0
# A server that is silent for so long counts no more.
PRESENCE_US = 5_000_000
# Redis answers within a millisecond; one that takes this long is as good as away.
TIMEOUT_S = 0.25
RECONNECT_S = (0.1, 0.25, 0.5, 1.0)
# Buckets in one round trip: bounds how long the script keeps Redis from others (some 10 µs each).
BATCH = 128
US = 1000

# KEYS: the servers, then buckets. ARGV: this server, presence, loan (µs), then for each bucket
# interval (µs), burst, used, keep, want, level (µs), credit.
# Returns {servers, then for each bucket granted, wait (µs), level (µs), overdrawn}.
SCRIPT = """
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local me, presence, loan = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
redis.call('ZADD', KEYS[1], string.format('%.0f', now + presence), me)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
-- A clock that went back must not keep the dead alive for as long.
redis.call('ZREMRANGEBYSCORE', KEYS[1], string.format('(%.0f', now + 2 * presence), '+inf')
redis.call('PEXPIRE', KEYS[1], math.ceil(presence / 1000))
local servers = redis.call('ZCARD', KEYS[1])
local answer = {servers}
for i = 2, #KEYS do
  local key, at = KEYS[i], 3 + (i - 2) * 7
  local interval, burst, used = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local keep, want, level = tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5]), tonumber(ARGV[at + 6])
  local credit = tonumber(ARGV[at + 7])
  local tat, lent, idle = 0, 0, servers
  local fields = redis.call('HGETALL', key)
  for f = 1, #fields, 2 do
    if fields[f] == 't' then
      tat = tonumber(fields[f + 1])
    elseif fields[f] ~= me then
      local tokens, till = string.match(fields[f + 1], '(%d+) (%d+)')
      if tonumber(till) <= now or tonumber(till) > now + 2 * loan then
        used = used + tonumber(tokens)
        redis.call('HDEL', key, fields[f])
      else
        lent = lent + tonumber(tokens)
        idle = idle - 1
      end
    end
  end
  -- Bounded, for a clock that went back.
  tat = math.min(math.max(tat, now), now + (burst + servers) * interval)
  tat = math.max(tat, now + level) + used * interval
  if want > 0 then
    idle = idle - 1
  end
  -- The others' credit, and that of this server where it wants to leave.
  local reserve = math.min(math.floor(burst / 2), math.max(0, idle) * credit)
  local free = burst - reserve - lent - (tat - now) / interval
  -- The doubles above have a quarter of a microsecond: no whole token may be lost to that.
  local granted = math.max(keep, math.min(want, math.floor(free + 0.25 / interval)))
  local stays = want > 0 or free < 0
  if stays then
    redis.call('HSET', key, me, string.format('%.0f %.0f', granted, now + loan))
  else
    redis.call('HDEL', key, me)
  end
  redis.call('HSET', key, 't', string.format('%.3f', tat))
  redis.call('PEXPIRE', key, math.ceil((tat - now + 2 * loan) / 1000))
  answer[#answer + 1] = granted
  answer[#answer + 1] = math.ceil(math.max(0, granted + 1 - free) * interval)
  answer[#answer + 1] = math.ceil(tat - now)
  answer[#answer + 1] = stays and 1 or 0
end
return answer
"""


class ShareUnusable(ValueError):
    """The URL is none that Redis can be reached by. The text does not quote it."""


@dataclasses.dataclass(frozen=True, slots=True)
class ShareStatistics:
    """What has happened since the start.

    Attributes:
        up: whether Redis answers now.
        servers: limiters that share through it, this one included.
        rounds, failures: round trips that were answered, and that were not.
        local_takes: requests that the local buckets decided, as Redis was away or slow.
        outages: times that Redis was lost, or was not there at first.
    """

    up: bool
    servers: int
    rounds: int
    failures: int
    local_takes: int
    outages: int


class RedisShare:
    """Lends tokens to this process's buckets. Built once; `start()` starts its thread, a daemon.

    Args:
        url: redis://:password@host:port/database, rediss:// for TLS, unix://path.
        changed: called in the thread with (up, what happened) whenever Redis comes or goes, also at first.
        seen: called in the thread with the statistics, now and then: at least every HEARTBEAT_S or so.

    Raises ShareUnusable when the URL is wrong.
    """

    def __init__(
        self,
        url: str,
        changed: Callable[[bool, str], None],
        seen: Callable[[ShareStatistics], None] = lambda statistics: None,
    ) -> None:
        self._redis = _client(url)
        self._changed, self._seen = changed, seen
        self._me = secrets.token_hex(8)
        self._sha = hashlib.sha1(SCRIPT.encode()).hexdigest()
        self._desk = Desk(self._wake)
        self._something, self._urgent = threading.Event(), threading.Event()
        self._running = True
        self._told: bool | None = None
        self._tries = self._rounds = self._failures = self._outages = 0
        self._last_ns = 0
        # Buckets that are reported some time without being used.
        self._open: dict[str, LeasedBucket] = {}
        self._thread = threading.Thread(target=self._run, name="redis-share", daemon=True)

    def start(self) -> None:
        """Begin to share. Until Redis has answered, the local buckets decide."""
        self._thread.start()

    def close(self) -> None:
        """Give back what is lent and end the thread. Waits for it, at most as long as a round trip may take."""
        self._running = False
        self._something.set()
        self._urgent.set()
        if self._thread.is_alive():
            self._thread.join(4 * TIMEOUT_S)

    def bucket(self, name: str, rate: Rate, local: AloneBucket) -> LeasedBucket:
        """The bucket of that name; `local` decides while Redis is away."""
        digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        return self._desk.bucket(KEY_PREFIX + digest, rate, local)

    def statistics(self) -> ShareStatistics:
        """For metrics and `status`."""
        desk = self._desk
        return ShareStatistics(desk.up, desk.servers, self._rounds, self._failures, desk.local_takes, self._outages)

    def _wake(self, urgent: bool) -> None:
        if not self._something.is_set():
            self._something.set()
        if urgent and not self._urgent.is_set():
            self._urgent.set()

    # --- the thread ---

    def _run(self) -> None:
        while self._running:
            try:
                self._round()
            except (redis.RedisError, OSError) as error:
                self._fail(error)
            self._seen(self.statistics())
        self._return_all()

    def _round(self) -> None:
        """Wait until there is something to ask, and ask it. Raises redis.RedisError or OSError."""
        if self._desk.up:
            self._wait()
        now_ns = time.monotonic_ns()
        buckets = self._due(now_ns)
        if not self._desk.up:
            self._ask([], now_ns)
            self._desk.goes_up(self._desk.servers, time.monotonic_ns())
            self._tell(True, "Redis shares the rate limits")
        elif buckets:
            for start in range(0, len(buckets), BATCH):
                self._ask(buckets[start : start + BATCH], time.monotonic_ns())
        elif now_ns - self._last_ns >= HEARTBEAT_S * 1e9:
            self._ask([], now_ns)

    def _wait(self) -> None:
        """Until something is in use and its time has come, a bucket is due, or the heartbeat is."""
        now_ns = time.monotonic_ns()
        next_ns = self._last_ns + int(HEARTBEAT_S * 1e9)
        if self._open:
            next_ns = min(next_ns, min(bucket.due_ns for bucket in self._open.values()))
        if self._something.wait(max(GAP_S, (next_ns - now_ns) / 1e9)):
            since_s = (time.monotonic_ns() - self._last_ns) / 1e9
            self._urgent.wait(max(0.0, ROUND_NS / 1e9 - since_s))
            time.sleep(max(0.0, GAP_S - (time.monotonic_ns() - self._last_ns) / 1e9))
        self._something.clear()
        self._urgent.clear()

    def _due(self, now_ns: int) -> list[LeasedBucket]:
        """The buckets to report: those in use, and those whose time has come."""
        buckets = {bucket.key: bucket for bucket in self._desk.take_waiting()}
        for key, bucket in self._open.items():
            if bucket.due_ns <= now_ns:
                buckets.setdefault(key, bucket)
        return list(buckets.values())

    def _ask(self, buckets: Sequence[LeasedBucket], now_ns: int) -> None:
        """One round trip."""
        desk = self._desk
        with desk.lock:
            reports = [bucket.report(now_ns) for bucket in buckets]
            desk.asked_ns = now_ns
        answer = self._evaluate(buckets, reports)
        with desk.lock:
            desk.asked_ns = 0
            desk.now_are(answer[0])
            for index, bucket in enumerate(buckets):
                granted, wait_us, level_us, overdrawn = answer[1 + 4 * index : 5 + 4 * index]
                bucket.answered(Answer(granted, wait_us * US, level_us * US, bool(overdrawn)), now_ns)
                if bucket.due_ns:
                    self._open[bucket.key] = bucket
                else:
                    self._open.pop(bucket.key, None)
        self._last_ns = now_ns
        self._rounds += 1

    def _evaluate(self, buckets: Sequence[LeasedBucket], reports: Sequence[Report]) -> list[int]:
        keys = [SERVERS_KEY, *(bucket.key for bucket in buckets)]
        arguments: list[str | int | float] = [self._me, PRESENCE_US, LEASE_NS // US]
        for bucket, report in zip(buckets, reports, strict=True):
            rate = bucket.rate
            credit = credit_of(rate.burst, self._desk.servers)
            level_us = math.ceil(report.level_ns / US)
            arguments += (
                rate.interval_ns / US, rate.burst, report.used, report.keep, report.want, level_us, credit,
            )  # fmt: skip
        try:
            answer: list[int] = self._redis.evalsha(self._sha, len(keys), *keys, *arguments)
        except redis.exceptions.NoScriptError:
            answer = self._redis.eval(SCRIPT, len(keys), *keys, *arguments)
        return answer

    def _fail(self, error: Exception) -> None:
        """Redis does not answer: go on without it, and try again a little later."""
        self._failures += 1
        self._open.clear()
        self._desk.goes_down(time.monotonic_ns())
        self._tell(False, f"Redis does not share the rate limits ({_plain(error)}): each server counts for itself")
        pause_s = RECONNECT_S[min(self._tries, len(RECONNECT_S) - 1)]
        self._tries += 1
        until_s = time.monotonic() + pause_s
        while self._running and time.monotonic() < until_s:
            time.sleep(min(0.05, pause_s))

    def _tell(self, up: bool, text: str) -> None:
        if up:
            self._tries = 0
        if self._told is not up:
            self._told = up
            self._outages += not up
            self._changed(up, text)
            self._seen(self.statistics())

    def _return_all(self) -> None:
        """A clean end: others need not wait until the loans end by themselves."""
        desk = self._desk
        buckets = {bucket.key: bucket for bucket in (*desk.take_waiting(), *self._open.values())}
        try:
            if desk.up:
                desk.goes_down(time.monotonic_ns())
                self._redis.zrem(SERVERS_KEY, self._me)
                for bucket in buckets.values():
                    self._redis.hdel(bucket.key, self._me)
            self._redis.close()
        except (redis.RedisError, OSError):
            pass  # The loans end by themselves.


def _client(url: str) -> "redis.Redis":
    """Raises ShareUnusable. The driver's own retries are off: they would only delay the local buckets."""
    try:
        return redis.Redis.from_url(
            url,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
            decode_responses=True,
            client_name="nexus-limits",
        )
    except (ValueError, TypeError):
        # From None: the driver's text quotes the URL.
        raise ShareUnusable("not a Redis URL: expected redis://:password@host:port/database") from None


def _plain(error: Exception) -> str:
    """What is wrong in words of our own."""
    for kind, text in _FAILURES:
        if isinstance(error, kind):
            return text
    return type(error).__name__


_FAILURES: tuple[tuple[type[Exception], str], ...] = (
    (redis.exceptions.AuthenticationError, "it does not accept the password"),
    (redis.exceptions.TimeoutError, "it does not answer in time"),
    (redis.exceptions.BusyLoadingError, "it is still loading"),
    (redis.exceptions.ConnectionError, "there is no connection"),
    (redis.exceptions.ResponseError, "it refused the script"),
)

"""Buckets that several servers share: each spends tokens it was lent, and says afterwards what it has spent.

The lender (redis_share.py) keeps, for each bucket, the TAT of what was spent and what it has lent to whom. It lends
only while spent + lent + reserve <= burst. So the limit holds exactly, however late the servers report: a loan is
counted from the moment it is made, and one whose borrower died counts as spent when it ends.

The reserve is what makes a first request need no round trip: each server that does not use a bucket may at any time
spend its share of it, on credit; it then borrows like the others, and has its credit again once it is idle and the
bucket not overdrawn. The shares of all servers together are at most half of the burst, and what they keep free is lent
to nobody, so credit does not go beyond the limit either. Two exceptions: with a burst smaller than twice the number of
servers, one request for each of them may; and so may a quarter of the burst within the second in which a server joins,
until the others have heard of it.
A burst should last for 50 ms at the full rate, or tokens go unused
between two rounds.
"""

import dataclasses
import threading
import weakref
from collections.abc import Callable

from nexus_grpc.limits.buckets import SECOND_NS, Rate
from nexus_grpc.limits.shared import AloneBucket

# A loan ends after this, on either side.
LEASE_NS = 2 * SECOND_NS
# What was not used for so long is given back.
IDLE_NS = SECOND_NS // 4
# The lender is asked about a bucket in use this often, at most.
ROUND_NS = 20_000_000
# An answer that is due for longer is not waited for.
PATIENCE_NS = 100_000_000


def credit_of(burst: int, servers: int) -> int:
    """What each of so many servers may spend without having asked; at least 1."""
    return max(1, burst // (2 * max(1, servers)))


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """What the lender is told about a bucket.

    Attributes:
        used: tokens spent since the last report.
        keep: lent tokens that are still there.
        want: tokens it would like to have, `keep` included.
        level_ns: how far this server's own bucket is from full, where the lender may not know; else 0.
    """

    used: int
    keep: int
    want: int
    level_ns: int


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What the lender says to a report.

    Attributes:
        granted: tokens that are lent now, those kept included.
        wait_ns: after how long another one would be free.
        level_ns: after how long the bucket is full, if nothing is spent meanwhile.
        overdrawn: whether so much is spent and lent that a server that wants nothing may not have its credit yet.
    """

    granted: int
    wait_ns: int
    level_ns: int
    overdrawn: bool


class Desk:
    """Where buckets and the lender's thread meet. All buckets of a process have one.

    Attributes:
        lock: guards the desk and the buckets at it; held for microseconds.
        up: whether the lender answers. Where not, the server's own buckets decide.
        servers: how many there are, as the lender said last.
        asked_ns: since when an answer is due; 0 = none is.
        local_takes: requests that the server's own buckets decided.
    """

    def __init__(self, wake: Callable[[bool], None]) -> None:
        """`wake` is called with whether it is urgent, when there is something to report."""
        self.lock = threading.Lock()
        self.wake = wake
        self.up = False
        self.servers = 1
        self.asked_ns = 0
        self.local_takes = 0
        self.waiting: list[LeasedBucket] = []
        # Whoever calls take() holds the bucket, or the lender does while something about it is open.
        self._buckets: weakref.WeakValueDictionary[str, LeasedBucket] = weakref.WeakValueDictionary()

    def take_waiting(self) -> "list[LeasedBucket]":
        """The buckets that have something to report; none twice."""
        with self.lock:
            waiting, self.waiting = self.waiting, []
            for bucket in waiting:
                bucket.listed = False
        return waiting

    def bucket(self, key: str, rate: Rate, local: AloneBucket) -> "LeasedBucket":
        """The one bucket of that key; a new rate replaces it."""
        with self.lock:
            known = self._buckets.get(key)
            if known is None or known.rate != rate:
                known = self._buckets[key] = LeasedBucket(self, key, rate, local)
            return known

    def now_are(self, servers: int) -> None:
        """So many share. Needs the lock."""
        if servers != self.servers:
            self.servers = servers
            for bucket in list(self._buckets.values()):
                bucket.share_credit()

    def goes_up(self, servers: int, now_ns: int) -> None:
        """The lender answers again, and may have forgotten all: what is not full here is told to it first."""
        with self.lock:
            self.servers, self.up = servers, True
            for bucket in list(self._buckets.values()):
                bucket.begin(now_ns)

    def goes_down(self, now_ns: int) -> None:
        """The lender does not answer. What was spent and not reported is counted here."""
        with self.lock:
            self.up, self.asked_ns = False, 0
            for bucket in list(self._buckets.values()):
                bucket.end(now_ns)
            self.waiting.clear()


class LeasedBucket:
    """A bucket shared between servers. Any thread calls take(), put_back() and level_ns(); begin(), end(), report() and
    answered() need the desk's lock."""

    __slots__ = (
        "__weakref__", "_counted", "_credit", "_demand", "_desk", "_full_ns", "_interest_ns", "_kept",
        "_left", "_local", "_low", "_new", "_refused", "_retry_ns", "_until_ns", "_used", "_wants", "due_ns", "key",
        "listed", "rate",
    )  # fmt: skip

    def __init__(self, desk: Desk, key: str, rate: Rate, local: AloneBucket) -> None:
        self.key = key
        self.rate = rate
        # Whether it waits to be reported; when it is to be reported without that (0 = never).
        self.listed = False
        self.due_ns = 0
        self._desk = desk
        self._local = local
        # Lent: how many, until when; what of them was kept at the last report; when to ask for more.
        self._left = self._until_ns = self._kept = self._low = 0
        # Since the last report: spent, of these counted by the local bucket already; refused.
        self._used = self._counted = self._refused = 0
        # What may be spent before the lender knows that this server uses the bucket.
        self._credit = credit_of(rate.burst, desk.servers)
        self._demand = 0
        self._interest_ns = self._retry_ns = self._full_ns = 0
        self._new = True
        self._wants = False

    # --- requests ---

    def take(self, now_ns: int) -> int:
        """Take a token: 0 when there was one, else after how many nanoseconds it is worth asking again."""
        desk = self._desk
        if not desk.up:
            desk.local_takes += 1
            return self._local.take(now_ns)
        with desk.lock:
            if self._left > 0 and now_ns < self._until_ns:
                self._left -= 1
            elif self._credit > 0:
                self._credit -= 1
            else:
                return self._refuse(now_ns)
            self._used += 1
            if not self.listed:
                self._list(now_ns + IDLE_NS)
            if self._left == self._low:
                desk.wake(True)
            return 0

    def _list(self, interest_ns: int) -> None:
        self.listed = True
        self._interest_ns = interest_ns
        self._desk.waiting.append(self)
        self._desk.wake(False)

    def _refuse(self, now_ns: int) -> int:
        desk = self._desk
        if desk.asked_ns and now_ns - desk.asked_ns > PATIENCE_NS:
            desk.local_takes += 1
            wait_ns = self._local.take(now_ns)
            if not wait_ns:
                self._used += 1
                self._counted += 1
            return wait_ns
        self._refused += 1
        if not self.listed:
            self._list(max(now_ns, self._retry_ns) + IDLE_NS)
        if now_ns < self._retry_ns:
            return self._retry_ns - now_ns
        desk.wake(True)
        return ROUND_NS

    def put_back(self) -> None:
        """Undo a take that was for nothing, as something else refused the request."""
        with self._desk.lock:
            if self._used > self._counted:
                self._used -= 1
                self._left += 1
                return
        if not self._desk.up:
            self._local.put_back()

    def level_ns(self, now_ns: int) -> int:
        """After how many nanoseconds without a take it is full, as far as this server knows."""
        own_ns = self._local.level_ns(now_ns)
        if not self._desk.up:
            return own_ns
        return max(own_ns, self._full_ns - now_ns, 0) + (self._used - self._counted) * self.rate.interval_ns

    # --- the lender's thread ---

    def begin(self, now_ns: int) -> None:
        """The lender is there (again)."""
        self._new = True
        self.end(now_ns)
        if self._local.level_ns(now_ns):
            self._list(now_ns + IDLE_NS)
        else:
            self._credit = credit_of(self.rate.burst, self._desk.servers)

    def end(self, now_ns: int) -> None:
        """The lender is gone, and what it lent with it."""
        self._local.charge(self._used - self._counted, now_ns)
        self._used = self._counted = self._refused = 0
        self._left = self._kept = self._credit = self.due_ns = self._retry_ns = 0
        self.listed = False

    def share_credit(self) -> None:
        """There are more servers, or fewer: none keeps more than its share."""
        self._credit = min(self._credit, credit_of(self.rate.burst, self._desk.servers))

    def report(self, now_ns: int) -> Report:
        """What to tell the lender now."""
        if now_ns >= self._until_ns:
            self._left = 0
        # Credit becomes a loan: the lender keeps no reserve for those who use the bucket.
        self._left, self._credit = self._left + self._credit, 0
        self._until_ns = now_ns + LEASE_NS
        used, level_ns = self._used, self._local.level_ns(now_ns) if self._new else 0
        self._local.charge(used - self._counted, now_ns)
        self._demand = max(used + self._refused, self._demand // 2)
        self._used = self._counted = self._refused = 0
        # Twice what was asked for since the last time, as the next answer comes that much later.
        want = min(self.rate.burst, 2 * self._demand + 1) if now_ns < self._interest_ns else 0
        self._kept = self._left = min(self._left, want)
        self._wants = want > 0
        return Report(used, self._kept, want, level_ns)

    def answered(self, answer: Answer, sent_ns: int) -> None:
        """What the lender said to the report that was made at `sent_ns`."""
        self._new = False
        self._until_ns = sent_ns + LEASE_NS
        self._left += answer.granted - self._kept
        self._kept = 0
        self._low = self._left // 2
        self._retry_ns = sent_ns + answer.wait_ns
        self._full_ns = sent_ns + answer.level_ns
        if self._wants:
            self.due_ns = sent_ns + IDLE_NS if self._left else max(self._retry_ns, sent_ns + ROUND_NS)
        elif answer.overdrawn:
            self.due_ns = sent_ns + IDLE_NS
        else:
            self.due_ns = 0
            self._credit = credit_of(self.rate.burst, self._desk.servers)

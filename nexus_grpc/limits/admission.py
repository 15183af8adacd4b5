"""Admission by queue time: what keeps a worker's queue short when more is asked of it than it can do.

CoDel's observation: a queue that empties now and then does no harm, however long it gets; one whose *shortest* delay
within an interval stays above a target is standing, and only delays. So each interval (100 ms) that was above, and in
which the queue did not shrink, raises the level: the lowest priority that is being asked for joins those that may be
shed. Half a second in which none of the last that joined had to be shed takes it back.
What may be shed is refused while the delay that it would meet is above half the target, and only then, so that the
worker never runs dry: shedding holds the queue there instead of switching traffic off and on. Higher priorities pass;
when the queue stands nevertheless, the next one joins, and those below it get in only where it leaves the queue empty.

Apart from that, a request whose deadline is nearer than the delay that it would meet is refused at once, instead of
being late later. That delay is estimated: the worker's requests, by what such ones took lately (backlog.py).

Use one for each worker link: the worker has one thread, so what is in flight there is one queue. Pure: time is an
argument; one thread at a time.
Sources: K. Nichols, V. Jacobson, "Controlling Queue Delay", ACM Queue 10(5), 2012, and RFC 8289 (target, interval,
the local minimum; a target below a few service times makes no sense); B. Maurer, "Fail at Scale", ACM Queue 13(8), 2015
(CoDel for servers: shed on arrival, by what the client can still wait for).
"""

from nexus_grpc.ipc.errors import Overloaded
from nexus_grpc.limits.backlog import WEIGHT, Backlog
from nexus_grpc.limits.buckets import SECOND_NS

INTERVAL_NS = SECOND_NS // 10
PRIORITIES = 10
# The target is at least so many service times (RFC 8289, section 4.4: never below the time of one packet): two may
# wait while one is served before anything is shed, and the three of them do not count as a standing queue.
SERVICES_MIN = 4
# Where shedding holds the queue, as a part of the target: far enough below it that the queue it holds does not stand.
HOLD = 1 / 2
# An interval lasts at least so many service times, or chance alone makes a queue seem to stand.
SERVICES_JUDGED = 8
# A queue that is shorter than this part of what it was is shrinking.
SHRINKING = 0.98
# Intervals in a row in which a standing queue did not shrink before more may be shed: one or two may be chance.
GROWN_INTERVALS = 3
# Intervals in which nothing of the highest priority that may be shed had to be, before that is taken back.
CALM_INTERVALS = 5
# The estimate of the delay is wrong by about this much either way.
DOUBT = 1 / 8
# A delay below this is nobody's deadline.
NEGLIGIBLE_NS = 1_000_000
# A queue that is shorter than this part of the target does not stand: nothing needs to be known of requests without a
# deadline.
FREE = 8
# Shorter than any queue that is not empty.
EMPTY_NS = 1.0
NEVER_NS = 1e18
ADMITTED, SHED, TOO_LATE = 0, 1, 2


class Admission:
    """Decides for one queue.

    Args:
        target_ns: the queue's delay that is put up with; 0 = nothing is ever refused.
        interval_ns: how long it must stay above the target.

    Attributes:
        backlog: what the worker has; whoever sends it a request, or takes one from it, keeps it.
        pass_ns: with a shorter backlog than this, `verdict` need not be asked.
        free_ns: the same for requests without a deadline.
        level: 0 = nothing is shed, 10 = everything may be.
        spacing_ns: smoothed time between two answers while there is work, whatever they answer; 0 = not known yet.
        shed_count, late_count: requests refused so far.
    """

    __slots__ = (
        "_answered_ns", "_calm", "_expected_ns", "_grown", "_interval_ns", "_lowest_ns", "_needed", "_next_ns",
        "_offered", "_resumed_ns", "_started", "_target_ns", "backlog", "free_ns", "late_count", "level", "pass_ns",
        "shed_count", "spacing_ns",
    )  # fmt: skip

    def __init__(self, target_ns: int, interval_ns: int = INTERVAL_NS) -> None:
        self.level = 0
        self.backlog = Backlog()
        self.pass_ns = self.free_ns = NEVER_NS
        self.spacing_ns = 0.0
        self.shed_count = self.late_count = 0
        self._target_ns = target_ns
        self._interval_ns = interval_ns
        # Of the interval that ends at next_ns: the shortest time from arrival to answer, and whether there was one;
        # how many requests came of each priority. At its beginning: the expected delay.
        self._next_ns = 0
        self._lowest_ns = 0
        self._started = False
        self._offered = [0] * PRIORITIES
        self._expected_ns = 0.0
        # Whether something of the highest priority that may be shed was, and how many intervals ago.
        self._needed = False
        self._calm = 0
        # Intervals in a row in which a standing queue did not shrink.
        self._grown = 0
        # When the last answers came, and when the last of those that had waited elsewhere.
        self._answered_ns = 0
        self._resumed_ns = 0
        self._ask_from_now_on()

    def expected_ns(self, oldest_ns: int, now_ns: int) -> float:
        """The delay that a request would meet that comes now.

        Args:
            oldest_ns: when the oldest of the worker's requests arrived; anything where there is none.
        """
        if not self.backlog.count:
            return 0.0
        # A worker is at least as slow as it has been silent over its work.
        silent_ns = float(now_ns - max(self._answered_ns, oldest_ns))
        return max(self.backlog.total_ns, silent_ns)

    def verdict(self, priority: int, slot: int, oldest_ns: int, deadline_ns: int, now_ns: int) -> int:
        """ADMITTED, SHED or TOO_LATE, for a request that comes now.

        Args:
            priority: 0 (shed last) to 9 (first).
            slot: of the model version.
            oldest_ns: see `expected_ns`.
            deadline_ns: of this one; 0 = none.
        """
        if not self._target_ns:
            return ADMITTED
        expected_ns = self.expected_ns(oldest_ns, now_ns)
        queued_ns = expected_ns * (1 + DOUBT)
        if deadline_ns and expected_ns and now_ns + queued_ns + self.backlog.lot_ns(slot) > deadline_ns:
            self.late_count += 1
            return self._counted(priority, expected_ns, now_ns, TOO_LATE)
        if not self.level:
            return self._counted(priority, expected_ns, now_ns, ADMITTED)
        return self._counted(priority, expected_ns, now_ns, self._shed(priority, expected_ns))

    def _counted(self, priority: int, expected_ns: float, now_ns: int, verdict: int) -> int:
        self._offered[priority] += 1
        if now_ns >= self._next_ns:
            self._end_interval(expected_ns, now_ns)
        return verdict

    def _shed(self, priority: int, expected_ns: float) -> int:
        hold_ns = self._bearable_ns() * HOLD
        if expected_ns > hold_ns * HOLD:
            below = priority - (PRIORITIES - self.level)
            if below > 0 or (below == 0 and expected_ns > hold_ns):
                self.shed_count += 1
                self._needed |= below == 0
                return SHED
        return ADMITTED

    def resumed(self, now_ns: int) -> None:
        """A request comes that had arrived earlier, and waited for a worker that died, or for one to come back: what
        that took is not this worker's slowness."""
        self._answered_ns = self._resumed_ns = now_ns

    def answered(self, slot: int, total_ns: int, count: int, now_ns: int) -> None:
        """`count` answers came at once, and are not in the backlog any more; the quickest of them took `total_ns` from
        its arrival. `slot`: of its model version."""
        if not self._target_ns:
            return
        total_ns = min(total_ns, now_ns - self._resumed_ns)
        # What was answered came while the worker had nothing to do, if it took less long than the last answer is ago.
        since_ns = min(now_ns - self._answered_ns, total_ns)
        self._answered_ns = now_ns
        if since_ns > 0 and count:
            self.backlog.answered(slot, float(since_ns), count, now_ns)
            sample_ns = since_ns / count
            self.spacing_ns += (sample_ns - self.spacing_ns) * WEIGHT if self.spacing_ns else sample_ns
        if not self._started or total_ns < self._lowest_ns:
            self._lowest_ns, self._started = total_ns, True

    def _bearable_ns(self) -> float:
        return max(float(self._target_ns), SERVICES_MIN * self.spacing_ns)

    def _end_interval(self, expected_ns: float, now_ns: int) -> None:
        """Judge the interval that has passed, and begin the next. Without any answer, what is expected now counts."""
        delay_ns = self._lowest_ns if self._started else expected_ns
        self._calm = 0 if self._needed else self._calm + 1
        if delay_ns > self._bearable_ns():
            # What was shed last needs time to show.
            self._grown = self._grown + 1 if expected_ns > self._expected_ns * SHRINKING else 0
            if not self.level or self._grown >= GROWN_INTERVALS:
                self.level, self._grown = self._raised(), 0
        elif self._calm >= CALM_INTERVALS and self.level:
            self.level = self._lowered()
        self._expected_ns = expected_ns
        self._started = self._needed = False
        self._offered = [0] * PRIORITIES
        self._next_ns = now_ns + max(self._interval_ns, int(SERVICES_JUDGED * self.spacing_ns))
        self._ask_from_now_on()

    def _ask_from_now_on(self) -> None:
        """About all that finds a queue while something is shed, else about what might be too late, or add to a queue
        that stands."""
        if self._target_ns:
            self.pass_ns = EMPTY_NS if self.level else float(NEGLIGIBLE_NS)
            self.free_ns = EMPTY_NS if self.level else float(max(NEGLIGIBLE_NS, self._target_ns // FREE))

    def _raised(self) -> int:
        """One more of the priorities that were asked for may be shed."""
        level = self.level
        for priority in range(PRIORITIES - 1 - level, -1, -1):
            if self._offered[priority]:
                return PRIORITIES - priority
        return level

    def _lowered(self) -> int:
        """One fewer."""
        for priority in range(PRIORITIES - self.level + 1, PRIORITIES):
            if self._offered[priority]:
                return PRIORITIES - priority
        return 0


def overloaded(verdict: int, expected_ns: float) -> Overloaded:
    """The error of a request that was not admitted; retry_after_s is when the queue that it met will be gone."""
    delay_s = expected_ns / SECOND_NS
    if verdict == TOO_LATE:
        return Overloaded(
            f"the queue takes about {delay_s:.3g} s, which the deadline does not leave; allow more or try again later",
            reason="DEADLINE_TOO_SHORT",
            retry_after_s=delay_s,
        )
    return Overloaded(
        f"more is asked than can be served (the queue takes {delay_s:.3g} s); try again later",
        reason="LOAD_SHED",
        retry_after_s=delay_s,
    )

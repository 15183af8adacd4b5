"""How much a worker has to do, as time: of each model version the requests it has, times what one of them takes lately.

By version, because a worker holds many: after a model that takes a second, twenty requests for one that takes 50 µs are
still a millisecond. Kept up to date with every request that comes or goes, so that asking costs nothing.
"""

from nexus_grpc.limits.buckets import SECOND_NS

# What a new sample counts (TCP's smoothed round-trip time: RFC 6298, alpha = 1/8).
WEIGHT = 1 / 8
# A version of which nothing was in flight for this long may take another time now, as its inputs may be others.
FORGET_NS = SECOND_NS // 10
# What a request is taken to cost while nothing is known: little, so that a burst is let in and tells.
UNKNOWN_NS = 50_000.0


class Share:
    """What a worker has of one version.

    Attributes:
        count: requests.
        each_ns: smoothed time between two answers.
        lot_ns: smoothed time from one lot of answers to the next: what a batch takes. 0 = not known.
        answered_ns: when the last answers came; 0 = none that still counts.
    """

    __slots__ = ("answered_ns", "count", "each_ns", "lot_ns")

    def __init__(self) -> None:
        self.count = 0
        self.forget()

    def forget(self) -> None:
        self.each_ns, self.lot_ns, self.answered_ns = UNKNOWN_NS, 0.0, 0

    def learn(self, lot_ns: float, count: int, now_ns: int) -> float:
        """So many answers took so long, together. Returns by how much more or less each takes now."""
        more_ns = lot_ns / count - self.each_ns
        if self.answered_ns:
            more_ns *= WEIGHT
            self.lot_ns += (lot_ns - self.lot_ns) * WEIGHT
        else:
            self.lot_ns = lot_ns
        self.each_ns += more_ns
        self.answered_ns = now_ns
        return more_ns


class Backlog:
    """Of one worker.

    Attributes:
        count: requests that the worker has and has not answered.
        total_ns: how long it takes for them.
    """

    __slots__ = ("_shares", "count", "total_ns")

    def __init__(self) -> None:
        self.count = 0
        self.total_ns = 0.0
        self._shares: dict[int, Share] = {}

    def sent(self, slot: int, now_ns: int) -> None:
        """The worker has one more request, for the version of a slot."""
        share = self._shares.get(slot)
        if share is None:
            share = self._shares[slot] = Share()
        elif not share.count and now_ns - share.answered_ns > FORGET_NS:
            share.forget()
        share.count += 1
        self.count += 1
        self.total_ns += share.each_ns

    def gone(self, slot: int) -> None:
        """It has one fewer: answered, cancelled or too late."""
        share = self._shares[slot]
        share.count -= 1
        self.count -= 1
        # Nothing is nothing: what rounding leaves must not add up.
        self.total_ns = self.total_ns - share.each_ns if self.count else 0.0

    def answered(self, slot: int, lot_ns: float, count: int, now_ns: int) -> None:
        """`count` answers came at once, of this version or mostly so, `lot_ns` after the worker had begun with them."""
        share = self._shares[slot]
        self.total_ns += share.learn(lot_ns, count, now_ns) * share.count

    def lot_ns(self, slot: int) -> float:
        """What a batch of a version takes; 0 = not known."""
        share = self._shares.get(slot)
        return share.lot_ns if share is not None else 0.0

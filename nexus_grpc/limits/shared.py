"""Token buckets that all fronts of a server share: a table in one memfd, exact between processes.

    page 0            magic, groups, key for the fingerprints         supervisor, once
    stripe 0 … 63     mutex | TAT of the stripe's overflow bucket      whoever holds the mutex
    group 0 …         8 buckets: fingerprint | TAT                     whoever holds the mutex of stripe (group % 64)

A bucket stands anywhere in its fingerprint's group. One whose TAT has passed is full and needs no memory, so its place
is free for another: nothing is ever deleted, and a table that seems full holds only buckets in use. Where a group has
no place, the stripe's overflow bucket counts for all that found none: they share one limit rather than have none.

Every single store leaves a sound table (a new fingerprint with an old TAT, which has passed, is a full bucket): a front
may die anywhere (robust_lock.py). One that is stopped while it holds a mutex makes the others wait LOCK_WAIT_NS once
in a while; then they go on without it, and write nothing: its own store, once it runs on, would undo theirs. They go by
what stands there and what they have taken since, which they owe, and pay it with the next mutex they get. So no count
is lost, and only what several fronts owe of one bucket at the same time may go beyond its limit.
With one front there is no lock at all. A memfd has no name, is passed by descriptor, and goes with its last holder.
"""

import ctypes
import fcntl
import mmap
import os
import secrets
import sys
import threading
from hashlib import blake2b

from nexus_grpc.limits.buckets import Rate
from nexus_grpc.limits.robust_lock import MUTEX_BYTES, Pointer, lock_slowly, make_mutex, trylock, unlock

WORD_BYTES = 8
MAGIC = 0x4E58_4C49_0001  # "NXLI", layout 1
MAGIC_WORD, GROUPS_WORD, KEY_WORD = 0, 1, 2
KEY_BYTES = 16
HEADER_BYTES = 4096
# So many mutexes, so that fronts that count for different clients rarely meet.
STRIPES = 64
STRIPE_BYTES = 128
OVERFLOW_WORD = MUTEX_BYTES // WORD_BYTES
# 128 bytes: two cache lines are all that a look-up touches.
GROUP_BUCKETS = 8
BUCKET_WORDS = 2
GROUP_BYTES = GROUP_BUCKETS * BUCKET_WORDS * WORD_BYTES
# 32,768 buckets, 512 KiB. With 8,192 in use 1 in 4,000 finds its group full (Poisson, mean 2).
GROUPS = 4096
# How long one waits for a mutex: longer than a running owner ever takes, shorter than a client notices.
LOCK_WAIT_NS = 10_000_000
# After a mutex that was not to be had, one waits only briefly until this has passed.
LOCK_PAUSE_NS = 1_000_000_000
LOCK_WAIT_BRIEFLY_NS = 200_000

assert HEADER_BYTES % STRIPE_BYTES == STRIPE_BYTES % GROUP_BYTES == 0
assert OVERFLOW_WORD * WORD_BYTES < STRIPE_BYTES


def table_bytes(groups: int) -> int:
    """The size of a table."""
    return HEADER_BYTES + STRIPES * STRIPE_BYTES + groups * GROUP_BYTES


def create_table(groups: int = GROUPS) -> int:
    """Make an empty table and return its memfd (close-on-exec), which the caller owns.

    The memory is reserved at once. Raises ValueError when `groups` is not a power of two, OSError when there is no
    memory.
    """
    if groups < STRIPES or groups & (groups - 1):
        raise ValueError(f"expected a power of two of at least {STRIPES} groups, got {groups}")
    descriptor = os.memfd_create("nexus-limits", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(descriptor, 0, table_bytes(groups))
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        with mmap.mmap(descriptor, table_bytes(groups)) as mapping:
            address = _address(mapping)
            for stripe in range(STRIPES):
                make_mutex(address + HEADER_BYTES + stripe * STRIPE_BYTES)
            header = (MAGIC, groups, *(secrets.randbits(63) for _ in range(KEY_BYTES // WORD_BYTES)))
            mapping[: len(header) * WORD_BYTES] = b"".join(word.to_bytes(WORD_BYTES, sys.byteorder) for word in header)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _address(mapping: mmap.mmap) -> int:
    # The object that exports the buffer is gone with this call, or the mapping could not be closed.
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))


class BucketTable:
    """One process's view of a table. `alone`: no other process uses it, so that it needs no lock.

    Raises ValueError when `descriptor`, which may be closed afterwards, is no table of this layout; OSError when it
    can't be mapped.

    Attributes:
        overflows: takes that found no place and counted against an overflow bucket.
        unlocked: takes, and what else changes a bucket, that did not get their mutex in time.
        debts: guards what this process's buckets owe; never held while one waits for a mutex.
    """

    def __init__(self, descriptor: int, alone: bool = False) -> None:
        size = os.fstat(descriptor).st_size
        if size < HEADER_BYTES:
            raise ValueError(f"not a table of buckets: {size} bytes")
        self._mapping = mmap.mmap(descriptor, size)
        self.words = memoryview(self._mapping).cast("Q")
        groups = self.words[GROUPS_WORD]
        if self.words[MAGIC_WORD] != MAGIC or size != table_bytes(groups):
            raise ValueError("not a table of buckets of this layout")
        self.alone = alone
        self.overflows = 0
        self.unlocked = 0
        self.debts = threading.Lock()
        self._group_mask = groups - 1
        self._key = bytes(self._mapping[KEY_WORD * WORD_BYTES : KEY_WORD * WORD_BYTES + KEY_BYTES])
        address = _address(self._mapping) + HEADER_BYTES
        self._mutexes = [Pointer(address + stripe * STRIPE_BYTES) for stripe in range(STRIPES)]

    def bucket(self, name: str, rate: Rate) -> "AloneBucket":
        """The bucket of that name, with or without a lock. Any number of objects may stand for one bucket."""
        digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=WORD_BYTES, key=self._key).digest()
        fingerprint = int.from_bytes(digest, "little") or 1
        group = (fingerprint >> 32) & self._group_mask
        stripe = group % STRIPES
        kind = AloneBucket if self.alone else SharedBucket
        return kind(self, rate, fingerprint, group, stripe, self._mutexes[stripe])

    def group_entries(self, group: int) -> list[memoryview]:
        """A group's buckets: fingerprint, TAT."""
        start = (HEADER_BYTES + STRIPES * STRIPE_BYTES + group * GROUP_BYTES) // WORD_BYTES
        return [self.words[at : at + 2] for at in range(start, start + GROUP_BUCKETS * BUCKET_WORDS, BUCKET_WORDS)]

    def overflow_entry(self, stripe: int) -> memoryview:
        """A stripe's overflow bucket: something else, TAT."""
        at = (HEADER_BYTES + stripe * STRIPE_BYTES) // WORD_BYTES + OVERFLOW_WORD - 1
        return self.words[at : at + 2]


class AloneBucket:
    """A bucket of a table that one process uses: the holder of the dispatcher's turn, no lock."""

    __slots__ = (
        "_entry", "_fingerprint", "_group", "_interval_ns", "_mutex", "_pause_until_ns", "_stripe", "_table",
        "_tolerance_ns", "rate",
    )  # fmt: skip

    def __init__(
        self, table: BucketTable, rate: Rate, fingerprint: int, group: int, stripe: int, mutex: Pointer
    ) -> None:
        self.rate = rate
        self._interval_ns = rate.interval_ns
        self._tolerance_ns = rate.tolerance_ns
        self._table = table
        self._fingerprint = fingerprint
        self._group = group
        self._stripe = stripe
        self._mutex = mutex
        self._pause_until_ns = 0
        # Where it stood last. Another bucket may have got the place since.
        self._entry = table.overflow_entry(stripe)

    def take(self, now_ns: int) -> int:
        """Take a token: 0 when there was one, else after how many nanoseconds there will be."""
        entry = self._entry
        if entry[0] != self._fingerprint:
            entry = self._find(now_ns)
        tat_ns = entry[1]
        if tat_ns < now_ns:
            tat_ns = now_ns
        wait_ns = tat_ns - now_ns - self._tolerance_ns
        if wait_ns > 0:
            return wait_ns
        entry[1] = tat_ns + self._interval_ns
        return 0

    def put_back(self) -> None:
        """Undo a take that was for nothing, as something else refused the request."""
        self._move(-self._interval_ns, 0, 0)

    def charge(self, tokens: int, now_ns: int) -> None:
        """Count requests that were let through by other means, beyond the limit if it must be."""
        self._move(tokens * self._interval_ns, now_ns, now_ns)

    def level_ns(self, now_ns: int) -> int:
        """After how many nanoseconds without a take it is full."""
        return max(0, self._seen_ns() - now_ns)

    def _seen_ns(self) -> int:
        """The TAT as it stands there, without a change to the table; 0 where it has no place of its own."""
        entry = self._entry
        if entry[0] == self._fingerprint:
            return int(entry[1])
        return next((each[1] for each in self._table.group_entries(self._group) if each[0] == self._fingerprint), 0)

    def _move(self, by_ns: int, since_ns: int, now_ns: int) -> None:
        """Move the TAT on, as if at `since_ns`; or back."""
        entry = self._entry
        if entry[0] != self._fingerprint:
            if by_ns < 0:  # it has gone, as it was full
                return
            entry = self._find(now_ns)
        tat_ns = max(entry[1], since_ns)
        # Not further than twice the burst: a debt must end some day.
        most_ns = now_ns + 2 * (self._tolerance_ns + self._interval_ns)
        entry[1] = max(0, tat_ns + by_ns if by_ns < 0 else max(tat_ns, min(tat_ns + by_ns, most_ns)))

    def _find(self, now_ns: int) -> memoryview:
        """Its place, a free one that it gets, or the overflow bucket."""
        free = None
        for entry in self._table.group_entries(self._group):
            if entry[0] == self._fingerprint:
                self._entry = entry
                return entry
            if free is None and entry[1] <= now_ns:
                free = entry
        if free is None:
            self._table.overflows += 1
            return self._table.overflow_entry(self._stripe)
        free[0] = self._fingerprint
        self._entry = free
        return free


class SharedBucket(AloneBucket):
    """A bucket of a table that several processes use: any thread, under the stripe's mutex.

    Without the mutex it keeps a debt: nanoseconds to be added to the TAT, as it stood at `since` or stands by then,
    whichever is later. An object that is dropped in debt takes it along.
    """

    __slots__ = ("_owed_ns", "_owed_since_ns")

    def __init__(
        self, table: BucketTable, rate: Rate, fingerprint: int, group: int, stripe: int, mutex: Pointer
    ) -> None:
        super().__init__(table, rate, fingerprint, group, stripe, mutex)
        self._owed_ns = self._owed_since_ns = 0

    def take(self, now_ns: int) -> int:
        """Take a token: 0 when there was one, else after how many nanoseconds there will be."""
        mutex = self._mutex
        result = trylock(mutex)
        if result and not self._lock_slowly(result, now_ns):
            return self._take_owing(now_ns)
        try:
            if self._owed_ns:
                self._pay(now_ns)
            return AloneBucket.take(self, now_ns)
        finally:
            unlock(mutex)

    def level_ns(self, now_ns: int) -> int:
        """After how many nanoseconds without a take it is full."""
        entry = self._entry
        quiet = not self._owed_ns and entry[0] == self._fingerprint
        level_ns: int = (entry[1] if quiet else self._tat_with_debt_ns()) - now_ns
        return level_ns if level_ns > 0 else 0

    def _move(self, by_ns: int, since_ns: int, now_ns: int) -> None:
        result = trylock(self._mutex)
        if result and not self._lock_slowly(result, now_ns):
            with self._table.debts:
                self._owe(by_ns, now_ns)
            return
        try:
            if self._owed_ns:
                self._pay(now_ns)
            AloneBucket._move(self, by_ns, since_ns, now_ns)
        finally:
            unlock(self._mutex)

    # --- without the mutex ---

    def _take_owing(self, now_ns: int) -> int:
        with self._table.debts:
            wait_ns = self._tat_with_debt_ns() - now_ns - self._tolerance_ns
            if wait_ns > 0:
                return wait_ns
            self._owe(self._interval_ns, now_ns)
            return 0

    def _tat_with_debt_ns(self) -> int:
        return max(self._seen_ns(), self._owed_since_ns) + self._owed_ns

    def _owe(self, by_ns: int, now_ns: int) -> None:
        """Owe more, or less. Of the debt so far, time has undone what lies before now: as it does with a TAT."""
        if max(self._seen_ns(), self._owed_since_ns) < now_ns:
            self._owed_ns = max(0, self._tat_with_debt_ns() - now_ns)
            self._owed_since_ns = now_ns
        self._owed_ns += by_ns

    def _pay(self, now_ns: int) -> None:
        """With the mutex: write down what is owed."""
        with self._table.debts:
            owed_ns, since_ns = self._owed_ns, self._owed_since_ns
            self._owed_ns = self._owed_since_ns = 0
            AloneBucket._move(self, owed_ns, since_ns, now_ns)

    def _lock_slowly(self, result: int, now_ns: int) -> bool:
        """False when the mutex is not to be had: its owner is stopped."""
        patient = now_ns >= self._pause_until_ns
        if lock_slowly(self._mutex, result, LOCK_WAIT_NS if patient else LOCK_WAIT_BRIEFLY_NS):
            return True
        if patient:
            self._pause_until_ns = now_ns + LOCK_PAUSE_NS
        self._table.unlocked += 1
        return False

"""Which bucket of traffic belongs to which variant: a table of 10,000 entries, one per basis point.

When shares change, as few buckets as possible change hands: a variant that grows takes buckets from those that shrink,
and nobody else's move. So a sticky key keeps its variant unless its bucket is one of those.
"""

import hashlib
import re
from collections.abc import Sequence

BUCKETS = 10_000
ARMS_MAX = 26
_RUNS = re.compile(r"\d{1,2}x\d{1,5}(?:,\d{1,2}x\d{1,5})*", re.ASCII)


def initial(weights: Sequence[int]) -> bytes:
    """A table with the given shares.

    Args:
        weights: basis points by arm; their sum is 10,000.

    Raises ValueError for anything else.
    """
    return reassigned(bytes(BUCKETS), weights)


def reassigned(table: bytes, weights: Sequence[int]) -> bytes:
    """The table with other shares, and as few moves as possible.

    From arms that have too many buckets the highest go; arms that have too few get them, lowest bucket first, in the
    order of the arms.
    """
    if len(table) != BUCKETS or sum(weights) != BUCKETS or min(weights) < 0 or len(weights) > ARMS_MAX:
        raise ValueError(
            f"shares of {list(weights)} basis points: expected 1 to {ARMS_MAX}, not negative, sum {BUCKETS}"
        )
    wanted = dict(enumerate(weights))
    surplus = {arm: max(0, table.count(arm) - wanted.get(arm, 0)) for arm in set(table)}
    free = []
    for bucket in range(BUCKETS - 1, -1, -1):
        if surplus[table[bucket]]:
            surplus[table[bucket]] -= 1
            free.append(bucket)
    changed = bytearray(table)
    free.sort()
    position = 0
    for arm, weight in wanted.items():
        missing = weight - table.count(arm)
        for bucket in free[position : position + max(0, missing)]:
            changed[bucket] = arm
        position += max(0, missing)
    return bytes(changed)


def encode(table: bytes) -> str:
    """Run-length text: `0x9500,1x500` is 9,500 buckets of arm 0, then 500 of arm 1."""
    runs: list[list[int]] = []
    for arm in table:
        if runs and runs[-1][0] == arm:
            runs[-1][1] += 1
        else:
            runs.append([arm, 1])
    return ",".join(f"{arm}x{length}" for arm, length in runs)


def decode(text: str) -> bytes:
    """The table of a run-length text. Raises ValueError when it is none of 10,000 buckets."""
    if not _RUNS.fullmatch(text):
        raise ValueError("not a table of buckets")
    runs = [run.split("x") for run in text.split(",")]
    if sum(int(length) for _, length in runs) != BUCKETS:
        raise ValueError(f"a table must have {BUCKETS} buckets")
    return b"".join(bytes([int(arm)]) * int(length) for arm, length in runs)


def bucket_of(key: bytes, salt: str) -> int:
    """A key's bucket: uniform over all keys, another one under each salt."""
    digest = hashlib.blake2b(key, digest_size=8, key=salt.encode()[:64]).digest()
    return int.from_bytes(digest, "little") % BUCKETS

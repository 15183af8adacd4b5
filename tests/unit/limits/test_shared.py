"""The table of shared buckets: places are found, given up and taken over; a full one limits too; layout is checked."""

import contextlib
import mmap
import os
import threading
from collections.abc import Iterator

import pytest

from nexus_grpc.limits.buckets import SECOND_NS, rate_of, remaining
from nexus_grpc.limits.robust_lock import trylock, unlock
from nexus_grpc.limits.shared import GROUP_BUCKETS, AloneBucket, BucketTable, SharedBucket, create_table, table_bytes

NOW = 1_000 * SECOND_NS
RATE = rate_of(60.0, burst=2)


@pytest.fixture(params=[True, False], ids=["alone", "shared"])
def table(request: pytest.FixtureRequest) -> Iterator[BucketTable]:
    descriptor = create_table(64)
    yield BucketTable(descriptor, alone=request.param)
    os.close(descriptor)


def test_one_name_is_one_bucket(table: BucketTable) -> None:
    one, same, other = table.bucket("a", RATE), table.bucket("a", RATE), table.bucket("b", RATE)
    assert [one.take(NOW), same.take(NOW), one.take(NOW), same.take(NOW)] == [0, 0, SECOND_NS, SECOND_NS]
    assert other.take(NOW) == 0
    assert (remaining(one, NOW), remaining(same, NOW), remaining(other, NOW)) == (0, 0, 1)
    assert same.take(NOW + SECOND_NS) == 0


def test_the_kind_follows_the_table(table: BucketTable) -> None:
    assert type(table.bucket("a", RATE)) is (AloneBucket if table.alone else SharedBucket)


def test_put_back_and_charge(table: BucketTable) -> None:
    bucket = table.bucket("a", RATE)
    bucket.put_back()
    assert [bucket.take(NOW), bucket.take(NOW)] == [0, 0]
    bucket.put_back()
    assert [bucket.take(NOW), bucket.take(NOW)] == [0, SECOND_NS]
    bucket.charge(1, NOW)
    assert bucket.take(NOW) == 2 * SECOND_NS
    # A debt ends: at most twice the burst.
    bucket.charge(1000, NOW)
    assert bucket.level_ns(NOW) == 4 * SECOND_NS


def test_full_buckets_give_up_their_places(table: BucketTable) -> None:
    """A thousand names in a table of 512 places, a few at a time."""
    for index in range(1000):
        bucket = table.bucket(f"name {index}", RATE)
        now_ns = NOW + index * 10 * SECOND_NS
        assert [bucket.take(now_ns), bucket.take(now_ns), bucket.take(now_ns)] == [0, 0, SECOND_NS]
    assert table.overflows == 0


def test_a_place_that_was_taken_over_is_found_again(table: BucketTable) -> None:
    bucket = table.bucket("a", RATE)
    assert bucket.take(NOW) == 0
    later_ns = NOW + 10 * SECOND_NS
    for index in range(2000):
        table.bucket(f"name {index}", RATE).take(later_ns)
    assert bucket.level_ns(later_ns) == 0
    after_ns = later_ns + 10 * SECOND_NS
    assert [bucket.take(after_ns), bucket.take(after_ns), bucket.take(after_ns)] == [0, 0, SECOND_NS]


def test_a_table_without_a_place_limits_all_the_same(table: BucketTable) -> None:
    rate = rate_of(1.0, burst=1)
    passed = sum(table.bucket(f"name {index}", rate).take(NOW) == 0 for index in range(100_000))
    assert 64 * GROUP_BUCKETS <= passed <= 64 * GROUP_BUCKETS + 64
    assert table.overflows >= 100_000 - passed
    # The old ones are not touched, and time heals.
    assert table.bucket("new", rate).take(NOW + 61 * SECOND_NS) == 0


def test_threads_of_one_process(table: BucketTable) -> None:
    if table.alone:
        pytest.skip("only a shared table has a lock")
    rate = rate_of(0.1, burst=5000)
    taken = [0] * 4

    def hammer(index: int) -> None:
        bucket = table.bucket("a", rate)
        for _ in range(3000):
            taken[index] += bucket.take(NOW) == 0

    threads = [threading.Thread(target=hammer, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    # Each thread has an object of its own: two may owe at the same time.
    assert 5000 <= sum(taken) <= 5000 + table.unlocked


# --- without the mutex: as if its owner were stopped ---


@pytest.fixture
def shared() -> Iterator[BucketTable]:
    descriptor = create_table(64)
    yield BucketTable(descriptor)
    os.close(descriptor)


@contextlib.contextmanager
def mutex_of(bucket: AloneBucket) -> Iterator[None]:
    """Held by somebody else."""
    assert trylock(bucket._mutex) == 0
    try:
        yield
    finally:
        unlock(bucket._mutex)


@pytest.mark.parametrize("before", [0, 3])
def test_what_is_taken_without_the_mutex_is_owed_and_paid(before: int, shared: BucketTable) -> None:
    rate = rate_of(60.0, burst=10)
    bucket, other = shared.bucket("a", rate), shared.bucket("a", rate)
    for _ in range(before):
        assert other.take(NOW) == 0
    with mutex_of(bucket):
        assert [bucket.take(NOW) for _ in range(5)] == [0] * 5
        # Nothing is written, and all is counted.
        assert other.level_ns(NOW) == before * SECOND_NS
        assert remaining(bucket, NOW) == 5 - before
    assert shared.unlocked == 5
    assert bucket.take(NOW) == 0
    assert other.level_ns(NOW) == bucket.level_ns(NOW) == (before + 6) * SECOND_NS
    assert [other.take(NOW) for _ in range(5 - before)] == [0] * (4 - before) + [SECOND_NS]


def test_the_burst_ends_without_the_mutex_too_and_the_rate_goes_on(shared: BucketTable) -> None:
    bucket = shared.bucket("a", RATE)
    with mutex_of(bucket):
        assert [bucket.take(NOW) for _ in range(3)] == [0, 0, SECOND_NS]
        for second in range(1, 20):
            now_ns = NOW + second * SECOND_NS
            assert [bucket.take(now_ns), bucket.take(now_ns)] == [0, SECOND_NS]
        # Idle for a while: full again, and not more than that.
        now_ns = NOW + 100 * SECOND_NS
        assert [bucket.take(now_ns) for _ in range(3)] == [0, 0, SECOND_NS]
    # The debt is what is left of it now.
    assert bucket.take(now_ns + SECOND_NS) == 0
    assert shared.bucket("a", RATE).level_ns(now_ns + SECOND_NS) == 2 * SECOND_NS


def test_a_debt_of_long_ago_is_forgiven(shared: BucketTable) -> None:
    bucket = shared.bucket("a", RATE)
    with mutex_of(bucket):
        assert [bucket.take(NOW), bucket.take(NOW)] == [0, 0]
    later_ns = NOW + 60 * SECOND_NS
    assert [bucket.take(later_ns) for _ in range(3)] == [0, 0, SECOND_NS]


def test_what_others_took_meanwhile_counts_besides(shared: BucketTable) -> None:
    rate = rate_of(60.0, burst=10)
    bucket, other = shared.bucket("a", rate), shared.bucket("a", rate)
    with mutex_of(bucket):
        assert [bucket.take(NOW) for _ in range(4)] == [0] * 4
    assert [other.take(NOW) for _ in range(3)] == [0] * 3
    assert bucket.take(NOW) == 0
    assert other.level_ns(NOW) == 8 * SECOND_NS


def test_put_back_and_charge_are_owed_too(shared: BucketTable) -> None:
    rate = rate_of(60.0, burst=10)
    bucket = shared.bucket("a", rate)
    assert [bucket.take(NOW) for _ in range(4)] == [0] * 4
    with mutex_of(bucket):
        bucket.put_back()
        assert bucket.level_ns(NOW) == 3 * SECOND_NS
        bucket.charge(4, NOW)
        assert bucket.level_ns(NOW) == 7 * SECOND_NS
    assert bucket.take(NOW) == 0
    assert bucket.level_ns(NOW) == 8 * SECOND_NS


def test_a_debt_ends(shared: BucketTable) -> None:
    bucket = shared.bucket("a", RATE)
    with mutex_of(bucket):
        bucket.charge(1000, NOW)
    assert bucket.take(NOW) > 0
    assert bucket.level_ns(NOW) == 4 * SECOND_NS


@pytest.mark.parametrize("groups", [0, 1, 32, 65, 100, -64])
def test_a_table_has_a_power_of_two_of_groups(groups: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        create_table(groups)


def test_anything_else_is_no_table() -> None:
    descriptor = os.memfd_create("test")
    try:
        for size in (0, 100, 4096, table_bytes(64)):
            os.ftruncate(descriptor, size)
            with pytest.raises(ValueError, match="not a table"):
                BucketTable(descriptor)
    finally:
        os.close(descriptor)
    descriptor = create_table(64)
    try:
        with mmap.mmap(descriptor, 4096) as mapping:
            mapping[8] = 128
        with pytest.raises(ValueError, match="not a table"):
            BucketTable(descriptor)
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, 4096)
    finally:
        os.close(descriptor)


def test_names_do_not_show_in_memory(table: BucketTable) -> None:
    """The fingerprint's key differs from table to table, so that nobody can aim at another's place."""
    descriptor = create_table(64)
    other = BucketTable(descriptor, alone=table.alone)
    os.close(descriptor)
    name = "jwt:issuer/somebody"
    for each in (table, other):
        each.bucket(name, RATE).take(NOW)
        assert name.encode() not in bytes(each.words)
    places = [[at for at in range(1536, len(each.words)) if each.words[at]] for each in (table, other)]
    values = [[each.words[at] for at in found[:1]] for each, found in zip((table, other), places, strict=True)]
    assert values[0] != values[1]

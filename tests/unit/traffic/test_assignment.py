"""The table of buckets: what it refuses, its text, and where keys land."""

import collections

import pytest

from nexus_grpc.traffic.assignment import ARMS_MAX, BUCKETS, bucket_of, decode, encode, initial, reassigned


def test_the_first_table_keeps_the_lowest_buckets_for_the_first_arm() -> None:
    assert encode(initial([9_500, 500])) == "0x9500,1x500"
    assert encode(initial([BUCKETS])) == "0x10000"
    assert encode(initial([0, BUCKETS])) == "1x10000"
    assert encode(initial([5_000, 0, 2_500, 2_500])) == "0x5000,2x2500,3x2500"


def test_only_what_must_move_moves() -> None:
    table = initial([9_500, 500])
    grown = reassigned(table, [7_500, 2_500])
    assert encode(grown) == "0x7500,1x2500"
    # Back again: the candidate gives its highest buckets to the first arm, and keeps the others.
    assert encode(reassigned(grown, [9_500, 500])) == "0x7500,1x500,0x2000"
    assert reassigned(grown, [7_500, 2_500]) == grown


def test_an_arm_that_is_no_more_gives_everything() -> None:
    three = initial([2_000, 3_000, 5_000])
    assert encode(reassigned(three, [7_000, 3_000])) == "0x2000,1x3000,0x5000"
    assert encode(reassigned(three, [BUCKETS])) == "0x10000"


@pytest.mark.parametrize(
    "weights", [[], [9_999], [10_001], [-1, 10_001], [5_000, 4_999], [BUCKETS, *[0] * ARMS_MAX]], ids=str
)
def test_shares_that_are_none(weights: list[int]) -> None:
    with pytest.raises(ValueError, match="basis points"):
        initial(weights)


def test_a_table_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="basis points"):
        reassigned(bytes(BUCKETS - 1), [BUCKETS])


@pytest.mark.parametrize(
    "text",
    [
        "", "0", "x", "0x", "x10000", "0x9999", "0x10001", "0x5000,", ",0x10000", "0x5000,1x4999", "0x 10000",
        "-1x10000", "0x10000\n", "0x10000,0x99999", "100x10000", "0x010000", "٠x10000", "0x1e4", "0x5000;1x5000",
    ],
)  # fmt: skip
def test_texts_that_are_no_table(text: str) -> None:
    with pytest.raises(ValueError, match="buckets"):
        decode(text)


def test_text_and_table_are_one() -> None:
    table = reassigned(reassigned(initial([9_500, 500]), [2_000, 8_000]), [6_000, 4_000])
    assert decode(encode(table)) == table
    assert decode("0x5000,0x5000") == bytes(BUCKETS)


def test_keys_are_spread_evenly_under_every_salt() -> None:
    keys = [b"user-%d" % number for number in range(40_000)]
    for salt in ("", "0123456789abcdef", "x" * 200, "ä" * 64):
        counts = collections.Counter(bucket_of(key, salt) // 1_000 for key in keys)
        # 4,000 expected in each tenth, standard deviation 60.
        assert set(counts) == set(range(10))
        assert all(abs(count - 4_000) < 300 for count in counts.values())


def test_a_key_has_one_bucket_and_another_under_another_salt() -> None:
    assert bucket_of(b"user-1", "a") == bucket_of(b"user-1", "a")
    same = sum(bucket_of(b"%d" % number, "a") == bucket_of(b"%d" % number, "b") for number in range(10_000))
    assert same < 20  # one expected
    for key in (b"", b"\0", b"\xff" * 10_000):
        assert 0 <= bucket_of(key, "salt") < BUCKETS


def test_buckets_stay_what_they_are_over_versions_of_this_server() -> None:
    """A running experiment's keys must not change hands with an update: these numbers are for ever."""
    assert [bucket_of(key, "0123456789abcdef") for key in (b"", b"user-1", b"user-2")] == [1381, 7568, 20]

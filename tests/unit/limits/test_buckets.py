"""One bucket: the burst, the rate, what the headers say."""

import math

import pytest

from nexus_grpc.limits.buckets import (
    MINUTE_NS,
    SECOND_NS,
    TokenBucket,
    rate_headers,
    rate_of,
    remaining,
)

NOW = 1_000 * SECOND_NS


def test_the_burst_passes_at_once_and_then_the_rate() -> None:
    bucket = TokenBucket(rate_of(60.0, burst=3))
    assert [bucket.take(NOW) for _ in range(4)] == [0, 0, 0, SECOND_NS]
    assert bucket.take(NOW + SECOND_NS - 1) == 1
    assert bucket.take(NOW + SECOND_NS) == 0
    assert bucket.take(NOW + SECOND_NS) == SECOND_NS


def test_a_refusal_costs_nothing() -> None:
    bucket = TokenBucket(rate_of(60.0, burst=1))
    assert bucket.take(NOW) == 0
    for _ in range(100):
        assert bucket.take(NOW + 10) == SECOND_NS - 10
    assert bucket.take(NOW + SECOND_NS) == 0


def test_what_is_put_back_can_be_taken() -> None:
    bucket = TokenBucket(rate_of(60.0, burst=1))
    bucket.put_back()
    assert bucket.take(NOW) == 0
    bucket.put_back()
    assert bucket.take(NOW) == 0
    assert bucket.take(NOW) == SECOND_NS


@pytest.mark.parametrize(("per_minute", "burst"), [(100.0, 16), (6.0, 1), (1.0, 1), (0.01, 1), (6000.0, 1000)])
def test_a_burst_of_its_own(per_minute: float, burst: int) -> None:
    assert rate_of(per_minute).burst == burst
    assert rate_of(per_minute, 7).burst == 7


def test_extremes_fit_a_word() -> None:
    for per_minute in (1e-9, 1e-3, 1.0, 1e9, 1e12):
        for burst in (0, 1, 1 << 20, 1 << 62):
            rate = rate_of(per_minute, burst)
            assert rate.interval_ns >= 1
            assert rate.burst >= 1
            assert NOW + 3 * rate.burst * rate.interval_ns < 1 << 63


@pytest.mark.parametrize(("per_minute", "burst"), [(0.0, 1), (-1.0, 1), (math.nan, 1), (math.inf, 1), (1.0, -1)])
def test_what_is_no_rate(per_minute: float, burst: int) -> None:
    with pytest.raises(ValueError, match="a rate needs"):
        rate_of(per_minute, burst)


def test_the_interval_is_never_too_short() -> None:
    for per_minute in (7.0, 100.0, 999.9, 7e8):
        assert rate_of(per_minute).interval_ns * per_minute >= MINUTE_NS


def test_headers_tell_where_one_stands() -> None:
    bucket = TokenBucket(rate_of(100.0, burst=16))
    assert dict(rate_headers(bucket, NOW)) == {
        "ratelimit-limit": "16",
        "ratelimit-remaining": "16",
        "ratelimit-reset": "0",
        "ratelimit-policy": "100;w=60;burst=16",
    }
    for left in range(15, -1, -1):
        assert bucket.take(NOW) == 0
        assert remaining(bucket, NOW) == left
        assert dict(rate_headers(bucket, NOW))["ratelimit-remaining"] == str(left)
    assert dict(rate_headers(bucket, NOW))["ratelimit-reset"] == "10"
    assert dict(rate_headers(bucket, NOW + 1))["ratelimit-reset"] == "10"
    assert remaining(bucket, NOW + 600_000_000) == 1
    assert remaining(bucket, NOW + 10 * SECOND_NS) == 16


def test_who_was_refused_has_nothing_left() -> None:
    """Also where other servers still have a part of the burst."""
    bucket = TokenBucket(rate_of(100.0, burst=16))
    headers = dict(rate_headers(bucket, NOW, refused=True))
    assert (headers["ratelimit-limit"], headers["ratelimit-remaining"]) == ("16", "0")

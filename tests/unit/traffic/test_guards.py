"""Guards: what they mean, when they fail, and the texts that are none."""

import pytest

from nexus_grpc.ipc.errors import InvalidInput
from nexus_grpc.ipc.snapshots import Histogram
from nexus_grpc.ipc.stats import LATENCY_BOUNDS_NS, LATENCY_BUCKETS
from nexus_grpc.traffic.guards import GUARDS_MAX, METRICS, Guard, parse_guards
from nexus_grpc.traffic.statistics import VariantStats


def stats(requests: int = 100, errors: int = 0, mean_ms: float = 0.0, bucket: int = 0) -> VariantStats:
    """All requests in one bucket of the histogram."""
    buckets = [0] * LATENCY_BUCKETS
    buckets[bucket] = requests
    return VariantStats(requests, errors, Histogram(tuple(buckets), int(mean_ms * 1e6 * requests)))


def guard(text: str) -> Guard:
    (parsed,) = parse_guards([text])
    return parsed


@pytest.mark.parametrize(
    ("text", "metric", "limit", "is_relative", "or_equal"),
    [
        ("error_rate<1%", "error_rate", 0.01, False, False),
        ("error_rate<0.01", "error_rate", 0.01, False, False),
        ("error_rate<=0%", "error_rate", 0.0, False, True),
        ("error_rate<1.5x", "error_rate", 1.5, True, False),
        ("p99<20ms", "p99", 20e6, False, False),
        ("p95 <= 0.5 s", "p95", 5e8, False, True),
        ("P50<750US", "p50", 75e4, False, False),
        ("p50<750µs", "p50", 75e4, False, False),
        (" mean < 1.2x ", "mean", 1.2, True, False),
        ("p99<10s", "p99", 1e10, False, False),
    ],
)
def test_guards_are_read(text: str, metric: str, limit: float, is_relative: bool, or_equal: bool) -> None:
    parsed = guard(text)
    assert (parsed.metric, parsed.is_relative, parsed.or_equal) == (metric, is_relative, or_equal)
    assert parsed.limit == pytest.approx(limit)
    assert parsed.text == text.strip()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not understood"),
        ("p99", "not understood"),
        ("p99>20ms", "not understood"),
        ("p99<-1ms", "not understood"),
        ("p99<1e3ms", "not understood"),
        ("p99<20min", "not understood"),
        ("p99<20ms;", "not understood"),
        ("p99<２0ms", "not understood"),
        ("p99<.5ms", "not understood"),
        ("x" * 10_000, "not understood"),
        ("p98<20ms", 'no such metric "p98"; did you mean'),
        ("eror_rate<1%", 'did you mean "error_rate"'),
        ("q<1x", f"there is: {', '.join(METRICS)}"),
        ("p99<20", "a time, such as p99<20ms"),
        ("p99<20%", "a time, such as p99<20ms"),
        ("error_rate<20ms", "percent, such as error_rate<1%"),
        ("p99<11s", "measured up to 10 s"),
        ("p50<=10s", "measured up to 10 s"),
    ],
)
def test_texts_that_are_no_guard(text: str, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_guards(["p50<1s", text])
    assert words in caught.value.message
    assert len(caught.value.message) < 300
    assert caught.value.field == "guards"


def test_no_guard_and_too_many() -> None:
    assert parse_guards([]) == ()
    assert len(parse_guards(["p99<1s"] * GUARDS_MAX)) == GUARDS_MAX
    with pytest.raises(InvalidInput, match="at most 16"):
        parse_guards(["p99<1s"] * (GUARDS_MAX + 1))


@pytest.mark.parametrize(
    ("text", "errors", "holds"),
    [
        ("error_rate<5%", 4, True),
        ("error_rate<5%", 5, False),
        ("error_rate<=5%", 5, True),
        ("error_rate<=5%", 6, False),
        ("error_rate<=0%", 0, True),
    ],
)
def test_a_limit_of_the_error_rate(text: str, errors: int, holds: bool) -> None:
    assert bool(guard(text).violation(stats(), stats(errors=errors))) is not holds


def test_what_a_violation_says() -> None:
    violation = guard("error_rate<5%").violation(stats(), stats(errors=7))
    assert violation == "error_rate<5% failed: error_rate is 7%, limit 5%"
    violation = guard("mean<1.2x").violation(stats(mean_ms=10), stats(mean_ms=15))
    assert violation == "mean<1.2x failed: mean is 15 ms, limit 12 ms"


def test_limits_relative_to_the_first_variant() -> None:
    assert not guard("mean<1.2x").violation(stats(mean_ms=10), stats(mean_ms=11.9))
    assert guard("mean<1.2x").violation(stats(mean_ms=10), stats(mean_ms=12))
    assert not guard("mean<=1.2x").violation(stats(mean_ms=10), stats(mean_ms=12))
    assert guard("error_rate<2x").violation(stats(errors=2), stats(errors=4))
    assert not guard("error_rate<2x").violation(stats(errors=2), stats(errors=3))
    slow, slower = LATENCY_BOUNDS_NS.index(10_000_000), LATENCY_BOUNDS_NS.index(50_000_000)
    assert not guard("p99<2x").violation(stats(bucket=slow), stats(bucket=slow))
    assert guard("p99<2x").violation(stats(bucket=slow), stats(bucket=slower))


def test_a_first_variant_without_errors_is_one_to_be_measured_by() -> None:
    for text in ("error_rate<2x", "error_rate<=2x"):
        assert guard(text).violation(stats(errors=0), stats(errors=1))
        assert not guard(text).violation(stats(errors=0), stats(errors=0))


@pytest.mark.parametrize("metric", METRICS)
def test_without_a_first_variant_to_be_measured_by_a_relative_guard_holds(metric: str) -> None:
    candidate = stats(errors=50, mean_ms=50, bucket=9)
    assert not guard(f"{metric}<1x").violation(VariantStats(), candidate)


@pytest.mark.parametrize("metric", METRICS[1:])
def test_times(metric: str) -> None:
    index = LATENCY_BOUNDS_NS.index(50_000_000)
    assert not guard(f"{metric}<60ms").violation(stats(), stats(mean_ms=40, bucket=index))
    assert guard(f"{metric}<20ms").violation(stats(), stats(mean_ms=40, bucket=index))


def test_what_took_longer_than_is_measured_fails_every_limit() -> None:
    candidate = stats(mean_ms=30_000, bucket=LATENCY_BUCKETS - 1)
    assert guard("p99<10s").violation(stats(), candidate)
    assert guard("mean<20s").violation(stats(), candidate)

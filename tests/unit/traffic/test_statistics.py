"""Counts that add and subtract; and what is said about differences, against scipy and published examples."""

import math
import os
import random

import pytest
from scipy import stats as scipy_stats

from nexus_grpc.ipc import stats as pages
from nexus_grpc.ipc.errors import CODE_COUNT, Code
from nexus_grpc.ipc.record import Method
from nexus_grpc.ipc.snapshots import FrontModelSnapshot, Histogram
from nexus_grpc.ipc.stats import LATENCY_BOUNDS_NS, LATENCY_BUCKETS
from nexus_grpc.traffic import significance
from nexus_grpc.traffic.statistics import ERROR_CODES, PREDICTION_BUCKETS, VariantStats

NOTHING = VariantStats()


def counts(**at: int) -> tuple[int, ...]:
    """Of a histogram: b3=5 is 5 values in bucket 3."""
    buckets = [0] * LATENCY_BUCKETS
    for name, count in at.items():
        buckets[int(name[1:])] = count
    return tuple(buckets)


def stats(requests: int = 0, errors: int = 0, sum_ns: int = 0, **at: int) -> VariantStats:
    return VariantStats(requests, errors, Histogram(counts(**at), sum_ns))


# --- counts ---


def test_counts_add_and_subtract() -> None:
    one = VariantStats(10, 2, Histogram(counts(b0=4, b3=6), 1_000), (1, *[0] * 14, 9))
    other = VariantStats(5, 1, Histogram(counts(b3=5), 500), (0, 5, *[0] * 14))
    both = one + other
    assert (both.requests, both.errors, both.latency.count, both.latency.sum) == (15, 3, 15, 1_500)
    assert both.predictions == (1, 5, *[0] * 13, 9)
    assert both - other == one
    assert both - NOTHING == both
    assert NOTHING + NOTHING == NOTHING


def test_what_a_dead_process_took_along_is_not_counted_below_zero() -> None:
    one, other = stats(10, 1, 500, b0=10), VariantStats(11, 2, Histogram(counts(b0=5, b1=6), 600), (3, *[0] * 15))
    assert one - other == stats(0, 0, 0, b0=5)


def test_rates_and_means() -> None:
    assert (NOTHING.error_rate, NOTHING.mean_ns, NOTHING.percentile(0.99)) == (0.0, 0.0, 0.0)
    assert stats(8, 2).error_rate == 0.25
    assert stats(4, sum_ns=10_000, b0=4).mean_ns == 2_500


def test_percentiles_are_interpolated() -> None:
    first, second = LATENCY_BOUNDS_NS[:2]
    assert stats(b0=100).percentile(0.5) == first / 2
    assert stats(b0=100).percentile(1.0) == first
    assert stats(b0=50, b1=50).percentile(0.5) == first
    assert stats(b0=50, b1=50).percentile(0.75) == (first + second) / 2
    assert stats(b1=1).percentile(0.0) == first


def test_a_percentile_above_the_last_bound_is_that_bound() -> None:
    slow = stats(b0=98, **{f"b{LATENCY_BUCKETS - 1}": 2})
    assert slow.percentile(0.99) == LATENCY_BOUNDS_NS[-1]
    assert slow.percentile(0.98) == LATENCY_BOUNDS_NS[0]


def test_percentiles_of_real_times_lie_in_their_bucket() -> None:
    chance = random.Random(5)
    times = sorted(int(chance.lognormvariate(14, 2)) for _ in range(5_000))
    buckets = [0] * LATENCY_BUCKETS
    for time_ns in times:
        buckets[next((i for i, bound in enumerate(LATENCY_BOUNDS_NS) if time_ns <= bound), LATENCY_BUCKETS - 1)] += 1
    found = VariantStats(5_000, 0, Histogram(tuple(buckets), sum(times)))
    edges = (0, *LATENCY_BOUNDS_NS)
    for quantile in (0.01, 0.5, 0.9, 0.95, 0.99):
        exact = times[math.ceil(quantile * 5_000) - 1]
        index = next(i for i, bound in enumerate(LATENCY_BOUNDS_NS) if exact <= bound)
        assert edges[index] <= found.percentile(quantile) <= edges[index + 1]


def test_json_brings_them_back() -> None:
    one = VariantStats(10, 2, Histogram(counts(b0=4, b3=6), 1 << 62), tuple(range(PREDICTION_BUCKETS)))
    assert VariantStats.from_json(one.to_json()) == one


def test_json_of_other_buckets_counts_nothing() -> None:
    content = stats(10, b0=10).to_json()
    assert VariantStats.from_json({**content, "latency": [1, 2, 3]}) == NOTHING
    assert VariantStats.from_json({**content, "predictions": [1]}) == NOTHING
    with pytest.raises(KeyError):
        VariantStats.from_json({})
    with pytest.raises(ValueError, match="unpack"):
        VariantStats.from_json({**content, "latency": []})


def test_what_the_server_is_to_blame_for() -> None:
    requests = [[0] * CODE_COUNT for _ in Method]
    requests[Method.PREDICT][Code.OK] = 100
    requests[Method.MODEL_INFER] = [1] * CODE_COUNT
    front = FrontModelSnapshot(tuple(map(tuple, requests)), Histogram(counts(b2=117), 5))
    found = VariantStats.from_snapshots(front, None)
    assert (found.requests, found.errors) == (100 + CODE_COUNT, len(ERROR_CODES))
    assert found.latency == front.total
    blameless = {Code.OK, Code.CANCELLED, Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.UNIMPLEMENTED}
    assert not ERROR_CODES & blameless


def test_out_of_pages() -> None:
    """Of pages that nobody wrote to: nothing; and both kinds of pages have the buckets that are expected here."""
    kinds = (pages.PageKind.FRONT, pages.PageKind.WORKER)
    descriptors = [pages.create_page(kind) for kind in kinds]
    front_page, worker_page = (pages.open_page(descriptor) for descriptor in descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    front, worker = pages.read_front_model(front_page, 1), pages.read_model(worker_page, 1)
    assert VariantStats.from_snapshots(front, worker) == NOTHING
    assert VariantStats.from_snapshots(None, None) == NOTHING
    assert PREDICTION_BUCKETS == pages.PREDICTION_BUCKETS


# --- differences ---


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (1, 10), (10, 10), (81, 263), (15, 148), (3, 1_000_000)])
def test_wilsons_interval(successes: int, trials: int) -> None:
    expected = scipy_stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    assert significance.wilson(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_no_trials_say_nothing() -> None:
    assert significance.wilson(0, 0) == (0.0, 1.0)
    assert significance.newcombe(0, 0, 1, 2) == significance.newcombe(1, 2, 0, 0) == (-1.0, 1.0)


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        ((56, 70, 48, 80), 0.0524, 0.3339),
        ((9, 10, 3, 10), 0.1705, 0.8090),
        ((10, 10, 0, 20), 0.6791, 1.0),
        ((0, 10, 0, 10), -0.2775, 0.2775),
    ],
)
def test_newcombes_examples(table: tuple[int, int, int, int], low: float, high: float) -> None:
    """Table II of Newcombe 1998 (Statistics in Medicine 17, 873-890), method 10."""
    assert significance.newcombe(*table) == pytest.approx((low, high), abs=5e-5)


def test_error_rates_few_errors() -> None:
    one, other = stats(1_000, 9), stats(1_000, 1)
    expected = scipy_stats.fisher_exact([[9, 991], [1, 999]])[1]
    assert significance.error_rate_p_value(one, other) == pytest.approx(expected)
    assert significance.error_rate_p_value(stats(10), stats(10)) == 1.0
    assert significance.error_rate_p_value(stats(10, 10), stats(10, 10)) == 1.0
    assert significance.error_rate_p_value(NOTHING, other) == 1.0


def test_error_rates_many_errors() -> None:
    """The square of the pooled z is Pearson's chi-squared of the 2 × 2 table."""
    expected = scipy_stats.chi2_contingency([[60, 940], [30, 970]], correction=False).pvalue
    assert significance.error_rate_p_value(stats(1_000, 60), stats(1_000, 30)) == pytest.approx(expected)
    assert significance.error_rate_p_value(stats(1_000, 30), stats(1_000, 30)) == 1.0


def test_error_rates_of_a_days_traffic() -> None:
    day = 10**8
    assert significance.error_rate_p_value(stats(day, 0), stats(day, 9)) < 0.01
    assert significance.error_rate_p_value(stats(day, day // 100), stats(day, day // 100 + 10**5)) < 1e-9
    assert significance.error_rate_p_value(stats(day, day // 100), stats(day, day // 100 + 10)) > 0.9


def test_distributions() -> None:
    one, other = (20, 30, 50, 0, 0), (35, 30, 35, 0, 0)
    expected = scipy_stats.chi2_contingency([one[:3], other[:3]], correction=False).pvalue
    assert significance.homogeneity_p_value(one, other) == pytest.approx(expected)
    assert significance.homogeneity_p_value(one, one) == pytest.approx(1.0)


def test_thin_columns_are_merged_with_their_neighbours() -> None:
    one, other = (3, 2, 4, 30, 7, 3, 1), (6, 1, 5, 50, 2, 9, 1)
    # The first two have 12 of 124, where 12.4 would expect 5 in the first row of 50: the third joins them. The last,
    # left over, joins the one before.
    merged = [(9, 30, 10 + 1), (12, 50, 11 + 1)]
    expected = scipy_stats.chi2_contingency(merged, correction=False)
    assert (expected.expected_freq >= 5).all()
    assert significance.homogeneity_p_value(one, other) == pytest.approx(expected.pvalue)


@pytest.mark.parametrize(
    ("one", "other"), [((0, 0), (0, 0)), ((10, 10), (0, 0)), ((100, 0), (90, 0)), ((1, 1), (1, 1)), ((), ())]
)
def test_too_little_to_tell(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    assert significance.homogeneity_p_value(one, other) == 1.0


def test_alarms_without_a_reason_are_as_rare_as_they_say() -> None:
    """Two variants of the same behaviour: about 5 % of all comparisons are below 0.05, for each of the tests."""
    chance = random.Random(11)
    rounds, errors_alarms, latency_alarms = 400, 0, 0
    for _ in range(rounds):
        rows = [[0] * LATENCY_BUCKETS for _ in range(2)]
        for row in rows:
            for _ in range(200):
                row[min(LATENCY_BUCKETS - 1, int(chance.expovariate(0.4)))] += 1
        errors = [sum(chance.random() < 0.2 for _ in range(200)) for _ in range(2)]
        errors_alarms += significance.error_rate_p_value(stats(200, errors[0]), stats(200, errors[1])) < 0.05
        latency_alarms += significance.homogeneity_p_value(*rows) < 0.05
    # 20 expected each, standard deviation 4.4.
    assert 5 <= errors_alarms <= 36
    assert 5 <= latency_alarms <= 36


def test_how_many_requests_a_difference_takes() -> None:
    """Fleiss, Statistical Methods for Rates and Proportions: 0.6 against 0.7 at 5 % and 80 % takes 356 each."""
    assert significance.requests_needed(stats(10, 6), stats(10, 7)) == 356
    assert significance.requests_needed(stats(10, 7), stats(10, 6)) == 356
    assert significance.requests_needed(stats(10, 1), stats(20, 2)) == 0
    assert significance.requests_needed(NOTHING, NOTHING) == 0


def test_verdicts() -> None:
    base = stats(1_000, 10, 10**9, b5=1_000)
    assert significance.verdict(base, NOTHING, 1, 1, 1) == "too early: a variant has no requests yet"
    assert significance.verdict(base, base, 1, 1, 1) == "no difference shown"
    worse = stats(1_000, 50, 2 * 10**9, b5=1_000)
    assert significance.verdict(base, worse, 0.01, 0.01, 0.01) == (
        "its error rate is higher (5.00% against 1.00%); it is slower (2.00 ms against 1.00 ms on average);"
        " it predicts otherwise"
    )
    assert significance.verdict(worse, base, 0.01, 0.01, 1) == (
        "its error rate is lower (1.00% against 5.00%); it is faster (1.00 ms against 2.00 ms on average)"
    )
    text = significance.verdict(base, stats(1_000, 11), 0.8, 1, 1)
    assert text.startswith("no difference shown yet; this difference in error rates would take about 1")

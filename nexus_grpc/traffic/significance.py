"""What can be said about the difference between two variants. scipy is imported here alone, and late: it is large.

Sources: Wilson 1927 (interval of a proportion); Newcombe 1998, method 10 (interval of a difference); Fisher's exact
test for few errors, the pooled two-proportion z-test for many; Pearson's chi-squared test of homogeneity over a 2 × k
table, columns merged until each expects at least 5 (Cochran 1954).
"""

import math
from collections.abc import Sequence

from nexus_grpc.traffic.statistics import VariantStats

Z95 = 1.959963984540054
ALPHA = 0.05
POWER_Z = 0.8416212335729143  # 80 %
# Below this many errors (or successes) in either variant Fisher's test is used.
FISHER_BELOW = 10
EXPECTED_MIN = 5.0


def wilson(successes: int, trials: int, z: float = Z95) -> tuple[float, float]:
    """95 % interval of a proportion; (0, 1) without trials."""
    if not trials:
        return 0.0, 1.0
    share = successes / trials
    denominator = 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / denominator
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / denominator
    return max(0.0, middle - half), min(1.0, middle + half)


def newcombe(successes_1: int, trials_1: int, successes_2: int, trials_2: int) -> tuple[float, float]:
    """95 % interval of proportion 1 minus proportion 2; (-1, 1) without trials on a side."""
    if not trials_1 or not trials_2:
        return -1.0, 1.0
    p1, p2 = successes_1 / trials_1, successes_2 / trials_2
    low_1, high_1 = wilson(successes_1, trials_1)
    low_2, high_2 = wilson(successes_2, trials_2)
    low = p1 - p2 - math.sqrt((p1 - low_1) ** 2 + (high_2 - p2) ** 2)
    high = p1 - p2 + math.sqrt((high_1 - p1) ** 2 + (p2 - low_2) ** 2)
    return low, high


def error_rate_p_value(one: VariantStats, other: VariantStats) -> float:
    """Two-sided, that both have the same error rate; 1 without requests."""
    if not one.requests or not other.requests:
        return 1.0
    cells = (one.errors, one.requests - one.errors, other.errors, other.requests - other.errors)
    if min(cells) < FISHER_BELOW:
        from scipy.stats import fisher_exact

        return float(fisher_exact([[cells[0], cells[1]], [cells[2], cells[3]]])[1])
    from scipy.special import ndtr

    pooled = (one.errors + other.errors) / (one.requests + other.requests)
    spread = math.sqrt(pooled * (1 - pooled) * (1 / one.requests + 1 / other.requests))
    return float(2 * ndtr(-abs(one.error_rate - other.error_rate) / spread))


def homogeneity_p_value(one: Sequence[int], other: Sequence[int]) -> float:
    """That two rows of counts come from one distribution; 1 when there is too little to tell."""
    columns = _merged([*zip(one, other, strict=True)])
    if len(columns) < 2:
        return 1.0
    from scipy.special import chdtrc

    totals = [sum(column[row] for column in columns) for row in (0, 1)]
    everything = sum(totals)
    statistic = 0.0
    for column in columns:
        for row in (0, 1):
            expected = sum(column) * totals[row] / everything
            statistic += (column[row] - expected) ** 2 / expected
    return float(chdtrc(len(columns) - 1, statistic))


def _merged(columns: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Neighbouring columns joined until each expects at least EXPECTED_MIN in both rows."""
    totals = [sum(column[row] for column in columns) for row in (0, 1)]
    if not all(totals):
        return []
    enough = EXPECTED_MIN * sum(totals) / min(totals)
    merged: list[tuple[int, int]] = []
    first, second = 0, 0
    for a, b in columns:
        first, second = first + a, second + b
        if first + second >= enough:
            merged.append((first, second))
            first, second = 0, 0
    if merged and (first or second):
        merged[-1] = (merged[-1][0] + first, merged[-1][1] + second)
    return merged


def requests_needed(one: VariantStats, other: VariantStats) -> int:
    """About how many requests per variant would show the observed difference in error rates (5 %, 80 % power); 0 when
    there is none."""
    p1, p2 = one.error_rate, other.error_rate
    if p1 == p2:
        return 0
    mean = (p1 + p2) / 2
    numerator = Z95 * math.sqrt(2 * mean * (1 - mean)) + POWER_Z * math.sqrt(p1 * (1 - p1) + p2 * (1 - p2))
    return math.ceil((numerator / (p1 - p2)) ** 2)


def verdict(
    baseline: VariantStats, candidate: VariantStats, errors_p: float, latency_p: float, predictions_p: float
) -> str:
    """In words, for people who decide."""
    if not baseline.requests or not candidate.requests:
        return "too early: a variant has no requests yet"
    parts = []
    if errors_p < ALPHA:
        word = "higher" if candidate.error_rate > baseline.error_rate else "lower"
        parts.append(f"its error rate is {word} ({candidate.error_rate:.2%} against {baseline.error_rate:.2%})")
    if latency_p < ALPHA:
        word = "slower" if candidate.mean_ns > baseline.mean_ns else "faster"
        parts.append(
            f"it is {word} ({candidate.mean_ns / 1e6:.2f} ms against {baseline.mean_ns / 1e6:.2f} ms on average)"
        )
    if predictions_p < ALPHA:
        parts.append("it predicts otherwise")
    if parts:
        return "; ".join(parts)
    needed = requests_needed(baseline, candidate)
    if needed > min(baseline.requests, candidate.requests):
        return f"no difference shown yet; this difference in error rates would take about {needed} requests each"
    return "no difference shown"

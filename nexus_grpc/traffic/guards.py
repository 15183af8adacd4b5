"""What must hold while a ramp goes up: `error_rate<1%`, `p99<20ms`, `p99<1.2x` (of the first variant's), `p50<=5ms`."""

import dataclasses
import difflib
import re
from collections.abc import Sequence

from nexus_grpc.ipc.errors import InvalidInput
from nexus_grpc.ipc.stats import LATENCY_BOUNDS_NS
from nexus_grpc.traffic.statistics import VariantStats

METRICS = ("error_rate", "p50", "p95", "p99", "mean")
GUARDS_MAX = 16
_GUARD = re.compile(r"\s*([a-z_0-9]+)\s*(<=?)\s*(\d+(?:\.\d+)?)\s*(%|ms|us|µs|s|x)?\s*", re.ASCII | re.IGNORECASE)
_LONGEST_NS = LATENCY_BOUNDS_NS[-1]
_NS = {"s": 1e9, "ms": 1e6, "us": 1e3, "µs": 1e3}


@dataclasses.dataclass(frozen=True, slots=True)
class Guard:
    """`metric` of the candidate must be below `limit`: a share, nanoseconds, or times the first variant's value."""

    text: str
    metric: str
    limit: float
    is_relative: bool
    or_equal: bool

    def violation(self, baseline: VariantStats, candidate: VariantStats) -> str:
        """Why it does not hold, in words; empty when it does."""
        value = _value(self.metric, candidate)
        limit = self.limit
        if self.is_relative:
            measure = _value(self.metric, baseline)
            # Nothing to be measured by. A first variant without errors is: then the candidate may have none either.
            if not measure and (self.metric != "error_rate" or not baseline.requests or not value):
                return ""
            limit *= measure
        if value < limit or (self.or_equal and value == limit):
            return ""
        return f"{self.text} failed: {self.metric} is {_shown(self.metric, value)}, limit {_shown(self.metric, limit)}"


def parse_guards(texts: Sequence[str]) -> tuple[Guard, ...]:
    """Raises InvalidInput for one that is not understood."""
    if len(texts) > GUARDS_MAX:
        raise InvalidInput(f"at most {GUARDS_MAX} guards", field="guards")
    return tuple(_parse(text) for text in texts)


def _parse(text: str) -> Guard:
    match = _GUARD.fullmatch(text)
    if match is None:
        raise InvalidInput(
            f'guard "{text[:80]}" is not understood; expected such as error_rate<1%, p99<20ms or p99<1.2x',
            field="guards",
        )
    metric, comparison, number, unit = match[1].lower(), match[2], float(match[3]), (match[4] or "").lower()
    if metric not in METRICS:
        close = difflib.get_close_matches(metric, METRICS, n=1)
        hint = f'; did you mean "{close[0]}"?' if close else f"; there is: {', '.join(METRICS)}"
        raise InvalidInput(f'guard "{text}": no such metric "{metric}"{hint}', field="guards")
    is_rate = metric == "error_rate"
    if unit == "x":
        return Guard(text.strip(), metric, number, True, comparison == "<=")
    if is_rate and unit in ("%", ""):
        return Guard(text.strip(), metric, number / (100 if unit else 1), False, comparison == "<=")
    if not is_rate and unit in _NS:
        limit = number * _NS[unit]
        # Above its last bound a histogram can't tell: such a guard would never fail.
        if metric != "mean" and (limit > _LONGEST_NS or (limit == _LONGEST_NS and comparison == "<=")):
            text = f'guard "{text}": percentiles are measured up to {_LONGEST_NS / 1e9:g} s; expected a lower limit'
            raise InvalidInput(text, field="guards")
        return Guard(text.strip(), metric, limit, False, comparison == "<=")
    expected = "percent, such as error_rate<1%" if is_rate else "a time, such as p99<20ms"
    raise InvalidInput(f'guard "{text}": expected {expected}, or a multiple, such as {metric}<1.2x', field="guards")


def _value(metric: str, stats: VariantStats) -> float:
    if metric == "error_rate":
        return stats.error_rate
    return stats.mean_ns if metric == "mean" else stats.percentile(int(metric[1:]) / 100)


def _shown(metric: str, value: float) -> str:
    return f"{value * 100:.3g}%" if metric == "error_rate" else f"{value / 1e6:.3g} ms"

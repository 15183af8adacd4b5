"""A front's HTTP endpoints, behind the slots of its statistics page (stats.py): first the hot methods, whose latency
FrontStats writes (their answers it counts by code, in slots), then those of rest/http_rules.py, in their order.

The front's one writer writes both.
"""

from bisect import bisect_left

from nexus_grpc.ipc.record import Method
from nexus_grpc.ipc.snapshots import Histogram
from nexus_grpc.ipc.stats import (
    HTTP_START,
    HTTP_STATUSES,
    HTTP_WORDS,
    LATENCY_BOUNDS_NS,
    LATENCY_BUCKETS,
    PageKind,
    expect,
    histogram_at,
)

HOT_ENDPOINTS = len(Method) - Method.HTTP_PREDICT
_LATENCY = len(HTTP_STATUSES)
_INDEX = {status: index for index, status in enumerate(HTTP_STATUSES)}


def count_http(words: memoryview, endpoint: int, status: int, total_ns: int) -> None:
    """One HTTP request of another than the hot methods was answered; an unknown status counts as 500."""
    start = HTTP_START + endpoint * HTTP_WORDS
    words[start + _INDEX.get(status, _INDEX[500])] += 1
    words[start + _LATENCY + bisect_left(LATENCY_BOUNDS_NS, total_ns)] += 1
    words[start + _LATENCY + LATENCY_BUCKETS] += total_ns


def read_http(words: memoryview, endpoint: int) -> tuple[dict[int, int], Histogram]:
    """Answers by HTTP status, and the latency, of an endpoint. Raises ValueError for another page than a front's."""
    start = HTTP_START + endpoint * HTTP_WORDS
    found = expect(words, PageKind.FRONT)[start : start + HTTP_WORDS].tolist()
    by_status = {status: count for status, count in zip(HTTP_STATUSES, found, strict=False) if count}
    return by_status, histogram_at(found, _LATENCY, LATENCY_BUCKETS)

"""What a front asks: by name, by bucket, for two at once; and the errors it makes of refusals."""

import os
from collections.abc import Iterator

import pytest

from nexus_grpc.ipc.errors import Code
from nexus_grpc.limits import limiter as module
from nexus_grpc.limits.admission import SHED, TOO_LATE, overloaded
from nexus_grpc.limits.buckets import SECOND_NS, rate_headers, remaining
from nexus_grpc.limits.limiter import Limiter, rate_limited, standing, take_both
from nexus_grpc.limits.shared import BucketTable, create_table

NOW = 1_000 * SECOND_NS


@pytest.fixture
def table() -> Iterator[BucketTable]:
    descriptor = create_table(64)
    yield BucketTable(descriptor, alone=True)
    os.close(descriptor)


def take(limiter: Limiter, name: str, per_minute: float, burst: int, now_ns: int = NOW) -> int:
    bucket = limiter.bucket(name, per_minute, burst)
    assert bucket is not None
    return bucket.take(now_ns)


def test_by_name(table: BucketTable) -> None:
    limiter = Limiter(table)
    assert [take(limiter, "key:a", 60.0, 2) for _ in range(3)] == [0, 0, SECOND_NS]
    assert take(limiter, "key:b", 60.0, 2) == 0
    # Other objects, the same buckets.
    assert take(Limiter(table), "key:a", 60.0, 2) == SECOND_NS


def test_no_rate_no_limit(table: BucketTable) -> None:
    assert Limiter(table).bucket("key:a", 0.0) is None


def test_a_new_rate_holds_at_once(table: BucketTable) -> None:
    limiter = Limiter(table)
    assert [take(limiter, "key:a", 60.0, 1) for _ in range(2)] == [0, SECOND_NS]
    assert take(limiter, "key:a", 60.0, 2) == 0
    assert take(limiter, "key:a", 600.0, 1, NOW + 2 * SECOND_NS) == 0
    assert take(limiter, "key:a", 600.0, 1, NOW + 2 * SECOND_NS) == SECOND_NS // 10


def test_names_are_bounded_and_nothing_is_lost(table: BucketTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUCKETS_MAX", 10)
    limiter = Limiter(table)
    for index in range(25):
        assert take(limiter, f"key:{index}", 1.0, 1) == 0
    assert all(take(limiter, f"key:{index}", 1.0, 1) for index in range(25))
    assert len(limiter._buckets) <= 10


def test_what_the_model_refuses_costs_the_caller_nothing(table: BucketTable) -> None:
    limiter = Limiter(table)
    caller, model = limiter.bucket("key:a", 60.0, 5), limiter.bucket("model:iris", 60.0, 1)
    assert caller is not None
    assert model is not None
    assert take_both(caller, model, NOW) is None
    assert take_both(caller, model, NOW) == (model, SECOND_NS)
    assert remaining(caller, NOW) == 4
    assert take_both(None, None, NOW) is None
    assert take_both(None, model, NOW) == (model, SECOND_NS)
    for _ in range(4):
        assert take_both(caller, None, NOW) is None
    assert take_both(caller, model, NOW) == (caller, SECOND_NS)


def test_the_error_says_what_and_when(table: BucketTable) -> None:
    bucket = Limiter(table).bucket("key:a", 100.0)
    assert bucket is not None
    error = rate_limited("caller 'key:a'", bucket, 600_000_000, NOW)
    assert error.code is Code.RESOURCE_EXHAUSTED
    assert error.retry_after_s == 0.6
    assert error.message == (
        "the limit of 100 requests per minute (at most 16 at once) of caller 'key:a' is used up; try again in 0.6 s"
    )
    assert rate_limited("x", bucket, 1, NOW).retry_after_s == 0.001
    assert dict(error.headers)["ratelimit-limit"] == "16"
    assert dict(error.headers)["ratelimit-remaining"] == "0"


def test_headers_are_of_whichever_has_less_left(table: BucketTable) -> None:
    limiter = Limiter(table)
    caller, model = limiter.bucket("key:a", 60.0, 5), limiter.bucket("model:iris", 60.0, 4)
    assert caller is not None
    assert model is not None
    assert standing(None, None, NOW) == ()
    assert standing(caller, model, NOW) == rate_headers(model, NOW)
    assert [caller.take(NOW), caller.take(NOW)] == [0, 0]
    assert standing(caller, model, NOW) == standing(caller, None, NOW) == rate_headers(caller, NOW)
    assert standing(None, model, NOW) == rate_headers(model, NOW)


def test_errors_of_admission() -> None:
    for verdict, reason in ((SHED, "LOAD_SHED"), (TOO_LATE, "DEADLINE_TOO_SHORT")):
        error = overloaded(verdict, 0.25e9)
        assert (error.code, error.reason, error.retry_after_s) == (Code.RESOURCE_EXHAUSTED, reason, 0.25)
        assert "0.25 s" in error.message

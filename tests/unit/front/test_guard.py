"""What requests pass once their caller and model are known: grants and rates."""

import os
from typing import Any

import pytest

from nexus_grpc.access.identity import Identity, Scope
from nexus_grpc.front.flight import Flight
from nexus_grpc.front.guard import Guard
from nexus_grpc.front.public_api import PublicFlight
from nexus_grpc.ipc.errors import InvalidInput, PermissionDenied, RateLimited, UnknownModel
from nexus_grpc.ipc.record import Method
from nexus_grpc.limits.limiter import Limiter
from nexus_grpc.limits.shared import BucketTable, create_table


def limiter() -> Limiter:
    descriptor = create_table()
    try:
        return Limiter(BucketTable(descriptor, alone=True))
    finally:
        os.close(descriptor)


def flight(identity: Identity | None = None) -> Flight:
    nobody: Any = None
    made = PublicFlight(int(Method.PREDICT), b"id", 0, b"", nobody)
    made.identity = identity
    return made


def caller(name: str = "key:1", models: tuple[str, ...] = ("*",), per_minute: float = 0.0, burst: int = 0) -> Identity:
    return Identity(name, Scope.PREDICT, models, per_minute, burst)


def test_a_grant_for_some_models() -> None:
    guard = Guard(limiter(), 0)
    by_team = flight(caller(models=("fraud-*", "iris")))
    guard.check(by_team, "iris")
    guard.check(by_team, "fraud-eu")
    with pytest.raises(PermissionDenied, match="'churn'") as caught:
        guard.check(by_team, "churn")
    assert caught.value.reason == "MODEL_DENIED"
    guard.check(flight(caller()), "churn")
    guard.check(flight(), "churn")


def test_a_callers_rate() -> None:
    guard = Guard(limiter(), 0)
    busy = caller(per_minute=1, burst=2)
    guard.check(flight(busy), "iris")
    guard.check_caller(busy)
    with pytest.raises(RateLimited, match="key:1") as caught:
        guard.check(flight(busy), "churn")
    assert 59 < caught.value.retry_after_s <= 60
    with pytest.raises(RateLimited):
        guard.check_caller(busy)
    guard.check(flight(caller("key:2", per_minute=1, burst=2)), "iris")
    guard.check(flight(caller("key:3")), "iris")


def test_a_models_rate_counts_whoever_calls() -> None:
    guard = Guard(limiter(), 12)
    for identity in (None, caller()):
        guard.check(flight(identity), "iris")
    with pytest.raises(RateLimited, match="model 'iris'"):
        guard.check(flight(caller("key:2")), "iris")
    guard.check(flight(), "churn")
    # What names no model has no part in it.
    for _ in range(5):
        guard.check_caller(caller())


def test_what_the_model_refuses_costs_its_caller_nothing() -> None:
    guard = Guard(limiter(), 6)
    busy = caller(per_minute=1, burst=2)
    guard.check(flight(busy), "iris")
    for _ in range(3):
        with pytest.raises(RateLimited, match="model 'iris'"):
            guard.check(flight(busy), "iris")
    guard.check(flight(busy), "churn")
    with pytest.raises(RateLimited, match="key:1"):
        guard.check(flight(busy), "other")


def test_a_refused_model_costs_no_token() -> None:
    guard = Guard(limiter(), 6)
    denied = caller(models=("iris",), per_minute=1, burst=1)
    with pytest.raises(PermissionDenied):
        guard.check(flight(denied), "churn")
    guard.check(flight(denied), "iris")
    guard.check(flight(), "churn")


def test_no_caller_is_a_model() -> None:
    """A certificate may be called anything."""
    guard = Guard(limiter(), 6)
    guard.check(flight(), "iris")
    guard.check(flight(caller("cert:model:iris", per_minute=6, burst=1)), "churn")


def named(model: bytes, identity: Identity | None) -> Flight:
    made = flight(identity)
    made.message = bytes([0x0A, len(model)]) + model
    return made


def test_a_model_that_is_not_there_costs_as_much() -> None:
    guard = Guard(limiter(), 0)
    busy = caller(per_minute=1, burst=1)
    missing = UnknownModel("none")
    assert guard.refusal(named(b"none", busy), missing) is missing
    assert isinstance(guard.refusal(named(b"none", busy), missing), RateLimited)
    assert guard.refusal(named(b"none", None), missing) is missing


def test_who_may_not_use_a_model_does_not_learn_whether_there_is_one() -> None:
    guard = Guard(limiter(), 0)
    team = caller(models=("fraud-*",))
    missing = UnknownModel("none")
    assert isinstance(guard.refusal(named(b"churn", team), missing), PermissionDenied)
    assert guard.refusal(named(b"fraud-xx", team), missing) is missing
    limited = RateLimited("enough")
    assert guard.refusal(named(b"churn", team), limited) is limited


def test_the_model_that_was_meant_is_named_to_those_who_may_use_it() -> None:
    guard = Guard(limiter(), 0)
    error = UnknownModel("there is no 'fraud-a'", meant="fraud-b")
    assert error.message == "there is no 'fraud-a'; did you mean 'fraud-b'?"
    for models in (("*",), ("fraud-*",)):
        assert guard.refusal(named(b"fraud-a", caller(models=models)), error).message == error.message
    hidden = guard.refusal(named(b"fraud-a", caller(models=("fraud-a",))), error)
    assert (hidden.message, hidden.reason) == ("there is no 'fraud-a'", "UNKNOWN_MODEL")
    assert guard.refusal(named(b"fraud-a", None), error) is error


def test_what_names_no_model_costs_as_much() -> None:
    """Such as JSON that is none. It is nobody's business which models there are."""
    guard = Guard(limiter(), 0)
    busy, wrong = caller(per_minute=1, burst=1, models=("fraud-*",)), InvalidInput("no JSON")
    first, second, third = flight(busy), flight(busy), flight()
    assert guard.counted(first, wrong) is wrong
    assert isinstance(guard.counted(second, wrong), RateLimited)
    assert left(first) == left(second) == ("1", "0")
    assert guard.counted(third, wrong) is wrong
    assert third.headers == ()


def left(made: Flight) -> tuple[str, str]:
    headers = dict(made.headers)
    return headers["ratelimit-limit"], headers["ratelimit-remaining"]


def test_answers_tell_where_their_caller_stands() -> None:
    guard = Guard(limiter(), 0)
    busy = caller(per_minute=1, burst=3)
    first, second = flight(busy), flight(busy)
    guard.check(first, "iris")
    guard.check(second, "iris")
    assert (left(first), left(second)) == (("3", "2"), ("3", "1"))
    assert dict(guard.check_caller(busy))["ratelimit-remaining"] == "0"
    refused = flight(busy)
    with pytest.raises(RateLimited) as caught:
        guard.check(refused, "iris")
    assert refused.headers == caught.value.headers
    assert left(refused) == ("3", "0")
    assert dict(refused.headers)["ratelimit-policy"] == "1;w=60;burst=3"
    assert dict(guard.standing(busy))["ratelimit-remaining"] == "0"
    # Where there is no rate there is nothing to tell.
    free = flight(caller("key:2"))
    guard.check(free, "iris")
    assert free.headers == guard.standing(free.identity) == guard.standing(None) == ()
    assert guard.check_caller(caller("key:2")) == ()


def test_they_tell_of_the_model_where_that_has_less_left() -> None:
    guard = Guard(limiter(), 12)
    asked, other = flight(caller(per_minute=60, burst=5)), flight()
    guard.check(asked, "iris")
    guard.check(other, "iris")
    assert (left(asked), left(other)) == (("2", "1"), ("2", "0"))
    refused = flight(caller("key:2", per_minute=60, burst=5))
    with pytest.raises(RateLimited):
        guard.check(refused, "iris")
    assert left(refused) == ("2", "0")


def test_a_model_that_is_not_there_tells_as_much() -> None:
    guard = Guard(limiter(), 0)
    busy, missing = caller(per_minute=1, burst=1), UnknownModel("none")
    found, refused = named(b"none", busy), named(b"none", busy)
    guard.refusal(found, missing)
    guard.refusal(refused, missing)
    assert left(found) == left(refused) == ("1", "0")

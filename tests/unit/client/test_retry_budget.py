"""Retries never multiply an overload: all calls of a client share what they may try again."""

import asyncio
import concurrent.futures
import math
from collections.abc import Callable

import grpc
import pytest

from nexus_grpc.client import AsyncClient, Client, NexusClientError, Retry
from nexus_grpc.client.retry_budget import RetryBudget
from tests.harness import free_port
from tests.unit.client.scripted import Refuse, ScriptedServer, Sleep

pytestmark = pytest.mark.timeout(60)
UNAVAILABLE = Refuse(grpc.StatusCode.UNAVAILABLE)
TOO_MUCH = Refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after_s=0.001)
QUICK = Retry(wait_initial_s=0.001, wait_max_s=0.002)
ANSWER = Sleep(0.0)
CALLS = 100


def ask_blocking(address: str, calls: int, retry: Retry) -> list[str]:
    """How each of so many calls ended, eight at a time."""

    def ask(client: Client) -> str:
        try:
            client.infer("m", {}, timeout_s=20.0)
        except NexusClientError as error:
            return error.code
        return "OK"

    with Client(address, retry=retry) as client, concurrent.futures.ThreadPoolExecutor(8) as pool:
        return list(pool.map(ask, [client] * calls))


def ask_asyncio(address: str, calls: int, retry: Retry) -> list[str]:
    async def ask(client: AsyncClient) -> str:
        try:
            await client.infer("m", {}, timeout_s=20.0)
        except NexusClientError as error:
            return error.code
        return "OK"

    async def run() -> list[str]:
        async with AsyncClient(address, retry=retry) as client:
            return [await ask(client) for _ in range(calls)]

    return asyncio.run(run())


AskMany = Callable[[str, int, Retry], list[str]]
both = pytest.mark.parametrize("ask_many", [ask_blocking, ask_asyncio], ids=["blocking", "asyncio"])


@both
@pytest.mark.parametrize("refusal", [UNAVAILABLE, TOO_MUCH], ids=["unavailable", "retry-info"])
def test_a_server_that_refuses_everything_is_asked_once(refusal: Refuse, ask_many: AskMany) -> None:
    with ScriptedServer(*[refusal] * 1000) as server:
        assert set(ask_many(server.address, CALLS, QUICK)) == {refusal.code.name}
        assert len(server.asked) <= CALLS + 5


@both
def test_without_a_budget_it_is_asked_six_times(ask_many: AskMany) -> None:
    """What the budget is for."""
    policy = Retry(wait_initial_s=0.001, wait_max_s=0.002, budget_tokens=math.inf)
    with ScriptedServer(*[UNAVAILABLE] * 1000) as server:
        ask_many(server.address, 20, policy)
        assert len(server.asked) == 20 * policy.attempts


@both
def test_under_partial_overload_one_in_ten_is_a_retry(ask_many: AskMany) -> None:
    """Every other attempt is refused."""
    with ScriptedServer(*[UNAVAILABLE, ANSWER] * 500) as server:
        ends = ask_many(server.address, 300, QUICK)
        assert len(server.asked) <= 1.1 * 300 + 5
    assert ends.count("OK") >= 100


@both
def test_single_failures_are_always_tried_again(ask_many: AskMany) -> None:
    """One in twenty is refused: the budget is never used up."""
    script = [UNAVAILABLE if index % 20 == 0 else ANSWER for index in range(1000)]
    with ScriptedServer(*script) as server:
        assert set(ask_many(server.address, 400, QUICK)) == {"OK"}


def test_where_nobody_is_reached_nothing_is_taken() -> None:
    with Client(f"127.0.0.1:{free_port()}", retry=QUICK) as client:
        for _ in range(5):
            with pytest.raises(NexusClientError):
                client.infer("m", {}, timeout_s=20.0)
        assert client._retry_budget.tokens == 10.0


def test_the_budgets_arithmetic() -> None:
    budget = RetryBudget()
    assert [budget.failed() for _ in range(6)] == [True, True, True, True, False, False]
    assert budget.tokens == 4.0
    for _ in range(10):
        budget.succeeded()
    assert budget.tokens == pytest.approx(5.0)
    budget.succeeded()
    assert not budget.failed()
    for _ in range(1000):
        budget.succeeded()
    assert budget.tokens == 10.0
    for _ in range(1000):
        budget.failed()
    assert budget.tokens == 0.0
    assert all(RetryBudget(math.inf).failed() for _ in range(100))


@pytest.mark.parametrize(
    ("tokens", "ratio"), [(0.0, 0.1), (-1.0, 0.1), (math.nan, 0.1), (10.0, -0.1), (10.0, math.nan)]
)
def test_a_budget_makes_sense(tokens: float, ratio: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        RetryBudget(tokens, ratio)

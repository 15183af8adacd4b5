"""What is tried again, when, and for how long; against a server that fails on purpose."""

import math
import random
import threading
import time

import grpc
import pytest
import stamina

from nexus_grpc.client import DeadlineExceeded, InvalidInput, NexusClientError, Overloaded, Retry, Unavailable
from nexus_grpc.client.retry import NO_RETRY, Attempts
from tests.harness import free_port
from tests.unit.client.scripted import Ask, Refuse, ScriptedServer, Sleep

pytestmark = [pytest.mark.timeout(60), pytest.mark.timed]
UNAVAILABLE = Refuse(grpc.StatusCode.UNAVAILABLE)
RETRIED = {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
QUICK = Retry(wait_initial_s=0.01, wait_max_s=0.02)


def test_unavailable_is_tried_again_after_growing_waits(ask: Ask) -> None:
    with ScriptedServer(UNAVAILABLE, UNAVAILABLE, UNAVAILABLE) as server:
        assert ask(server.address, retry=Retry(wait_initial_s=0.1)).model == "m"
        gaps = list(server.gaps_s())
    assert len(gaps) == 3
    for gap, longest in zip(gaps, (0.1, 0.2, 0.4), strict=True):
        assert longest / 2 <= gap < longest + 0.5


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code not in RETRIED])
def test_nothing_else_is_tried_again(ask: Ask, code: grpc.StatusCode) -> None:
    """RESOURCE_EXHAUSTED too, as long as the server does not say when to come back."""
    with ScriptedServer(Refuse(code)) as server:
        with pytest.raises(NexusClientError) as caught:
            ask(server.address, retry=QUICK)
        assert len(server.asked) == 1
    assert caught.value.code == code.name


def test_overloaded_with_retry_info_is_tried_again_when_it_says(ask: Ask) -> None:
    with ScriptedServer(Refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after_s=0.3)) as server:
        ask(server.address, retry=QUICK)
        (gap,) = server.gaps_s()
    assert 0.3 <= gap < 1.0


def test_unavailable_with_retry_info_waits_as_long_as_it_says(ask: Ask) -> None:
    with ScriptedServer(Refuse(grpc.StatusCode.UNAVAILABLE, retry_after_s=0.3)) as server:
        ask(server.address, retry=QUICK)
        (gap,) = server.gaps_s()
    assert 0.3 <= gap < 1.0


def test_a_wait_beyond_the_deadline_is_not_begun(ask: Ask) -> None:
    with ScriptedServer(Refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after_s=30.0)) as server:
        begun_s = time.monotonic()
        with pytest.raises(Overloaded) as caught:
            ask(server.address, timeout_s=10.0, retry=QUICK)
        assert time.monotonic() - begun_s < 5
        assert len(server.asked) == 1
    assert caught.value.retry_after_s == 30.0


def test_attempts_are_limited(ask: Ask) -> None:
    with ScriptedServer(*[UNAVAILABLE] * 10) as server:
        with pytest.raises(Unavailable):
            ask(server.address, retry=Retry(attempts=3, wait_initial_s=0.01))
        assert len(server.asked) == 3
        with pytest.raises(Unavailable):
            ask(server.address, retry=NO_RETRY)
        assert len(server.asked) == 4


def test_the_deadline_covers_all_attempts(ask: Ask) -> None:
    timeout_s = 1.0
    with ScriptedServer(*[UNAVAILABLE] * 1000) as server:
        begun_s = time.monotonic()
        policy = Retry(attempts=1000, wait_initial_s=0.02, wait_max_s=0.02, budget_tokens=math.inf)
        # The last attempt may be under way when the time is up.
        with pytest.raises((Unavailable, DeadlineExceeded)):
            ask(server.address, timeout_s=timeout_s, retry=policy)
        took_s = time.monotonic() - begun_s
        asked = list(server.asked)
    assert len(asked) > 5
    # asyncio.run and the connection take their time, too.
    assert took_s < timeout_s + 0.5
    assert asked[-1].at_s < begun_s + timeout_s + 0.1
    for call in asked:
        assert call.remaining_s is not None
        assert call.remaining_s <= timeout_s - (call.at_s - asked[0].at_s) + 0.05


def test_a_late_answer_is_no_answer(ask: Ask) -> None:
    with ScriptedServer(UNAVAILABLE, Sleep(2.0)) as server:
        begun_s = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            ask(server.address, timeout_s=0.5, retry=QUICK)
        assert time.monotonic() - begun_s < 1.9
        assert len(server.asked) == 2


def test_no_deadline(ask: Ask) -> None:
    with ScriptedServer(UNAVAILABLE) as server:
        ask(server.address, timeout_s=math.inf, retry=QUICK)
        # grpc's server reports "none" as one that is centuries away.
        assert [call.remaining_s for call in server.asked if (call.remaining_s or 1e9) < 1e9] == []
        assert len(server.asked) == 2


def test_a_server_that_starts_late(ask: Ask) -> None:
    port = free_port()
    server = ScriptedServer(port=port)
    starting = threading.Timer(0.7, server.__enter__)
    starting.start()
    try:
        assert ask(f"127.0.0.1:{port}", timeout_s=20.0).model == "m"
    finally:
        starting.join()
        server.__exit__()


def test_nobody_there(ask: Ask) -> None:
    with pytest.raises(Unavailable, match="connect") as caught:
        ask(f"127.0.0.1:{free_port()}", retry=QUICK, request_id="mine")
    assert caught.value.request_id == "mine"


def test_staminas_switch_holds(ask: Ask) -> None:
    stamina.set_active(False)
    try:
        with ScriptedServer(UNAVAILABLE) as server, pytest.raises(Unavailable):
            ask(server.address)
    finally:
        stamina.set_active(True)


def test_the_programs_own_errors_are_not_tried_again(ask: Ask) -> None:
    calls = []

    def metadata() -> dict[str, str]:
        calls.append(1)
        raise ConnectionError("no token")

    with pytest.raises(ConnectionError):
        ask("127.0.0.1:1", metadata=metadata)
    assert len(calls) == 1


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, math.nan])
def test_a_timeout_is_positive(ask: Ask, timeout_s: float) -> None:
    with pytest.raises(InvalidInput, match="timeout_s"):
        ask("127.0.0.1:1", timeout_s=timeout_s)


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"wait_initial_s": -1}, {"wait_max_s": -0.1}, {"budget_tokens": 0}])
def test_a_policy_makes_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Retry(**wrong)  # type: ignore[arg-type]


def test_waits_are_jittered_and_bounded() -> None:
    random.seed(1)
    policy = Retry()
    for failures, longest in ((1, 0.1), (2, 0.2), (5, 1.6), (6, 2.0), (10_000, 2.0)):
        waits = {policy.wait_s(failures) for _ in range(100)}
        assert len(waits) > 50
        assert longest / 2 <= min(waits) <= max(waits) <= longest


def test_what_remains_is_never_negative() -> None:
    attempts = Attempts(NO_RETRY, 0.001)
    time.sleep(0.01)
    assert attempts.remaining_s() == 0.0

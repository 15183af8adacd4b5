"""Pauses between a process and its successor."""

import pytest

from nexus_grpc.supervisor import backoff
from nexus_grpc.supervisor.backoff import Backoff


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        monkeypatch.setattr(backoff.time, "monotonic", lambda: self.now_s)

    def life(self, place: Backoff, seconds: float) -> float:
        place.begin()
        self.now_s += seconds
        return place.next_delay()


def test_pauses_grow_with_short_lives_and_vanish_after_a_long_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, place = Clock(monkeypatch), Backoff()
    assert [clock.life(place, 1.0) for _ in range(4)] == [0.0, 0.2, 0.4, 0.8]
    assert max(clock.life(place, 1.0) for _ in range(20)) == backoff.MAX_SECONDS
    assert clock.life(place, backoff.SHORT_LIFE_SECONDS) == 0.0
    assert clock.life(place, 1.0) == backoff.FIRST_SECONDS

"""Refusals by reason and circuits by version, over all fronts."""

from nexus_grpc.ipc.stats import FrontWord
from nexus_grpc.limits.circuit import State
from tests.unit.test_metrics import DIGITS, IRIS_1, IRIS_2, Fleet, key, named, scrape

REASONS = {
    "load_shed": FrontWord.LOAD_SHED,
    "deadline_too_short": FrontWord.DEADLINE_TOO_SHORT,
    "concurrency_limit": FrontWord.CONCURRENCY_LIMIT,
    "circuit_open": FrontWord.CIRCUIT_OPEN,
    "rate_limited": FrontWord.RATE_LIMITED,
}


def test_refusals_have_their_reasons() -> None:
    fleet = Fleet()
    for count, word in enumerate(REASONS.values(), 1):
        fleet.fronts[1].count(word, count)
    fleet.fronts[0].count(FrontWord.FALLBACKS, 7)
    series = scrape(fleet.sources())
    assert named(series, "nexus_refused_total") == {
        key("nexus_refused_total", front=front, reason=reason): count * (front == "1")
        for count, reason in enumerate(REASONS, 1)
        for front in "01"
    }
    assert named(series, "nexus_fallbacks_total") == {
        key("nexus_fallbacks_total", front="0"): 7,
        key("nexus_fallbacks_total", front="1"): 0,
    }


def test_the_worst_circuit_of_all_fronts_is_shown() -> None:
    fleet = Fleet()
    for front in fleet.fronts:
        front.circuit(IRIS_2, State.OPEN, True)
    fleet.fronts[0].circuit(IRIS_2, State.CLOSED, False)
    fleet.fronts[0].circuit(DIGITS, State.HALF_OPEN, False)
    fleet.fronts[0].reset(DIGITS)
    series = scrape(fleet.sources())
    labels = {IRIS_1: ("iris", "1"), IRIS_2: ("iris", "2"), DIGITS: ("digits", "1")}

    def expected(name: str, values: dict[int, int]) -> object:
        return {key(name, model=labels[slot][0], version=labels[slot][1]): value for slot, value in values.items()}

    assert named(series, "nexus_circuit_state") == expected("nexus_circuit_state", {IRIS_1: 0, IRIS_2: 2, DIGITS: 0})
    opened = "nexus_circuit_opened_total"
    assert named(series, opened) == expected(opened, {IRIS_1: 0, IRIS_2: 2, DIGITS: 0})

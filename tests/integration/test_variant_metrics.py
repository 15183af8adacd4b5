"""Experiments and shadows on /metrics: whose counts they are, that they add up to what was sent, and when they go."""

import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.harness import Server, running_server
from tests.lifecycle import NAME, Admin, put, refused, times, wait_for

Series = dict[tuple[str, ...], float]


@pytest.fixture
def server(tmp_path: pathlib.Path) -> Iterator[Server]:
    """Versions 1 to 3 × their number, 4 as 1; 3 answers."""
    repository = tmp_path / "models"
    for version in (1, 2, 3):
        put(repository, version)
    put(repository, 4, times(3))
    (repository / NAME / "config.pbtxt").write_text("version_policy {all {}}")
    with running_server(tmp_path, "--fronts=2", "--workers=2", repository=repository) as running:
        with Admin(running.address) as admin:
            admin.models("Activate", id=NAME, version="3")
        yield running


@pytest.fixture
def admin(server: Server) -> Iterator[Admin]:
    with Admin(server.address) as admin:
        yield admin


def samples(server: Server, name: str, *labels: str) -> Series:
    """A metric's samples by the values of these labels. Fails when one stands there twice."""
    found: Series = {}
    for family in text_string_to_metric_families(server.metrics()):
        for sample in family.samples:
            if sample.name == name:
                key = tuple(sample.labels[label] for label in labels)
                assert key not in found, f"{name}{key} stands there twice"
                found[key] = sample.value
    return found


def by_variant(server: Server) -> Series:
    return samples(server, "nexus_variant_requests_total", "model", "variant", "version", "code")


def timed(server: Server) -> Series:
    return samples(server, "nexus_variant_duration_seconds_count", "model", "variant", "version")


def requests(server: Server) -> Series:
    """Of nexus_requests_total those of ModelInfer, by version and code."""
    found: Series = {}
    for (method, version, code), count in samples(server, "nexus_requests_total", "method", "version", "code").items():
        if method == "ModelInfer":
            found[version, code] = count
    return found


def shadow(server: Server, what: str) -> Series:
    return samples(server, f"nexus_shadow_{what}_total", "model", "version")


def ask(admin: Admin, count: int) -> dict[tuple[str, str], int]:
    """So many requests without a version; answers by (variant, version)."""
    answers: dict[tuple[str, str], int] = {}
    for _ in range(count):
        answer = admin.ask()
        assert answer.by_values == ("3" if answer.version == "4" else answer.version)
        answers[answer.variant, answer.version] = answers.get((answer.variant, answer.version), 0) + 1
    return answers


def as_series(answers: dict[tuple[str, str], int], *more: str) -> Series:
    return {(NAME, variant, version, *more): float(count) for (variant, version), count in answers.items()}


def wait_series(read: Any, server: Server, expected: Series) -> None:
    try:
        wait_for(lambda: read(server) == expected, 10)
    except AssertionError:
        assert read(server) == expected


def test_variants_add_up_to_what_was_sent(server: Server, admin: Admin) -> None:
    ask(admin, 10)
    assert by_variant(server) == timed(server) == {}, "without an experiment"
    admin.traffic("Setup", model=NAME, candidate_version="1", percent=30, more=[{"version": "2", "percent": 20}])
    assert by_variant(server) == {}
    assert timed(server) == {(NAME, "A", "3"): 0, (NAME, "B", "1"): 0, (NAME, "C", "2"): 0}
    answers = ask(admin, 200)
    assert {variant for variant, _ in answers} == {"A", "B", "C"}
    wait_series(by_variant, server, as_series(answers, "OK"))
    wait_series(timed, server, as_series(answers))
    # A version that is named is in no experiment; it counts for the version alone.
    for _ in range(5):
        assert admin.ask("3").variant == "default"
    expected = {(version, "OK"): float(count) for (_, version), count in answers.items()}
    expected["3", "OK"] += 10 + 5
    wait_series(requests, server, expected)
    assert by_variant(server) == as_series(answers, "OK")
    status = admin.traffic("Status", model=NAME)
    assert {(each.variant, each.version): each.requests for each in status.variants} == answers
    assert {each.errors for each in status.variants} == {0}


def test_errors_count_for_the_variant_that_was_asked(server: Server, admin: Admin) -> None:
    admin.traffic("Setup", model=NAME, candidate_version="1", percent=100)
    request = b"\n\x05times"  # a ModelInfer without inputs
    for _ in range(3):
        with refused("INVALID_ARGUMENT"):
            admin.client.infer(request)
    ask(admin, 2)
    wait_series(by_variant, server, {(NAME, "B", "1", "INVALID_ARGUMENT"): 3.0, (NAME, "B", "1", "OK"): 2.0})
    assert timed(server) == {(NAME, "A", "3"): 0, (NAME, "B", "1"): 5}
    # A client's mistake says nothing about a variant.
    assert {each.variant: each.errors for each in admin.traffic("Status", model=NAME).variants} == {"A": 0, "B": 0}


def test_shares_change_and_counts_go_on(server: Server, admin: Admin) -> None:
    admin.traffic("Setup", model=NAME, candidate_version="1", percent=100)
    assert ask(admin, 4) == {("B", "1"): 4}
    admin.traffic("Split", model=NAME, percent=0)
    assert ask(admin, 3) == {("A", "3"): 3}
    wait_series(by_variant, server, {(NAME, "B", "1", "OK"): 4, (NAME, "A", "3", "OK"): 3})


@pytest.mark.parametrize(("end", "serving"), [("Promote", "1"), ("Abort", "3")])
def test_series_go_with_the_experiment_and_begin_anew_with_the_next(
    end: str, serving: str, server: Server, admin: Admin
) -> None:
    admin.traffic("Setup", model=NAME, candidate_version="1", percent=50)
    answers = ask(admin, 40)
    wait_series(by_variant, server, as_series(answers, "OK"))
    admin.traffic(end, model=NAME)
    wait_series(by_variant, server, {})
    assert timed(server) == {}
    assert ask(admin, 3) == {("default", serving): 3}
    assert by_variant(server) == timed(server) == {}
    other = "3" if serving == "1" else "1"
    admin.traffic("Setup", model=NAME, candidate_version=other, percent=100)
    assert ask(admin, 6) == {("B", other): 6}
    wait_series(by_variant, server, {(NAME, "B", other, "OK"): 6})
    assert timed(server) == {(NAME, "A", serving): 0, (NAME, "B", other): 6}


def test_a_version_s_own_counts_never_fall(server: Server, admin: Admin) -> None:
    """What experiments' arms did stays in their versions' counts when they end."""
    ask(admin, 5)
    total: Series = {("3", "OK"): 5.0}
    for turn in range(4):
        admin.traffic("Setup", model=NAME, candidate_version="1", percent=50)
        for (_, version), count in ask(admin, 40).items():
            total[version, "OK"] = total.get((version, "OK"), 0) + count
        wait_series(requests, server, total)
        rows = samples(server, "nexus_batch_size_sum", "model", "version")
        admin.traffic("Abort", model=NAME)
        wait_series(by_variant, server, {})
        assert requests(server) == total, turn
        after = samples(server, "nexus_batch_size_sum", "model", "version")
        assert all(after[key] >= count for key, count in rows.items()), (rows, after)


def test_shadows_are_counted_with_the_version_that_answers(server: Server, admin: Admin) -> None:
    assert shadow(server, "compared") == {}
    admin.traffic("Shadow", model=NAME, candidate_version="1", percent=100)
    assert ask(admin, 20) == {("default", "3"): 20}
    wait_series(lambda server: shadow(server, "compared"), server, {(NAME, "3"): 20})
    wait_series(lambda server: shadow(server, "disagreed"), server, {(NAME, "3"): 20})
    assert shadow(server, "errors") == shadow(server, "dropped") == {(NAME, "3"): 0}
    # Copies are no requests, and no batches of the candidate's.
    assert requests(server) == {("3", "OK"): 20}
    assert samples(server, "nexus_batch_size_count", "model", "version")[NAME, "1"] == 0
    status = admin.traffic("Status", model=NAME).shadow
    assert (status.version, status.compared, status.disagreed) == ("1", 20, 20)


def test_a_shadow_s_counts_stop_with_it_and_begin_anew_with_the_next(server: Server, admin: Admin) -> None:
    admin.traffic("Shadow", model=NAME, candidate_version="1", percent=100)
    ask(admin, 8)
    wait_series(lambda server: shadow(server, "compared"), server, {(NAME, "3"): 8})
    admin.traffic("Shadow", model=NAME, percent=0)

    # A worker may take its orders a moment later: it compares nothing more once it has.
    def stopped() -> bool:
        before = shadow(server, "compared")
        ask(admin, 10)
        wait_for(lambda: rows_answered(server) == requests(server)["3", "OK"])
        return shadow(server, "compared") == before

    wait_for(stopped)
    admin.traffic("Shadow", model=NAME, candidate_version="4", percent=100)
    wait_for(lambda: ask(admin, 1) and shadow(server, "compared").get((NAME, "3"), 0) > 0)
    assert shadow(server, "disagreed") == {(NAME, "3"): 0}


def rows_answered(server: Server) -> float:
    return samples(server, "nexus_batch_size_sum", "model", "version")[NAME, "3"]


def test_a_shadow_beside_an_experiment_sees_every_arm(server: Server, admin: Admin) -> None:
    """The shadow is the first arm's: what the candidate answers is not copied."""
    admin.traffic("Setup", model=NAME, candidate_version="1", percent=50)
    admin.traffic("Shadow", model=NAME, candidate_version="2", percent=100)
    answers = ask(admin, 60)
    expected = {(NAME, "3"): float(answers["A", "3"])}
    wait_series(lambda server: shadow(server, "compared"), server, expected)
    wait_series(by_variant, server, as_series(answers, "OK"))
    assert admin.traffic("Status", model=NAME).shadow.compared == answers["A", "3"]


def test_a_shadow_follows_the_version_that_answers(server: Server, admin: Admin) -> None:
    admin.traffic("Shadow", model=NAME, candidate_version="1", percent=100)
    ask(admin, 4)
    wait_series(lambda server: shadow(server, "compared"), server, {(NAME, "3"): 4})
    admin.models("Activate", id=NAME, version="2")

    def follows() -> bool:
        """The version before, asked by name, is copied no more."""
        before = shadow(server, "compared")[NAME, "3"]
        for _ in range(6):
            admin.ask("3")
            admin.ask()
        wait_for(lambda: rows_answered(server) == requests(server)["3", "OK"])
        after = shadow(server, "compared")
        return after[NAME, "3"] == before and after.get((NAME, "2"), 0) > 0

    wait_for(follows)

"""What holds for a registry of either kind."""

import concurrent.futures
import itertools
import re
import threading

import psycopg
import pytest

from nexus_grpc.ipc.errors import InvalidInput, StorageFailed
from nexus_grpc.registry import rows
from nexus_grpc.registry.records import Change, ModelRow, VersionRow
from nexus_grpc.registry.store import SCHEMA_VERSION, Registry
from tests.unit.registry.conftest import Place

IRIS = ModelRow("iris", "Iris", "flowers", {"team": "a"}, "2026-01-01T00:00:00Z", "ada", {"primary": 2, "earlier": [1]})
FIRST = VersionRow(
    "iris", 1, "1.0.0", "production", "ab" * 32, 123, {"k": "v"}, "upload", "2026-01-01T00:00:00Z", "ada"
)
SECOND = VersionRow("iris", 2, present=False, wanted="loaded", info={"inputs": [{"name": "x", "shape": [-1, 4]}]})
ADD = Change("ada", "upload", "iris", "1", {"size": 123}, (IRIS,), (FIRST, SECOND))


def state(registry: Registry) -> tuple[list[ModelRow], list[VersionRow]]:
    return registry.models(), registry.versions()


def test_an_empty_one(registry: Registry) -> None:
    assert state(registry) == ([], [])
    assert registry.history() == []
    assert registry.statistics("iris") == {}


def test_rows_come_back_as_they_were_put(place: Place, registry: Registry) -> None:
    assert registry.apply(ADD) == 1
    for each in (registry, place.open()):
        assert state(each) == ([IRIS], [FIRST, SECOND])
        (line,) = each.history()
        assert (line.sequence, line.actor, line.action, line.model, line.version, line.detail) == (
            1, "ada", "upload", "iris", "1", {"size": 123},
        )  # fmt: skip
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.at)


def test_a_row_replaces_the_one_of_its_key(registry: Registry) -> None:
    registry.apply(ADD)
    other = VersionRow("iris", 1, stage="archived")
    registry.apply(Change("bob", "update", put_models=(ModelRow("iris", "Other"),), put_versions=(other,)))
    assert state(registry) == ([ModelRow("iris", "Other")], [other, SECOND])


def test_order_is_by_model_and_number(registry: Registry) -> None:
    names = ("b-1", "a", "b", "b.1", "b_1", "10", "9")
    rows = tuple(VersionRow(name, number) for name in names for number in (10, 9))
    registry.apply(Change("t", "add", put_models=tuple(ModelRow(name) for name in names), put_versions=rows))
    assert [row.id for row in registry.models()] == sorted(names)
    assert [(row.model, row.version) for row in registry.versions()] == sorted((n, v) for n in names for v in (9, 10))


def test_deletions(registry: Registry) -> None:
    churn = VersionRow("churn", 1)
    registry.apply(ADD)
    registry.apply(Change("t", "add", put_models=(ModelRow("churn"),), put_versions=(churn,)))
    registry.apply(Change("t", "delete", "iris", "1", delete_versions=(("iris", 1), ("iris", 77))))
    assert registry.versions() == [churn, SECOND]
    registry.save_statistics("iris", {"n": 1})
    registry.apply(Change("t", "delete", "iris", delete_models=("iris", "never-was")))
    assert state(registry) == ([ModelRow("churn")], [churn])
    assert registry.statistics("iris") == {}
    assert [row.action for row in registry.history("iris")] == ["delete", "delete", "upload"]


def test_deletions_come_before_what_is_put(registry: Registry) -> None:
    registry.apply(ADD)
    registry.apply(Change("t", "replace", delete_models=("iris",), put_models=(IRIS,), put_versions=(SECOND,)))
    assert state(registry) == ([IRIS], [SECOND])


def test_history_is_newest_first_and_limited(registry: Registry) -> None:
    for number in range(1, 8):
        registry.apply(Change("t", "add", "odd" if number % 2 else "even", str(number)))
    assert [row.sequence for row in registry.history()] == [7, 6, 5, 4, 3, 2, 1]
    assert [row.sequence for row in registry.history(limit=2)] == [7, 6]
    assert [row.version for row in registry.history("even", 2)] == ["6", "4"]
    assert registry.history("even", 0) == registry.history("even", -1) == registry.history("nobody") == []


def test_a_change_that_is_not_audited_has_no_number(registry: Registry) -> None:
    assert registry.apply(Change("t", "add", put_models=(IRIS,), audited=False)) == 0
    assert registry.apply(Change("t", "look")) == 1
    assert registry.models() == [IRIS]
    assert [row.action for row in registry.history()] == ["look"]


def test_statistics(registry: Registry) -> None:
    registry.save_statistics("iris", {"A": {"requests": 1}})
    registry.save_statistics("iris", {"A": {"requests": 2}, "ü": [1.5, None]})
    registry.save_statistics("churn", {})
    assert registry.statistics("iris") == {"A": {"requests": 2}, "ü": [1.5, None]}
    assert registry.statistics("churn") == {}


@pytest.mark.parametrize("text", ["Zoë — 模型 🌸", "\u202edrow\u0301", "'; DROP TABLE models; --", "%s ? $1", "\t\r\n"])
def test_any_text_comes_back(registry: Registry, text: str) -> None:
    row = VersionRow("m", 1, version_name=text, labels={text: text}, info={"deep": [{text: text}]})
    registry.apply(Change(text, text, text, text, {text: text}, (ModelRow("m", text, text),), (row,)))
    assert state(registry) == ([ModelRow("m", text, text)], [row])
    (line,) = registry.history(text)
    assert (line.actor, line.action, line.model, line.version, line.detail) == (text, text, text, text, {text: text})


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
def test_text_that_not_every_database_takes_is_refused_by_all(registry: Registry, text: str) -> None:
    registry.apply(ADD)
    change = Change(
        "t", "add", delete_models=("iris",), put_models=(ModelRow("m"),), put_versions=(VersionRow("m", 1),)
    )
    for broken in (
        Change(text, "add", put_models=change.put_models),
        Change("t", "add", delete_models=("iris",), put_models=(ModelRow("m", description=text),)),
        Change("t", "add", delete_models=("iris",), put_versions=(VersionRow("m", 1), VersionRow("m", 2, text))),
    ):
        with pytest.raises(InvalidInput, match="cannot be stored"):
            registry.apply(broken)
        assert state(registry) == ([IRIS], [FIRST, SECOND])
    with pytest.raises(InvalidInput, match="cannot be stored"):
        registry.history(text)
    # In JSON it is escaped.
    assert registry.apply(Change("t", "add", detail={"text": text})) == 2
    assert registry.history()[0].detail == {"text": text}


def test_big_values(registry: Registry) -> None:
    big = {"text": "ü" * 1_000_000, "numbers": list(range(200_000)), "deep": [[[[{}]]]] * 1000}
    row = VersionRow("m", 10**17, size_bytes=2**40, info=big)
    registry.apply(Change("t", "add", detail=big, put_models=(ModelRow("m", traffic=big),), put_versions=(row,)))
    registry.save_statistics("m", big)
    assert state(registry) == ([ModelRow("m", traffic=big)], [row])
    assert registry.history()[0].detail == registry.statistics("m") == big


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET actor = 'nobody'",
        "DELETE FROM audit",
        "DELETE FROM audit WHERE sequence = 2",
        "INSERT INTO audit SELECT * FROM audit WHERE sequence = 1"
        " ON CONFLICT (sequence) DO UPDATE SET actor = 'nobody'",
    ],
)
def test_the_audit_log_is_append_only(place: Place, registry: Registry, statement: str) -> None:
    for _ in range(2):
        registry.apply(Change("t", "add"))
    before = registry.history()
    with pytest.raises(Exception, match="the audit log is append-only"):
        place.sql(statement)
    assert registry.history() == before
    assert registry.apply(Change("t", "add")) == 3


def test_what_replaces_whole_lines_is_refused_too(place: Place, registry: Registry) -> None:
    registry.apply(Change("t", "add"))
    replace = (
        "INSERT OR REPLACE INTO audit SELECT sequence, at, 'nobody', action, model, version, detail, token FROM audit"
    )
    with pytest.raises(Exception, match="the audit log is append-only"):
        place.sql("TRUNCATE audit" if place.url else replace)
    assert [row.actor for row in registry.history()] == ["t"]


def test_concurrent_appliers_get_gapless_numbers(place: Place, registry: Registry) -> None:
    """Each has a connection of its own, as processes have."""
    appliers, each = 6, 25
    barrier = threading.Barrier(appliers)

    def work(index: int) -> list[int]:
        own = place.open()
        barrier.wait(30)
        return [
            own.apply(Change(f"a{index}", "add", f"m{index}", str(i), put_versions=(VersionRow(f"m{index}", i),)))
            for i in range(1, each + 1)
        ]

    with concurrent.futures.ThreadPoolExecutor(appliers) as pool:
        numbers = list(pool.map(work, range(appliers)))
    assert sorted(itertools.chain(*numbers)) == list(range(1, appliers * each + 1))
    history = registry.history(limit=10_000)
    assert [row.sequence for row in history] == list(range(appliers * each, 0, -1))
    # Each one's own changes stand in the order in which it made them, under the numbers it was told.
    for index in range(appliers):
        mine = [(row.sequence, row.version) for row in reversed(history) if row.actor == f"a{index}"]
        assert mine == list(zip(numbers[index], map(str, range(1, each + 1)), strict=True))
    assert [row.at for row in reversed(history)] == sorted(row.at for row in history)
    assert len(registry.versions()) == appliers * each


def test_first_openers_at_once(place: Place) -> None:
    """Only one makes the tables."""
    barrier = threading.Barrier(4)

    def work(_: int) -> int:
        barrier.wait(30)
        return place.open().apply(Change("t", "add"))

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(work, range(4))) == [1, 2, 3, 4]


def test_another_thread_may_use_it(registry: Registry) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(registry.apply, ADD).result() == 1
    assert registry.models() == [IRIS]


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 99])
def test_a_newer_schema_is_refused_by_name(place: Place, registry: Registry, version: int) -> None:
    registry.apply(ADD)
    registry.close()
    place.sql(f"UPDATE schema_version SET version = {version}")
    # A newer one may look like anything.
    place.sql("ALTER TABLE versions RENAME COLUMN wanted TO desired")
    (place.folder / "registry-snapshot.json").unlink(missing_ok=True)
    with pytest.raises(
        StorageFailed, match=rf"schema is version {version}, this server knows {SCHEMA_VERSION}"
    ) as failure:
        place.open()
    assert "registry" in str(failure.value)
    assert [tuple(row) for row in place.sql("SELECT desired FROM versions ORDER BY version")] == [
        ("auto",),
        ("loaded",),
    ]


def test_a_row_that_somebody_else_broke(place: Place) -> None:
    registry = place.open()
    registry.apply(ADD)
    place.sql("UPDATE models SET traffic = 'no JSON'")
    if place.url:
        # Reads have the snapshot to fall back on.
        assert registry.models() == [IRIS]
        return
    with pytest.raises(StorageFailed, match="cannot be used"):
        registry.models()


def test_closing_twice(registry: Registry) -> None:
    registry.close()
    registry.close()


def test_a_failing_statement_undoes_what_came_before_it(place: Place, registry: Registry) -> None:
    registry.apply(ADD)
    place.sql("ALTER TABLE audit RENAME TO elsewhere")
    with pytest.raises(StorageFailed, match="audit"):
        registry.apply(Change("t", "delete", "iris", delete_models=("iris",), put_models=(ModelRow("m"),)))
    place.sql("ALTER TABLE elsewhere RENAME TO audit")
    assert state(registry) == ([IRIS], [FIRST, SECOND])
    assert registry.apply(Change("t", "add")) == 2


def test_who_decided_is_kept_and_a_snapshot_of_before_has_nobody() -> None:
    decided = VersionRow("iris", 1, wanted="unloaded", decided={"by": "ada", "at": "now", "how": "unload"})
    values = rows.version_values(decided)
    assert rows.version_row(values) == decided
    assert rows.version_row(values[:-1]) == VersionRow("iris", 1, wanted="unloaded")


def test_the_driver_is_the_real_one(postgres_server: object) -> None:
    """The suite must not pass by never reaching PostgreSQL."""
    assert psycopg.pq.version() >= 150000

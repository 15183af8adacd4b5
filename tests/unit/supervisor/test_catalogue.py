"""Where models are to live and how far they have got."""

from pathlib import Path

import pytest

from nexus_grpc.ipc.stats import MODEL_SLOTS
from nexus_grpc.model_config import Isolation, ModelPolicy
from nexus_grpc.repository import ModelEntry, VersionEntry
from nexus_grpc.supervisor.catalogue import LOAD_CRASHES_MAX, LOADING, READY, UNAVAILABLE, Catalogue, place
from workers.loader import LoadOrder


def model(
    name: str, versions: int = 1, instances: int = 0, isolation: Isolation = "shared", error: str = ""
) -> ModelEntry:
    entries = tuple(
        VersionEntry(number + 1, Path(f"/models/{name}/{number + 1}/model.onnx")) for number in range(versions)
    )
    policy = ModelPolicy(instances=instances, isolation=isolation)
    return ModelEntry(name, Path(f"/models/{name}"), policy=policy, versions=entries, error=error or None)


def catalogue_of(*entries: ModelEntry, shared: int = 2) -> Catalogue:
    return Catalogue(entries, place(entries, shared))


def test_a_model_without_wishes_lives_everywhere() -> None:
    catalogue = catalogue_of(model("a", versions=2))
    assert [version.workers for version in catalogue.versions] == [frozenset({0, 1})] * 2
    assert [version.slot for version in catalogue.versions] == [1, 2]
    assert catalogue.for_worker(0) == catalogue.for_worker(1) == catalogue.versions


def test_instances_are_spread_over_the_workers() -> None:
    entries = [model(name, instances=1) for name in "abcd"]
    homes = [version.workers for version in catalogue_of(*entries).versions]
    assert homes == [frozenset({0}), frozenset({1}), frozenset({0}), frozenset({1})]
    assert catalogue_of(model("a", instances=9)).versions[0].workers == frozenset({0, 1})


def test_dedicated_models_get_workers_of_their_own() -> None:
    entries = [model("a"), model("b", instances=2, isolation="dedicated"), model("c", isolation="dedicated")]
    placement = place(entries, 2)
    assert (placement.workers, placement.dedicated) == (5, ("b", "b", "c"))
    homes = [version.workers for version in Catalogue(entries, placement).versions]
    assert homes == [frozenset({0, 1}), frozenset({2, 3}), frozenset({4})]


def test_a_broken_dedicated_model_costs_no_worker() -> None:
    entries = [model("a", versions=0, isolation="dedicated", error="it is broken")]
    assert place(entries, 1).workers == 1
    [version] = Catalogue(entries, place(entries, 1)).versions
    assert (version.state, version.reason, version.workers) == (UNAVAILABLE, "it is broken", frozenset())


def test_loading_ready_and_unavailable() -> None:
    catalogue = catalogue_of(model("a"), model("b"), model("c"))
    catalogue.loaded(1, 0, "metadata", "config")
    catalogue.failed(2, "no such operator")
    assert [version.state for version in catalogue.versions] == [READY, UNAVAILABLE, LOADING]
    assert catalogue.ready_count == 1
    assert [version.name for version in catalogue.for_worker(0)] == ["a", "c"]
    told = catalogue.as_message()
    assert told["type"] == "routes"
    assert told["catalogue"][0]["workers"] == [0]
    assert told["catalogue"][1]["reason"] == "no such operator"


def test_a_model_that_crashes_its_worker_is_given_up() -> None:
    catalogue = catalogue_of(model("a"))
    for crash in range(LOAD_CRASHES_MAX):
        assert catalogue.versions[0].state == LOADING, crash
        catalogue.crashed_while_loading(1)
    assert catalogue.versions[0].state == UNAVAILABLE
    assert "crashed the worker" in catalogue.versions[0].reason
    assert catalogue.for_worker(0) == []


def test_more_versions_than_slots() -> None:
    catalogue = catalogue_of(model("many", versions=MODEL_SLOTS + 1))
    assert [version.slot for version in catalogue.versions[-3:]] == [MODEL_SLOTS - 1, 0, 0]
    assert catalogue.versions[-1].state == UNAVAILABLE
    assert f"at most {MODEL_SLOTS - 1} model versions" in catalogue.versions[-1].reason


@pytest.mark.parametrize("instances", [0, 1])
def test_a_load_order_is_what_a_worker_reads(instances: int) -> None:
    catalogue = catalogue_of(model("a", instances=instances))
    order = LoadOrder.from_message(catalogue.versions[0].load_order(32), cores=2)
    assert (order.slot, order.name, order.version, order.config) == (1, "a", "1", None)
    assert (order.default_max_batch_size, order.cores) == (32, 2)
    assert order.policy["session"]["graph_optimization_level"] == "all"

"""Where models are to live and how far they have got."""

from pathlib import Path

import pytest

from nexus_grpc.config_parameters import Isolation
from nexus_grpc.ipc.errors import ModelNotServable
from nexus_grpc.ipc.stats import MODEL_SLOTS
from nexus_grpc.model_config import ModelPolicy
from nexus_grpc.repository import ModelEntry, VersionEntry
from nexus_grpc.supervisor.catalogue import LOAD_CRASHES_MAX, LOADING, READY, UNAVAILABLE, UNLOADED, Catalogue, place
from nexus_grpc.worker.loader import LoadOrder


def model(
    name: str, versions: int = 1, instances: int = 0, isolation: Isolation = "shared", error: str = ""
) -> ModelEntry:
    entries = tuple(
        VersionEntry(number + 1, Path(f"/models/{name}/{number + 1}/model.onnx")) for number in range(versions)
    )
    policy = ModelPolicy(instances=instances, isolation=isolation)
    return ModelEntry(name, Path(f"/models/{name}"), policy=policy, versions=entries, error=error or None)


def catalogue_of(*entries: ModelEntry, shared: int = 2) -> Catalogue:
    catalogue = Catalogue(place(entries, shared))
    for entry in entries:
        for each in entry.versions:
            catalogue.add(entry, str(each.version), str(each.path))
    return catalogue


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
    homes = [version.workers for version in catalogue_of(*entries).versions]
    assert homes == [frozenset({0, 1}), frozenset({2, 3}), frozenset({4})]


def test_a_dedicated_model_that_came_later_waits_for_the_next_start() -> None:
    late = model("late", isolation="dedicated")
    with pytest.raises(ModelNotServable, match="when the server starts"):
        catalogue_of(model("a")).add(late, "1", "/models/late/1/model.onnx")


def test_a_broken_dedicated_model_costs_no_worker() -> None:
    entries = [model("a", versions=0, isolation="dedicated", error="it is broken")]
    assert place(entries, 1).workers == 1


def test_loading_ready_and_unavailable() -> None:
    catalogue = catalogue_of(model("a"), model("b"), model("c"))
    catalogue.loaded(1, 0, "metadata", "config", ["x", "y"])
    catalogue.failed(2, "no such operator")
    assert [version.state for version in catalogue.versions] == [READY, UNAVAILABLE, LOADING]
    assert catalogue.versions[0].prediction_labels == ("x", "y")
    assert catalogue.ready_count == 1
    assert [version.name for version in catalogue.for_worker(0)] == ["a", "c"]
    assert catalogue.versions[0].as_message()["workers"] == [0]
    assert catalogue.versions[1].as_message()["reason"] == "no such operator"


def test_a_version_is_ready_when_all_its_workers_have_answered() -> None:
    catalogue = catalogue_of(model("a"))
    [version] = catalogue.versions
    version.pending = {0, 1}
    catalogue.loaded(1, 0, "", "")
    assert version.state == LOADING
    catalogue.failed(1, "no memory", 1)
    assert (version.state, version.held_by) == (READY, {0})


def test_a_version_that_no_worker_could_load_is_unavailable() -> None:
    catalogue = catalogue_of(model("a"))
    [version] = catalogue.versions
    version.pending = {0, 1}
    catalogue.failed(1, "no memory", 0)
    assert version.state == LOADING
    catalogue.failed(1, "no memory", 1)
    assert (version.state, version.reason) == (UNAVAILABLE, "no memory")


def test_arms_have_slots_of_their_own_and_come_after_versions() -> None:
    catalogue = catalogue_of(model("a"))
    [version] = catalogue.versions
    arm = catalogue.add_arm(version, "B")
    late = catalogue.add(model("b"), "1", "/models/b/1/model.onnx")
    assert (arm.slot, arm.of, arm.variant, arm.version) == (2, 1, "B", "1")
    assert catalogue.for_worker(0) == [version, late, arm]
    assert list(catalogue.arms_of("a")) == [arm]
    assert list(catalogue.of_model("a")) == [version]
    assert arm.load_order(1) == {"type": "alias", "slot": 2, "of": 1, "variant": "B", "incarnation": 2}
    assert arm not in catalogue.listed


def test_slots_are_used_again_as_late_as_possible_and_under_another_incarnation() -> None:
    catalogue = catalogue_of(model("a"))
    [version] = catalogue.versions
    catalogue.drop(version)
    catalogue.drop(version)
    seen = [catalogue.add(model("b"), "1", "b") for _ in range(MODEL_SLOTS - 1)]
    assert [each.slot for each in seen] == [*range(2, MODEL_SLOTS), 1]
    assert len({each.incarnation for each in (version, *seen)}) == MODEL_SLOTS


def test_a_model_that_crashes_its_worker_is_given_up() -> None:
    catalogue = catalogue_of(model("a"))
    for crash in range(LOAD_CRASHES_MAX):
        assert catalogue.versions[0].state == LOADING, crash
        catalogue.crashed_while_loading(1)
    assert catalogue.versions[0].state == UNAVAILABLE
    assert "crashed the worker" in catalogue.versions[0].reason
    assert catalogue.for_worker(0) == []


def test_more_versions_than_slots() -> None:
    with pytest.raises(ModelNotServable, match=f"at most {MODEL_SLOTS - 1} model versions"):
        catalogue_of(model("many", versions=MODEL_SLOTS))


def test_what_is_only_shown() -> None:
    catalogue = catalogue_of(model("a"))
    catalogue.show(model("b"), [("1", UNLOADED, "unloaded"), ("2", UNAVAILABLE, "broken")])
    assert [(version.version, version.state, version.slot) for version in catalogue.listed] == [
        ("1", LOADING, 1), ("1", UNLOADED, 0), ("2", UNAVAILABLE, 0),
    ]  # fmt: skip
    catalogue.show(model("b"), [])
    assert [version.name for version in catalogue.listed] == ["a"]


@pytest.mark.parametrize("instances", [0, 1])
def test_a_load_order_is_what_a_worker_reads(instances: int) -> None:
    catalogue = catalogue_of(model("a", instances=instances))
    order = LoadOrder.from_message(catalogue.versions[0].load_order(32), cores=2)
    assert (order.slot, order.name, order.version, order.config) == (1, "a", "1", None)
    assert (order.default_max_batch_size, order.cores) == (32, 2)
    assert order.policy["session"]["graph_optimization_level"] == "all"

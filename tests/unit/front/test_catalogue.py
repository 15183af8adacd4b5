"""The front's copy of the catalogue."""

import base64
import os
from typing import Any

import pytest

from nexus_grpc.front.catalogue import Catalogue
from nexus_grpc.ipc.errors import ModelUnavailable, UnknownModel
from nexus_grpc.ipc.stats import PageKind, WorkerStats, create_page, open_page
from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from nexus_grpc.pb.inference import model_config_pb2 as config_pb
from tests.unit.support import entry


def ready(name: str, version: str, slot: int) -> dict[str, Any]:
    return {
        **entry(name, version, slot),
        "metadata": base64.b64encode(pb.ModelMetadataResponse(name=name).SerializeToString()).decode(),
        "config": base64.b64encode(config_pb.ModelConfig(name=name, max_batch_size=4).SerializeToString()).decode(),
    }


@pytest.fixture
def catalogue() -> Catalogue:
    made = Catalogue()
    made.replace(
        [
            ready("iris", "10", 1),
            ready("iris", "9", 2),
            entry("iris", "11", 3, "UNAVAILABLE", "it is broken"),
            entry("later", "1", 4, "LOADING", "still loading"),
        ]
    )
    return made


def test_the_newest_ready_version_answers_for_the_model(catalogue: Catalogue) -> None:
    assert catalogue.find("iris", "").version == "10"
    assert catalogue.find("iris", "9").slot == 2
    assert [item.version for item in catalogue.ready_versions("iris")] == ["9", "10"]
    assert catalogue.names() == {"iris", "later"}


def test_metadata_and_config_are_parsed(catalogue: Catalogue) -> None:
    found = catalogue.find("iris", "")
    assert found.metadata is not None
    assert found.metadata.name == "iris"
    assert found.config is not None
    assert found.config.max_batch_size == 4
    assert catalogue.entries[3].metadata is None


@pytest.mark.parametrize(("version", "expected"), [("", True), ("9", True), ("11", False), ("77", False)])
def test_readiness(catalogue: Catalogue, version: str, expected: bool) -> None:
    assert catalogue.is_ready("iris", version) is expected
    assert catalogue.is_ready("later", "") is False
    assert catalogue.is_ready("nobody", "") is False


def test_refusals_say_why(catalogue: Catalogue) -> None:
    with pytest.raises(ModelUnavailable, match="not ready: it is broken"):
        catalogue.find("iris", "11")
    with pytest.raises(ModelUnavailable, match="still loading"):
        catalogue.find("later", "")
    with pytest.raises(UnknownModel, match="'iris' version 77 is not found"):
        catalogue.find("iris", "77")
    with pytest.raises(UnknownModel, match="'nobody' is not found"):
        catalogue.find("nobody", "")


def test_statistics_are_summed_over_workers(catalogue: Catalogue) -> None:
    assert catalogue.statistics(1) is None
    for worker in range(2):
        descriptor = create_page(PageKind.WORKER)
        page = open_page(descriptor)
        os.close(descriptor)
        WorkerStats(page).succeeded(1, 100, worker + 1)
        catalogue.add_page(worker, page)
    total = catalogue.statistics(1)
    assert total is not None
    assert (total.success_count, total.success_ns) == (3, 200)

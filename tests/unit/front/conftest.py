"""Fixtures of the cold methods' tests."""

import base64
from typing import Any

import pytest

from nexus_grpc.front.catalogue import Catalogue
from nexus_grpc.pb.inference import grpc_service_pb2 as oip
from nexus_grpc.pb.inference import model_config_pb2
from tests.unit.front.prepared_supervisor import Supervisor
from tests.unit.support import entry


def ready(name: str, version: str, slot: int, **more: Any) -> dict[str, Any]:
    metadata = oip.ModelMetadataResponse(name=name, platform="onnxruntime_onnx")
    metadata.inputs.add(name="X", datatype="FP32", shape=[-1, 4])
    config = model_config_pb2.ModelConfig(name=name, max_batch_size=4)
    return {
        **entry(name, version, slot),
        "file": f"{name}/{version}/model.onnx",
        "metadata": base64.b64encode(metadata.SerializeToString()).decode(),
        "config": base64.b64encode(config.SerializeToString()).decode(),
        **more,
    }


@pytest.fixture
def catalogue() -> Catalogue:
    """iris: 1 answers, 2 is an experiment's candidate, 3 is unloaded. churn: only loading."""
    made = Catalogue()
    made.replace(
        [
            ready("iris", "1", 1),
            ready("iris", "2", 2, version_name="1.0.0"),
            entry("iris", "3", 0, "UNLOADED", "unloaded"),
            entry("churn", "1", 4, "LOADING", "still loading"),
        ],
        {
            "iris": {"serving": 1, "serving_version": "1", "candidate_version": "2"},
            "churn": {"serving": 0, "serving_version": ""},
        },
    )
    return made


@pytest.fixture
def supervisor() -> Supervisor:
    return Supervisor()

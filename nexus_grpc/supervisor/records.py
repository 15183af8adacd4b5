"""A model's state as the messages that clients get: ModelInfo (what it is) and ModelRecord (what the registry says)."""

import base64
from typing import Any

from nexus_grpc.ipc.datatypes import ONNX_NUMBERS
from nexus_grpc.pb.inference import grpc_service_pb2 as oip
from nexus_grpc.pb.inference.model_config_pb2 import ModelConfig
from nexus_grpc.registry.records import ModelRow, VersionRow
from nexus_grpc.supervisor import model_state
from nexus_grpc.supervisor.catalogue import Catalogue, Version
from nexus_grpc.supervisor.model_state import ModelState


def states_of(state: ModelState, catalogue: Catalogue) -> dict[int, tuple[str, str]]:
    """(state, reason) of each version that has a file or a record."""
    found = {
        int(number): (text, reason) for number, text, reason in model_state.not_in_memory(state, catalogue) if number
    }
    found.update({v.number: (v.state, v.reason) for v in catalogue.of_model(state.name) if not v.retiring})
    for number in set(state.rows) - set(found):
        found[number] = ("MISSING", "there is no file")
    return dict(sorted(found.items()))


def info_of(state: ModelState, catalogue: Catalogue) -> dict[str, Any]:
    """nexus.v1.ModelInfo as JSON."""
    ready = model_state.loaded(catalogue, state.name)
    number = model_state.serving(state, catalogue)
    states = states_of(state, catalogue)
    shown = number if number is not None else max(states, default=None)
    version = ready.get(shown) if shown is not None else None
    info: dict[str, Any] = {
        "id": state.name,
        "name": state.row.name if state.row is not None and state.row.name else state.name,
        "version": str(shown or ""),
        "path": state.entry.relative_path(str(shown or "")) if state.entry is not None else state.name,
        "state": states[shown][0] if shown is not None else "UNAVAILABLE",
        "active_version": str(number or ""),
        "versions": [
            {
                "version": str(n),
                "state": text,
                "reason": reason,
                "version_name": state.name_of(n),
                "circuit": catalogue.circuit_name(ready[n]) if n in ready else "closed",
            }
            for n, (text, reason) in states.items()
        ],
    }
    if version is not None:
        info.update(_tensors(version))
    return info


def _tensors(version: Version) -> dict[str, Any]:
    metadata = oip.ModelMetadataResponse.FromString(base64.b64decode(version.metadata))
    config = ModelConfig.FromString(base64.b64decode(version.config))
    found: dict[str, Any] = {"max_batch_size": config.max_batch_size}
    for kind in ("inputs", "outputs"):
        found[kind] = [
            {
                "name": tensor.name,
                "dtype": ONNX_NUMBERS.get(tensor.datatype, 0),
                "shape": list(tensor.shape),
                "datatype": tensor.datatype,
            }
            for tensor in getattr(metadata, kind)
        ]
    return found


def record_of(state: ModelState, catalogue: Catalogue) -> dict[str, Any]:
    """nexus.v1.ModelRecord as JSON."""
    row = state.row or ModelRow(state.name)
    number = model_state.serving(state, catalogue)
    circuits = {n: catalogue.circuit_name(each) for n, each in model_state.loaded(catalogue, state.name).items()}
    return {
        "id": state.name,
        "name": row.name or state.name,
        "description": row.description,
        "labels": dict(row.labels),
        "created_at": row.created_at,
        "created_by": row.created_by,
        "active_version": str(number or ""),
        "versions": [
            {**_version_record(state, n, text, reason), "circuit": circuits.get(n, "closed")}
            for n, (text, reason) in states_of(state, catalogue).items()
        ],
    }


def _version_record(state: ModelState, number: int, text: str, reason: str) -> dict[str, Any]:
    row = state.rows.get(number) or VersionRow(state.name, number)
    return {
        "version": str(number),
        "version_name": row.version_name,
        "stage": row.stage,
        "sha256": row.sha256,
        "size_bytes": row.size_bytes,
        "created_at": row.created_at,
        "created_by": row.created_by,
        "source": row.source,
        "state": text,
        "reason": reason,
        "labels": dict(row.labels),
    }

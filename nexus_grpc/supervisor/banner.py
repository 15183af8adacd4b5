"""What `nexus serve` tells a person once it serves: what listens where, which models are ready, what to try."""

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from nexus_grpc.settings import Settings
from nexus_grpc.supervisor.catalogue import READY, Catalogue, Version

# Shown in full up to here; a server with more models points to `nexus models list`.
MODELS_SHOWN_MAX = 25
TENSORS_SHOWN_MAX = 4


def print_banner(settings: Settings, catalogue: Catalogue, worker_cores: list[list[int]]) -> None:
    """Print the table to standard output."""
    console = Console(highlight=False, soft_wrap=False)
    console.print(_listeners(settings, worker_cores))
    console.print(_models(catalogue))
    example = _example(settings, catalogue)
    if example:
        console.print("Try:", style="bold")
        console.print(example, soft_wrap=True, markup=False)
    console.print("Stop with Ctrl-C: requests in flight are finished first.", style="dim")


def _listeners(settings: Settings, worker_cores: list[list[int]]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_row("gRPC", f"{settings.host}:{settings.grpc_port}")
    metrics = f"http://{settings.host}:{settings.metrics_port}/metrics" if settings.metrics_port else "off"
    table.add_row("metrics", metrics)
    table.add_row("fronts", str(settings.fronts))
    cores = "; ".join(",".join(str(core) for core in cores) for cores in worker_cores)
    table.add_row("workers", f"{len(worker_cores)} (cores {cores})")
    return table


def _models(catalogue: Catalogue) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("model", "version", "state", "inputs", "outputs"):
        table.add_column(title, overflow="fold")
    for version in catalogue.versions[:MODELS_SHOWN_MAX]:
        if version.state == READY:
            metadata = _metadata(version)
            table.add_row(version.name, version.version, "ready", _tensors(metadata.inputs), _tensors(metadata.outputs))
        else:
            table.add_row(version.name, version.version, f"[red]{version.state.lower()}[/red]", version.reason, "")
    hidden = len(catalogue.versions) - MODELS_SHOWN_MAX
    if hidden > 0:
        table.add_row(f"… and {hidden} more", "", "", "see `nexus models list`", "")
    return table


def _metadata(version: Version) -> pb.ModelMetadataResponse:
    import base64

    return pb.ModelMetadataResponse.FromString(base64.b64decode(version.metadata))


def _tensors(tensors: Any) -> str:
    shown = [f"{t.name} {t.datatype}\\[{','.join(str(dim) for dim in t.shape)}]" for t in tensors[:TENSORS_SHOWN_MAX]]
    more = len(tensors) - TENSORS_SHOWN_MAX
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _example(settings: Settings, catalogue: Catalogue) -> str:
    """A grpcurl line for the first ready model that takes a flat row of numbers."""
    ready = [version for version in catalogue.versions if version.state == READY]
    for version in sorted(ready, key=lambda item: item.name != "iris"):
        inputs = _metadata(version).inputs
        if len(inputs) == 1 and inputs[0].datatype.startswith("FP") and list(inputs[0].shape[:1]) == [-1]:
            count = 1
            for dim in inputs[0].shape[1:]:
                count *= max(dim, 1)
            features = [5.1, 3.5, 1.4, 0.2] if version.name == "iris" else [0.0] * count
            request = json.dumps({"model_id": version.name, "features": features})
            address = f"{settings.host}:{settings.grpc_port}"
            return f"  grpcurl -plaintext -d '{request}' {address} nexus.v1.Inference/Predict"
    return ""

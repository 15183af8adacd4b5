"""The front's copy of what the supervisor knows of models: metadata, configuration, state; and their statistics."""

import base64
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nexus_grpc.front.caller import unknown_model
from nexus_grpc.ipc.errors import ModelUnavailable
from nexus_grpc.ipc.similar import Similar
from nexus_grpc.ipc.snapshots import ModelSnapshot
from nexus_grpc.ipc.stats import read_model
from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from nexus_grpc.pb.inference import model_config_pb2 as config_pb

READY, UNLOADED = "READY", "UNLOADED"


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """One model version in the repository, in its `file`. `metadata` and `config` are there when it is ready."""

    name: str
    version: str
    state: str
    reason: str
    slot: int
    version_name: str
    file: str
    metadata: pb.ModelMetadataResponse | None
    config: config_pb.ModelConfig | None

    @property
    def ready(self) -> bool:
        return self.state == READY


def _entry(item: dict[str, Any]) -> CatalogueEntry:
    ready = item["state"] == READY
    return CatalogueEntry(
        name=item["name"],
        version=item["version"],
        state=item["state"],
        reason=item["reason"],
        slot=item["slot"],
        version_name=item.get("version_name", ""),
        file=item.get("file", ""),
        metadata=pb.ModelMetadataResponse.FromString(base64.b64decode(item["metadata"])) if ready else None,
        config=config_pb.ModelConfig.FromString(base64.b64decode(item["config"])) if ready else None,
    )


class Catalogue:
    """Read by the cold methods' threads, replaced by the control thread."""

    def __init__(self) -> None:
        self._entries: tuple[CatalogueEntry, ...] = ()
        self._by_name: dict[str, list[CatalogueEntry]] = {}
        # Slots of experiments' arms by the slot of their version: requests to these count for the version, too.
        self._arms: dict[int, tuple[int, ...]] = {}
        # Model → the version that answers requests which name none ("" = none), where the supervisor says so.
        self._serving: dict[str, str] = {}
        self._candidates: dict[str, str] = {}
        # What people call the models.
        self._titles: dict[str, str] = {}
        self._similar = Similar(())
        # Models that were asked for at the start and are down, with the reason; with --strict-readiness only.
        self.down: dict[str, str] = {}
        self._pages: dict[int, memoryview] = {}
        self._lock = threading.Lock()

    def replace(
        self,
        items: list[dict[str, Any]],
        traffic: dict[str, Any] | None = None,
        down: dict[str, str] | None = None,
    ) -> None:
        """`items`, `traffic` and `down` are those of the `routes` message."""
        self.down = down or {}
        entries = tuple(_entry(item) for item in items if not item.get("variant"))
        arms: dict[int, tuple[int, ...]] = {}
        for item in items:
            if item.get("variant"):
                arms[item["of"]] = (*arms.get(item["of"], ()), item["slot"])
        self._arms = arms
        self._serving = {name: policy["serving_version"] for name, policy in (traffic or {}).items()}
        self._candidates = {name: policy.get("candidate_version", "") for name, policy in (traffic or {}).items()}
        by_name: dict[str, list[CatalogueEntry]] = {}
        for entry in entries:
            by_name.setdefault(entry.name, []).append(entry)
        self._by_name = by_name
        self._titles = {name: policy.get("title", "") for name, policy in (traffic or {}).items()}
        self._entries = entries
        self._similar = Similar(self.names())

    def serving_version(self, name: str) -> str:
        """The version that answers requests which name none; empty when none does."""
        serving = self._serving.get(name)
        if serving is None:
            ready = self.ready_versions(name)
            serving = ready[-1].version if ready else ""
        return serving

    def title(self, name: str) -> str:
        """What people call a model; its name, unless they said otherwise."""
        return self._titles.get(name) or name

    def candidate_version(self, name: str) -> str:
        """Of a running experiment; empty without one."""
        return self._candidates.get(name, "")

    def add_page(self, worker: int, page: memoryview) -> None:
        """A worker's statistics page; a restarted worker goes on writing to its predecessor's."""
        with self._lock:
            self._pages = {**self._pages, worker: page}

    @property
    def entries(self) -> tuple[CatalogueEntry, ...]:
        return self._entries

    def names(self) -> set[str]:
        return set(self._by_name)

    def versions_of(self, name: str) -> Sequence[CatalogueEntry]:
        """All versions of a model, ready or not; none of one that is not there."""
        return self._by_name.get(name, ())

    def similar(self, name: str) -> str:
        """The model that was probably meant by a name that no model has; empty if there is none."""
        return "" if name in self._by_name else self._similar.to(name)

    def ready_versions(self, name: str) -> list[CatalogueEntry]:
        """Ascending. Empty when the model is unknown or none of its versions is ready."""
        found = [entry for entry in self.versions_of(name) if entry.ready]
        return sorted(found, key=lambda entry: int(entry.version))

    def is_ready(self, name: str, version: str) -> bool:
        """False for an unknown model too, as Triton answers (core, InferenceServer::ModelIsReady)."""
        ready = self.ready_versions(name)
        wanted = version or self.serving_version(name)
        return bool(wanted) and any(wanted in (entry.version, entry.version_name) for entry in ready)

    def find(self, name: str, version: str) -> CatalogueEntry:
        """A ready version; "" = the one that answers requests without one. Raises UnknownModel or ModelUnavailable."""
        wanted = version or self.serving_version(name)
        for entry in self.ready_versions(name):
            if wanted and wanted in (entry.version, entry.version_name):
                return entry
        broken = [e for e in self.versions_of(name) if not version or version == e.version]
        if broken:
            raise ModelUnavailable(f"model '{name}' is not ready: {broken[0].reason}")
        shown = f"'{name}' version {version}" if version else f"'{name}'"
        raise unknown_model(shown, self.similar(name))

    def statistics(self, slot: int) -> ModelSnapshot | None:
        """Summed over all workers; None before any is there."""
        total: ModelSnapshot | None = None
        for page in self._pages.values():
            for each in (slot, *self._arms.get(slot, ())):
                snapshot = read_model(page, each)
                total = snapshot if total is None else total + snapshot
        return total

"""nexus.v1.Models and nexus.v1.System. Each method raises NexusError.

What a front knows by itself it answers: one method each, named as in proto/. Everything else is the supervisor's:
`forward`, for which cold_methods.py and cold_rest.py ask where there is no method of that name.
"""

import datetime
import importlib.metadata
import time
from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message

from nexus_grpc.front.caller import unknown_model
from nexus_grpc.front.catalogue import UNLOADED, Catalogue
from nexus_grpc.front.supervised import Caller, Supervised, forward
from nexus_grpc.ipc.datatypes import ONNX_NUMBERS
from nexus_grpc.ipc.errors import InvalidInput, ModelUnavailable
from nexus_grpc.pb.nexus.v1 import models_pb2, system_pb2

SERVER_NAME = "nexus-grpc"


class ModelsService:
    """nexus.v1.Models.

    Args:
        circuit_of: the state of a slot's circuit in this front (limits/circuit.py), by name.
    """

    def __init__(self, catalogue: Catalogue, supervised: Supervised, circuit_of: Callable[[int], str]) -> None:
        self._catalogue = catalogue
        self._supervised = supervised
        self._circuit_of = circuit_of

    def forward(self, method: Any, request: Message, caller: Caller) -> Message:
        """A method that the supervisor carries out."""
        return forward(self._supervised, method, request, caller)

    def List(self, request: models_pb2.ListModelsRequest) -> models_pb2.ListModelsResponse:  # noqa: N802
        names = sorted(self._catalogue.names())
        return models_pb2.ListModelsResponse(models=[self._listed(name) for name in names], count=len(names))

    def _listed(self, name: str) -> models_pb2.ModelEntry:
        version = self._catalogue.serving_version(name)
        found = [entry for entry in self._catalogue.ready_versions(name) if entry.version == version]
        return models_pb2.ModelEntry(
            id=name,
            name=self._catalogue.title(name),
            version=version,
            path=found[-1].file if found else name,
            version_name=found[-1].version_name or None if found else None,
        )

    def Info(self, request: models_pb2.ModelInfoRequest) -> models_pb2.ModelInfo:  # noqa: N802
        name = request.id
        if not name:
            raise InvalidInput("the model's id is missing: GET /models/info?id=iris", field="id")
        if not self._catalogue.versions_of(name):
            raise unknown_model(f"'{name}'", self._catalogue.similar(name))
        return self._info(name)

    def Overview(self, request: models_pb2.OverviewRequest) -> models_pb2.OverviewResponse:  # noqa: N802
        models = [self._info(name) for name in sorted(self._catalogue.names())]
        return models_pb2.OverviewResponse(models=models, count=len(models))

    def _info(self, name: str) -> models_pb2.ModelInfo:
        known = self._catalogue.versions_of(name)
        serving = self._catalogue.serving_version(name)
        shown = next((entry for entry in known if entry.version == serving and entry.ready), known[-1])
        versions = [
            models_pb2.VersionInfo(
                version=e.version,
                state=e.state,
                reason=e.reason,
                version_name=e.version_name,
                circuit=self._circuit_of(e.slot),
            )
            for e in known
        ]
        title = self._catalogue.title(name)
        info = models_pb2.ModelInfo(id=name, name=title, version=shown.version, state=shown.state, versions=versions)
        info.path, info.active_version = shown.file, serving
        if shown.version_name:
            info.version_name = shown.version_name
        if shown.metadata is not None and shown.config is not None:
            info.inputs.extend(_tensor(tensor) for tensor in shown.metadata.inputs)
            info.outputs.extend(_tensor(tensor) for tensor in shown.metadata.outputs)
            info.max_batch_size = shown.config.max_batch_size
        return info


class SystemService:
    """nexus.v1.System.

    Args:
        is_serving: False from the beginning of a drain on.
        worker_count: how many workers this front has now.
        started_at_s: when the server started, in seconds since the epoch.
        auth: whom it asks for credentials.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        is_serving: Callable[[], bool],
        worker_count: Callable[[], int],
        started_at_s: float,
        supervised: Supervised,
        auth: str = "off",
    ) -> None:
        self._auth = auth
        self._catalogue = catalogue
        self._is_serving = is_serving
        self._worker_count = worker_count
        self._started_at_s = started_at_s
        self._supervised = supervised

    def forward(self, method: Any, request: Message, caller: Caller) -> Message:
        """Reload: the supervisor says which versions answer; which server this is, we know."""
        answer = forward(self._supervised, method, request, caller)
        assert isinstance(answer, system_pb2.ReloadResponse), "nothing else is carried out by the supervisor"
        answer.server_version = server_version()
        return answer

    def Health(self, request: system_pb2.HealthRequest) -> system_pb2.HealthResponse:  # noqa: N802
        now = datetime.datetime.now(datetime.UTC)
        return system_pb2.HealthResponse(
            status="ok",
            timestamp=now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            uptime_seconds=round(time.time() - self._started_at_s, 3),
            version=server_version(),
            models_loaded=sum(entry.ready for entry in self._catalogue.entries),
            workers=self._worker_count(),
            auth=self._auth,
        )

    def Ready(self, request: system_pb2.ReadyRequest) -> system_pb2.ReadyResponse:  # noqa: N802
        """Raises ModelUnavailable while draining, without a worker, when models are asked for and none of them is up,
        and with --strict-readiness when one of them is down. A server that nobody asked for a model waits for that."""
        if not self._is_serving():
            raise ModelUnavailable("the server is starting or stopping", reason="NOT_SERVING")
        if not self._worker_count():
            raise ModelUnavailable("no worker is there; one is being started", reason="NO_WORKER")
        asked_for = [entry for entry in self._catalogue.entries if entry.state != UNLOADED]
        if asked_for and not any([entry.ready for entry in asked_for]):
            raise ModelUnavailable("no model is ready; GET /models/{id} says why", reason="NO_MODEL")
        for name, reason in self._catalogue.down.items():
            raise ModelUnavailable(f"model '{name}' is down (--strict-readiness): {reason}", reason="MODEL_DOWN")
        return system_pb2.ReadyResponse(ready=True, status="ready")

    def is_ready(self) -> bool:
        """ServerReady: as Ready, said as the Open Inference Protocol says it."""
        try:
            return self.Ready(system_pb2.ReadyRequest()).ready
        except ModelUnavailable:
            return False

    def Version(self, request: system_pb2.VersionRequest) -> system_pb2.VersionResponse:  # noqa: N802
        response = system_pb2.VersionResponse(server_version=server_version())
        for name in sorted(self._catalogue.names()):
            response.models.add(
                model=name,
                current_version=self._catalogue.serving_version(name),
                candidate_version=self._catalogue.candidate_version(name),
            )
        return response


def server_version() -> str:
    return importlib.metadata.version(SERVER_NAME)


def _tensor(tensor: Any) -> models_pb2.TensorInfo:
    return models_pb2.TensorInfo(
        name=tensor.name,
        dtype=ONNX_NUMBERS.get(tensor.datatype, 0),
        shape=list(tensor.shape),
        datatype=tensor.datatype,
    )

"""Which scope each method needs: the one table, for hot and cold methods, for gRPC, gRPC-web and REST.

What is not in it is refused. REST requests arrive as calls of a method's twin (/nexus.http.v1.Http/ModelsLoad stands
for /nexus.v1.Models/Load) and take the rule of the method: there is no second rule to forget.
"""

from collections.abc import Iterable

from nexus_grpc.access.identity import SCOPE_NAMES, Identity, Scope
from nexus_grpc.ipc.errors import PermissionDenied

# Needs no credential.
OPEN = Scope.NONE
TWIN_PREFIX = "/nexus.http.v1.Http/"
_TWINNED = "nexus.v1."

_RULES: dict[str, dict[str, Scope]] = {
    "inference.GRPCInferenceService": {
        "ServerLive": OPEN,
        "ServerReady": OPEN,
        "ServerMetadata": Scope.READ,
        # Not open: it tells which models there are.
        "ModelReady": Scope.READ,
        "ModelMetadata": Scope.READ,
        "ModelConfig": Scope.READ,
        "ModelStatistics": Scope.READ,
        "RepositoryIndex": Scope.READ,
        "ModelInfer": Scope.PREDICT,
        "ModelStreamInfer": Scope.PREDICT,
        "RepositoryModelLoad": Scope.ADMIN,
        "RepositoryModelUnload": Scope.ADMIN,
        # They set as well as tell.
        "TraceSetting": Scope.ADMIN,
        "LogSettings": Scope.ADMIN,
        # This server has none of these; a caller learns so only as one who could use them.
        "SystemSharedMemoryStatus": Scope.READ,
        "SystemSharedMemoryRegister": Scope.ADMIN,
        "SystemSharedMemoryUnregister": Scope.ADMIN,
        "CudaSharedMemoryStatus": Scope.READ,
        "CudaSharedMemoryRegister": Scope.ADMIN,
        "CudaSharedMemoryUnregister": Scope.ADMIN,
    },
    "nexus.v1.Inference": {
        "Predict": Scope.PREDICT,
        "BatchPredict": Scope.PREDICT,
        "PredictStream": Scope.PREDICT,
    },
    "nexus.v1.Models": {
        "List": Scope.READ,
        "Info": Scope.READ,
        "Overview": Scope.READ,
        "History": Scope.READ,
        "ListRecords": Scope.READ,
        "GetRecord": Scope.READ,
        "Upload": Scope.ADMIN,
        "Load": Scope.ADMIN,
        "Unload": Scope.ADMIN,
        "Activate": Scope.ADMIN,
        "Rollback": Scope.ADMIN,
        "Delete": Scope.ADMIN,
        "Register": Scope.ADMIN,
        "UpdateRecord": Scope.ADMIN,
    },
    "nexus.v1.Traffic": {
        "Status": Scope.READ,
        "Setup": Scope.ADMIN,
        "Split": Scope.ADMIN,
        "Ramp": Scope.ADMIN,
        "Promote": Scope.ADMIN,
        "Abort": Scope.ADMIN,
        "Shadow": Scope.ADMIN,
        "Balance": Scope.ADMIN,
    },
    "nexus.v1.System": {
        "Health": OPEN,
        "Ready": OPEN,
        "Version": Scope.READ,
        "Reload": Scope.ADMIN,
    },
    "nexus.v1.Keys": {
        "Create": Scope.ADMIN,
        # Not READ: it tells who else there is, and with which rights.
        "List": Scope.ADMIN,
        "Revoke": Scope.ADMIN,
    },
    # REST forms without a gRPC method of their own (proto/nexus/v1/rest.proto).
    "nexus.v1.Rest": {
        "ApiPredict": Scope.PREDICT,
        "ApiBatchPredict": Scope.PREDICT,
        "ApiModel": Scope.READ,
        "Infer": Scope.PREDICT,
        "V2Live": OPEN,
        "V2Ready": OPEN,
        "V2Server": Scope.READ,
        "V2Model": Scope.READ,
        "V2ModelReady": Scope.READ,
        "V2ModelConfig": Scope.READ,
        "V2Statistics": Scope.READ,
        "V2RepositoryIndex": Scope.READ,
        "V2Logging": Scope.READ,
        "V2Tracing": Scope.READ,
        "V2SystemSharedMemory": Scope.READ,
        "V2CudaSharedMemory": Scope.READ,
        "V2Infer": Scope.PREDICT,
    },
    "nexus.v1.V2Admin": {
        "Load": Scope.ADMIN,
        "Unload": Scope.ADMIN,
        "UpdateLogSettings": Scope.ADMIN,
        "UpdateTraceSettings": Scope.ADMIN,
        "SystemSharedMemoryRegister": Scope.ADMIN,
        "SystemSharedMemoryUnregister": Scope.ADMIN,
        "CudaSharedMemoryRegister": Scope.ADMIN,
        "CudaSharedMemoryUnregister": Scope.ADMIN,
    },
    "grpc.health.v1.Health": {"Check": OPEN, "List": OPEN, "Watch": OPEN},
    "grpc.reflection.v1.ServerReflection": {"ServerReflectionInfo": Scope.READ},
    "grpc.reflection.v1alpha.ServerReflection": {"ServerReflectionInfo": Scope.READ},
}
# What they do concerns all models: a credential for some is not enough, whatever its scopes.
FOR_ALL_MODELS = frozenset({"nexus.v1.Keys"})
# The metrics port's paths, which are no gRPC methods.
_PATHS = {"/metrics": Scope.READ, "/metrics/json": Scope.READ, "/metrics/prom": Scope.READ}


def _table() -> dict[str, Scope]:
    table = dict(_PATHS)
    for service, methods in _RULES.items():
        for method, scope in methods.items():
            table[f"/{service}/{method}"] = scope
            if service.startswith(_TWINNED):
                # As rest/http_rules.py names the twins: the service's own name and the method's.
                table[TWIN_PREFIX + service.removeprefix(_TWINNED) + method] = scope
    return table


RULES = _table()
"""Every path that may be called, and what it needs."""


def required(path: str) -> Scope | None:
    """What a method needs: a scope, or OPEN; None = nobody may call it.

    Args:
        path: of gRPC, such as /nexus.v1.Inference/Predict; as it is routed, after any transcoding.
    """
    return RULES.get(path)


def check_method(identity: Identity, path: str) -> None:
    """Raises PermissionDenied if this caller may not call the method."""
    scope = RULES.get(path)
    if scope is None:
        raise PermissionDenied("this method is open to nobody", reason="NO_RULE")
    check_scope(identity, scope)


def check_scope(identity: Identity, scope: Scope) -> None:
    """Raises PermissionDenied if this caller lacks the scope; for one who has looked up the method's rule already."""
    # As numbers: `in` takes longer for a Flag, and this is done for every request.
    if scope._value_ & ~identity.scopes._value_:
        names = " or ".join(name for name, each in SCOPE_NAMES.items() if each in scope)
        raise PermissionDenied(
            f"{identity.name} lacks the scope {names}; use a credential that has it", reason="SCOPE_MISSING"
        )


def check_granted(identity: Identity, names: Iterable[str]) -> None:
    """Raises PermissionDenied if a caller would give away scopes that it has not itself.

    Args:
        names: of scopes; what is none is for others to refuse.
    """
    lacking = sorted(name for name in names if name in SCOPE_NAMES and SCOPE_NAMES[name] not in identity.scopes)
    if lacking:
        raise PermissionDenied(
            f"{identity.name} lacks the scope {' and '.join(lacking)}, and can give none that it lacks: leave it out,"
            " or use a credential that has it",
            reason="SCOPE_MISSING",
        )


def check_model(identity: Identity, model: str) -> None:
    """Raises PermissionDenied if this caller may not use the model, whether or not there is such a model."""
    if not identity.may_use(model):
        raise PermissionDenied(
            f"{identity.name} may not use the model {model!a}; use a credential that covers it", reason="MODEL_DENIED"
        )

"""The table of rules: complete, and nothing in it that does not exist."""

import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from nexus_grpc.access.identity import Identity, Scope
from nexus_grpc.access.rules import OPEN, RULES, check_method, check_model, required
from nexus_grpc.front.reflection import V1
from nexus_grpc.ipc.errors import PermissionDenied
from nexus_grpc.pb.inference import grpc_service_pb2
from nexus_grpc.rest.http_rules import FILES, http_methods
from nexus_grpc.rest.routes import METRICS_PATHS
from nexus_grpc.rest.twin import path_of

OURS = {
    f"/{service.full_name}/{method.name}": service.name + method.name
    for file in (*FILES, grpc_service_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
    for method in service.methods
}
OTHERS = {
    f"/{service.full_name}/{method.name}"
    for file in (health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
    for method in service.methods
}
TWINS = {path_of(method.name) for method in http_methods()}


@pytest.mark.parametrize("path", sorted({*OURS, *OTHERS, *TWINS, *METRICS_PATHS}))
def test_every_method_has_a_rule(path: str) -> None:
    assert required(path) is not None, "add the method to nexus_grpc/access/rules.py"


def test_no_rule_is_for_nothing() -> None:
    known = {*OURS, *OTHERS, *TWINS, *METRICS_PATHS}
    known |= {path.replace("v1alpha", "v1") for path in OTHERS}
    # Twins of methods that have no HTTP form: Envoy does not know them, and no front serves them.
    known |= {path_of(name) for path, name in OURS.items() if path.startswith("/nexus.v1.")}
    # grpc's protocol has it; older packages of its health service do not.
    known.add("/grpc.health.v1.Health/List")
    assert set(RULES) - known == set()


def test_both_versions_of_reflection_have_rules() -> None:
    assert V1 in {path.split("/")[1].rpartition(".")[0] for path in RULES}


def test_a_twin_takes_its_methods_rule() -> None:
    for path, name in OURS.items():
        if path_of(name) in TWINS:
            assert required(path_of(name)) is required(path)


def test_what_changes_the_server_is_admins() -> None:
    changes = [path_of(method.name) for method in http_methods() if method.is_change]
    assert len(changes) > 10
    assert {required(path) for path in changes} == {Scope.ADMIN}
    verbs = ("Load", "Unload", "Register", "Unregister", "Upload", "Delete", "Setting", "Settings", "Reload")
    assert {RULES[path] for path in OURS if path.endswith(verbs)} == {Scope.ADMIN}
    assert {RULES[path] for path in OURS if path.endswith(("Predict", "Infer", "PredictStream"))} == {Scope.PREDICT}


def test_what_is_open() -> None:
    assert sorted(path for path, scope in RULES.items() if scope is OPEN) == [
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/List",
        "/grpc.health.v1.Health/Watch",
        "/inference.GRPCInferenceService/ServerLive",
        "/inference.GRPCInferenceService/ServerReady",
        "/nexus.http.v1.Http/RestV2Live",
        "/nexus.http.v1.Http/RestV2Ready",
        "/nexus.http.v1.Http/SystemHealth",
        "/nexus.http.v1.Http/SystemReady",
        "/nexus.v1.Rest/V2Live",
        "/nexus.v1.Rest/V2Ready",
        "/nexus.v1.System/Health",
        "/nexus.v1.System/Ready",
    ]


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/nexus.v1.Models/load",
        "/nexus.v1.Models/Load/",
        "//nexus.v1.Models/Load",
        "/nexus.v1.Models/Load?x",
        "/nexus.v1.Models/%4coad",
        "nexus.v1.Models/Load",
        "/nexus.v1.Models/New",
        "/other.Service/Get",
    ],
)
def test_what_is_not_in_it_is_nobodys(path: str) -> None:
    assert required(path) is None
    with pytest.raises(PermissionDenied, match="open to nobody") as failure:
        check_method(Identity("root", Scope.PREDICT | Scope.READ | Scope.ADMIN), path)
    assert failure.value.reason == "NO_RULE"


def test_scopes() -> None:
    for scope in (Scope.NONE, Scope.PREDICT, Scope.READ, Scope.ADMIN):
        identity = Identity("key:1", scope)
        for path, needed in RULES.items():
            if needed in (OPEN, scope):
                check_method(identity, path)
                continue
            with pytest.raises(PermissionDenied, match=f"lacks the scope {str(needed.name).lower()};") as failure:
                check_method(identity, path)
            assert failure.value.reason == "SCOPE_MISSING"


def test_models() -> None:
    identity = Identity("key:1", Scope.PREDICT, ("fraud-*", "iris"))
    check_model(identity, "fraud-eu")
    check_model(identity, "iris")
    for model in ("", "churn", "Iris", "iris2"):
        with pytest.raises(PermissionDenied, match="may not use the model"):
            check_model(identity, model)

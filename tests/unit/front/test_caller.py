"""Which models a caller may name, and see: for the cold methods."""

import threading
from typing import Any

import pytest

from nexus_grpc.access.identity import Identity, Scope
from nexus_grpc.front.caller import (
    caller_name,
    calling,
    check_named,
    check_request,
    unknown_model,
    without_hidden,
)
from nexus_grpc.ipc.errors import PermissionDenied
from nexus_grpc.pb.inference import grpc_service_pb2 as oip
from nexus_grpc.pb.nexus.v1 import keys_pb2, models_pb2, system_pb2, traffic_pb2
from nexus_grpc.rest.http_rules import FILES

EVERYTHING = Identity("key:1", Scope.READ | Scope.ADMIN)
SOME = Identity("key:2", Scope.READ | Scope.ADMIN, ("iris", "fraud-*"))
SERVICES = {
    service.full_name: service
    for file in (*FILES, oip.DESCRIPTOR)
    for service in file.services_by_name.values()
    if service.name != "Rest"
}


def method(path: str) -> Any:
    service, _, name = path.rpartition("/")
    return SERVICES[service].methods_by_name[name]


def test_nobody_calls_where_there_are_no_credentials() -> None:
    assert caller_name() == ""
    check_named("anything")
    check_request(system_pb2.ReloadRequest(), method("nexus.v1.System/Reload"))


def test_the_caller_is_the_threads_and_ends_with_the_call() -> None:
    seen = []
    with calling(SOME):
        assert caller_name() == "key:2"
        with calling(EVERYTHING):
            assert caller_name() == "key:1"
        assert caller_name() == "key:2"
        thread = threading.Thread(target=lambda: seen.append(caller_name()))
        thread.start()
        thread.join()
    assert caller_name() == ""
    assert seen == [""]
    with pytest.raises(RuntimeError), calling(SOME):
        raise RuntimeError
    assert caller_name() == ""


def test_a_named_model() -> None:
    with calling(SOME):
        check_named("iris")
        check_named("fraud-eu")
        for model in ("churn", "", "Iris"):
            with pytest.raises(PermissionDenied) as caught:
                check_named(model)
            assert caught.value.reason == "MODEL_DENIED"


@pytest.mark.parametrize(
    ("path", "request_", "allowed"),
    [
        ("nexus.v1.Models/Info", models_pb2.ModelInfoRequest(id="iris"), True),
        ("nexus.v1.Models/Info", models_pb2.ModelInfoRequest(id="churn"), False),
        ("nexus.v1.Models/Info", models_pb2.ModelInfoRequest(), False),
        ("nexus.v1.Models/List", models_pb2.ListModelsRequest(), True),
        ("nexus.v1.Models/History", models_pb2.ModelHistoryRequest(), True),
        ("nexus.v1.Models/History", models_pb2.ModelHistoryRequest(id="churn"), False),
        ("nexus.v1.Models/Register", models_pb2.RegisterModelRequest(id="churn", name="iris"), False),
        ("nexus.v1.Models/Register", models_pb2.RegisterModelRequest(name="iris"), False),
        ("nexus.v1.Keys/Create", keys_pb2.CreateKeyRequest(name="iris"), False),
        ("nexus.v1.Keys/List", keys_pb2.ListKeysRequest(), False),
        ("nexus.v1.Keys/Revoke", keys_pb2.RevokeKeyRequest(key="iris"), False),
        ("nexus.v1.Traffic/Status", traffic_pb2.ExperimentStatusRequest(), False),
        ("nexus.v1.Traffic/Split", traffic_pb2.SplitTrafficRequest(model="churn"), False),
        ("nexus.v1.System/Reload", system_pb2.ReloadRequest(model="iris"), True),
        # All models, although a list is the answer.
        ("nexus.v1.System/Reload", system_pb2.ReloadRequest(), False),
        ("inference.GRPCInferenceService/ModelStatistics", oip.ModelStatisticsRequest(), True),
        ("inference.GRPCInferenceService/ModelStatistics", oip.ModelStatisticsRequest(name="churn"), False),
        ("inference.GRPCInferenceService/ModelConfig", oip.ModelConfigRequest(name="iris"), True),
        (
            "inference.GRPCInferenceService/RepositoryModelUnload",
            oip.RepositoryModelUnloadRequest(model_name="churn"),
            False,
        ),
        ("inference.GRPCInferenceService/ServerMetadata", oip.ServerMetadataRequest(), True),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_requests(path: str, request_: Any, allowed: bool) -> None:
    with calling(EVERYTHING):
        check_request(request_, method(path))
    with calling(SOME):
        if allowed:
            check_request(request_, method(path))
            return
        with pytest.raises(PermissionDenied) as caught:
            check_request(request_, method(path))
        assert caught.value.reason == "MODEL_DENIED"


def lists() -> list[Any]:
    names = ("iris", "churn", "fraud-eu")
    return [
        models_pb2.ListModelsResponse(models=[models_pb2.ModelEntry(id=name, name="churn") for name in names]),
        models_pb2.OverviewResponse(models=[models_pb2.ModelInfo(id=name, name="churn") for name in names]),
        models_pb2.ListRecordsResponse(models=[models_pb2.ModelRecord(id=name, name="iris") for name in names]),
        models_pb2.ModelHistoryResponse(entries=[models_pb2.HistoryEntry(model=name) for name in names]),
        system_pb2.VersionResponse(models=[system_pb2.ActiveVersion(model=name) for name in names]),
        oip.ModelStatisticsResponse(model_stats=[oip.ModelStatistics(name=name) for name in names]),
        oip.RepositoryIndexResponse(models=[oip.RepositoryIndexResponse.ModelIndex(name=name) for name in names]),
    ]


@pytest.mark.parametrize("number", range(len(lists())))
def test_lists(number: int) -> None:
    complete = lists()[number]
    assert without_hidden(lists()[number]) == complete
    with calling(EVERYTHING):
        assert without_hidden(lists()[number]) == complete
    with calling(SOME):
        shown = without_hidden(lists()[number])
    (field,) = (name for name in ("models", "entries", "model_stats") if name in shown.DESCRIPTOR.fields_by_name)
    whole = getattr(complete, field)
    assert list(getattr(shown, field)) == [whole[0], whole[2]]


def test_what_has_no_list_stays() -> None:
    with calling(SOME):
        answer = models_pb2.ModelInfo(id="churn")
        assert without_hidden(answer) is answer


def test_every_list_of_models_is_filtered() -> None:
    """An answer that tells of several models has them where the filter looks, with names that it knows."""
    filtered = {type(each).DESCRIPTOR.full_name for each in lists()} | {"nexus.v1.ReloadResponse"}
    for service in SERVICES.values():
        for each in service.methods:
            fields = {"models", "model_stats", "entries"} & set(each.output_type.fields_by_name)
            if fields:
                assert each.output_type.full_name in filtered, f"{each.full_name}: test its list here"


def test_the_model_that_was_meant_is_named_to_those_who_may_use_it() -> None:
    plain = "Request for unknown model: 'Churn' is not found"
    hinted = f"{plain}; did you mean 'churn'?"
    assert unknown_model("'Churn'", "churn").message == hinted
    with calling(EVERYTHING):
        assert unknown_model("'Churn'", "churn").message == hinted
    with calling(SOME):
        assert unknown_model("'Churn'", "churn").message == plain
        assert unknown_model("'Iris'", "iris").message.endswith("did you mean 'iris'?")

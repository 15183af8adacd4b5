"""The cold gRPC methods on a real server: what the front answers itself, and what it has the supervisor do."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from nexus_grpc.front.catalogue import Catalogue
from nexus_grpc.front.cold_methods import HOT, REPOSITORY_OPERATIONS, InferenceService, cold_handlers
from nexus_grpc.front.keys_service import KeysService
from nexus_grpc.front.model_services import ModelsService, SystemService, server_version
from nexus_grpc.front.request_ids import RequestIds
from nexus_grpc.front.supervised import json_of
from nexus_grpc.front.traffic_service import TrafficService
from nexus_grpc.ipc.errors import ModelUnavailable, NexusError, StateConflict
from nexus_grpc.ipc.rich_errors import DETAILS_KEY
from nexus_grpc.pb.inference import grpc_service_pb2 as oip
from nexus_grpc.pb.nexus.v1 import keys_pb2, models_pb2, system_pb2, traffic_pb2
from tests.unit.front.prepared_supervisor import Supervisor

INFERENCE = oip.DESCRIPTOR.services_by_name["GRPCInferenceService"]
MODELS = models_pb2.DESCRIPTOR.services_by_name["Models"]
KEYS = keys_pb2.DESCRIPTOR.services_by_name["Keys"]
TRAFFIC = traffic_pb2.DESCRIPTOR.services_by_name["Traffic"]
SYSTEM = system_pb2.DESCRIPTOR.services_by_name["System"]


@pytest.fixture
def channel(catalogue: Catalogue, supervisor: Supervisor) -> Iterator[grpc.Channel]:
    server, ids = grpc.server(ThreadPoolExecutor(2)), RequestIds(bytes(9))
    server.add_generic_rpc_handlers(
        (
            cold_handlers(InferenceService(catalogue, lambda: True, supervisor), INFERENCE, ids, HOT),
            cold_handlers(
                ModelsService(catalogue, supervisor, lambda slot: "closed"), MODELS, ids, frozenset({"Upload"})
            ),
            cold_handlers(TrafficService(supervisor), TRAFFIC, ids),
            cold_handlers(KeysService(supervisor), KEYS, ids),
            cold_handlers(SystemService(catalogue, lambda: True, lambda: 1, 0.0, supervisor), SYSTEM, ids),
        )
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as made:
        yield made
    server.stop(None).wait()


def ask(channel: grpc.Channel, service: Any, method: str, request: Message) -> Any:
    answer_class = message_factory.GetMessageClass(service.methods_by_name[method].output_type)
    invoke = channel.unary_unary(
        f"/{service.full_name}/{method}",
        request_serializer=type(request).SerializeToString,
        response_deserializer=answer_class.FromString,
    )
    return invoke(request, timeout=20)


def refusal(channel: grpc.Channel, service: Any, method: str, request: Message) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        ask(channel, service, method, request)
    return caught.value


FORWARDED = [
    *((MODELS, name) for name in ("Load", "Unload", "Activate", "Rollback", "Delete", "History", "ListRecords")),
    *((MODELS, name) for name in ("GetRecord", "Register", "UpdateRecord")),
    *((TRAFFIC, method.name) for method in TRAFFIC.methods),
    *((KEYS, method.name) for method in KEYS.methods if method.name != "Create"),
    (SYSTEM, "Reload"),
]


@pytest.mark.parametrize(("service", "method"), FORWARDED, ids=lambda value: getattr(value, "name", value))
def test_the_supervisor_does_what_changes_something(
    channel: grpc.Channel, supervisor: Supervisor, service: Any, method: str
) -> None:
    request = message_factory.GetMessageClass(service.methods_by_name[method].input_type)()
    ask(channel, service, method, request)
    ((operation, arguments, actor),) = supervisor.asked
    assert (operation, arguments) == (f"{service.name}.{method}", json_of(request))
    assert actor.startswith("grpc 127.0.0.1:")


def test_its_operations_are_those_that_fronts_ask_for() -> None:
    from nexus_grpc.supervisor.operations import operations

    class Anything:
        def __getattr__(self, name: str) -> str:
            return name

    table = operations(*[Anything()] * 5)  # type: ignore[arg-type]
    asked = {f"{service.name}.{method}" for service, method in FORWARDED}
    asked |= {operation for operation, _ in REPOSITORY_OPERATIONS.values()}
    assert set(table) == asked | {"Models.Upload", "Keys.Create"}


def test_its_answer_is_the_clients(channel: grpc.Channel, supervisor: Supervisor) -> None:
    supervisor.result = {"id": "iris", "state": "READY", "versions": [{"version": "2", "state": "READY"}]}
    answer = ask(channel, MODELS, "Load", models_pb2.LoadModelRequest(id="iris", version="v2"))
    assert (answer.id, answer.state, answer.versions[0].version) == ("iris", "READY", "2")
    assert supervisor.asked[0][1] == {"id": "iris", "version": "v2"}


def test_its_errors_are_the_clients(channel: grpc.Channel, supervisor: Supervisor) -> None:
    supervisor.result = StateConflict("version 1 takes traffic", field="version")
    error = refusal(channel, MODELS, "Unload", models_pb2.UnloadModelRequest(id="iris", version="1"))
    assert (error.code(), error.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "version 1 takes traffic")
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())[DETAILS_KEY])
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(bad)
    assert (info.reason, bad.field_violations[0].field) == ("STATE_CONFLICT", "version")


def test_a_bug_is_an_internal_error_without_its_words(channel: grpc.Channel, supervisor: Supervisor) -> None:
    supervisor.result = KeyError("secret")
    error = refusal(channel, MODELS, "Load", models_pb2.LoadModelRequest())
    assert (error.code(), error.details()) == (
        grpc.StatusCode.INTERNAL,
        "internal error in Load; see the server's log",
    )


def test_reload_says_which_server_this_is(channel: grpc.Channel, supervisor: Supervisor) -> None:
    supervisor.result = {"models": [{"model": "iris", "current_version": "2", "candidate_version": ""}]}
    answer = ask(channel, SYSTEM, "Reload", system_pb2.ReloadRequest())
    assert answer.server_version == server_version()
    assert [(model.model, model.current_version) for model in answer.models] == [("iris", "2")]


def test_versions_that_answer_and_that_are_tried(channel: grpc.Channel, supervisor: Supervisor) -> None:
    answer = ask(channel, SYSTEM, "Version", system_pb2.VersionRequest())
    found = [(model.model, model.current_version, model.candidate_version) for model in answer.models]
    assert found == [("churn", "", ""), ("iris", "1", "2")]
    listed = ask(channel, MODELS, "List", models_pb2.ListModelsRequest())
    assert [(model.id, model.version, model.path) for model in listed.models] == [
        ("churn", "", "churn"),
        ("iris", "1", "iris/1/model.onnx"),
    ]
    assert supervisor.asked == []


def test_info_is_of_the_version_that_answers(channel: grpc.Channel) -> None:
    info = ask(channel, MODELS, "Info", models_pb2.ModelInfoRequest(id="iris"))
    assert (info.version, info.state, info.max_batch_size) == ("1", "READY", 4)
    assert [(tensor.name, tensor.dtype, list(tensor.shape)) for tensor in info.inputs] == [("X", 1, [-1, 4])]
    assert [(each.version, each.state, each.version_name) for each in info.versions] == [
        ("1", "READY", ""),
        ("2", "READY", "1.0.0"),
        ("3", "UNLOADED", ""),
    ]
    churn = ask(channel, MODELS, "Info", models_pb2.ModelInfoRequest(id="churn"))
    assert (churn.version, churn.state) == ("1", "LOADING")


def test_the_index_shows_unloaded_as_triton_does(channel: grpc.Channel) -> None:
    index = ask(channel, INFERENCE, "RepositoryIndex", oip.RepositoryIndexRequest())
    shown = {(model.name, model.version): (model.state, model.reason) for model in index.models}
    assert shown[("iris", "3")] == ("UNAVAILABLE", "unloaded")
    assert shown[("iris", "1")] == ("READY", "")
    assert shown[("churn", "1")][0] == "LOADING"
    only_ready = ask(channel, INFERENCE, "RepositoryIndex", oip.RepositoryIndexRequest(ready=True))
    assert [(model.name, model.version) for model in only_ready.models] == [("iris", "1"), ("iris", "2")]


def test_the_server_says_that_models_can_be_controlled(channel: grpc.Channel) -> None:
    metadata = ask(channel, INFERENCE, "ServerMetadata", oip.ServerMetadataRequest())
    assert {"model_repository", "model_repository(unload_dependents)"} <= set(metadata.extensions)


def test_tritons_load_and_unload(channel: grpc.Channel, supervisor: Supervisor) -> None:
    ask(channel, INFERENCE, "RepositoryModelLoad", oip.RepositoryModelLoadRequest(model_name="iris"))
    request = oip.RepositoryModelUnloadRequest(model_name="iris")
    request.parameters["unload_dependents"].bool_param = True
    ask(channel, INFERENCE, "RepositoryModelUnload", request)
    assert [(operation, arguments["model_name"]) for operation, arguments, _ in supervisor.asked] == [
        ("Repository.Load", "iris"),
        ("Repository.Unload", "iris"),
    ]


@pytest.mark.parametrize(
    ("method", "parameters", "code", "words"),
    [
        ("RepositoryModelLoad", {"config": {"string_param": "{}"}}, "UNIMPLEMENTED", "'config' is not taken"),
        ("RepositoryModelLoad", {"file:1/model.onnx": {"bytes_param": b"x"}}, "UNIMPLEMENTED", "Upload"),
        ("RepositoryModelLoad", {"warm": {"bool_param": True}}, "INVALID_ARGUMENT", "unknown parameter 'warm'"),
        ("RepositoryModelLoad", {"unload_dependents": {"bool_param": True}}, "INVALID_ARGUMENT", "known: none"),
        (
            "RepositoryModelUnload",
            {"unload_dependent": {"bool_param": True}},
            "INVALID_ARGUMENT",
            "did you mean 'unload_dependents'?",
        ),
        ("RepositoryModelUnload", {"unload_dependents": {"string_param": "yes"}}, "INVALID_ARGUMENT", "must be a bool"),
        ("RepositoryModelUnload", {"unload_dependents": {}}, "INVALID_ARGUMENT", "must be a bool"),
    ],
)
def test_parameters_of_tritons_load_and_unload_are_checked(
    channel: grpc.Channel, supervisor: Supervisor, method: str, parameters: Any, code: str, words: str
) -> None:
    request = message_factory.GetMessageClass(INFERENCE.methods_by_name[method].input_type)(model_name="iris")
    for name, choice in parameters.items():
        request.parameters[name].SetInParent()
        for field, value in choice.items():
            setattr(request.parameters[name], field, value)
    error = refusal(channel, INFERENCE, method, request)
    assert (error.code().name, words in error.details()) == (code, True), error.details()
    assert supervisor.asked == []


@pytest.mark.parametrize("method", ["RepositoryModelLoad", "RepositoryModelUnload", "RepositoryIndex"])
def test_there_is_one_repository(channel: grpc.Channel, supervisor: Supervisor, method: str) -> None:
    request = message_factory.GetMessageClass(INFERENCE.methods_by_name[method].input_type)(repository_name="other")
    assert refusal(channel, INFERENCE, method, request).code() == grpc.StatusCode.UNIMPLEMENTED
    assert supervisor.asked == []


@pytest.mark.parametrize("method", ["RepositoryModelLoad", "RepositoryModelUnload"])
def test_tritons_load_and_unload_need_a_name(channel: grpc.Channel, method: str) -> None:
    request = message_factory.GetMessageClass(INFERENCE.methods_by_name[method].input_type)()
    assert refusal(channel, INFERENCE, method, request).code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_server_that_stops_is_unavailable(channel: grpc.Channel, supervisor: Supervisor) -> None:
    supervisor.result = ModelUnavailable("the server is stopping")
    error = refusal(channel, TRAFFIC, "Promote", traffic_pb2.PromoteRequest())
    assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "the server is stopping")


def test_an_error_without_a_code_of_its_own_is_internal(channel: grpc.Channel, supervisor: Supervisor) -> None:
    supervisor.result = NexusError("what is this?")
    assert refusal(channel, TRAFFIC, "Abort", traffic_pb2.AbortRequest()).code() == grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("name", ["iris", "no-such-model"])
@pytest.mark.parametrize("sent", ["", "mine-7"])
def test_every_answer_tells_its_request_id(channel: grpc.Channel, name: str, sent: str) -> None:
    """Errors, too: it is what people ask about them by."""
    invoke = channel.unary_unary("/inference.GRPCInferenceService/ModelMetadata")
    metadata = (("x-request-id", sent),) if sent else ()
    call = invoke.future(oip.ModelMetadataRequest(name=name).SerializeToString(), metadata=metadata, timeout=20)
    assert (call.code() == grpc.StatusCode.OK) == (name == "iris")
    (told,) = [value for key, value in call.initial_metadata() if key == "x-request-id"]
    assert told == (sent or told)
    assert len(told) >= len("mine-7")

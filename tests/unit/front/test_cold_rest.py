"""The cold twins on a real server: JSON in, JSON out, one error shape."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.api import httpbody_pb2
from google.protobuf import descriptor_pool, message_factory

from nexus_grpc.front.catalogue import Catalogue
from nexus_grpc.front.cold_methods import InferenceService
from nexus_grpc.front.cold_rest import RestService, _parts, cold_rest_handlers
from nexus_grpc.front.hot_methods import HTTP_STATUS_KEY, PATHS, REQUEST_ID_KEY
from nexus_grpc.front.keys_service import KeysService
from nexus_grpc.front.model_services import ModelsService, SystemService
from nexus_grpc.front.request_ids import RequestIds
from nexus_grpc.front.traffic_service import TrafficService
from nexus_grpc.front.v2_rest import V2Service
from nexus_grpc.ipc.errors import AlreadyExists, InvalidInput, ModelNotServable, StateConflict, TooLarge
from nexus_grpc.rest.http_rules import http_methods
from nexus_grpc.rest.twin import SERVICE, descriptor_set, path_of
from tests.unit.front.prepared_supervisor import Supervisor

COLD = [
    method for method in http_methods() if path_of(method.name) not in PATHS.values() and not method.client_streaming
]
# Twin, path and query parameters, JSON → (status, JSON out).
Rest = Callable[..., tuple[int, Any]]


@pytest.fixture(scope="module")
def twins() -> Any:
    """The twin's messages, as Envoy makes them."""
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_set().file:
        pool.Add(file)  # type: ignore[attr-defined]
    return pool.FindServiceByName(SERVICE)


@pytest.fixture
def rest(catalogue: Catalogue, supervisor: Supervisor, twins: Any) -> Iterator[Rest]:
    system = SystemService(catalogue, lambda: True, lambda: 1, 0.0, supervisor)
    v2 = V2Service(InferenceService(catalogue, lambda: True, supervisor), system)
    models = ModelsService(catalogue, supervisor, lambda slot: "closed")
    service = RestService(v2, models, system, TrafficService(supervisor), KeysService(supervisor))
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((cold_rest_handlers(service, RequestIds(bytes(9))),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:

        def call(twin: str, body: bytes | None = None, **parameters: str) -> tuple[int, Any]:
            request = message_factory.GetMessageClass(twins.methods_by_name[twin].input_type)(**parameters)
            if body is not None:
                request.body.content_type, request.body.data = "application/json", body
            invoke = channel.unary_unary(
                path_of(twin),
                request_serializer=type(request).SerializeToString,
                response_deserializer=httpbody_pb2.HttpBody.FromString,
            )
            answer, state = invoke.with_call(request, timeout=20, metadata=((REQUEST_ID_KEY, "my-id"),))
            metadata = dict(state.initial_metadata())
            assert metadata[REQUEST_ID_KEY] == "my-id"
            assert answer.content_type == "application/json"
            return int(metadata.get(HTTP_STATUS_KEY, "200")), json.loads(answer.data)

        yield call
    server.stop(None).wait()


def test_sentinels_bodies(rest: Rest, supervisor: Supervisor) -> None:
    assert rest("TrafficSetup", b'{"candidate_version": "v2"}')[0] == 200
    assert rest("TrafficSplit", b'{"percent": 25}')[0] == 200
    for twin in ("TrafficPromote", "TrafficAbort", "SystemReload"):
        assert rest(twin)[0] == 200
        assert rest(twin, b"")[0] == 200
    asked = {operation: arguments for operation, arguments, _ in supervisor.asked}
    assert asked["Traffic.Setup"] == {"model": "", "candidate_version": "v2", "percent": 0.0, "more": []}
    assert asked["Traffic.Split"] == {"model": "", "percent": 25.0, "shares": []}
    assert asked["Traffic.Promote"] == {"model": "", "version": ""}
    assert asked["System.Reload"] == {"model": ""}


def test_paths_and_queries_name_what_is_meant(rest: Rest, supervisor: Supervisor) -> None:
    rest("ModelsLoad", b'{"version": "v2", "id": "other"}', id="iris")
    rest("ModelsDelete", id="iris", version="2")
    rest("ModelsHistory", id="iris", limit="5")
    rest("TrafficStatus", model="iris")
    assert [(operation, arguments) for operation, arguments, _ in supervisor.asked] == [
        ("Models.Load", {"id": "iris", "version": "v2"}),
        ("Models.Delete", {"id": "iris", "version": "2"}),
        ("Models.History", {"id": "iris", "limit": 5}),
        ("Traffic.Status", {"model": "iris"}),
    ]
    assert {actor.split()[0] for _, _, actor in supervisor.asked} == {"rest"}


def test_what_is_registered_is_created(rest: Rest, supervisor: Supervisor) -> None:
    supervisor.result = {"id": "fraud", "versions": [{"version": "1", "state": "MISSING"}]}
    body = b'{"name": "fraud", "version": "v1", "framework": "onnx", "endpoint": "http://gpu:9000"}'
    status, answer = rest("ModelsRegister", body)
    assert (status, answer["id"], answer["versions"][0]["state"]) == (201, "fraud", "MISSING")
    # Every field is there, also the empty ones.
    assert answer["labels"] == {}
    assert answer["active_version"] == ""


def test_the_front_answers_what_it_knows(rest: Rest, supervisor: Supervisor) -> None:
    status, version = rest("SystemVersion")
    assert status == 200
    assert version["models"][1] == {"model": "iris", "current_version": "1", "candidate_version": "2"}
    assert rest("ModelsInfo", id="iris")[1]["version"] == "1"
    assert rest("RestV2Ready")[1] == {"ready": True}
    assert supervisor.asked == []


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (StateConflict("no experiment runs"), 400),
        (AlreadyExists("it is there"), 409),
        (TooLarge("too large"), 413),
        (ModelNotServable("it crashed", reason="MODEL_REFUSED"), 422),
        (ModelNotServable("its configuration is broken"), 400),
    ],
    ids=lambda value: getattr(value, "reason", value),
)
def test_errors_have_the_common_shape(rest: Rest, supervisor: Supervisor, error: Any, status: int) -> None:
    supervisor.result = error
    found, answer = rest("ModelsRegister", b"{}")
    assert found == status
    assert answer["error"]["message"] == error.message
    assert answer["error"]["code"] == error.code.name
    assert answer["error"]["details"][0]["reason"] == error.reason
    assert answer["request_id"] == "my-id"


def test_a_bad_body_goes_nowhere(rest: Rest, supervisor: Supervisor) -> None:
    status, answer = rest("TrafficSetup", b'{"candidate": "2"}')
    assert status == 400
    assert answer["error"]["message"] == 'unknown field "candidate"; did you mean "candidate_version"?'
    assert answer["error"]["details"][1]["fieldViolations"][0]["field"] == "candidate"
    assert rest("ModelsHistory", id="iris", limit="many")[0] == 400
    assert supervisor.asked == []


def test_a_bug_is_an_internal_error_without_its_words(rest: Rest, supervisor: Supervisor) -> None:
    supervisor.result = KeyError("secret")
    status, answer = rest("TrafficAbort")
    assert (status, answer["error"]["code"]) == (500, "INTERNAL")
    assert "secret" not in json.dumps(answer)


@pytest.mark.parametrize("method", COLD, ids=lambda method: method.name)
def test_every_cold_twin_is_answered(rest: Rest, method: Any) -> None:
    """With nothing at all in the request: an answer or a refusal, never a missing method or a bug."""
    status, answer = rest(method.name, b"" if method.has_body else None)
    refused = method.name.endswith("MemoryRegister")
    assert status in ((501,) if refused else (200, 201, 400, 404)), answer
    assert status < 400 or isinstance(answer["error"], str) == method.is_v2


def test_what_is_no_message_is_refused() -> None:
    method = next(each for each in COLD if each.name == "TrafficSetup")
    for message in (b"\x7a\xff", b"\x7a\x02\x12\x7f", b"\xff" * 11):
        with pytest.raises(InvalidInput, match="not a valid protobuf message"):
            _parts(method, message)

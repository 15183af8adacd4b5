"""Access control on running servers: keys made and revoked, grants for some models, the audit log, restarts."""

import dataclasses
import json
import pathlib
import queue
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from nexus_grpc.access.identity import Scope
from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from nexus_grpc.pb.nexus.v1 import inference_pb2, models_pb2, system_pb2, traffic_pb2
from tests.harness import NEXUS, Server, copy_models, running_server
from tests.integration.access import Metadata, bearer, key_named, make_key, registry_of, status_of, wait_until
from tests.integration.client import IRIS_ROW, OIP, Client, iris_request, raw_request, refusal
from tests.integration.client import NEXUS as NEXUS_SERVICE
from tests.integration.rest import IRIS, Answer, call, get, post
from tests.integration.uploading import FORM, form_of
from tests.lifecycle import times

ALL = Scope.PREDICT | Scope.READ | Scope.ADMIN
# "within a second"; the rest is for a machine that does much else.
REVOKED_SECONDS = 1.0
SLACK_SECONDS = 2.0
PREDICT = inference_pb2.PredictRequest(model_id="iris", features=IRIS_ROW)


@dataclasses.dataclass
class Site:
    """A running server, its folder, and some keys by name."""

    server: Server
    folder: pathlib.Path
    client: Client
    keys: dict[str, str]

    @property
    def rest(self) -> int:
        return self.server.rest_port

    def status(self, path: str, metadata: Metadata = (), message: bytes = b"") -> int:
        return status_of(self.client.channel, path, metadata, message)

    def predicts(self, key: str) -> int:
        return self.status(NEXUS_SERVICE + "Predict", bearer(key), PREDICT.SerializeToString())


def nexus_keys(folder: pathlib.Path, *words: str) -> dict[str, Any]:
    done = subprocess.run(
        [*NEXUS, "keys", *words, "--json"], cwd=folder, capture_output=True, text=True, timeout=60, check=True
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Asks for credentials; two fronts; logs every request. Keys: all, iris (for that model only), gone (revoked)."""
    folder = tmp_path_factory.mktemp("access")
    repository = copy_models(folder / "models", "iris", "counts_i64")
    keys = {
        "all": make_key(folder, "all", scopes=ALL),
        "iris": make_key(folder, "iris", scopes=ALL, models=("iris*",)),
        "gone": make_key(folder, "gone", scopes=ALL),
    }
    with registry_of(folder) as registry:
        registry.revoke_key(key_named(folder, "gone").id, "test", time.time())
    options = ("--auth=required", "--fronts=2", "--log-sample=1")
    with running_server(folder, *options, repository=repository, rest=True) as server:
        client = Client(server.address)
        yield Site(server, folder, client, keys)
        client.close()


def test_a_key_of_the_command_line_works_and_is_revoked(site: Site) -> None:
    made = nexus_keys(site.folder, "create", "webshop", "--scopes", "predict")
    accepted_s = wait_until(lambda: site.predicts(made["key"]) == 200)
    assert post(site.rest, "/predict", IRIS, X_Api_Key=made["key"]).status == 200
    assert nexus_keys(site.folder, "revoke", made["id"], "--yes")["state"] == "revoked"
    revoked_s = wait_until(lambda: site.predicts(made["key"]) == 401)
    print(f"accepted {accepted_s:.3f} s after it was made, refused {revoked_s:.3f} s after it was revoked")
    assert max(accepted_s, revoked_s) < REVOKED_SECONDS + SLACK_SECONDS
    answer = post(site.rest, "/predict", IRIS, X_Api_Key=made["key"])
    assert answer.status == 401
    assert answer.json["error"]["code"] == "UNAUTHENTICATED"


def test_how_long_a_revoked_key_still_counts(site: Site) -> None:
    """From the moment that the registry has it, over connections to both fronts, while it is used all the time."""
    text = make_key(site.folder, "short", scopes=Scope.PREDICT)
    clients = [Client(site.server.address) for _ in range(8)]
    message = PREDICT.SerializeToString()
    path = NEXUS_SERVICE + "Predict"

    def statuses() -> set[int]:
        return {status_of(client.channel, path, bearer(text), message) for client in clients}

    wait_until(lambda: statuses() == {200})
    with registry_of(site.folder) as registry:
        registry.revoke_key(key_named(site.folder, "short").id, "test", time.time())
    took_s = wait_until(lambda: statuses() == {401})
    print(f"refused everywhere {took_s:.3f} s after it was revoked")
    assert took_s < REVOKED_SECONDS + SLACK_SECONDS
    for client in clients:
        client.close()


STREAMS: dict[str, tuple[str, Any, Callable[[Any], str]]] = {
    "PredictStream": (
        NEXUS_SERVICE + "PredictStream",
        PREDICT,
        lambda data: inference_pb2.PredictStreamResponse.FromString(data).error.message,
    ),
    "ModelStreamInfer": (
        OIP + "ModelStreamInfer",
        iris_request(),
        lambda data: pb.ModelStreamInferResponse.FromString(data).error_message,
    ),
}


class OpenStream:
    """A call that stays open: one answer for each request."""

    def __init__(self, client: Client, path: str, key: str) -> None:
        self._requests: queue.Queue[bytes | None] = queue.Queue()
        requests: Iterator[bytes] = iter(self._requests.get, None)  # type: ignore[assignment]
        self._answers = client.channel.stream_stream(path)(requests, timeout=60, metadata=bearer(key))

    def ask(self, message: Any) -> bytes:
        self._requests.put(message.SerializeToString())
        answer: bytes = next(self._answers)
        return answer

    def close(self) -> None:
        self._requests.put(None)
        assert list(self._answers) == []


@pytest.mark.parametrize("name", STREAMS)
def test_a_revoked_key_on_an_open_stream(site: Site, name: str) -> None:
    """Its messages are refused one by one; another's stream goes on."""
    path, message, error_of = STREAMS[name]
    text = make_key(site.folder, f"for {name}", scopes=Scope.PREDICT)
    wait_until(lambda: site.predicts(text) == 200)
    stream, other = OpenStream(site.client, path, text), OpenStream(site.client, path, site.keys["all"])
    # The front that has the stream may hear of the key a moment later.
    assert not error_of(other.ask(message))
    assert not error_of(stream.ask(message))
    with registry_of(site.folder) as registry:
        registry.revoke_key(key_named(site.folder, f"for {name}").id, "test", time.time())
    took_s = wait_until(lambda: "API key" in error_of(stream.ask(message)))
    print(f"refused on an open stream {took_s:.3f} s after it was revoked")
    assert took_s < REVOKED_SECONDS + SLACK_SECONDS
    assert "API key" in error_of(stream.ask(message))
    assert not error_of(other.ask(message))
    stream.close()
    other.close()


def test_a_stream_of_a_key_for_one_model(site: Site) -> None:
    stream = OpenStream(site.client, NEXUS_SERVICE + "PredictStream", site.keys["iris"])
    answers = [stream.ask(PREDICT), stream.ask(_counts()), stream.ask(PREDICT)]
    stream.close()
    read = [inference_pb2.PredictStreamResponse.FromString(answer) for answer in answers]
    assert [answer.error.code for answer in read] == ["", "PERMISSION_DENIED", ""]
    assert "counts_i64" in read[1].error.message


def _counts() -> Any:
    return inference_pb2.PredictRequest(model_id="counts_i64", features=[1, 2, 3, 4])


ELSEWHERE: list[tuple[str, Any]] = [
    (OIP + "ModelInfer", pb.ModelInferRequest(model_name="counts_i64")),
    (NEXUS_SERVICE + "Predict", _counts()),
    (NEXUS_SERVICE + "BatchPredict", inference_pb2.BatchPredictRequest(model_id="counts_i64")),
    (OIP + "ModelReady", pb.ModelReadyRequest(name="counts_i64")),
    (OIP + "ModelMetadata", pb.ModelMetadataRequest(name="counts_i64")),
    (OIP + "ModelConfig", pb.ModelConfigRequest(name="counts_i64")),
    (OIP + "ModelStatistics", pb.ModelStatisticsRequest(name="counts_i64")),
    (OIP + "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="counts_i64")),
    (OIP + "RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="counts_i64")),
    ("/nexus.v1.Models/Info", models_pb2.ModelInfoRequest(id="counts_i64")),
    ("/nexus.v1.Models/Unload", models_pb2.UnloadModelRequest(id="counts_i64")),
    ("/nexus.v1.Models/Delete", models_pb2.DeleteModelRequest(id="counts_i64")),
    ("/nexus.v1.Models/History", models_pb2.ModelHistoryRequest(id="counts_i64")),
    ("/nexus.v1.Models/GetRecord", models_pb2.GetRecordRequest(id="counts_i64")),
    ("/nexus.v1.Models/Register", models_pb2.RegisterModelRequest(id="other", name="iris")),
    ("/nexus.v1.Models/Register", models_pb2.RegisterModelRequest(name="iris")),
    ("/nexus.v1.Models/Upload", models_pb2.UploadRequest(header=models_pb2.UploadHeader(id="counts_i64"))),
    ("/nexus.v1.Traffic/Status", traffic_pb2.ExperimentStatusRequest(model="counts_i64")),
    ("/nexus.v1.Traffic/Abort", traffic_pb2.AbortRequest(model="counts_i64")),
    ("/nexus.v1.System/Reload", system_pb2.ReloadRequest(model="counts_i64")),
    # All models: more than it may.
    ("/nexus.v1.System/Reload", system_pb2.ReloadRequest()),
    ("/nexus.v1.Models/Info", models_pb2.ModelInfoRequest()),
]


@pytest.mark.parametrize(("path", "request_"), ELSEWHERE, ids=lambda value: value if isinstance(value, str) else "")
def test_a_key_for_one_model_elsewhere_by_grpc(site: Site, path: str, request_: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        next(
            site.client.channel.stream_stream(path)(
                iter((request_.SerializeToString(),)), timeout=20, metadata=bearer(site.keys["iris"])
            )
        )
    error: Any = caught.value
    assert error.code() == grpc.StatusCode.PERMISSION_DENIED, error
    found = refusal(lambda: site.client.infer(raw_request("counts_i64", {}), metadata=bearer(site.keys["iris"])))
    assert (found.reason, found.domain) == ("MODEL_DENIED", "nexus-grpc")


REST_ELSEWHERE: list[tuple[str, str, Any]] = [
    ("POST", "/predict", {"model_id": "counts_i64", "features": [1, 2, 3, 4]}),
    ("POST", "/v2/models/counts_i64/infer", {"inputs": []}),
    ("POST", "/v2/models/counts_i64/versions/1/infer", {"inputs": []}),
    ("POST", "/api/v1/predict", {"model_name": "counts_i64", "features": [1, 2, 3, 4]}),
    ("POST", "/api/v1/batch_predict", {"model_name": "counts_i64", "batch": [[1, 2, 3, 4]]}),
    ("POST", "/v1/infer", {"model": "counts_i64", "input": [1, 2, 3, 4]}),
    ("GET", "/models/counts_i64", None),
    ("GET", "/models/info?id=counts_i64", None),
    ("GET", "/api/v1/models/counts_i64", None),
    ("GET", "/v1/models/counts_i64", None),
    ("GET", "/v1/models/counts_i64/history", None),
    ("GET", "/v2/models/counts_i64", None),
    ("GET", "/v2/models/counts_i64/ready", None),
    ("GET", "/v2/models/counts_i64/config", None),
    ("GET", "/v2/models/counts_i64/stats", None),
    ("GET", "/v2/models/counts_i64/trace/setting", None),
    ("POST", "/v2/repository/models/counts_i64/load", {}),
    ("POST", "/v2/repository/models/counts_i64/unload", {}),
    ("GET", "/admin/ab/status?model=counts_i64", None),
    ("POST", "/v1/models/counts_i64/unload", {}),
    ("DELETE", "/v1/models/counts_i64", None),
    ("PUT", "/v1/models/counts_i64", {"description": "mine"}),
    ("POST", "/admin/ab/abort", {"model": "counts_i64"}),
    ("POST", "/admin/reload", {"model": "counts_i64"}),
    ("POST", "/admin/reload", {}),
]


@pytest.mark.parametrize(("verb", "path", "body"), REST_ELSEWHERE)
def test_a_key_for_one_model_elsewhere_by_rest(site: Site, verb: str, path: str, body: Any) -> None:
    answer = call(site.rest, verb, path, body, Authorization=f"Bearer {site.keys['iris']}")
    assert answer.status == 403, answer
    if answer.is_v2:
        assert "may not use the model 'counts_i64'" in answer.message
    else:
        assert answer.json["error"]["details"][0]["reason"] == "MODEL_DENIED"


def test_an_upload_elsewhere_by_rest(site: Site) -> None:
    answer = upload(site, "counts_i64", site.keys["iris"])
    assert answer.status == 403, answer


def upload(site: Site, id: str, key: str) -> Answer:
    body = form_of(times(3), id=id, version="1")
    return call(site.rest, "POST", "/models/upload", body, Content_Type=FORM, Authorization=f"Bearer {key}")


def test_a_key_for_one_model_there(site: Site) -> None:
    metadata = bearer(site.keys["iris"])
    site.client.infer(iris_request(), metadata=metadata)
    assert post(site.rest, "/predict", IRIS, X_Api_Key=site.keys["iris"]).status == 200
    for path in ("/models/iris", "/v2/models/iris", "/v1/models/iris", "/v1/models/iris/history"):
        assert get(site.rest, path, X_Api_Key=site.keys["iris"]).status == 200, path


def test_lists_have_what_a_key_may_use(site: Site) -> None:
    lists: dict[str, tuple[Any, Callable[[Any], set[str]]]] = {
        "/nexus.v1.Models/List": (models_pb2.ListModelsResponse, lambda a: {each.id for each in a.models}),
        "/nexus.v1.Models/ListRecords": (models_pb2.ListRecordsResponse, lambda a: {each.id for each in a.models}),
        "/nexus.v1.Models/History": (models_pb2.ModelHistoryResponse, lambda a: {each.model for each in a.entries}),
        "/nexus.v1.System/Version": (system_pb2.VersionResponse, lambda a: {each.model for each in a.models}),
        OIP + "RepositoryIndex": (pb.RepositoryIndexResponse, lambda a: {each.name for each in a.models}),
        OIP + "ModelStatistics": (pb.ModelStatisticsResponse, lambda a: {each.name for each in a.model_stats}),
    }
    for path, (answer, names) in lists.items():
        ask = site.client.unary(path, answer)
        assert names(ask(b"", metadata=bearer(site.keys["all"]))) >= {"iris", "counts_i64"}, path
        assert names(ask(b"", metadata=bearer(site.keys["iris"]))) == {"iris"}, path
    for path in ("/models", "/v1/models"):
        shown = get(site.rest, path, X_Api_Key=site.keys["iris"]).json["models"]
        assert [each["id"] for each in shown] == ["iris"], path
    assert [each["name"] for each in post(site.rest, "/v2/repository/index", {}, X_Api_Key=site.keys["iris"]).json] == [
        "iris"
    ]
    counted = get(site.rest, "/v2/models/stats", X_Api_Key=site.keys["iris"]).json["model_stats"]
    assert [each["name"] for each in counted] == ["iris"]


def test_the_audit_log_names_the_key(site: Site) -> None:
    assert upload(site, "iris_twice", site.keys["iris"]).status == 201
    key = bearer(site.keys["all"])
    site.client.unary("/nexus.v1.Models/Unload", models_pb2.ModelInfo)(
        models_pb2.UnloadModelRequest(id="iris_twice"), metadata=key
    )
    history = site.client.unary("/nexus.v1.Models/History", models_pb2.ModelHistoryResponse)
    entries = history(models_pb2.ModelHistoryRequest(id="iris_twice"), metadata=key).entries
    actors = {entry.action: entry.actor for entry in entries}
    assert actors["upload"].startswith(f"key:{key_named(site.folder, 'iris').id} rest "), actors
    assert actors["unload"].startswith(f"key:{key_named(site.folder, 'all').id} grpc "), actors
    site.client.unary("/nexus.v1.Models/Delete", models_pb2.DeleteModelResponse)(
        models_pb2.DeleteModelRequest(id="iris_twice"), metadata=key
    )


def test_a_killed_fronts_successor_goes_by_the_same_keys(site: Site) -> None:
    before = {front.pid for front in site.server.children("front")}
    for front in site.server.children("front"):
        front.kill()
    wait_until(lambda: len({front.pid for front in site.server.children("front")} - before) == 2)
    for name, expected in (("all", 200), ("gone", 401)):

        def agreed(key: str = site.keys[name], wanted: int = expected) -> bool:
            found = set()
            for _ in range(8):
                client = Client(site.server.address)
                found.add(
                    status_of(client.channel, NEXUS_SERVICE + "Predict", bearer(key), PREDICT.SerializeToString())
                )
                client.close()
            assert found <= {wanted, 503}, found
            return found == {wanted}

        wait_until(agreed)


def test_last_used_is_listed(site: Site) -> None:
    site.predicts(site.keys["all"])

    def used() -> dict[str, Any]:
        return {each["name"]: each["last_used_at"] for each in nexus_keys(site.folder, "list")["keys"]}

    wait_until(lambda: used()["all"] is not None, 30)
    assert used()["gone"] is None


def test_secrets_are_in_no_log_line(site: Site) -> None:
    site.predicts(site.keys["all"])
    log = site.server.log_text()
    assert "PREDICT" in log
    with registry_of(site.folder) as registry:
        digests = [key.digest.hex() for key in registry.list_keys()]
    for secret in [*(text[17:] for text in site.keys.values()), *digests]:
        assert secret not in log


def test_keys_survive_a_restart(tmp_path: pathlib.Path) -> None:
    repository = copy_models(tmp_path / "models", "iris")
    good, gone = make_key(tmp_path, "good"), make_key(tmp_path, "gone")
    for attempt in range(2):
        with running_server(tmp_path, "--auth=required", repository=repository) as server:
            client = Client(server.address)
            path, message = NEXUS_SERVICE + "Predict", PREDICT.SerializeToString()
            assert status_of(client.channel, path, bearer(good), message) == 200
            if not attempt:
                assert status_of(client.channel, path, bearer(gone), message) == 200
                with registry_of(tmp_path) as registry:
                    registry.revoke_key(key_named(tmp_path, "gone").id, "test", time.time())
                continue
            assert status_of(client.channel, path, bearer(gone), message) == 401
            client.close()

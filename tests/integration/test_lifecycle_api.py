"""Models and traffic changed while the server runs: by REST, by gRPC, by Triton's client and by the command line."""

import contextlib
import json
import pathlib
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from nexus_grpc.pb.nexus.v1 import models_pb2, traffic_pb2
from tests.harness import NEXUS, Server, running_server
from tests.integration.numbered import add_version
from tests.integration.rest import Answer, assert_error, call, get, post

WAIT_S = 30.0


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("numbered")
    for name in ("one", "two", "ramped", "triton", "cli", "guarded", "doomed", "many", "told"):
        for version in (1, 2):
            add_version(folder, name, version)
    return folder


@pytest.fixture(scope="module")
def server(repository: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:  # type: ignore[override]
    """Each test has a model of its own here."""
    folder = tmp_path_factory.mktemp("server-lifecycle")
    with running_server(folder, "--fronts=2", "--workers=2", repository=repository, rest=True) as running:
        yield running


@pytest.fixture
def port(server: Server) -> int:
    return server.rest_port


def ok(answer: Answer, status: int = 200) -> Any:
    assert answer.status == status, answer
    return answer.json


def answered(port: int, model: str, version: str = "", **headers: str) -> tuple[str, str]:
    """(the version that the answer names, its variant); the output must be that version's."""
    body = {"model_id": model, "features": [0.5], **({"model_version": version} if version else {})}
    content = ok(post(port, "/predict", body, **headers))
    assert content["prediction"] == [0.5 + int(content["model_version"])], content
    return content["model_version"], content["variant"]


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {WAIT_S} s: {what}")


def nexus(server: Server, *arguments: str, code: int = 0) -> str:
    command = [*NEXUS, *arguments, "--address", server.address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, (done.stdout, done.stderr)
    return done.stdout if code == 0 else done.stderr


# --- versions ---


def test_versions_by_rest(port: int) -> None:
    assert answered(port, "one") == ("2", "default")
    loaded = ok(post(port, "/v1/models/one/load", {"version": "v1"}))
    assert {each["version"]: each["state"] for each in loaded["versions"]} == {"1": "READY", "2": "READY"}
    assert answered(port, "one", "1")[0] == "1"
    assert answered(port, "one")[0] == "2", "a version that is loaded does not answer by itself"
    assert ok(post(port, "/v1/models/one/activate", {"version": "1"}))["version"] == "1"
    assert answered(port, "one")[0] == "1"
    assert ok(get(port, "/models/one"))["version"] == "1"
    assert {"model": "one", "current_version": "1", "candidate_version": ""} in ok(get(port, "/admin/version"))[
        "models"
    ]
    # No body, as curl -X POST sends it.
    assert ok(call(port, "POST", "/v1/models/one/rollback"))["version"] == "2"
    assert answered(port, "one")[0] == "2"
    unloaded = ok(post(port, "/v1/models/one/unload", {"version": "1"}))
    assert {each["version"]: each["state"] for each in unloaded["versions"]} == {"1": "UNLOADED", "2": "READY"}
    refused = post(port, "/predict", {"model_id": "one", "features": [1], "model_version": "1"})
    assert refused.status in (404, 503), refused
    assert_error(refused, refused.status)
    assert answered(port, "one")[0] == "2"


def test_what_takes_traffic_is_protected(port: int, repository: pathlib.Path) -> None:
    for verb, path in (("POST", "/v1/models/doomed/unload"), ("DELETE", "/v1/models/doomed/versions/2")):
        refused = call(port, verb, path, {"version": "2"} if verb == "POST" else None)
        assert_error(refused, 400)
        assert "takes traffic" in refused.message
    refused = call(port, "DELETE", "/v1/models/doomed")
    assert_error(refused, 400)
    assert "unload it before" in refused.message
    assert answered(port, "doomed")[0] == "2"
    assert ok(call(port, "DELETE", "/v1/models/doomed/versions/v1")) == {"id": "doomed", "versions": ["1"]}
    assert not (repository / "doomed" / "1").exists()
    ok(post(port, "/v1/models/doomed/unload", b""))
    assert ok(call(port, "DELETE", "/v1/models/doomed")) == {"id": "doomed", "versions": ["2"]}
    assert not (repository / "doomed").exists()
    assert_error(get(port, "/models/doomed"), 404)
    assert_error(post(port, "/predict", {"model_id": "doomed", "features": [1]}), 404)
    actions = [entry["action"] for entry in ok(get(port, "/v1/models/doomed/history?limit=3"))["entries"]]
    assert actions == ["delete", "unload", "delete"]


def test_a_model_that_comes_into_the_repository(port: int, repository: pathlib.Path) -> None:
    add_version(repository, "fresh", 1)
    reloaded = ok(call(port, "POST", "/admin/reload"))
    assert {"model": "fresh", "current_version": "1", "candidate_version": ""} in reloaded["models"]
    assert reloaded["server_version"]
    assert answered(port, "fresh")[0] == "1"
    add_version(repository, "fresh", 2)
    only = ok(post(port, "/admin/reload", {"model": "fresh"}))
    assert only["models"] == [{"model": "fresh", "current_version": "2", "candidate_version": ""}]
    assert answered(port, "fresh")[0] == "2"


# --- records ---


def test_records(port: int) -> None:
    body = {"name": "fraud", "version": "v1", "framework": "onnx", "labels": {"team": "ü"}, "stage": "staging"}
    record = ok(post(port, "/v1/models", body), 201)
    assert (record["id"], record["versions"][0]["state"]) == ("fraud", "MISSING")
    assert_error(post(port, "/v1/models", body), 409)
    updated = ok(call(port, "PUT", "/v1/models/fraud", {"description": "Card payments", "id": "one"}))
    assert (updated["id"], updated["description"], updated["labels"]) == ("fraud", "Card payments", {"team": "ü"})
    staged = ok(call(port, "PUT", "/v1/models/fraud", {"version": "1", "stage": "production"}))
    assert staged["versions"][0]["stage"] == "production"
    assert ok(get(port, "/v1/models/fraud")) == staged
    listed = ok(get(port, "/v1/models"))
    assert staged in listed["models"]
    assert listed["count"] == len(listed["models"])
    history = ok(get(port, "/v1/models/fraud/history"))["entries"]
    assert [entry["action"] for entry in history] == ["update", "update", "register"]
    # Of a client on its own machine, Envoy says that machine's address.
    actors = {entry["actor"] for entry in history}
    assert len(actors) == 1
    assert re.fullmatch(r"rest [0-9a-f.:]+", actors.pop())
    ok(call(port, "DELETE", "/v1/models/fraud"))
    assert_error(get(port, "/v1/models/fraud"), 404)


# --- traffic ---


def test_an_experiment_by_sentinels_bodies(port: int) -> None:
    ok(post(port, "/v1/models/two/activate", {"version": "1"}))
    status = ok(post(port, "/admin/ab/setup", {"model": "two", "candidate_version": "v2"}))
    assert (status["current_version"], status["candidate_version"], status["active"]) == ("1", "2", True)
    assert {answered(port, "two") for _ in range(20)} == {("1", "A")}, "its share is 0 at first"
    # One experiment runs, so it is the one that is meant.
    assert ok(post(port, "/admin/ab/split", {"percent": 100}))["percent"] == 100
    assert {answered(port, "two") for _ in range(20)} == {("2", "B")}
    assert answered(port, "two", "1") == ("1", "default"), "who names a version gets it"
    version = ok(get(port, "/admin/version"))["models"]
    assert {"model": "two", "current_version": "1", "candidate_version": "2"} in version
    variants = wait_for(lambda: _counted(port, 40), "40 requests counted")
    assert [(each["variant"], each["requests"], each["errors"]) for each in variants] == [("A", 20, 0), ("B", 20, 0)]
    assert ok(call(port, "POST", "/admin/ab/abort"))["active"] is False
    assert answered(port, "two") == ("1", "default")
    assert_error(call(port, "POST", "/admin/ab/promote"), 400)
    ok(post(port, "/admin/ab/setup", {"model": "two", "candidate_version": "2", "percent": 5}))
    ended = ok(call(port, "POST", "/admin/ab/promote"))
    assert (ended["current_version"], ended["active"]) == ("2", False)
    assert answered(port, "two") == ("2", "default")
    assert ok(call(port, "POST", "/v1/models/two/rollback"))["version"] == "1"


def _counted(port: int, count: int) -> Any:
    variants = ok(get(port, "/admin/ab/status?model=two"))["variants"]
    return variants if sum(each["requests"] for each in variants) >= count else None


def test_sticky_by_header_and_by_parameter(port: int) -> None:
    for sticky in ({"header": "X-Customer"}, {"parameter": "customer"}):
        body = {"model": "one", "candidate_version": "1", "percent": 50, "sticky": sticky}
        ok(post(port, "/admin/ab/setup", body))
        try:
            variants = {
                key: _sticky_variants(port, sticky, key) for key in ("ada", "bob", "eve", "ida", "joe", "kim", "lea")
            }
            assert all(len(found) == 1 for found in variants.values()), variants
        finally:
            ok(call(port, "POST", "/admin/ab/abort"))


def _sticky_variants(port: int, sticky: dict[str, str], key: str) -> set[str]:
    if "header" in sticky:
        return {answered(port, "one", X_Customer=key)[1] for _ in range(8)}
    body = {"model_id": "one", "features": [1], "sticky_key": key}
    return {ok(post(port, "/predict", body))["variant"] for _ in range(8)}


def test_a_ramp_promotes_by_itself(server: Server, port: int) -> None:
    nexus(server, "models", "activate", "ramped", "1")
    nexus(server, "ab", "start", "ramped", "--candidate", "2", "--percent", "5")
    guards = ["--guard", "error_rate<50%", "--guard", "p99<9s"]
    nexus(server, "ab", "ramp", "ramped", "50,100", "--every", "500ms", "--min-requests", "1", *guards)

    def promoted() -> Any:
        for _ in range(10):
            answered(port, "ramped")
        status = ok(get(port, "/admin/ab/status?model=ramped"))
        return None if status["active"] else status

    status = wait_for(promoted, "the ramp's end")
    assert status["current_version"] == "2", status
    history = json.loads(nexus(server, "models", "history", "ramped", "--json"))["entries"]
    assert [entry["action"] for entry in history[:3]] == ["promote", "ramp_step", "ramp"]
    assert [entry["actor"] for entry in history[:2]] == ["ramp", "ramp"]
    assert history[2]["actor"].startswith("grpc 127.0.0.1:")
    assert answered(port, "ramped") == ("2", "default")


def test_the_log_tells_what_was_done_and_by_whom(server: Server, port: int) -> None:
    changes: list[tuple[str, Any]] = [
        ("/v1/models/told/activate", {"version": "1"}),
        ("/v1/models/told/activate", {"version": "2"}),
        ("/v1/models/told/rollback", {}),
        ("/admin/ab/setup", {"model": "told", "candidate_version": "2", "percent": 50}),
        ("/admin/ab/promote", {"model": "told"}),
        ("/admin/ab/setup", {"model": "told", "candidate_version": "1"}),
        ("/admin/ab/abort", {"model": "told"}),
        ("/v1/models/told/unload", {"version": "1"}),
    ]
    for path, body in changes:
        ok(post(port, path, body))
    events = [json.loads(line) for line in server.log_text().splitlines() if '"told"' in line]
    done = [each for each in events if each["event"] == "model changed"]
    assert [(each["action"], each.get("version", "")) for each in done] == [
        ("activate", "1"),
        ("activate", "2"),
        ("rollback", "1"),
        ("experiment", "2"),
        ("promote", "2"),
        ("experiment", "1"),
        ("abort", ""),
        ("unload", "1"),
    ]
    assert all(each["actor"].startswith("rest ") for each in done)
    assert done[2]["detail"] == {"from": "2", "to": "1"}
    answers = [(each["before"], each["version"]) for each in events if each["event"] == "another version answers"]
    assert answers == [("2", "1"), ("1", "2"), ("2", "1"), ("1", "2")]


def test_a_ramp_takes_back_what_breaks_its_guards(port: int) -> None:
    ok(post(port, "/v1/models/guarded/activate", {"version": "1"}))
    ok(post(port, "/admin/ab/setup", {"model": "guarded", "candidate_version": "2", "percent": 50}))
    body = {"model": "guarded", "steps": [60, 100], "every_seconds": 600, "guards": ["p50<0.0001ms"], "min_requests": 1}
    ok(post(port, "/admin/ab/ramp", body))

    def ended() -> Any:
        for _ in range(10):
            answered(port, "guarded")
        status = ok(get(port, "/admin/ab/status?model=guarded"))
        return None if status["active"] else status

    status = wait_for(ended, "the guard's verdict")
    assert status["current_version"] == "1"
    assert "p50" in status["last_outcome"]


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/admin/ab/setup", {"model": "many"}, "candidate_version is missing"),
        ("/admin/ab/setup", {"model": "many", "candidate_version": "9"}, "version 9"),
        ("/admin/ab/setup", {"model": "many", "candidate_version": "2"}, "2"),
        ("/admin/ab/setup", {"model": "many", "candidate_version": "1", "percent": 101}, "percent"),
        ("/admin/ab/setup", {"model": "nobody", "candidate_version": "1"}, "nobody"),
        ("/admin/ab/setup", {"candidate_version": "1"}, "name the model"),
        ("/admin/ab/setup", {"model": "many", "candidate": "1"}, 'did you mean "candidate_version"?'),
        ("/admin/ab/ramp", {"model": "many", "steps": [5], "every_seconds": 1}, "no experiment runs"),
        ("/admin/ab/balance", {"model": "many", "balance": "random"}, "least_busy"),
        ("/v1/models/many/load", {"version": "x"}, "'x' is no version"),
        ("/v1/models/many/load", {"version": 1}, "must be a string"),
        ("/v1/models/many/load", b'{"version": "1", "version": "2"}', "given twice"),
        ("/v1/models/many/load", b"{", "not valid JSON"),
        ("/v1/models/many/rollback", None, "no earlier version"),
        ("/v1/models/..many/load", {}, "..many"),
        ("/v1/models", {"name": "../x"}, "the id must be"),
        ("/v1/models", {"name": "x" * 10_000}, "the id must be"),
        ("/v1/models", {"name": "fine", "stage": "prod"}, "expected one of"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_requests_change_nothing(port: int, path: str, body: Any, words: str) -> None:
    before = ok(get(port, "/v1/models")), ok(get(port, "/v1/models/many/history"))
    refused = call(port, "POST", path, body)
    assert_error(refused, refused.status)
    assert 400 <= refused.status < 500
    assert words in refused.message
    assert (ok(get(port, "/v1/models")), ok(get(port, "/v1/models/many/history"))) == before


# --- gRPC ---


def invoke(server: Server, method: str, request: Any, answer_class: Any) -> Any:
    with grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        unary = channel.unary_unary(
            method, request_serializer=type(request).SerializeToString, response_deserializer=answer_class.FromString
        )
        return unary(request, timeout=30)


def test_the_same_by_grpc(server: Server) -> None:
    request = models_pb2.LoadModelRequest(id="many", version="1")
    info = invoke(server, "/nexus.v1.Models/Load", request, models_pb2.ModelInfo)
    assert [(each.version, each.state) for each in info.versions] == [("1", "READY"), ("2", "READY")]
    status_request = traffic_pb2.ExperimentStatusRequest(model="many")
    status = invoke(server, "/nexus.v1.Traffic/Status", status_request, traffic_pb2.ExperimentStatus)
    assert (status.current_version, status.active, status.balance) == ("2", False, "least_busy")
    split = traffic_pb2.SplitTrafficRequest(model="many", percent=float("nan"))
    with pytest.raises(grpc.RpcError) as caught:
        invoke(server, "/nexus.v1.Traffic/Split", split, traffic_pb2.ExperimentStatus)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    huge = models_pb2.RegisterModelRequest(id="x", description="x" * (40 << 20))
    with pytest.raises(grpc.RpcError) as caught:
        invoke(server, "/nexus.v1.Models/Register", huge, models_pb2.ModelRecord)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (
        invoke(server, "/nexus.v1.Models/Info", models_pb2.ModelInfoRequest(id="many"), models_pb2.ModelInfo).id
        == "many"
    )


def test_tritons_client_controls_models(server: Server) -> None:
    with triton.InferenceServerClient(server.address) as client:
        assert client.is_model_ready("triton")
        client.unload_model("triton")
        assert not client.is_model_ready("triton")
        index = client.get_model_repository_index(as_json=True)["models"]
        states = {
            (each["name"], each["version"]): (each["state"], each.get("reason"))
            for each in index
            if each["name"] == "triton"
        }
        assert {state for state, _ in states.values()} == {"UNAVAILABLE"}
        assert all(reason.startswith("unloaded with the whole model by grpc ") for _, reason in states.values())
        client.load_model("triton")
        assert client.is_model_ready("triton")
        tensor = triton.InferInput("x", [1, 1], "FP32")
        tensor.set_data_from_numpy(np.array([[0.5]], np.float32))
        assert client.infer("triton", [tensor], client_timeout=20).as_numpy("y").tolist() == [[2.5]]
        assert "model_repository" in client.get_server_metadata(as_json=True)["extensions"]
        for arguments in ({"config": "{}"}, {"config": "{}", "files": {"file:1/model.onnx": b"x"}}):
            with pytest.raises(InferenceServerException, match="is not taken"):
                client.load_model("triton", **arguments)
        with pytest.raises(InferenceServerException, match="unknown model"):
            client.load_model("nobody")
        assert client.is_model_ready("triton")


# --- the command line ---


def test_the_command_line(server: Server) -> None:
    def versions(out: str) -> dict[str, str]:
        return {each["version"]: each["state"] for each in json.loads(out)["versions"]}

    assert versions(nexus(server, "models", "load", "cli", "--version", "1", "--json")) == {"1": "READY", "2": "READY"}
    assert json.loads(nexus(server, "models", "activate", "cli", "v1", "--json"))["version"] == "1"
    assert "version 1 answers" in nexus(server, "ab", "status", "cli")
    nexus(server, "ab", "start", "cli", "--candidate", "2", "--percent", "5", "--sticky-header", "X-Customer")
    status = json.loads(nexus(server, "ab", "split", "cli", "25", "--json"))
    assert [(each["variant"], each["version"], each["percent"]) for each in status["variants"]] == [
        ("A", "1", 75.0),
        ("B", "2", 25.0),
    ]
    assert "sticky by header x-customer" in nexus(server, "ab", "status", "cli")
    assert "takes traffic" in nexus(server, "models", "unload", "cli", "--version", "2", code=1)
    assert "version 2 answers" in nexus(server, "ab", "promote", "cli")
    shadow = nexus(server, "ab", "shadow", "cli", "100", "--candidate", "1")
    assert "shadow: version 1 gets copies of 100 %" in shadow
    assert "shadow" not in nexus(server, "ab", "shadow", "cli", "0").partition("the last")[0]
    assert "round_robin" in nexus(server, "ab", "balance", "cli", "round_robin")
    assert json.loads(nexus(server, "rollback", "cli", "--json"))["version"] == "1"
    assert "production" in nexus(server, "models", "update", "cli", "--version", "1", "--stage", "production")
    listed = json.loads(nexus(server, "models", "list", "--json"))["models"]
    mine = {each["version"]: each for each in listed if each["name"] == "cli"}
    assert (mine["1"]["active"], mine["1"]["stage"], mine["2"]["active"]) == (True, "production", False)
    assert "rollback" in nexus(server, "models", "history", "cli")
    assert "error: NOT_FOUND" in nexus(server, "models", "load", "nobody", code=1)
    assert "error: FAILED_PRECONDITION: no experiment runs" in nexus(server, "ab", "abort", "cli", code=1)


def test_many_at_once_leave_the_rest_served(port: int) -> None:
    """32 clients load and unload: each gets an answer, and health does not wait behind them."""

    def change(number: int) -> int:
        path = f"/v1/models/many/{('load', 'unload')[number % 2]}"
        return post(port, path, {"version": "1"}).status

    with ThreadPoolExecutor(33) as pool:
        changes = [pool.submit(change, number) for number in range(64)]
        while not all(each.done() for each in changes):
            assert get(port, "/health").status == 200
        assert {each.result() for each in changes} <= {200, 400, 429}
    with contextlib.suppress(AssertionError):
        ok(post(port, "/v1/models/many/load", {"version": "1"}))
    assert answered(port, "many")[0] == "2"

"""`nexus models`, `nexus rollback` and `nexus ab`: what they ask of a server, and what they make of its answers."""

import json
from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.message import Message

from nexus_grpc.pb.nexus.v1 import models_pb2 as models
from nexus_grpc.pb.nexus.v1 import traffic_pb2 as traffic
from tests.unit.cli_server import Server, nexus_command, scripted_server


@pytest.fixture
def server() -> Iterator[Server]:
    with scripted_server() as script:
        yield script


def iris() -> models.ModelInfo:
    info = models.ModelInfo(id="iris", version="2", active_version="2", state="READY")
    info.versions.add(version="1", state="UNLOADED", reason="unloaded")
    info.versions.add(version="2", state="READY", version_name="1.0.0")
    return info


def words(out: str) -> list[list[str]]:
    return [line.split() for line in out.splitlines()]


@pytest.mark.parametrize(
    ("arguments", "method", "request_"),
    [
        ("models load iris", "Load", models.LoadModelRequest(id="iris")),
        ("models load iris --version v2", "Load", models.LoadModelRequest(id="iris", version="v2")),
        ("models unload iris --version 1", "Unload", models.UnloadModelRequest(id="iris", version="1")),
        ("models activate iris 2", "Activate", models.ActivateModelRequest(id="iris", version="2")),
        ("models activate iris", "Activate", models.ActivateModelRequest(id="iris")),
        ("rollback iris", "Rollback", models.RollbackModelRequest(id="iris")),
    ],
)
def test_changes_of_versions(server: Server, arguments: str, method: str, request_: Message) -> None:
    server.answers[method] = iris()
    code, out, _ = nexus_command(server, *arguments.split())
    assert code == 0
    assert type(request_).FromString(server.requests[0]) == request_
    assert ["2", "*", "READY", "1.0.0"] in words(out)
    assert ["1", "UNLOADED", "unloaded"] in words(out)
    code, out, _ = nexus_command(server, *arguments.split(), "--json")
    assert code == 0
    assert json.loads(out)["versions"][1]["version_name"] == "1.0.0"


def test_no_version_of_an_unloaded_model_is_active(server: Server) -> None:
    server.answers["Unload"] = models.ModelInfo(
        id="iris", version="2", state="UNLOADED", versions=[models.VersionInfo(version="2", state="UNLOADED")]
    )
    assert "*" not in nexus_command(server, "models", "unload", "iris")[1]


def test_delete_asks_first(server: Server) -> None:
    server.answers["Delete"] = models.DeleteModelResponse(id="iris", versions=["1", "2"])
    code, _, err = nexus_command(server, "models", "delete", "iris", stdin="n\n")
    assert (code, server.requests) == (1, [])
    assert "Delete model iris with all its versions and its files?" in err
    assert nexus_command(server, "models", "delete", "iris", stdin="")[0] == 1
    assert server.requests == []
    code, out, _ = nexus_command(server, "models", "delete", "iris", stdin="y\n")
    assert (code, out.splitlines()[-1]) == (0, "deleted iris, versions: 1, 2")


def test_delete_a_version_without_a_question(server: Server) -> None:
    server.answers["Delete"] = models.DeleteModelResponse(id="iris", versions=["1"])
    code, out, _ = nexus_command(server, "models", "delete", "iris", "--version", "1", "--yes", "--json")
    assert (code, json.loads(out)) == (0, {"id": "iris", "versions": ["1"]})
    expected = models.DeleteModelRequest(id="iris", version="1")
    assert models.DeleteModelRequest.FromString(server.requests[0]) == expected


def test_history(server: Server) -> None:
    answer = models.ModelHistoryResponse()
    answer.entries.add(
        sequence=7, at="2026-11-21T09:00:00Z", actor="grpc 127.0.0.1:5000", action="split", model="iris",
        detail='{"shares": {"2": 25.0}, "by": "hand"}',
    )  # fmt: skip
    answer.entries.add(sequence=6, action="upload", model="iris", version="2", detail="[odd]\x1b[2J")
    server.answers["History"] = answer
    code, out, _ = nexus_command(server, "models", "history", "iris", "--limit", "5")
    assert code == 0
    line = next(line for line in out.splitlines() if "split" in line)
    assert line.split()[:5] == ["7", "2026-11-21T09:00:00Z", "grpc", "127.0.0.1:5000", "split"]
    assert 'shares: {"2": 25.0}, by: hand' in line
    assert "[odd]\\x1b[2J" in out
    expected = models.ModelHistoryRequest(id="iris", limit=5)
    assert models.ModelHistoryRequest.FromString(server.requests[0]) == expected
    assert json.loads(nexus_command(server, "models", "history", "--json")[1])["entries"][0]["sequence"] == 7


def test_history_of_nothing(server: Server) -> None:
    server.answers["History"] = models.ModelHistoryResponse()
    assert nexus_command(server, "models", "history")[:2] == (0, "Nothing has been done yet.\n")


def test_register_and_update(server: Server) -> None:
    record = models.ModelRecord(id="fraud", name="Fraud", labels={"team": "risk"}, active_version="1")
    record.versions.add(version="2", stage="staging", state="MISSING")
    server.answers |= {"Register": record, "UpdateRecord": record}
    options = ["--version", "2", "--stage", "staging", "--label", "team=risk", "--name", "Fraud"]
    code, out, _ = nexus_command(server, "models", "register", "fraud", *options)
    assert code == 0
    assert ["labels", "team=risk"] in words(out)
    assert ["2", "staging", "MISSING"] in words(out)
    registered = models.RegisterModelRequest.FromString(server.requests[0])
    expected = {"id": "fraud", "name": "Fraud", "version": "2", "stage": "staging", "labels": {"team": "risk"}}
    assert registered == models.RegisterModelRequest(**expected)  # type: ignore[arg-type]
    code, out, _ = nexus_command(server, "models", "update", "fraud", *options, "--json")
    assert (code, json.loads(out)["active_version"]) == (0, "1")
    assert models.UpdateRecordRequest.FromString(server.requests[1]) == models.UpdateRecordRequest(**expected)  # type: ignore[arg-type]


def experiment() -> traffic.ExperimentStatus:
    status = traffic.ExperimentStatus(
        model="iris", current_version="1", candidate_version="2", percent=25, active=True,
        started_at="2026-11-21T09:00:00Z", sticky=traffic.StickyKey(header="x-user"), balance="least_busy",
        last_outcome="aborted: error_rate was 3 %, expected below 1 %",
    )  # fmt: skip
    for variant, version, share, errors in (("A", "1", 75.0, 3), ("B", "2", 25.0, 0)):
        added = status.variants.add(
            variant=variant, version=version, percent=share, requests=1000, errors=errors, error_rate=errors / 1000,
            p50_ms=0.5, p95_ms=1.25, p99_ms=2500, mean_ms=0.6,
        )  # fmt: skip
        added.error_rate_interval.CopyFrom(traffic.Interval(low=0.001, high=0.0088))
        added.predictions.add(label="setosa", share=0.333)
    status.variants[1].predictions.add(label="other", share=0.1)
    status.comparisons.add(variant="B", verdict="no difference can be told yet; about 4,000 more requests would do")
    status.shadow.CopyFrom(
        traffic.ShadowStatus(
            version="3",
            percent=10,
            compared=100,
            disagreed=2,
            disagreement_rate=0.02,
            dropped=5,
            latency_delta_ms=0.013,
        )
    )
    status.ramp.CopyFrom(
        traffic.RampStatus(
            steps=[5, 25, 100], step=1, every_seconds=600, guards=["error_rate<1%", "p99<20ms"],
            seconds_to_next_step=90, state="running",
        )
    )  # fmt: skip
    return status


def test_status_is_readable(server: Server) -> None:
    server.answers["Status"] = experiment()
    code, out, _ = nexus_command(server, "ab", "status", "iris")
    assert code == 0
    assert "iris: experiment since 2026-11-21T09:00:00Z, sticky by header x-user" in out
    variant = next(line for line in out.splitlines() if line.split()[:1] == ["A"])
    row = "A 1 75 % 1000 3 0.3 % (0.1 to 0.88) 0.5 ms 1.25 ms 2.5 s 0.6 ms"
    assert variant.split() == row.split()
    assert ["B", "33.3", "%", "10", "%"] in words(out)
    lines = out.splitlines()
    assert "B against A: no difference can be told yet; about 4,000 more requests would do" in lines
    ramp = "ramp 5, [25], 100 % every 10m: running, the next step in 1m30s at the earliest"
    assert f"{ramp}, while error_rate<1% and p99<20ms" in lines
    shadow = (
        "shadow: version 3 gets copies of 10 %: 100 compared, 2 disagreed (2 %), 0 failed, 5 not run for lack of time"
    )
    assert f"{shadow}; +0.013 ms in ONNX Runtime" in lines
    assert "the last experiment: aborted: error_rate was 3 %, expected below 1 %" in lines


def test_status_of_a_variant_that_has_answered_nothing(server: Server) -> None:
    status = traffic.ExperimentStatus(model="iris", active=True)
    status.variants.add(variant="A", version="1", percent=100)
    server.answers["Status"] = status
    out = nexus_command(server, "ab", "status")[1]
    assert ["A", "1", "100", "%", "0", "0"] in words(out)


def test_status_without_an_experiment(server: Server) -> None:
    server.answers["Status"] = traffic.ExperimentStatus(model="iris", current_version="2", balance="round_robin")
    code, out, _ = nexus_command(server, "ab", "status", "iris")
    assert (code, out) == (0, "iris: no experiment; version 2 answers\nbalance: round_robin\n")


def test_status_as_json_has_every_field(server: Server) -> None:
    server.answers["Status"] = traffic.ExperimentStatus(model="iris")
    answer = json.loads(nexus_command(server, "ab", "status", "--json")[1])
    assert (answer["active"], answer["variants"], answer["last_outcome"]) == (False, [], "")


@pytest.mark.parametrize(
    ("arguments", "method", "request_"),
    [
        (
            "start iris --candidate 2 --percent 5",
            "Setup",
            traffic.SetupExperimentRequest(model="iris", candidate_version="2", percent=5),
        ),
        (
            "start iris --candidate v2 --percent 5% --also 3=10 --sticky-header X-User",
            "Setup",
            traffic.SetupExperimentRequest(
                model="iris",
                candidate_version="v2",
                percent=5,
                more=[traffic.VariantShare(version="3", percent=10)],
                sticky=traffic.StickyKey(header="X-User"),
            ),
        ),
        (
            "start iris --candidate 2 --sticky-parameter customer",
            "Setup",
            traffic.SetupExperimentRequest(
                model="iris", candidate_version="2", sticky=traffic.StickyKey(parameter="customer")
            ),
        ),
        ("split iris 25", "Split", traffic.SplitTrafficRequest(model="iris", percent=25)),
        (
            "split iris --share 2=20 --share 3=10.5",
            "Split",
            traffic.SplitTrafficRequest(
                model="iris",
                shares=[traffic.VariantShare(version="2", percent=20), traffic.VariantShare(version="3", percent=10.5)],
            ),
        ),
        (
            "ramp iris 5,25,50,100 --every 10m --guard error_rate<1% --guard p99<20ms --min-requests 100",
            "Ramp",
            traffic.RampTrafficRequest(
                model="iris",
                steps=[5, 25, 50, 100],
                every_seconds=600,
                guards=["error_rate<1%", "p99<20ms"],
                min_requests=100,
            ),
        ),
        ("promote", "Promote", traffic.PromoteRequest()),
        ("promote iris --version 3", "Promote", traffic.PromoteRequest(model="iris", version="3")),
        ("abort iris", "Abort", traffic.AbortRequest(model="iris")),
        ("status", "Status", traffic.ExperimentStatusRequest()),
        (
            "shadow iris 10 --candidate 2",
            "Shadow",
            traffic.ShadowTrafficRequest(model="iris", candidate_version="2", percent=10),
        ),
        ("shadow iris 0", "Shadow", traffic.ShadowTrafficRequest(model="iris", percent=0)),
        ("balance iris round_robin", "Balance", traffic.BalanceRequest(model="iris", balance="round_robin")),
    ],
)
def test_experiments(server: Server, arguments: str, method: str, request_: Message) -> None:
    server.answers[method] = experiment()
    code, out, err = nexus_command(server, "ab", *arguments.split())
    assert (code, err) == (0, "")
    assert "B against A" in out
    assert type(request_).FromString(server.requests[0]) == request_


@pytest.mark.parametrize(
    "arguments",
    [
        "ab start iris",
        "ab start iris --candidate 2 --percent 101",
        "ab start iris --candidate 2 --sticky-header a --sticky-parameter b",
        "ab split iris",
        "ab split iris 25 --share 2=25",
        "ab ramp iris 5,25",
        "ab ramp iris 25,5 --every 10m",
        "ab ramp iris 5,25 --every soon",
        "ab shadow iris 10",
        "models activate",
        "models update fraud",
        "models update fraud --stage production",
        "models register fraud --label x",
        "models history --limit 0",
        "rollback",
    ],
)
def test_wrong_usage(server: Server, arguments: str) -> None:
    code, out, err = nexus_command(server, *arguments.split())
    assert (code, out) == (2, "")
    assert err.startswith("Usage: ")
    assert server.requests == []


@pytest.mark.parametrize(
    "arguments",
    ["models load iris", "models history", "models register iris", "ab status", "ab promote", "rollback iris"],
)
def test_errors_are_one_line(server: Server, arguments: str) -> None:
    methods = ("Load", "History", "Register", "Status", "Promote", "Rollback")
    server.answers |= dict.fromkeys(methods, (grpc.StatusCode.FAILED_PRECONDITION, "not\nnow"))
    code, out, err = nexus_command(server, *arguments.split())
    assert (code, out, err) == (1, "", "error: FAILED_PRECONDITION: not now\n")

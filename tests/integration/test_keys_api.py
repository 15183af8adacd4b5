"""API keys over the wire: by gRPC, REST and the command line, for those who may, and what is told of it."""

import json
import os
import pathlib
import subprocess
from collections.abc import Iterator

import grpc
import pytest

from nexus_grpc.access.identity import Scope
from nexus_grpc.pb.nexus.v1 import keys_pb2
from nexus_grpc.registry.open import open_registry
from tests.harness import NEXUS, Server, copy_models, running_server
from tests.integration.access import bearer, make_key, registry_of, status_of, wait_until
from tests.integration.rest import call, get, post
from tests.integration.test_openapi import document

ADMIN, ALL = Scope.ADMIN, Scope.ADMIN | Scope.READ | Scope.PREDICT
READY = "/inference.GRPCInferenceService/ModelReady"
INDEX = "/inference.GRPCInferenceService/RepositoryIndex"


class Site:
    """A server, its folder, and the keys that were made for it beforehand."""

    def __init__(self, server: Server, folder: pathlib.Path, keys: dict[str, str]) -> None:
        self.server = server
        self.folder = folder
        self.keys = keys

    def nexus(
        self, *arguments: str, key: str = "", code: int = 0, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """`nexus keys` on another machine: in a folder without a registry."""
        elsewhere = self.folder / "elsewhere"
        elsewhere.mkdir(exist_ok=True)
        variables = {name: value for name, value in os.environ.items() if not name.startswith("NEXUS_")}
        variables |= {"NEXUS_API_KEY": key} if key else {}
        done = subprocess.run(
            [*NEXUS, "keys", *arguments],
            cwd=elsewhere,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**variables, **environment},
        )
        assert done.returncode == code, done
        assert not (elsewhere / "data").exists()
        return done

    def rest(self, verb: str, path: str, body: object = None, key: str = "root") -> tuple[int, dict[str, object]]:
        headers = {"x_api_key": self.keys[key]} if key else {}
        answer = call(self.server.rest_port, verb, path, body, **headers)
        return answer.status, answer.json


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("keys")
    repository = copy_models(folder / "models", "iris")
    keys = {
        "root": make_key(folder, "root", scopes=ALL),
        "deployer": make_key(folder, "deployer", scopes=ADMIN | Scope.READ),
        "reader": make_key(folder, "reader", scopes=Scope.READ | Scope.PREDICT),
        "narrow": make_key(folder, "narrow", scopes=ALL, models=("iris",)),
    }
    with running_server(folder, "--auth=optional", "--fronts=2", repository=repository, rest=True) as server:
        yield Site(server, folder, keys)


def invoke(site: Site, method: str, request: object, answer: type, key: str) -> object:
    with grpc.insecure_channel(site.server.address) as channel:
        ask = channel.unary_unary(
            f"/nexus.v1.Keys/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,  # type: ignore[attr-defined]
        )
        return ask(request, timeout=20, metadata=bearer(site.keys[key]))


def test_a_key_that_is_made_works_at_once_and_is_told_of(site: Site) -> None:
    made = site.nexus("create", "far", "--address", site.server.address, "--rate", "600/min", key=site.keys["root"])
    key = made.stdout.strip()
    assert f"of the server at {site.server.address}. Keep it now" in made.stderr
    assert key not in made.stderr
    with grpc.insecure_channel(site.server.address) as channel:
        assert status_of(channel, INDEX, bearer(key)) == 200
    listed = site.nexus("list", "--json", key=site.keys["root"], NEXUS_ADDRESS=site.server.address)
    assert f"Asking the server at {site.server.address} (NEXUS_ADDRESS, with your credential;" in listed.stderr
    far = next(each for each in json.loads(listed.stdout)["keys"] if each["name"] == "far")
    assert (far["scopes"], far["models"], far["rate_per_minute"]) == (["predict", "read"], ["*"], 600)
    assert (far["expires_at"], far["state"], far["priority"]) == (None, "active", 5)
    root = next(each.id for each in stored(site) if each.name == "root")
    assert far["created_by"].startswith(f"key:{root} grpc 127.0.0.1:")
    gone = site.nexus("revoke", "far", "--yes", "--address", site.server.address, key=site.keys["root"])
    assert gone.stdout == f"revoked {far['id']} (far)\n"
    with grpc.insecure_channel(site.server.address) as channel:
        wait_until(lambda: status_of(channel, INDEX, bearer(key)) == 401)
    with registry_of(site.folder) as registry:
        lines = [row for row in registry.history() if row.detail.get("name") == "far"]
    assert [(row.action, row.actor.split()[:2]) for row in lines] == [
        ("revoke_key", [f"key:{root}", "grpc"]),
        ("create_key", [f"key:{root}", "grpc"]),
    ]
    events = [json.loads(line) for line in site.server.log_text().splitlines() if '"API key' in line]
    told = [(each["event"], each["actor"].split()[0]) for each in events if each.get("name") == "far"]
    assert told == [("API key made", f"key:{root}"), ("API key revoked", f"key:{root}")]
    assert key[17:] not in site.server.log_text()


def stored(site: Site) -> list[object]:
    with registry_of(site.folder) as registry:
        return list(registry.list_keys())


def test_a_key_that_is_made_on_the_servers_machine_is_told_of(site: Site) -> None:
    place = ("--data-dir", str(site.folder / "data"))
    # An address with a credential counts where no registry is named.
    made = site.nexus("create", "near", *place, key=site.keys["root"], NEXUS_ADDRESS="127.0.0.1:1")
    assert "which a running server uses" in made.stderr
    site.nexus("revoke", "near", "--yes", *place)

    def told() -> list[str]:
        events = [json.loads(line) for line in site.server.log_text().splitlines() if '"API key' in line]
        return [each["event"] for each in events if each.get("name") == "near" and each["actor"].startswith("cli:")]

    wait_until(lambda: told() == ["API key made", "API key revoked"])


def test_by_rest_as_documented(site: Site) -> None:
    operation = document()["paths"]["/admin/keys"]["post"]
    for example in operation["requestBody"]["content"]["application/json"]["examples"].values():
        status, answer = site.rest("POST", "/admin/keys", example["value"])
        assert status == 201, answer
        assert str(answer["key"]).startswith("nxk_")
        assert answer["api_key"]["name"] == example["value"]["name"]  # type: ignore[index]
    status, answer = site.rest("GET", "/admin/keys")
    team = next(each for each in answer["keys"] if each["name"] == "fraud-team")  # type: ignore[attr-defined]
    assert (team["scopes"], team["models"], team["burst"]) == (["predict"], ["fraud-*"], 50)
    assert team["expires_at"] > team["created_at"]
    status, answer = site.rest("POST", "/admin/keys/revoke", {"key": "webshop"})
    assert (status, answer["api_key"]["state"]) == (200, "revoked")  # type: ignore[index]


@pytest.mark.parametrize(
    ("key", "body", "status", "words"),
    [
        ("", {"name": "x"}, 403, "lacks the scope admin"),
        ("reader", {"name": "x"}, 403, "lacks the scope admin"),
        ("narrow", {"name": "iris"}, 403, "may not use all models"),
        # What it cannot do itself it cannot have another do.
        ("deployer", {"name": "x"}, 403, "lacks the scope predict, and can give none that it lacks"),
        ("deployer", {"name": "x", "scopes": ["predict", "admin"]}, 403, "lacks the scope predict"),
        ("root", {"name": "root"}, 409, "there is a key called 'root'"),
        ("root", {"name": ""}, 400, "name is missing"),
        ("deployer", {}, 400, "name is missing"),
        ("root", {"name": "a\nb"}, 400, "is no name for a key"),
        ("root", {"name": "x", "scopes": ["root"]}, 400, "'root' is no scope; expected predict, read, admin"),
        ("root", {"name": "x", "models": ["../x"]}, 400, "no pattern of models' ids"),
        ("root", {"name": "x", "priority": 10}, 400, "expected 0 (shed last) to 9"),
        ("root", {"name": "x", "rate_per_minute": -1}, 400, "rate_per_minute is -1"),
        ("root", {"name": "x", "expires_in_seconds": -1}, 400, "expires_in_seconds is -1"),
        ("root", {"nam": "x"}, 400, 'did you mean "name"?'),
    ],
)
def test_what_is_refused(site: Site, key: str, body: dict[str, object], status: int, words: str) -> None:
    before = len(stored(site))
    found, answer = site.rest("POST", "/admin/keys", body, key)
    assert (found, len(stored(site))) == (status, before), answer
    assert words in answer["error"]["message"]  # type: ignore[index]


def test_a_deployer_makes_another(site: Site) -> None:
    status, answer = site.rest("POST", "/admin/keys", {"name": "next", "scopes": ["read", "admin"]}, "deployer")
    assert status == 201, answer
    request = keys_pb2.RevokeKeyRequest(key="next")
    revoked = invoke(site, "Revoke", request, keys_pb2.RevokeKeyResponse, "deployer")
    assert revoked.api_key.state == "revoked"  # type: ignore[attr-defined]
    for wrong, words in (("next", "no API key of that id or name"), ("", "key is missing")):
        status, answer = site.rest("POST", "/admin/keys/revoke", {"key": wrong})
        assert (status, words in str(answer)) == (400, True)


def test_the_command_says_what_is_missing(site: Site) -> None:
    here = ("--address", site.server.address)
    # Anonymous callers may read here.
    assert "lacks the scope admin" in site.nexus("list", *here, code=1).stderr
    assert "neither is set" in site.nexus("list", *here, code=1).stderr
    assert "lacks the scope admin" in site.nexus("list", *here, key=site.keys["reader"], code=1).stderr
    assert "no server at 127.0.0.1:1" in site.nexus("list", "--address", "127.0.0.1:1", code=1).stderr
    # Without a credential an address is for the other commands.
    stderr = site.nexus("create", "x", code=1, NEXUS_ADDRESS=site.server.address).stderr
    assert "there is no registry at" in stderr
    assert "--address HOST:PORT and an admin's key in NEXUS_API_KEY" in stderr


def test_where_nobody_is_asked_nobody_makes_keys(tmp_path: pathlib.Path) -> None:
    """They would count on the day that somebody turns --auth on."""
    with running_server(tmp_path, repository=copy_models(tmp_path / "models", "iris"), rest=True) as server:
        for answer in (
            post(server.rest_port, "/admin/keys", {"name": "x", "scopes": ["admin"]}),
            post(server.rest_port, "/admin/keys/revoke", {"key": "x"}),
            get(server.rest_port, "/admin/keys"),
        ):
            assert answer.status == 400
            assert "asks nobody for credentials (--auth off)" in answer.message
    registry = open_registry("", tmp_path / "data")
    assert registry.list_keys() == []
    registry.close()

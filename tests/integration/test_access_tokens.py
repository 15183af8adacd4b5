"""Servers that take tokens (JWT), that other machines can reach, and that take anonymous callers."""

import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Iterator

import pytest

from nexus_grpc.access.identity import Scope
from nexus_grpc.pb.nexus.v1 import inference_pb2
from nexus_grpc.rest.routes import METRICS_PATHS
from tests.harness import Server, copy_models, running_server
from tests.integration.access import Metadata, bearer, make_key, status_of, wait_until
from tests.integration.client import IRIS_ROW, NEXUS, OIP, Client
from tests.integration.rest import IRIS, call, get, post
from tests.unit.access.support import documents, forged, jwk, key_set, rsa_key, token

FILE_ISSUER, URL_ISSUER = "https://file.example", "https://url.example"
FORGED = {"iss": FILE_ISSUER, "aud": "nexus", "sub": "ada", "exp": 9999999999}
PREDICT = inference_pb2.PredictRequest(model_id="iris", features=IRIS_ROW).SerializeToString()
TRUST = """
[[issuer]]
issuer = "{file_issuer}"
audience = "nexus"
algorithms = ["RS256"]
jwks_file = "keys.json"
models_claim = "models"

[[issuer]]
issuer = "{url_issuer}"
audience = "nexus"
algorithms = ["RS256"]
jwks_url = "{url}"
leeway_seconds = 0
"""


@dataclasses.dataclass
class Site:
    server: Server
    client: Client
    folder: pathlib.Path

    def predicts(self, metadata: Metadata) -> int:
        return status_of(self.client.channel, NEXUS + "Predict", metadata, PREDICT)


def signed(issuer: str = FILE_ISSUER, number: int = 0, kid: str = "one", **more: object) -> str:
    now = int(time.time())
    claims = {"exp": now + 300, "iat": now, "models": ["iris"], "scope": "predict"} | more
    return token(rsa_key(number), headers={"kid": kid}, iss=issuer, **claims)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Asks for credentials, on all addresses. Takes tokens whose key is `one` in a file, or behind a URL."""
    folder = tmp_path_factory.mktemp("tokens")
    repository = copy_models(folder / "models", "iris", "counts_i64")
    (folder / "keys.json").write_bytes(key_set(jwk(rsa_key(0), "one")))
    with documents() as source:
        source.answer = 200, {}, key_set(jwk(rsa_key(1), "one"))
        trust = TRUST.format(file_issuer=FILE_ISSUER, url_issuer=URL_ISSUER, url=source.url)
        (folder / "trust.toml").write_text(trust)
        options = ("--auth=required", "--host=0.0.0.0", f"--jwt-issuers={folder / 'trust.toml'}")
        with running_server(folder, *options, repository=repository, rest=True) as server:
            client = Client(server.address)
            yield Site(server, client, folder)
            client.close()


def test_a_token_of_a_file_and_of_a_url(site: Site) -> None:
    assert site.predicts(bearer(signed())) == 200
    wait_until(lambda: site.predicts(bearer(signed(URL_ISSUER, 1))) == 200)
    assert post(site.server.rest_port, "/predict", IRIS, Authorization=f"Bearer {signed()}").status == 200


def test_what_a_token_allows(site: Site) -> None:
    reads = bearer(signed(scope="read"))
    assert site.predicts(reads) == 403
    assert status_of(site.client.channel, OIP + "ServerMetadata", reads) == 200
    assert status_of(site.client.channel, "/nexus.v1.System/Reload", reads) == 403
    assert site.predicts(bearer(signed(models=["counts_*"]))) == 403
    assert site.predicts(bearer(signed(models=[]))) in (401, 403)


WRONG: dict[str, Callable[[], str]] = {
    "expired": lambda: signed(exp=int(time.time()) - 60),
    "later": lambda: signed(nbf=int(time.time()) + 600),
    "for ever": lambda: signed(exp=None),
    "audience": lambda: signed(aud="another"),
    "issuer": lambda: signed("https://other.example"),
    "key": lambda: signed(number=1),
    "issuer's key": lambda: signed(URL_ISSUER),
    "kid": lambda: signed(kid="two"),
    "none": lambda: forged({"alg": "none", "typ": "JWT"}, FORGED, b""),
    "forged": lambda: forged({"alg": "RS256", "kid": "one"}, FORGED),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_tokens(site: Site, name: str) -> None:
    text = WRONG[name]()
    assert site.predicts(bearer(text)) == 401
    assert post(site.server.rest_port, "/predict", IRIS, Authorization=f"Bearer {text}").status == 401


def test_a_token_expires_while_it_is_used(site: Site) -> None:
    """One that is remembered, too: to the second, without leeway."""
    wait_until(lambda: site.predicts(bearer(signed(URL_ISSUER, 1))) == 200)
    expires = int(time.time()) + 3
    text = signed(URL_ISSUER, 1, exp=expires)
    assert site.predicts(bearer(text)) == 200
    wait_until(lambda: site.predicts(bearer(text)) == 401)
    assert expires - 0.1 <= time.time() < expires + 3


def test_rotation_in_a_file(site: Site) -> None:
    text = signed(number=2, kid="two")
    assert site.predicts(bearer(text)) == 401
    fresh = site.folder / "fresh.json"
    fresh.write_bytes(key_set(jwk(rsa_key(0), "one"), jwk(rsa_key(2), "two")))
    os.replace(fresh, site.folder / "keys.json")
    took_s = wait_until(lambda: site.predicts(bearer(text)) == 200)
    print(f"accepted {took_s:.3f} s after the file had the key")
    assert took_s < 4
    assert site.predicts(bearer(signed())) == 200
    fresh.write_bytes(key_set(jwk(rsa_key(0), "one")))
    os.replace(fresh, site.folder / "keys.json")
    took_s = wait_until(lambda: site.predicts(bearer(text)) == 401)
    print(f"refused {took_s:.3f} s after the file had it no more")
    assert took_s < 4


def test_metrics_need_read_where_other_machines_can_reach_them(site: Site) -> None:
    """On their own port, and through Envoy."""
    for port in (site.server.metrics_port, site.server.rest_port):
        for path in METRICS_PATHS:
            answer = get(port, path)
            assert answer.status == 401, (port, path)
            assert answer.json["error"]["code"] == "UNAUTHENTICATED"
            assert get(port, path, Authorization=f"Bearer {signed()}").status == 403, (port, path)
            assert get(port, path, Authorization=f"Bearer {signed()}x").status == 401, (port, path)
            assert get(port, path, Authorization=f"Bearer {signed(scope='read')}").status == 200, (port, path)
    assert get(site.server.metrics_port, "/").status == 401
    assert get(site.server.metrics_port, "/nothing").status == 401


def test_tokens_are_in_no_log_line(site: Site) -> None:
    text = signed()
    site.predicts(bearer(text))
    log = site.server.log_text()
    assert text.rpartition(".")[2] not in log
    assert text.split(".")[1] not in log


@pytest.fixture(scope="module")
def open_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, str]]:
    """Takes anonymous callers at any rate; and an administrator's key."""
    folder = tmp_path_factory.mktemp("anonymous")
    repository = copy_models(folder / "models", "iris")
    key = make_key(folder, "admin", scopes=Scope.READ | Scope.ADMIN)
    options = ("--auth=optional", "--anonymous-per-minute=0")
    with running_server(folder, *options, repository=repository, rest=True) as server:
        client = Client(server.address)
        yield Site(server, client, folder), key
        client.close()


def test_what_anonymous_callers_may_do(open_site: tuple[Site, str]) -> None:
    site, _ = open_site
    port = site.server.rest_port
    assert site.predicts(()) == 200
    assert post(port, "/predict", IRIS).status == 200
    assert get(port, "/models").status == 200
    assert status_of(site.client.channel, OIP + "RepositoryIndex") == 200
    for verb, path in (("POST", "/v1/models/iris/unload"), ("DELETE", "/v1/models/iris"), ("POST", "/admin/reload")):
        assert call(port, verb, path).status == 403, path
    assert status_of(site.client.channel, "/nexus.v1.System/Reload") == 403


def test_a_wrong_credential_does_not_make_anonymous(open_site: tuple[Site, str]) -> None:
    site, key = open_site
    wrong = f"nxk_000000000000_{'A' * 43}"
    for metadata in (bearer(wrong), (("x-api-key", wrong),), (("authorization", "Basic eDp5"),), (("x-api-key", ""),)):
        assert site.predicts(metadata) == 401, metadata
        assert call(site.server.rest_port, "GET", "/models", **dict(metadata)).status == 401, metadata
    assert site.predicts(bearer(key)) == 403
    assert status_of(site.client.channel, "/nexus.v1.System/Reload", bearer(key)) == 200

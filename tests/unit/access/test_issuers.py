"""The file of jwt_issuers: what it means, and what is said of a wrong one."""

import json
import pathlib
import tomllib

import pytest

from nexus_grpc.access.identity import Scope
from nexus_grpc.access.issuers import DEFAULT_SCOPES, load_trust, parse_trust
from nexus_grpc.ipc.errors import InvalidInput

GOOD = """
[[issuer]]
issuer = "https://login.example"
audience = ["nexus", "ml"]
algorithms = ["RS256", "ES256"]
jwks_url = "https://login.example/jwks"
scopes_claim = "roles"
scopes = {"ml:call" = "predict", "ml:root" = ["read", "admin"]}
default_scopes = []
rate_per_minute = 600
burst = 20
priority = 3

[[issuer]]
issuer = "batch"
audience = "nexus"
algorithms = ["HS256"]
secret_file = "batch.secret"
leeway_seconds = 0
models_claim = "models"

[[certificate]]
subject = "spiffe://example/*"
scopes = ["predict"]
models = ["fraud-*"]
"""
BASE = {"issuer": "https://a.example", "audience": "nexus", "algorithms": ["RS256"], "jwks_file": "keys.json"}


def test_a_good_one(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "issuers.toml"
    path.write_text(GOOD)
    trust = load_trust(path)
    first, second = trust.issuers
    assert (first.issuer, first.audience, first.algorithms) == (
        "https://login.example",
        ("nexus", "ml"),
        ("RS256", "ES256"),
    )
    assert (first.keys_at, first.is_url, first.leeway_seconds) == ("https://login.example/jwks", True, 30.0)
    assert first.scopes == {"ml:call": Scope.PREDICT, "ml:root": Scope.READ | Scope.ADMIN}
    assert (first.grant.rate_per_minute, first.grant.burst, first.grant.priority) == (600, 20, 3)
    assert (second.keys_at, second.is_url, second.is_symmetric) == (str(tmp_path / "batch.secret"), False, True)
    assert (second.leeway_seconds, second.models_claim, second.scopes) == (0, "models", DEFAULT_SCOPES)
    (rule,) = trust.certificates
    assert (rule.subject, rule.grant.scopes, rule.grant.models) == (
        "spiffe://example/*",
        Scope.PREDICT,
        ("fraud-*",),
    )
    # As it travels to the fronts.
    assert parse_trust(json.loads(json.dumps(trust.document)), tmp_path) == trust


def test_an_empty_one(tmp_path: pathlib.Path) -> None:
    (tmp_path / "empty.toml").write_text("")
    assert load_trust(tmp_path / "empty.toml").issuers == ()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"issuer": None}, "issuer 1: issuer is missing; expected a text"),
        ({"issuer": ""}, "issuer = ''; expected 1 to 512 printable"),
        ({"issuer": 7}, "issuer 1: issuer = 7; expected a text"),
        ({"audience": None}, "audience is missing"),
        ({"audience": []}, "audience = .*none of them empty"),
        ({"audience": [""]}, "none of them empty"),
        ({"algorithms": []}, "algorithms"),
        ({"algorithms": ["none"]}, r"algorithms = \['none'\]; expected some of RS256"),
        ({"algorithms": ["RS256", "HS256"], "secret_file": "s"}, "HS256 alone, with secret_file"),
        ({"algorithms": ["HS256"]}, "expected secret_file; there is jwks_file"),
        ({"secret_file": "s"}, "expected jwks_file or jwks_url; there is secret_file and jwks_file"),
        ({"jwks_file": None}, "expected jwks_file or jwks_url; there is none of them"),
        ({"jwks_url": "https://a.example/jwks"}, "there is jwks_file and jwks_url"),
        ({"leeway_seconds": 61}, "leeway_seconds = 61; expected 0 to 60"),
        ({"leeway_seconds": True}, "leeway_seconds = True; expected a number"),
        ({"leeway_seconds": -1}, "expected 0 to 60"),
        ({"scopes": {"x": "root"}}, "scopes: x = 'root'; expected some of predict, read, admin"),
        ({"scopes": "x"}, "scopes = 'x'; expected a table"),
        ({"default_scopes": ["root"]}, "default_scopes"),
        ({"models": ["../x"]}, "no pattern of models' ids"),
        ({"models": ["a"], "models_claim": "m"}, "models or models_claim, not both"),
        ({"rate_per_minute": -1}, "rate_per_minute is -1"),
        ({"burst": 1.5}, "burst = 1.5; expected a whole number"),
        ({"priority": 10}, "priority is 10"),
        ({"audiance": "x"}, "there is no setting 'audiance'; did you mean audience?"),
        ({"qqq": 1}, "there is no setting 'qqq'; known: algorithms"),
    ],
)
def test_wrong_issuers(changed: dict[str, object], message: str) -> None:
    table = {name: value for name, value in ({**BASE, **changed}).items() if value is not None}
    with pytest.raises(InvalidInput, match=message):
        parse_trust({"issuer": [table]}, pathlib.Path())


@pytest.mark.parametrize(
    "url",
    [
        "http://login.example/jwks",
        "ftp://login.example/jwks",
        "file:///etc/passwd",
        "https://",
        "https://user:sesame@login.example/jwks",
        "https://login.example/jwks#x",
        "https://login.example:port/jwks",
        "https://login.example/a b",
        "http://127.0.0.1.evil.example/jwks",
        "https://[::1/jwks",
        "https://löwe.example/",
    ],
)
def test_urls_that_are_not_fetched(url: str) -> None:
    table = {**BASE, "jwks_url": url}
    del table["jwks_file"]
    with pytest.raises(InvalidInput, match="jwks_url: expected https://host/path") as failure:
        parse_trust({"issuer": [table]}, pathlib.Path())
    assert "sesame" not in failure.value.message


@pytest.mark.parametrize(
    "url", ["https://a.example:8443/x?y=z", "http://127.0.0.1:9/x", "http://[::1]/", "http://localhost/"]
)
def test_urls_that_are(url: str) -> None:
    table = {**BASE, "jwks_url": url}
    del table["jwks_file"]
    assert parse_trust({"issuer": [table]}, pathlib.Path()).issuers[0].keys_at == url


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("issuer = 7", "issuer = 7; expected"),
        ("issuer = [7]", r"at most 32 tables \[\[issuer\]\]"),
        ("[[issuers]]\nissuer = 'a'", "there is no setting 'issuers'; did you mean issuer"),
        ("[[certificate]]\nscopes = ['predict']", "certificate 1: subject is missing"),
        ("[[certificate]]\nsubject = 'a'\nscope = 'predict'", "did you mean scopes"),
    ],
)
def test_wrong_files(text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        parse_trust(tomllib.loads(text), pathlib.Path())


def test_the_same_issuer_twice() -> None:
    with pytest.raises(InvalidInput, match="is there twice"):
        parse_trust({"issuer": [BASE, BASE]}, pathlib.Path())


def test_the_file_is_named(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "issuers.toml"
    with pytest.raises(InvalidInput, match=r"jwt_issuers: .*issuers\.toml cannot be read: No such file"):
        load_trust(path)
    for content in (b"[[", b"\xff", b"a = " + b"[" * 5000):
        path.write_bytes(content)
        with pytest.raises(InvalidInput, match=r"issuers\.toml is not a TOML file"):
            load_trust(path)
    path.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(InvalidInput, match="more than 1048576 bytes"):
        load_trust(path)
    path.write_text("[[issuer]]")
    with pytest.raises(InvalidInput, match=r"issuers\.toml: issuer 1: issuer is missing"):
        load_trust(path)

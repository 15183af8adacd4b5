"""API keys: text, what is kept, who is recognised."""

import dataclasses
import hmac
import json
import math
from typing import Any

import pytest

from nexus_grpc.access import keys
from nexus_grpc.access.identity import Scope
from nexus_grpc.access.keys import KEY_CHARACTERS, ApiKey, digest_of, new_key, parse, recognise
from nexus_grpc.ipc.errors import InvalidInput, Unauthenticated
from tests.unit.access.support import NOW


def test_a_new_key_is_recognised_and_its_secret_is_not_kept() -> None:
    text, key = new_key("webshop", NOW)
    secret = text.split("_", 2)[2]
    assert len(text) == KEY_CHARACTERS == 60
    assert recognise({key.id: key}, text, NOW) is key
    assert key.digest == digest_of(secret)
    for shown in (repr(key), json.dumps(key.to_json())):
        assert secret not in shown
    assert key.digest.hex() not in repr(key)


def test_keys_differ() -> None:
    texts = {new_key("a", NOW)[0] for _ in range(100)}
    assert len({text[:16] for text in texts}) == len({text[17:] for text in texts}) == 100


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-1],
        lambda text: text + "A",
        lambda text: text + "\n",
        lambda text: text.replace("nxk_", "nxK_"),
        lambda text: text[:16] + "-" + text[17:],
        lambda text: "nxk_" + "F" * 12 + text[16:],
        lambda text: "nxk_" + "٣" * 12 + text[16:],
        lambda text: text[:-1] + "=",
        lambda text: text[:-1] + ("A" if text[-1] != "A" else "B"),
        lambda text: text * 1000,
        lambda text: "",
    ],
)
def test_anything_else_is_not(damage: Any) -> None:
    text, key = new_key("webshop", NOW)
    wrong = damage(text)
    with pytest.raises(Unauthenticated) as failure:
        recognise({key.id: key}, wrong, NOW)
    assert text[17:] not in failure.value.message
    assert not wrong or wrong not in failure.value.message


def test_unknown_and_wrong_take_the_same_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """One comparison of two digests of one length each, whether the id is known or not."""
    compared: list[tuple[int, int]] = []
    real = hmac.compare_digest

    def compare(left: bytes, right: bytes) -> bool:
        compared.append((len(left), len(right)))
        return real(left, right)

    monkeypatch.setattr(keys.hmac, "compare_digest", compare)
    text, key = new_key("webshop", NOW)
    wrong = text[:-1] + ("A" if text[-1] != "A" else "B")
    messages = set()
    for known, shown in (({key.id: key}, wrong), ({}, text)):
        with pytest.raises(Unauthenticated) as failure:
            recognise(known, shown, NOW)
        messages.add(failure.value.message)
    assert compared == [(32, 32), (32, 32)]
    assert len(messages) == 1


def test_expired_and_revoked() -> None:
    text, key = new_key("webshop", NOW, expires_at=NOW + 10)
    assert recognise({key.id: key}, text, NOW + 9.9) is key
    with pytest.raises(Unauthenticated, match="is expired"):
        recognise({key.id: key}, text, NOW + 10)
    revoked = dataclasses.replace(key, revoked_at=NOW)
    with pytest.raises(Unauthenticated, match="is revoked"):
        recognise({key.id: revoked}, text, NOW)
    # Only who has the secret learns that.
    with pytest.raises(Unauthenticated, match="is not valid"):
        recognise({key.id: revoked}, text[:-4] + "0000", NOW)
    assert [each.state(NOW + 10) for each in (key, revoked)] == ["expired", "revoked"]


def test_its_identity() -> None:
    _, key = new_key(
        "a", NOW, scopes=Scope.ADMIN, models=("fraud-*",), rate_per_minute=60, burst=5, priority=2, expires_at=NOW + 9
    )
    found = key.identity()
    assert (found.name, found.scopes, found.models) == (f"key:{key.id}", Scope.ADMIN, ("fraud-*",))
    assert (found.rate_per_minute, found.burst, found.priority, found.expires_s) == (60, 5, 2, NOW + 9)
    assert new_key("a", NOW)[1].identity().expires_s == math.inf
    assert (found.may_use("fraud-eu"), found.may_use("iris")) == (True, False)


def test_json_there_and_back() -> None:
    for key in (
        new_key("a", NOW)[1],
        new_key("b", NOW, scopes=Scope.ADMIN | Scope.READ, models=("a", "b-*"), expires_at=NOW + 1.5)[1],
    ):
        assert ApiKey.from_json(json.loads(json.dumps(key.to_json()))) == key
    broken: list[dict[str, Any]] = [{}, {**key.to_json(), "digest": "ab"}, {**key.to_json(), "scopes": ["root"]}]
    broken += [{**key.to_json(), "id": "x"}, {**key.to_json(), "more": 1}]
    for content in broken:
        with pytest.raises((KeyError, TypeError, ValueError)):
            ApiKey.from_json(content)


@pytest.mark.parametrize(
    ("name", "attributes", "message"),
    [
        ("", {}, "no name for a key"),
        ("a" * 65, {}, "no name for a key"),
        ("a\nb", {}, "no name for a key"),
        ("0123456789ab", {}, "not an id"),
        ("nxk_webshop", {}, "may not begin with nxk_"),
        ("a", {"scopes": Scope.NONE}, "without scopes"),
        ("a", {"models": ()}, "0 model patterns"),
        ("a", {"models": ("../x",)}, "no pattern of models' ids"),
        ("a", {"models": ("a" * 129,)}, "no pattern of models' ids"),
        ("a", {"rate_per_minute": -1}, "rate_per_minute is -1; expected 0"),
        ("a", {"rate_per_minute": math.nan}, "rate_per_minute is nan"),
        ("a", {"burst": -1}, "burst is -1"),
        ("a", {"priority": 10}, "priority is 10; expected 0"),
        ("a", {"expires_at": NOW}, "expired already"),
        ("a", {"expires_at": math.inf}, "expected a time to come"),
    ],
)
def test_what_no_key_may_have(name: str, attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        new_key(name, NOW, **attributes)


def test_parse() -> None:
    text, key = new_key("a", NOW)
    assert parse(text) == (key.id, text[17:])

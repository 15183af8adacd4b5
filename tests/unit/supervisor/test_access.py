"""Keys and issuers, watched: what the fronts are sent when, and what is written down of them. A real registry."""

import asyncio
import json
import os
import pathlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from typing import Any

import pytest

from nexus_grpc.access.identity import Scope
from nexus_grpc.access.keys import ApiKey, new_key
from nexus_grpc.configuration import ConfigurationError
from nexus_grpc.ipc.control import Message
from nexus_grpc.ipc.errors import StorageFailed, Unauthenticated
from nexus_grpc.registry.open import open_registry
from nexus_grpc.registry.store import Registry
from nexus_grpc.settings import Settings
from nexus_grpc.supervisor import access
from nexus_grpc.supervisor.access import AccessKeeper
from tests.unit.access.support import ISSUER, jwk, key_set, rsa_key

TRUST = """
[[issuer]]
issuer = "https://login.example"
audience = "nexus"
algorithms = ["RS256"]
jwks_file = "keys.json"
"""


class Nobody:
    """A connection without anything to tell."""

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOOK_SECONDS", "ISSUERS_SECONDS", "NOTE_SECONDS", "AWAY_SECONDS"):
        monkeypatch.setattr(access, name, 0.01)


@pytest.fixture
def registry(tmp_path: pathlib.Path) -> Iterator[Registry]:
    """The server's."""
    with closing(open_registry("", tmp_path)) as opened:
        yield opened


@pytest.fixture
def command_line(tmp_path: pathlib.Path, registry: Registry) -> Iterator[Registry]:
    """Another process's view of it."""
    with closing(open_registry("", tmp_path, keeps_snapshot=False)) as opened:
        yield opened


def keeper(tmp_path: pathlib.Path, registry: Registry, sent: list[Message], **settings: Any) -> AccessKeeper:
    async def registry_call(method: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.to_thread(method, *arguments)

    made = Settings(data_dir=tmp_path, auth="required", **settings)
    return AccessKeeper(made, registry, registry_call, sent.append)


@asynccontextmanager
async def watching(kept: AccessKeeper) -> AsyncIterator[None]:
    kept.begin()
    kept.start()
    try:
        yield
    finally:
        await kept.stop()


async def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def a_key(name: str) -> tuple[str, ApiKey]:
    return new_key(name, time.time(), scopes=Scope.READ)


def names(message: Message) -> list[str]:
    return [key["name"] for key in message["keys"]]


def test_a_start_knows_the_keys_and_sends_nothing(tmp_path: pathlib.Path, registry: Registry) -> None:
    sent: list[Message] = []
    text, key = a_key("first")
    registry.add_key(key)

    async def go() -> None:
        kept = keeper(tmp_path, registry, sent)
        async with watching(kept):
            assert names(kept.message()) == ["first"]
            assert kept.message()["type"] == "access"
            assert kept.gate.admit(Scope.READ, (("x-api-key", text),), Nobody()).name == f"key:{key.id}"
            await asyncio.sleep(0.1)

    asyncio.run(go())
    assert sent == []


def test_what_another_process_changes_is_sent(
    tmp_path: pathlib.Path, registry: Registry, command_line: Registry
) -> None:
    sent: list[Message] = []
    text, key = a_key("made later")

    async def go() -> None:
        kept = keeper(tmp_path, registry, sent)
        async with watching(kept):
            command_line.add_key(key)
            await until(lambda: len(sent) == 1)
            assert names(sent[0]) == ["made later"]
            # A control message is JSON.
            assert json.loads(json.dumps(sent[0])) == sent[0]
            kept.gate.admit(Scope.READ, (("x-api-key", text),), Nobody())
            command_line.revoke_key(key.id, "test", time.time())
            await until(lambda: len(sent) == 2)
            with pytest.raises(Unauthenticated):
                kept.gate.admit(Scope.READ, (("x-api-key", text),), Nobody())

    asyncio.run(go())


def test_when_keys_were_used_is_written_down(tmp_path: pathlib.Path, registry: Registry) -> None:
    (_, first), (text, second), (_, third) = a_key("1"), a_key("2"), a_key("3")
    for key in (first, second, third):
        registry.add_key(key)
    now = time.time()
    sent: list[Message] = []

    def used() -> dict[str, float | None]:
        return {key.name: key.last_used_at for key in registry.list_keys()}

    async def go() -> None:
        kept = keeper(tmp_path, registry, sent)
        async with watching(kept):
            # Of two fronts; the later one counts, whoever told last.
            kept.heard({"used": {first.id: now}, "unknown": []})
            kept.heard({"used": {first.id: now - 10}, "unknown": []})
            kept.gate.admit(Scope.READ, (("x-api-key", text),), Nobody())
            await until(lambda: used()["1"] is not None and used()["2"] is not None)

    asyncio.run(go())
    assert used()["1"] == pytest.approx(now, abs=1)
    assert used()["3"] is None
    # That is no change of what the fronts go by.
    assert sent == []


def test_what_was_used_last_is_written_down_at_the_end(
    tmp_path: pathlib.Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "NOTE_SECONDS", 60.0)
    _, key = a_key("1")
    registry.add_key(key)

    async def go() -> None:
        kept = keeper(tmp_path, registry, [])
        async with watching(kept):
            kept.heard({"used": {key.id: time.time()}, "unknown": []})

    asyncio.run(go())
    assert registry.list_keys()[0].last_used_at is not None


def test_a_registry_that_is_away_comes_back(
    tmp_path: pathlib.Path, registry: Registry, command_line: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Message] = []
    is_away = False

    def perhaps(*arguments: Any, **more: Any) -> Registry:
        if is_away:
            raise StorageFailed("away")
        opened = open_registry(*arguments, **more)
        epoch = opened.keys_epoch

        def asked() -> int:
            if is_away:
                raise StorageFailed("away")
            return epoch()

        monkeypatch.setattr(opened, "keys_epoch", asked)
        return opened

    monkeypatch.setattr(access, "open_registry", perhaps)

    async def go() -> None:
        nonlocal is_away
        kept = keeper(tmp_path, registry, sent)
        async with watching(kept):
            await until(lambda: kept._watched is not None)
            is_away = True
            await until(lambda: kept._watched is None)
            command_line.add_key(a_key("meanwhile")[1])
            await asyncio.sleep(0.1)
            assert sent == []
            is_away = False
            await until(lambda: sent)
            assert names(sent[0]) == ["meanwhile"]

    asyncio.run(go())


def test_issuers_keys_are_watched(tmp_path: pathlib.Path, registry: Registry) -> None:
    sent: list[Message] = []
    file = tmp_path / "keys.json"
    file.write_bytes(key_set(jwk(rsa_key(0), "one")))
    (tmp_path / "trust.toml").write_text(TRUST)

    async def go() -> None:
        kept = keeper(tmp_path, registry, sent, jwt_issuers=str(tmp_path / "trust.toml"))
        async with watching(kept):
            assert [key["kid"] for key in kept.message()["jwks"][ISSUER]] == ["one"]
            fresh = tmp_path / "fresh"
            fresh.write_bytes(key_set(jwk(rsa_key(0), "one"), jwk(rsa_key(1), "two")))
            os.replace(fresh, file)
            await until(lambda: sent)
            assert [key["kid"] for key in sent[-1]["jwks"][ISSUER]] == ["one", "two"]
            assert sent[-1]["trust"]["issuer"][0]["issuer"] == ISSUER
            kept.heard({"used": {}, "unknown": [ISSUER, "https://nobody.example"]})
            # What cannot be read leaves what was known.
            fresh.write_bytes(b"{")
            os.replace(fresh, file)
            await asyncio.sleep(0.1)
            assert len(kept.message()["jwks"][ISSUER]) == 2

    asyncio.run(go())


def test_a_configuration_that_is_wrong(tmp_path: pathlib.Path, registry: Registry) -> None:
    (tmp_path / "trust.toml").write_text("[[issuer]]\nissuer = 1\n")
    for name in ("trust.toml", "none.toml"):
        with pytest.raises(ConfigurationError, match=f"jwt_issuers: .*{name}"):
            keeper(tmp_path, registry, [], jwt_issuers=str(tmp_path / name))


def test_a_key_set_that_is_not_there(tmp_path: pathlib.Path, registry: Registry) -> None:
    (tmp_path / "trust.toml").write_text(TRUST)
    kept = keeper(tmp_path, registry, [], jwt_issuers=str(tmp_path / "trust.toml"))
    with pytest.raises(ConfigurationError, match=r"jwt_issuers: issuer .*keys\.json cannot be read"):
        kept.begin()

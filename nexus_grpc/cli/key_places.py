"""Where `nexus keys` finds the keys: in a server's registry itself, or by asking a running server."""

import contextlib
import os
import pwd
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import typer

from nexus_grpc import variables
from nexus_grpc.cli.credentials import has_credential
from nexus_grpc.cli.output import fail
from nexus_grpc.cli.remote import ask, json_of

if TYPE_CHECKING:
    from nexus_grpc.registry.store import Registry

SERVICE = "/nexus.v1.Keys/"
SECONDS = 10.0
_NO_REGISTRY = (
    ": no server has been started with it, so none would know the key. Name the server's own by --data-dir or"
    " --registry-url, as `nexus serve` has it; or ask a running server, by --address HOST:PORT and an admin's key in"
    " NEXUS_API_KEY; or, for a server that is yet to start, `nexus keys create` with --make-registry"
)

Shown = dict[str, Any]
"""What people may see of a key (ApiKey.shown)."""


class KeyPlace(Protocol):
    """Each method ends the command when it fails. `text` says which place it is."""

    text: str

    def create(self, name: str, attributes: dict[str, Any]) -> tuple[str, Shown]:
        """(the key's text, the key). `attributes`: the fields of nexus.v1.CreateKeyRequest that are given."""

    def list(self) -> list[Shown]: ...

    def revoke(self, id: str) -> Shown: ...


class RegistryKeys:
    """In a registry that this process opens."""

    def __init__(self, registry: "Registry", text: str) -> None:
        self._registry = registry
        self.text = text

    def create(self, name: str, attributes: dict[str, Any]) -> tuple[str, Shown]:
        from nexus_grpc.access.keys import asked_key

        now = time.time()
        text, key = asked_key(name, attributes, now, _actor())
        self._registry.add_key(key)
        return text, key.shown(now)

    def list(self) -> list[Shown]:
        now = time.time()
        return [key.shown(now) for key in self._registry.list_keys()]

    def revoke(self, id: str) -> Shown:
        now = time.time()
        return self._registry.revoke_key(id, _actor(), now).shown(now)


class ServerKeys:
    """Asked of a running server."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.text = f"the server at {address}"

    def create(self, name: str, attributes: dict[str, Any]) -> tuple[str, Shown]:
        from nexus_grpc.pb.nexus.v1.keys_pb2 import CreateKeyRequest, CreateKeyResponse

        answer = ask(
            self._address, SERVICE + "Create", CreateKeyRequest(name=name, **attributes), CreateKeyResponse, SECONDS
        )
        return answer.key, _shown(answer.api_key)

    def list(self) -> list[Shown]:
        from nexus_grpc.pb.nexus.v1.keys_pb2 import ListKeysRequest, ListKeysResponse

        answer = ask(self._address, SERVICE + "List", ListKeysRequest(), ListKeysResponse, SECONDS)
        return [_shown(key) for key in answer.keys]

    def revoke(self, id: str) -> Shown:
        from nexus_grpc.pb.nexus.v1.keys_pb2 import RevokeKeyRequest, RevokeKeyResponse

        answer = ask(self._address, SERVICE + "Revoke", RevokeKeyRequest(key=id), RevokeKeyResponse, SECONDS)
        return _shown(answer.api_key)


def _shown(key: Any) -> Shown:
    """As ApiKey.shown: what is empty in a message is never."""
    content = json_of(key)
    return {name: None if value == "" and name.endswith("_at") else value for name, value in content.items()}


@contextlib.contextmanager
def keys_at(
    data_dir: str | None, registry_url: str | None, config: str | None, address: str | None, *, makes: bool = False
) -> "Iterator[KeyPlace]":
    """The place that options and environment mean; errors end the command.

    Args:
        makes: make a registry where there is none.
    """
    local = [
        name
        for name, value in (("--data-dir", data_dir), ("--registry-url", registry_url), ("--config", config))
        if value
    ]
    if address and (local or makes):
        other = (local or ["--make-registry"])[0]
        raise typer.BadParameter(f"{other} names a registry and --address a server: expected one of them")
    if not address and not local and not makes and has_credential():
        address = os.environ.get(variables.ADDRESS, "")
        if address:
            other = "--data-dir or --registry-url would name a registry instead"
            typer.echo(
                f"Asking the server at {address} ({variables.ADDRESS}, with your credential; {other}).", err=True
            )
    if address:
        yield ServerKeys(address)
        return
    with _registry(data_dir, registry_url, config, makes) as registry:
        yield registry


@contextlib.contextmanager
def _registry(
    data_dir: str | None, registry_url: str | None, config: str | None, makes: bool
) -> Iterator[RegistryKeys]:
    from nexus_grpc.configuration import ConfigurationError
    from nexus_grpc.ipc.errors import NexusError
    from nexus_grpc.registry.open import open_registry
    from nexus_grpc.settings import EXIT_CONFIGURATION, load_settings
    from nexus_grpc.supervisor.data_folder import is_held

    try:
        settings = load_settings({"data_dir": data_dir, "registry_url": registry_url, "config": config})
    except ConfigurationError as error:
        fail(error.message, EXIT_CONFIGURATION)
    try:
        opened = open_registry(settings.registry_url, settings.data_dir, keeps_snapshot=False, makes=makes)
        with contextlib.closing(opened) as registry:
            used = "" if settings.registry_url else ", which no server seems to use now"
            if not settings.registry_url and is_held(settings.data_dir):
                used = ", which a running server uses"
            yield RegistryKeys(registry, f"the registry {registry.place}{used}")
    except NexusError as error:
        fail(error.message + (_NO_REGISTRY if error.reason == "NO_REGISTRY" else ""))


def _actor() -> str:
    """For the audit log: who runs this command on this machine."""
    try:
        return f"cli:{pwd.getpwuid(os.getuid()).pw_name}"
    except KeyError:
        return f"cli:{os.getuid()}"

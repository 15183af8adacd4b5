"""`nexus keys`: API keys, in the registry itself, whether a server runs or not. A running one follows at once."""

import contextlib
import datetime
import os
import pwd
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nexus_grpc.cli.arguments import parse_duration
from nexus_grpc.cli.output import fail, print_json, print_table
from nexus_grpc.cli.remote import AsJson

if TYPE_CHECKING:
    from nexus_grpc.access.identity import Scope
    from nexus_grpc.access.keys import ApiKey
    from nexus_grpc.registry.store import Registry

app = typer.Typer(
    help="Make, list and revoke API keys. They are in the server's registry: run this where the server runs, or name"
    " its --registry-url.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_RATE = re.compile(r"(\d+(?:\.\d+)?)/(s|sec|second|min|minute|h|hour)", re.ASCII)
_PER_MINUTE = {"s": 60.0, "m": 1.0, "h": 1 / 60}

DataDir = Annotated[
    str | None, typer.Option("--data-dir", metavar="PATH", help="The server's data folder. (NEXUS_DATA_DIR)")
]
RegistryUrl = Annotated[
    str | None,
    typer.Option("--registry-url", metavar="URL", help="The registry in PostgreSQL. (NEXUS_REGISTRY_URL)"),
]
Config = Annotated[str | None, typer.Option("--config", metavar="FILE", help="TOML file with settings. (NEXUS_CONFIG)")]


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="For people: who uses it, and what for.")],
    scopes: Annotated[
        str, typer.Option("--scopes", metavar="SCOPE,SCOPE", help="What it may do: some of predict, read, admin.")
    ] = "predict,read",
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", metavar="PATTERN", help="A model it may use, or a pattern; may be repeated. All if none."
        ),
    ] = None,
    rate: Annotated[
        str, typer.Option("--rate", metavar="NUMBER/UNIT", help="Requests in a while: 600/min, 10/s. Any if left out.")
    ] = "",
    burst: Annotated[
        int, typer.Option("--burst", min=0, metavar="NUMBER", help="Requests at once; 0 = the server chooses.")
    ] = 0,
    priority: Annotated[
        int, typer.Option("--priority", min=0, max=9, metavar="0-9", help="0 is shed last under overload, 9 first.")
    ] = 5,
    expires: Annotated[
        str, typer.Option("--expires", metavar="DURATION", help="When it ends, from now: 90d, 12h. Never if left out.")
    ] = "",
    data_dir: DataDir = None,
    registry_url: RegistryUrl = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Make a key, and print it: once.

    nexus keys create webshop

    nexus keys create fraud-team --model 'fraud-*' --rate 600/min --burst 50 --expires 90d

    nexus keys create deployer --scopes read,admin

    Callers send it as `authorization: Bearer KEY` or `x-api-key: KEY`. Only its hash is kept.
    """
    from nexus_grpc.access.keys import new_key

    now = time.time()
    attributes: dict[str, Any] = {
        "scopes": _parse_scopes(scopes),
        "rate_per_minute": parse_rate(rate) if rate else 0.0,
        "burst": burst,
        "priority": priority,
        "expires_at": now + parse_duration(expires) if expires else None,
        "created_by": _actor(),
    }
    if model:
        attributes["models"] = tuple(model)
    with _registry(data_dir, registry_url, config, makes=True) as registry:
        text, key = new_key(name, now, **attributes)
        registry.add_key(key)
    if as_json:
        print_json({"key": text, **_shown(key, now)})
    else:
        typer.echo(text)
        typer.echo(
            f"This is the key {key.name!r} (id {key.id}). Keep it now: only its hash is stored, it is not shown again.",
            err=True,
        )


@app.command("list")
def list_keys(
    data_dir: DataDir = None, registry_url: RegistryUrl = None, config: Config = None, as_json: AsJson = False
) -> None:
    """List the keys, without their secrets. Revoked ones stay in the list."""
    now = time.time()
    with _registry(data_dir, registry_url, config) as registry:
        shown = [_shown(key, now) for key in registry.list_keys()]
    if as_json:
        print_json({"keys": shown})
    elif shown:
        columns = ("id", "name", "scopes", "models", "rate", "expires", "last used", "state")
        print_table(columns, [_cells(each) for each in shown])
    else:
        typer.echo("There are no API keys. Make one: nexus keys create NAME")


@app.command("revoke")
def revoke(
    key: Annotated[str, typer.Argument(metavar="ID|NAME", help="As `nexus keys list` shows it; not the key itself.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    data_dir: DataDir = None,
    registry_url: RegistryUrl = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Revoke a key, for good. A running server refuses it within a second.

    nexus keys revoke webshop

    nexus keys revoke 3f9a1c0b77de --yes
    """
    from nexus_grpc.registry.api_keys import find_key

    with _registry(data_dir, registry_url, config) as registry:
        found = find_key(registry.list_keys(), key)
        if not yes:
            typer.confirm(f"Revoke the key {found.name!r} (id {found.id})?", abort=True, err=True)
        now = time.time()
        revoked = registry.revoke_key(found.id, _actor(), now)
    if as_json:
        print_json(_shown(revoked, now))
    else:
        typer.echo(f"revoked {revoked.id} ({revoked.name})")


@contextlib.contextmanager
def _registry(
    data_dir: str | None, registry_url: str | None, config: str | None, *, makes: bool = False
) -> "Iterator[Registry]":
    """The registry that the settings mean; errors end the command.

    Args:
        makes: make one if there is none: keys may be made before the server's first start.
    """
    from nexus_grpc.configuration import ConfigurationError
    from nexus_grpc.ipc.errors import NexusError
    from nexus_grpc.registry.open import open_registry
    from nexus_grpc.settings import EXIT_CONFIGURATION, load_settings

    try:
        settings = load_settings({"data_dir": data_dir, "registry_url": registry_url, "config": config})
    except ConfigurationError as error:
        fail(error.message, EXIT_CONFIGURATION)
    if not makes and not settings.registry_url:
        _expect_file(settings.data_dir)
    try:
        with contextlib.closing(
            open_registry(settings.registry_url, settings.data_dir, keeps_snapshot=False)
        ) as registry:
            yield registry
    except NexusError as error:
        fail(error.message)


def _expect_file(folder: Path) -> None:
    from nexus_grpc.registry.sqlite import FILE

    if not (folder / FILE).exists():
        # Opening would make an empty one, and the answer would be about that.
        fail(f"there is no registry in {folder.resolve()}; name the server's data folder with --data-dir")


def parse_rate(text: str) -> float:
    """Requests in a minute, of 600/min, 10/s or 1000/h.

    Raises:
        typer.BadParameter: it is none of these.
    """
    found = _RATE.fullmatch(text.replace(" ", ""))
    if found is None or not float(found[1]):
        raise typer.BadParameter(f"{text!r} is no rate; expected such as 600/min, 10/s or 1000/h", param_hint="--rate")
    return float(found[1]) * _PER_MINUTE[found[2][0]]


def _parse_scopes(text: str) -> "Scope":
    from nexus_grpc.access.keys import scopes_of

    try:
        return scopes_of([name.strip() for name in text.split(",")])
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--scopes") from None


def _actor() -> str:
    """For the audit log: who runs this command on this machine."""
    try:
        return f"cli:{pwd.getpwuid(os.getuid()).pw_name}"
    except KeyError:
        return f"cli:{os.getuid()}"


def _shown(key: "ApiKey", now: float) -> dict[str, Any]:
    """What people may see of a key: not its digest."""
    content = key.to_json()
    del content["digest"]
    for name in ("created_at", "expires_at", "last_used_at", "revoked_at"):
        content[name] = None if content[name] is None else _time_text(content[name])
    return {**content, "state": key.state(now)}


def _cells(shown: dict[str, Any]) -> tuple[object, ...]:
    return (
        shown["id"],
        shown["name"],
        ",".join(shown["scopes"]),
        ",".join(shown["models"]),
        f"{shown['rate_per_minute']:g}/min" if shown["rate_per_minute"] else "any",
        shown["expires_at"] or "never",
        shown["last_used_at"] or "never",
        shown["state"],
    )


def _time_text(seconds: float) -> str:
    """RFC 3339, UTC, to the second."""
    try:
        at = datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)
    except (ValueError, OverflowError, OSError):
        # Further away than the calendar goes.
        return "never"
    return at.isoformat().replace("+00:00", "Z")

"""`nexus keys`: API keys, in the registry itself, whether a server runs or not, or by asking a running server."""

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nexus_grpc.cli.arguments import parse_duration
from nexus_grpc.cli.credentials import RemoteTyper
from nexus_grpc.cli.key_places import keys_at
from nexus_grpc.cli.output import fail, print_json, print_table
from nexus_grpc.cli.remote import AsJson

if TYPE_CHECKING:
    from nexus_grpc.cli.key_places import Shown

app = RemoteTyper(
    help="Make, list and revoke API keys. They are in the server's registry: run this where the server runs, or name"
    " its --registry-url; or ask a running server, by --address and an admin's key in NEXUS_API_KEY. Each command says"
    " which it works on.",
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
ServerAddress = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="HOST:PORT",
        help="A running server's gRPC port, instead of the registry. Needs a credential with the scope admin in"
        " NEXUS_API_KEY or NEXUS_TOKEN. (NEXUS_ADDRESS, where there is one)",
    ),
]


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
    make_registry: Annotated[
        bool, typer.Option("--make-registry", help="Make the registry if there is none: for a server yet to start.")
    ] = False,
    data_dir: DataDir = None,
    registry_url: RegistryUrl = None,
    config: Config = None,
    address: ServerAddress = None,
    as_json: AsJson = False,
) -> None:
    """Make a key, and print it: once.

    nexus keys create webshop

    nexus keys create fraud-team --model 'fraud-*' --rate 600/min --burst 50 --expires 90d

    nexus keys create deployer --scopes read,admin

    Callers send it as `authorization: Bearer KEY` or `x-api-key: KEY`. Only its hash is kept.
    """
    attributes: dict[str, Any] = {"scopes": _parse_scopes(scopes), "burst": burst, "priority": priority}
    if model:
        attributes["models"] = model
    if rate:
        attributes["rate_per_minute"] = parse_rate(rate)
    if expires:
        attributes["expires_in_seconds"] = parse_duration(expires)
    with keys_at(data_dir, registry_url, config, address, makes=make_registry) as place:
        text, key = place.create(name, attributes)
    if as_json:
        print_json({"key": text, **key})
    else:
        typer.echo(text)
    typer.echo(
        f"This is the key {key['name']!r} (id {key['id']}) of {place.text}. Keep it now: only its hash is stored, it is"
        " not shown again.",
        err=True,
    )


@app.command("list")
def list_keys(
    data_dir: DataDir = None,
    registry_url: RegistryUrl = None,
    config: Config = None,
    address: ServerAddress = None,
    as_json: AsJson = False,
) -> None:
    """List the keys, without their secrets. Revoked ones stay in the list."""
    with keys_at(data_dir, registry_url, config, address) as place:
        keys = place.list()
    typer.echo(f"Keys of {place.text}:", err=True)
    if as_json:
        print_json({"keys": keys})
    elif keys:
        columns = ("id", "name", "scopes", "models", "rate", "expires", "last used", "state")
        print_table(columns, [_cells(each) for each in keys])
    else:
        typer.echo("There are no API keys. Make one: nexus keys create NAME")


@app.command("revoke")
def revoke(
    key: Annotated[str, typer.Argument(metavar="ID|NAME", help="As `nexus keys list` shows it; not the key itself.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    data_dir: DataDir = None,
    registry_url: RegistryUrl = None,
    config: Config = None,
    address: ServerAddress = None,
    as_json: AsJson = False,
) -> None:
    """Revoke a key, for good. A running server refuses it within a second.

    nexus keys revoke webshop

    nexus keys revoke 3f9a1c0b77de --yes
    """
    with keys_at(data_dir, registry_url, config, address) as place:
        found = _find(place.list(), key)
        if not yes:
            question = f"Revoke the key {found['name']!r} (id {found['id']}) of {place.text}?"
            typer.confirm(question, abort=True, err=True)
        revoked = place.revoke(found["id"])
    if as_json:
        print_json(revoked)
    else:
        typer.echo(f"revoked {revoked['id']} ({revoked['name']})")
        typer.echo(f"It was a key of {place.text}.", err=True)


def _find(keys: "list[Shown]", wanted: str) -> "Shown":
    """By id, or by name among those that are not revoked; else the command ends."""
    for key in keys:
        if key["id"] == wanted or (key["name"] == wanted and key["revoked_at"] is None):
            return key
    # Not a word of it: people paste the key itself here.
    fail("there is no API key of that id or name; `nexus keys list` shows them")


def parse_rate(text: str) -> float:
    """Requests in a minute, of 600/min, 10/s or 1000/h.

    Raises:
        typer.BadParameter: it is none of these.
    """
    found = _RATE.fullmatch(text.replace(" ", ""))
    if found is None or not float(found[1]):
        raise typer.BadParameter(f"{text!r} is no rate; expected such as 600/min, 10/s or 1000/h", param_hint="--rate")
    return float(found[1]) * _PER_MINUTE[found[2][0]]


def _parse_scopes(text: str) -> list[str]:
    from nexus_grpc.access.keys import scope_names, scopes_of

    try:
        return list(scope_names(scopes_of([name.strip() for name in text.split(",")])))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--scopes") from None


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

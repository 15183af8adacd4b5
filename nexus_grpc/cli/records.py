"""What the registry says of models: `nexus models history`, `register` and `update`."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from nexus_grpc.cli.arguments import parse_labels
from nexus_grpc.cli.output import print_json, print_table
from nexus_grpc.cli.remote import DEFAULT_ADDRESS, MODELS, Address, AsJson, Timeout, ask, json_of

if TYPE_CHECKING:
    from nexus_grpc.pb.nexus.v1.models_pb2 import HistoryEntry, ModelRecord


Labels = Annotated[
    list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="A label; may be given several times.")
]
Stage = Annotated[str, typer.Option("--stage", help="The version's stage: none, staging, production or archived.")]


def history(
    name: Annotated[str, typer.Argument(metavar="[MODEL]", help="A model's id; all models if left out.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="At most so many entries.")] = 20,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 10.0,
    as_json: AsJson = False,
) -> None:
    """Show who did what to a model, newest first."""
    from nexus_grpc.pb.nexus.v1.models_pb2 import ModelHistoryRequest, ModelHistoryResponse

    request = ModelHistoryRequest(id=name, limit=limit)
    answer = ask(address, MODELS + "History", request, ModelHistoryResponse, timeout)
    if as_json:
        print_json(json_of(answer))
    elif answer.entries:
        columns = ("", "at", "by", "action", "model", "version", "detail")
        print_table(columns, [_history_row(entry) for entry in answer.entries])
    else:
        typer.echo("Nothing has been done yet.")


def _history_row(entry: "HistoryEntry") -> tuple[object, ...]:
    return (entry.sequence, entry.at, entry.actor, entry.action, entry.model, entry.version, _detail_text(entry.detail))


def _detail_text(detail: str) -> str:
    """The details, which are JSON, as `name: value`, each value as JSON."""
    try:
        content = json.loads(detail) if detail else {}
    except ValueError:
        return detail
    if not isinstance(content, dict):
        return detail
    return ", ".join(
        f"{key}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for key, value in content.items()
    )


def register(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="The model's id.")],
    display_name: Annotated[str, typer.Option("--name", help="A name for people; the id if left out.")] = "",
    version: Annotated[
        str, typer.Option("--version", help="A version to come; a record of the model alone if left out.")
    ] = "",
    description: Annotated[str, typer.Option("--description", help="What the model is for.")] = "",
    labels: Labels = None,
    stage: Stage = "",
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 10.0,
    as_json: AsJson = False,
) -> None:
    """Make a record ahead of its file.

    nexus models register iris --version 3 --stage staging
    """
    from nexus_grpc.pb.nexus.v1.models_pb2 import ModelRecord, RegisterModelRequest

    request = RegisterModelRequest(
        id=name,
        name=display_name,
        version=version,
        description=description,
        labels=parse_labels(labels or ()),
        stage=stage,
    )
    _print_record(ask(address, MODELS + "Register", request, ModelRecord, timeout), as_json)


def update(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="The model's id.")],
    display_name: Annotated[str, typer.Option("--name", help="A name for people.")] = "",
    version: Annotated[str, typer.Option("--version", help="The version whose stage and labels are meant.")] = "",
    description: Annotated[str, typer.Option("--description", help="What the model is for.")] = "",
    labels: Labels = None,
    stage: Stage = "",
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 10.0,
    as_json: AsJson = False,
) -> None:
    """Change a record.

    nexus models update iris --version 2 --stage production

    What is not given stays; labels replace all that are there.
    """
    from nexus_grpc.pb.nexus.v1.models_pb2 import ModelRecord, UpdateRecordRequest

    if not (display_name or description or labels or stage):
        raise typer.BadParameter("nothing to change: give --name, --description, --label or --stage")
    if stage and not version:
        raise typer.BadParameter("a stage is a version's: give --version", param_hint="--stage")
    request = UpdateRecordRequest(
        id=name,
        name=display_name,
        version=version,
        description=description,
        labels=parse_labels(labels or ()),
        stage=stage,
    )
    _print_record(ask(address, MODELS + "UpdateRecord", request, ModelRecord, timeout), as_json)


def _print_record(record: "ModelRecord", as_json: bool) -> None:
    if as_json:
        print_json(json_of(record))
        return
    facts: list[tuple[str, object]] = [
        ("name", record.name),
        ("description", record.description),
        ("labels", _labels_text(dict(record.labels))),
        ("active version", record.active_version),
        ("created", f"{record.created_at} by {record.created_by}" if record.created_at else ""),
    ]
    print_table((record.id, ""), [fact for fact in facts if fact[1]])
    rows = [
        (each.version, each.version_name, each.stage, each.state, _labels_text(dict(each.labels)))
        for each in record.versions
    ]
    if rows:
        print_table(("version", "called", "stage", "state", "labels"), rows)


def _labels_text(labels: dict[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(labels.items()))

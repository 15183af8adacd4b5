"""What the commands print: tables for people, JSON for programs, one line for an error."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import NoReturn

import typer


def print_json(value: object) -> None:
    """Writes JSON to standard output."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> None:
    """Writes a table to standard output; as wide as its contents where that is no terminal."""
    # Late: rich takes longer to import than most commands to run.
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(one_line(title)) if title else None, title_justify="left", box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        # Text: what a server sent must not be taken for rich's markup.
        table.add_row(*(Text(one_line(str(cell))) for cell in row))
    if sys.stdout.isatty():
        Console().print(table)
        return
    console = Console(width=400)
    with console.capture() as captured:
        console.print(table)
    typer.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def one_line(text: str) -> str:
    """The text without line breaks and control characters, which could drive the terminal."""
    return text if text.isprintable() else repr(text)[1:-1]


def fail(message: str, exit_code: int = 1) -> NoReturn:
    """Writes `error: ` and each line of the message to standard error, and ends the command.

    Raises:
        typer.Exit: always.
    """
    for line in message.splitlines() or [""]:
        typer.echo(f"error: {one_line(line)}", err=True)
    raise typer.Exit(exit_code)

"""The `nexus` command. Exit codes: 0 fine, 1 failed, 2 wrong usage, 78 wrong configuration.

One module per command. grpc, onnxruntime and pydantic are imported inside the commands that need them, which keeps
`nexus --help` quick.
"""

import importlib.metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from nexus_grpc.cli import ab, doctor, envoy, health, keys, models, predict, rollback, serve
from nexus_grpc.cli.credentials import with_tls


class Commands(TyperGroup):
    """The commands; of one that is in a group it is said where."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As its base has it. Raises what Context.fail does."""
        if args and args[0] not in self.commands:
            groups = [name for name, each in self.commands.items() if args[0] in getattr(each, "commands", ())]
            if groups:
                ctx.fail(f"No such command {args[0]!r}. Did you mean `nexus {groups[0]} {args[0]}`?")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="nexus",
    cls=Commands,
    help="Nexus gRPC: an inference server for ONNX models.",
    no_args_is_help=True,
    # Rich's help cuts long option names to fit 80 columns.
    rich_markup_mode=None,
    # Rich tracebacks show local variables, which may hold requests.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("serve", context_settings=serve.CONTEXT_SETTINGS)(serve.serve)
app.command("predict", context_settings=predict.CONTEXT_SETTINGS)(with_tls(predict.predict))
app.command("doctor")(doctor.doctor)
app.command("health")(with_tls(health.health))
app.command("rollback")(with_tls(rollback.rollback))
app.add_typer(models.app, name="models")
app.add_typer(ab.app, name="ab")
app.add_typer(keys.app, name="keys")
app.add_typer(envoy.app, name="envoy")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nexus {importlib.metadata.version('nexus-grpc')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Runs the command line; never returns. Ctrl-C ends it with 130 and no words (as a shell expects of SIGINT)."""
    try:
        app()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()

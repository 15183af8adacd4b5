"""`nexus serve`: starts the server. Its options are made from the declarations in nexus_grpc/settings.py."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from nexus_grpc.cli.output import fail

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

# `serve` hands all of its arguments, --help included, to the command that `options_command` builds.
CONTEXT_SETTINGS: dict[str, Any] = {
    "ignore_unknown_options": True,
    "allow_extra_args": True,
    "help_option_names": [],
}


def serve(context: typer.Context) -> None:
    """Start the server on this machine."""
    # Two steps, because building the options imports pydantic, which no other command should wait for.
    options_command(_run)(args=context.args, prog_name=context.command_path)


def options_command(
    run: Callable[[dict[str, Any]], None],
    title: str = "Start the server on this machine.",
    own: Mapping[str, tuple[type, Any]] | None = None,
) -> typer.Typer:
    """A command with one option per setting, and --config; it passes to `run` what was given, by field name.

    Args:
        title: the first sentence of its help.
        own: further options: name -> (type, typer.Option).
    """
    from nexus_grpc.settings import CONFIG_VARIABLE, Settings

    def command(**given: Any) -> None:
        run({name: value for name, value in given.items() if value is not None})

    config = typer.Option("--config", metavar="FILE", help=f"TOML file with settings. ({CONFIG_VARIABLE})")
    parameters = [_parameter(name, kind, option) for name, (kind, option) in (own or {}).items()]
    parameters.append(_parameter("config", str, config))
    # What most people look for first: not what comes from the base classes.
    names = sorted(Settings.model_fields, key=lambda name: name not in Settings.__annotations__)
    parameters += [_setting_parameter(name, Settings.model_fields[name]) for name in names]
    # Typer reads a function's signature: this one has the settings for parameters.
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__doc__ = (
        f"{title}\n\n"
        "Each option may also be given as the environment variable named in parentheses or as a key of nexus.toml; "
        "a flag wins over the environment, and the environment over the file."
    )
    app = typer.Typer(
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.command()(command)
    return app


def _setting_parameter(name: str, field: "FieldInfo") -> inspect.Parameter:
    from nexus_grpc.settings import flag_name, variable_name

    flag = flag_name(name)
    text = f"{field.description} ({variable_name(name)}{_default(field.default)})"
    if field.annotation is bool:
        both = f"{flag}/--no-{flag.removeprefix('--')}"
        return _parameter(name, bool, typer.Option(both, help=text, show_default=False))
    # Text, whatever the type: Settings converts and checks, with the same message for a flag as for a variable.
    return _parameter(name, str, typer.Option(flag, help=text, metavar=_metavar(field), show_default=False))


def _default(default: object) -> str:
    if isinstance(default, bool):
        default = "on" if default else "off"
    if default == ():
        return ""
    return f", default {default}" if str(default) else ""


def _parameter(name: str, kind: type, option: Any) -> inspect.Parameter:
    annotation = Annotated[kind | None, option]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _metavar(field: "FieldInfo") -> str:
    choices = get_args(field.annotation)
    if Ellipsis in choices:
        return "TEXT,TEXT"
    if choices:
        return "|".join(str(choice) for choice in choices)
    names: dict[object, str] = {int: "NUMBER", float: "NUMBER", Path: "PATH"}
    return names.get(field.annotation, "TEXT")


def _run(given: dict[str, Any]) -> None:
    from nexus_grpc.configuration import ConfigurationError
    from nexus_grpc.settings import EXIT_CONFIGURATION, load_settings

    try:
        settings = load_settings(given)
        from nexus_grpc.supervisor.main import run

        exit_code = run(settings)
    except ConfigurationError as error:
        fail(error.message, EXIT_CONFIGURATION)
    raise SystemExit(exit_code)

"""`nexus envoy`: for those who run an Envoy of their own (`nexus serve --envoy external`)."""

from typing import Any

import typer

from nexus_grpc.cli.output import fail, print_json
from nexus_grpc.cli.serve import CONTEXT_SETTINGS, options_command

app = typer.Typer(help="Run an Envoy of your own.", no_args_is_help=True, rich_markup_mode=None)

_TITLE = (
    "Print Envoy's bootstrap, as JSON: nexus envoy bootstrap > nexus.json; envoy -c nexus.json. "
    "Give it the settings that the server has. "
    "It asks for no client certificates: of those the server believes its sidecar alone."
)
_UPSTREAM = typer.Option(
    "--upstream", metavar="HOST:PORT", help="Where Envoy finds the gRPC port, if not at --host and --grpc-port."
)
_METRICS = typer.Option(
    "--metrics", metavar="HOST:PORT", help="Where Envoy finds the metrics, if not at --host and --metrics-port."
)
_ACCESS_LOG = typer.Option("--access-log", metavar="FILE", help="Envoy's access log. (default /dev/stdout)")


@app.command("bootstrap", context_settings=CONTEXT_SETTINGS)
def bootstrap(context: typer.Context) -> None:
    """Print Envoy's bootstrap."""
    own = {"upstream": (str, _UPSTREAM), "metrics": (str, _METRICS), "access_log": (str, _ACCESS_LOG)}
    options_command(_run, _TITLE, own)(args=context.args, prog_name=context.command_path)


def _run(given: dict[str, Any]) -> None:
    import dataclasses

    from nexus_grpc.configuration import ConfigurationError
    from nexus_grpc.rest.bootstrap import render_bootstrap
    from nexus_grpc.settings import EXIT_CONFIGURATION, load_settings
    from nexus_grpc.supervisor.envoy_setup import check_address, options_of

    try:
        upstream, metrics = (check_address(given.pop(name, ""), f"--{name}") for name in ("upstream", "metrics"))
        access_log = given.pop("access_log", "/dev/stdout")
        settings = load_settings(given)
        if not settings.rest_port:
            raise ConfigurationError("rest_port = 0: there is no REST interface; give --rest-port")
        options = options_of(settings, [upstream] if upstream else [], metrics)
    except ConfigurationError as error:
        fail(error.message, EXIT_CONFIGURATION)
    print_json(render_bootstrap(dataclasses.replace(options, access_log=access_log)))

"""`nexus doctor`: whether this machine and this configuration can run the server, and what to do where not."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from nexus_grpc.cli.output import print_json, print_table
from nexus_grpc.cli.remote import AsJson


def doctor(
    config: Annotated[Path | None, typer.Option("--config", metavar="FILE", help="TOML file with settings.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check this machine and the configuration."""
    from nexus_grpc.cli.checks import run_checks

    findings = run_checks(config)
    states = Counter(finding.state for finding in findings)
    if as_json:
        print_json({"findings": [asdict(finding) for finding in findings], "failed": states["fail"]})
    else:
        print_table(
            ("", "check", "found", "what to do"),
            [(finding.state, finding.check, finding.found, finding.advice) for finding in findings],
        )
        typer.echo(f"{states['ok']} ok, {states['warn']} to look at, {states['fail']} failed")
    if states["fail"]:
        raise typer.Exit(1)

"""What `nexus serve` tells once it serves: what listens where, which models are ready, what to try."""

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nexus_grpc import compiled, logs
from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from nexus_grpc.settings import Settings, is_loopback
from nexus_grpc.supervisor.catalogue import READY, UNLOADED, Catalogue, Version
from nexus_grpc.supervisor.envoy_setup import address_of

# Shown in full up to here; a server with more models points to `nexus models list`.
MODELS_SHOWN_MAX = 25
TENSORS_SHOWN_MAX = 4


def announce(settings: Settings, catalogue: Catalogue, worker_cores: list[list[int]], seconds: float) -> None:
    """Log that it serves, and what it doesn't, and print the table. `seconds` is how long the start took."""
    log = logs.logger()
    for version in catalogue.listed:
        if version.state not in (READY, UNLOADED):
            log.error("model unavailable", model=version.name, version=version.version, reason=version.reason)
    log.info(
        "serving",
        grpc=address_of(settings.host, settings.grpc_port),
        rest=_rest(settings),
        models=catalogue.ready_count,
        fronts=settings.fronts,
        workers=len(worker_cores),
        hot_path=_hot_path(settings),
        seconds=round(seconds, 2),
    )
    exposed = clear_text(settings)
    if exposed:
        advice = "use TLS (see `nexus doctor`), unless whoever is on the way may have them"
        log.warning("credentials travel in clear text", addresses=exposed, advice=advice)
    print_banner(settings, catalogue, worker_cores)


def clear_text(settings: Settings) -> list[str]:
    """Where other machines may send credentials without TLS: the addresses; none if callers need no credentials.

    Without the metrics' port, which has no TLS to turn on (SECURITY.md), and an Envoy of somebody else's.
    """
    if settings.auth == "off":
        return []
    ports = [(settings.host, settings.grpc_port, settings.grpc_tls_certificate)]
    if settings.envoy == "sidecar":
        ports.append((settings.rest_address, settings.rest_port, settings.rest_tls_certificate))
    return [address_of(host, port) for host, port, tls in ports if port and not tls and not is_loopback(host)]


def _hot_path(settings: Settings) -> str:
    reason = compiled.why_not() if settings.compiled else "--no-compiled"
    return f"sources ({reason})" if reason else "compiled"


def print_banner(settings: Settings, catalogue: Catalogue, worker_cores: list[list[int]]) -> None:
    """Print the table to standard output."""
    console = Console(highlight=False, soft_wrap=False)
    console.print(_listeners(settings, worker_cores))
    console.print(_models(catalogue) if catalogue.listed else _no_models(settings))
    examples = _examples(settings, catalogue)
    if examples:
        console.print("Try:", style="bold")
    for example in examples:
        console.print(f"  {example}", soft_wrap=True, markup=False)
    if settings.rest_port and settings.envoy == "external":
        console.print("Your Envoy's bootstrap: nexus envoy bootstrap, with the same settings", style="dim")
    console.print("Stop with Ctrl-C: requests in flight are finished first.", style="dim")


def _listeners(settings: Settings, worker_cores: list[list[int]]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_row("REST", _rest(settings))
    table.add_row("gRPC", address_of(settings.host, settings.grpc_port))
    metrics = f"http://{settings.host}:{settings.metrics_port}/metrics" if settings.metrics_port else "off"
    table.add_row("metrics", metrics)
    table.add_row("fronts", str(settings.fronts))
    cores = "; ".join(",".join(str(core) for core in cores) for cores in worker_cores)
    table.add_row("workers", f"{len(worker_cores)} (cores {cores})")
    return table


def _models(catalogue: Catalogue) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("model", "version", "state", "inputs", "outputs"):
        table.add_column(title, overflow="fold")
    shown = [version for version in catalogue.listed if version.state != UNLOADED]
    for version in shown[:MODELS_SHOWN_MAX]:
        if version.state == READY:
            metadata = _metadata(version)
            table.add_row(version.name, version.version, "ready", _tensors(metadata.inputs), _tensors(metadata.outputs))
        else:
            table.add_row(version.name, version.version, f"[red]{version.state.lower()}[/red]", version.reason, "")
    hidden = len(shown) - MODELS_SHOWN_MAX
    if hidden > 0:
        table.add_row(f"… and {hidden} more", "", "", "see `nexus models list`", "")
    return table


def _no_models(settings: Settings) -> Text:
    folder = settings.model_repository
    return Text(
        f"No models yet. Put one at {folder / 'NAME' / '1' / 'model.onnx'}, or upload one: {_command()} models upload"
        " FILE --id NAME"
    )


def _metadata(version: Version) -> pb.ModelMetadataResponse:
    import base64

    return pb.ModelMetadataResponse.FromString(base64.b64decode(version.metadata))


def _tensors(tensors: Any) -> str:
    shown = [f"{t.name} {t.datatype}\\[{','.join(str(dim) for dim in t.shape)}]" for t in tensors[:TENSORS_SHOWN_MAX]]
    more = len(tensors) - TENSORS_SHOWN_MAX
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _rest(settings: Settings) -> str:
    """The REST interface's URL, or why there is none."""
    if not settings.rest_port:
        return "off"
    scheme = "https" if settings.rest_tls_certificate else "http"
    url = f"{scheme}://{address_of(settings.rest_address, settings.rest_port)}"
    return f"{url} (by an Envoy of yours)" if settings.envoy == "external" else url


def _examples(settings: Settings, catalogue: Catalogue) -> list[str]:
    """A curl and a grpcurl line for the first ready model that takes a flat row of numbers."""
    request = _example_request(catalogue)
    if not request:
        return []
    address = address_of(settings.host, settings.grpc_port)
    header = ' -H "x-api-key: $NEXUS_API_KEY"' if settings.auth == "required" else ""
    text = "" if settings.grpc_tls_certificate else " -plaintext"
    lines = [f"grpcurl{text}{header} -d {shlex.quote(request)} {address} nexus.v1.Inference/Predict"]
    if settings.rest_port:
        # Not --json, which curl has since 7.82.
        body = f"-H 'content-type: application/json' -d {shlex.quote(request)}"
        lines.insert(0, f"curl {_rest(settings).split()[0]}/predict{header} {body}")
    if header:
        # A registry's URL may have a password.
        where = "--registry-url …" if settings.registry_url else f"--data-dir {shlex.quote(str(settings.data_dir))}"
        lines.insert(0, f"export NEXUS_API_KEY=$({_command()} keys create me {where})")
    return lines


def _command() -> str:
    """`nexus` as a shell in this folder finds it."""
    program = Path(sys.argv[0]).absolute()
    if program.name != "nexus":  # started by `python -m`: the one of the same environment
        program = Path(sys.executable).with_name("nexus")
        if not program.is_file():
            return f"{shlex.quote(sys.executable)} -m nexus_grpc.cli.main"
    found = shutil.which("nexus")
    if found and Path(found).resolve() == program.resolve():
        return "nexus"
    inside = program.is_relative_to(Path.cwd())
    return shlex.quote(str(program.relative_to(Path.cwd()) if inside else program))


def _example_request(catalogue: Catalogue) -> str:
    """The JSON of a Predict request, empty if there is no such model."""
    ready = [version for version in catalogue.listed if version.state == READY]
    for version in sorted(ready, key=lambda item: item.name != "iris"):
        inputs = _metadata(version).inputs
        if len(inputs) == 1 and inputs[0].datatype.startswith("FP") and list(inputs[0].shape[:1]) == [-1]:
            count = 1
            for dim in inputs[0].shape[1:]:
                count *= max(dim, 1)
            features = [5.1, 3.5, 1.4, 0.2] if version.name == "iris" else [0.0] * count
            return json.dumps({"model_id": version.name, "features": features})
    return ""

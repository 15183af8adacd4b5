"""What a command shows a server: a credential, and how it trusts the server's certificate.

Credentials come from the environment alone: `ps` shows every user a command's flags.
"""

import functools
import inspect
import os
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nexus_grpc import variables
from nexus_grpc.cli.output import fail

if TYPE_CHECKING:
    import grpc

API_KEY_VARIABLE, TOKEN_VARIABLE = variables.API_KEY, variables.TOKEN
CA_VARIABLE, CERTIFICATE_VARIABLE, KEY_VARIABLE = variables.TLS_CA, variables.TLS_CERTIFICATE, variables.TLS_KEY
# Instead of a file: the authorities that this machine trusts.
SYSTEM = "system"

_TLS_CA = ContextVar("tls_ca", default="")
_OPTION = typer.Option(
    "--tls-ca",
    envvar=CA_VARIABLE,
    metavar="FILE",
    help=f"PEM file with the authorities that sign the server's certificate, or `{SYSTEM}`; plain text if left out.",
    show_default=False,
)


def with_tls(command: Callable[..., None]) -> Callable[..., None]:
    """A command that has the option --tls-ca besides its own."""

    @functools.wraps(command)
    def run(*, tls_ca: str, **given: Any) -> None:
        token = _TLS_CA.set(tls_ca)
        try:
            command(**given)
        finally:
            _TLS_CA.reset(token)

    # Typer reads a function's signature.
    own = inspect.signature(command, eval_str=True)
    option = inspect.Parameter("tls_ca", inspect.Parameter.KEYWORD_ONLY, default="", annotation=Annotated[str, _OPTION])
    run.__signature__ = own.replace(parameters=[*own.parameters.values(), option])  # type: ignore[attr-defined]
    return run


class RemoteTyper(typer.Typer):
    """A group of commands that all call a server, each of them `with_tls`."""

    def command(self, *arguments: Any, **options: Any) -> Callable[[Any], Any]:
        """As typer.Typer.command."""
        register = super().command(*arguments, **options)

        def decorate(command: Callable[..., None]) -> Callable[..., None]:
            register(with_tls(command))
            return command

        return decorate


def has_credential() -> bool:
    """Whether the environment has one."""
    return bool(_variable(API_KEY_VARIABLE) or _variable(TOKEN_VARIABLE))


def call_metadata() -> tuple[tuple[str, str], ...]:
    """What goes with each call.

    Raises:
        typer.Exit: the environment's credential is none; the error has been printed, without it.
    """
    api_key, token = _variable(API_KEY_VARIABLE), _variable(TOKEN_VARIABLE)
    if api_key and token:
        fail(f"{API_KEY_VARIABLE} and {TOKEN_VARIABLE} are both set; expected one of them")
    for name, value in ((API_KEY_VARIABLE, api_key), (TOKEN_VARIABLE, token)):
        if not (value.isascii() and (not value or value.isprintable())) or " " in value:
            fail(f"{name} has characters that no credential has")
    if api_key:
        return (("x-api-key", api_key),)
    return (("authorization", f"Bearer {token}"),) if token else ()


def channel_credentials() -> "grpc.ChannelCredentials | None":
    """TLS as --tls-ca and the environment say; None for plain text.

    Raises:
        typer.Exit: a file cannot be read, or only half of a pair is there; the error has been printed.
    """
    ca, certificate, key = _TLS_CA.get(), os.environ.get(CERTIFICATE_VARIABLE, ""), os.environ.get(KEY_VARIABLE, "")
    if bool(certificate) != bool(key):
        fail(f"{CERTIFICATE_VARIABLE} and {KEY_VARIABLE}: expected both or neither")
    if not ca:
        if certificate:
            fail(f"{CERTIFICATE_VARIABLE} is set, but not whom to trust; add --tls-ca FILE (or {CA_VARIABLE})")
        return None
    import grpc

    return grpc.ssl_channel_credentials(
        root_certificates=None if ca == SYSTEM else _read("--tls-ca", ca),
        private_key=_read(KEY_VARIABLE, key) if key else None,
        certificate_chain=_read(CERTIFICATE_VARIABLE, certificate) if certificate else None,
    )


def _variable(name: str) -> str:
    # A file's last line break often comes along.
    return os.environ.get(name, "").strip()


def _read(origin: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        fail(f"{origin} = {path}: {error.strerror}")

"""The server's settings: every option is declared here, once, with its description, bounds and default.

A value comes from a flag of `nexus serve`, else from the environment (`NEXUS_` and the field's name in capitals), else
from nexus.toml (or the file that --config or NEXUS_CONFIG names), else from the default. The flags, their help and the
messages below are all made from the declarations. Settings are read once, by the supervisor; fronts and workers, which
don't import pydantic, get them in plain types (`Settings.as_dict`).
"""

import ipaddress
import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from nexus_grpc.access_settings import AccessSettings
from nexus_grpc.configuration import ConfigurationError
from nexus_grpc.overload_settings import OverloadSettings
from nexus_grpc.setting_types import (
    GIB,
    KIB,
    MIB,
    Bytes,
    Count,
    CpuList,
    Names,
    Number,
    Origins,
    Port,
    PowerOfTwoBytes,
    Seconds,
)

ENV_PREFIX = "NEXUS_"
CONFIG_VARIABLE = "NEXUS_CONFIG"
CONFIG_FILE = Path("nexus.toml")
# sysexits.h EX_CONFIG: tells a service manager that starting again changes nothing.
EXIT_CONFIGURATION = 78

# Where pydantic's own words for a wrong value don't say what is expected.
_EXPECTED = {
    "path_type": "a path",
    "tuple_type": "a list",
    "string_type": "text",
    "string_too_short": "some text",
    "string_too_long": "a shorter text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
}


class Settings(AccessSettings, OverloadSettings, BaseSettings):
    """Everything an operator may choose. Immutable; `load_settings` builds it from all sources."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=ENV_PREFIX,
        # Compose files and Helm charts write empty variables for "not set".
        env_ignore_empty=True,
        # Fields called model_* are ours, not pydantic's.
        protected_namespaces=(),
        # A default is held to the same bounds as a value.
        validate_default=True,
    )

    model_repository: Path = Field(
        Path("models"), description="Folder with the models: NAME/VERSION/model.onnx and, optionally, config.pbtxt."
    )
    host: str = Field("127.0.0.1", min_length=1, max_length=255, description="Address to listen on.")
    grpc_port: Count = Field(8001, ge=1, le=65535, description="Port of the gRPC services.")
    rest_port: Port = Field(8080, description="Port of the REST interface, which Envoy serves; 0 leaves it out.")
    rest_host: str = Field("", max_length=255, description="Address that Envoy listens on; that of --host if empty.")
    envoy: Literal["sidecar", "external"] = Field(
        "sidecar",
        description="sidecar starts and watches Envoy; external leaves that to you (see `nexus envoy bootstrap`).",
    )
    envoy_concurrency: Count = Field(
        0, ge=0, le=256, description="Envoy's threads; 0 means a quarter of the available cores, at least two."
    )
    rest_tls_certificate: str = Field(
        "", max_length=4096, description="PEM file with the REST port's certificate chain; no TLS if empty."
    )
    rest_tls_key: str = Field("", max_length=4096, description="PEM file with the key of --rest-tls-certificate.")
    cors_origins: Origins = Field(
        (), description="Web origins whose pages may call REST, such as https://a.example,https://b.example; * for all."
    )
    rest_max_body: Bytes = Field(
        64 * MIB, ge=KIB, le=2 * GIB - 1, description="Largest body of a REST request, in bytes; 64MiB works too."
    )
    rest_per_second: Count = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Requests that Envoy lets through to the fronts in a second, whoever sends them, those for health "
        "apart; 0 = any. A coarse limit before the exact ones of keys and models.",
    )
    rest_timeout_seconds: Seconds = Field(60.0, description="How long a REST request may take, in seconds.")
    metrics_port: Port = Field(8002, description="Port of the Prometheus metrics; 0 leaves them out.")
    workers: Count = Field(
        0, ge=0, le=1024, description="Worker processes; 0 means the available cores minus one, at least one."
    )
    fronts: Count = Field(1, ge=1, le=64, description="Front processes, which share the gRPC port.")
    cpus: CpuList = Field(
        "",
        max_length=4096,
        description="Cores the server may use, such as 0-3,6; all that affinity and the cgroup's limit allow if empty.",
    )
    data_dir: Path = Field(Path("data"), description="Folder for what the server itself writes: the registry.")
    log_format: Literal["auto", "json", "console"] = Field(
        "auto",
        description="What is written to standard error: json, an object per line; console, text for people; auto, text "
        "where that is a terminal, else JSON.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least severe events that are logged."
    )
    log_sample: Number = Field(
        0.01, ge=0, le=1, description="Share of successful requests that are logged; failures always are, up to a rate."
    )
    max_message_bytes: Bytes = Field(
        64 * MIB,
        ge=KIB,
        le=2 * GIB - 1,
        description="Largest request or answer, in bytes; 64MiB is understood too.",
    )
    ring_bytes: PowerOfTwoBytes = Field(
        4 * MIB,
        ge=64 * KIB,
        le=GIB,
        description="Shared memory of one ring, in bytes, a power of two; each front and worker have two between them.",
    )
    max_in_flight: Count = Field(
        1024, ge=1, le=1 << 20, description="Requests that one worker may hold for one front at a time."
    )
    max_in_flight_bytes: Bytes = Field(
        GIB, ge=MIB, le=1 << 44, description="Bytes of requests that one front may hold at a time."
    )
    default_max_batch_size: Count = Field(
        1024, ge=1, le=1 << 20, description="Rows per batch of a model whose configuration does not say."
    )
    watchdog_seconds: Seconds = Field(
        60.0, description="A worker that makes no progress for this long is replaced, in seconds."
    )
    drain_seconds: Seconds = Field(
        30.0, description="How long requests in flight may take to finish on shutdown, in seconds."
    )
    respawn_wait_seconds: Seconds = Field(
        10.0, description="How long requests wait for a worker that is being replaced, in seconds."
    )
    front_api: Literal["auto", "public"] = Field(
        "auto", description="auto drives grpcio's completion queue where it can; public keeps to grpcio's public API."
    )
    compiled: bool = Field(
        True, description="Run the hot path compiled to machine code, where it was built; otherwise its sources."
    )
    stream_window: Count = Field(64, ge=1, le=65_536, description="Requests of one stream in flight at a time.")
    model_load_seconds: Seconds = Field(120.0, description="How long loading a model may take, in seconds.")
    model_control: Literal["poll", "none", "explicit"] = Field(
        "poll",
        description="poll picks up new and changed models, none loads at the start only, explicit when asked only.",
    )
    poll_seconds: Seconds = Field(10.0, description="How often poll looks at the repository, in seconds.")
    load_model: Names = Field(
        (), description="With --model-control explicit: the models to load at the start, such as iris,churn; * for all."
    )
    strict_readiness: bool = Field(
        False,
        description="Not ready while a model that was asked for at the start is down: /ready, ServerReady (as Triton).",
    )
    registry_url: str = Field(
        "",
        max_length=4096,
        repr=False,
        description="Registry in PostgreSQL: postgresql://user@host/database; a SQLite file in --data-dir if empty.",
    )
    upload_max_bytes: Bytes = Field(
        512 * MIB,
        ge=KIB,
        le=2 * GIB - 1,
        description="Largest model file that may be uploaded, in bytes.",
    )
    upload_seconds: Seconds = Field(600.0, description="How long an upload may take, in seconds.")
    uploads_max: Count = Field(4, ge=1, le=12, description="Uploads that one front receives at a time.")
    trial_seconds: Seconds = Field(
        60.0, description="How long the trial load of a new model in a process of its own may take, in seconds."
    )
    trial_memory: Bytes = Field(
        8 * GIB,
        ge=256 * MIB,
        le=1 << 44,
        description="Address space that a trial load may use, in bytes.",
    )
    keep_previous_seconds: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = Field(
        600.0, description="How long a version that was replaced stays loaded, for an instant rollback, in seconds."
    )

    @field_validator("log_format")
    @classmethod
    def _look_where_it_goes(cls, log_format: str) -> str:
        """Decided here, once for all processes: the standard error of the others is a pipe."""
        if log_format != "auto":
            return log_format
        return "console" if os.isatty(2) else "json"

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        ports = [port for port in (self.grpc_port, self.rest_port, self.metrics_port) if port]
        if len(set(ports)) < len(ports):
            raise ValueError(
                f"grpc_port = {self.grpc_port}, rest_port = {self.rest_port}, metrics_port = {self.metrics_port}: "
                "expected three different ports"
            )
        for port in ("rest", "grpc"):
            if bool(getattr(self, f"{port}_tls_certificate")) != bool(getattr(self, f"{port}_tls_key")):
                raise ValueError(f"{port}_tls_certificate and {port}_tls_key: expected both or neither")
        for name in ("host", "rest_host"):
            if (
                self.auth == "off"
                and not self.insecure_allow_anonymous
                and not is_loopback(getattr(self, name) or "::1")
            ):
                raise ValueError(
                    f"{name} = {getattr(self, name)!r}: other machines could use this server without an API key; "
                    "listen on 127.0.0.1, or pass --insecure-allow-anonymous (NEXUS_INSECURE_ALLOW_ANONYMOUS=1) "
                    "if the network in front of it is trusted"
                )
        return self

    @property
    def rest_address(self) -> str:
        """The host that the REST port is on."""
        return self.rest_host or self.host

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain JSON types, for processes that don't import pydantic."""
        return self.model_dump(mode="json")

    @classmethod
    def _from_sources(cls, *sources: PydanticBaseSettingsSource) -> Self:
        # _build_sources is BaseSettings' own argument, which type checkers (they see the fields only) don't know.
        build: Any = cls
        settings: Self = build(_build_sources=(sources, {}))
        return settings

    @classmethod
    def restore(cls, text: str) -> Self:
        """Settings from a `model_dump_json`: neither environment nor files are read, so "{}" gives the defaults.

        Raises:
            ConfigurationError: the text is not such a dump.
        """
        try:
            values = json.loads(text)
            if not isinstance(values, dict):
                raise ConfigurationError("the settings passed to this process are not a JSON object")
            return cls._from_sources(InitSettingsSource(cls, values))
        except ValueError as error:
            raise ConfigurationError(f"the settings passed to this process are broken: {error}") from error


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`; no name but localhost is taken to be so."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def flag_name(field: str) -> str:
    """The command-line flag of a setting: `--grpc-port` for `grpc_port`."""
    return "--" + field.replace("_", "-")


def variable_name(field: str) -> str:
    """The environment variable of a setting: `NEXUS_GRPC_PORT` for `grpc_port`."""
    return ENV_PREFIX + field.upper()


def load_settings(overrides: Mapping[str, Any]) -> Settings:
    """Reads the settings from their four sources, strongest first: flags, environment, TOML file, defaults.

    Args:
        overrides: what the flags said, by field name; None means "not given". The key `config` names the TOML file.

    Raises:
        ConfigurationError: a value is wrong, a name unknown or the file unreadable; one line per problem.
    """
    flags = {name: value for name, value in overrides.items() if value is not None}
    path, values = _read_toml(flags.pop("config", None))
    sources = (
        InitSettingsSource(Settings, flags),
        EnvSettingsSource(Settings),
        # Already read: an InitSettingsSource is just a dict among the sources.
        InitSettingsSource(Settings, values),
    )
    try:
        return Settings._from_sources(*sources)
    except ValidationError as error:
        origins = _Origins(flags, path)
        raise ConfigurationError("\n".join(origins.describe(detail) for detail in error.errors())) from error


def _read_toml(flag: str | os.PathLike[str] | None) -> tuple[Path, dict[str, Any]]:
    """The TOML file's path and its values; no values if nobody named a file and nexus.toml is not there."""
    named = flag or os.environ.get(CONFIG_VARIABLE)
    path = Path(named) if named else CONFIG_FILE
    origin = "--config" if flag else CONFIG_VARIABLE
    try:
        with path.open("rb") as file:
            return path, tomllib.load(file)
    except FileNotFoundError:
        if not named:
            return path, {}
        raise ConfigurationError(f"{origin} = {str(path)!r}: there is no such file") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: not a TOML file: {error}") from error


class _Origins:
    """Where each value came from, to say it in messages."""

    def __init__(self, flags: Mapping[str, Any], path: Path) -> None:
        self._flags = flags
        self._path = path

    def describe(self, detail: ErrorDetails) -> str:
        """One line: the setting's name, its value, where it was set, and what is expected."""
        context = detail.get("ctx", {})
        # A ValueError's text is ours already; pydantic puts "Value error, " in front of it.
        expected = str(context["error"]) if "error" in context else detail["msg"].removeprefix("Input should be ")
        if not detail["loc"]:
            return expected
        name = ".".join(str(part) for part in detail["loc"])
        if detail["type"] == "extra_forbidden":
            return f"{name}: there is no such setting (in {self._origin(name)})"
        if "error" not in context:
            expected = f"expected {_EXPECTED.get(detail['type'], expected)}"
        field = Settings.model_fields.get(name)
        # What has no place in a repr may hold a password.
        value = _shorten(detail["input"]) if field is None or field.repr else "…"
        line = f"{name} = {value} (from {self._origin(name)}): {expected}"
        if isinstance(detail["input"], str) and detail["input"].startswith("tcp://"):
            # Kubernetes sets <SERVICE>_PORT=tcp://... for each Service: NEXUS_GRPC_PORT for one called nexus-grpc.
            line += "; Kubernetes sets this variable for a Service of that name: set enableServiceLinks: false"
        return line

    def _origin(self, name: str) -> str:
        if name in self._flags:
            return flag_name(name)
        if os.environ.get(variable_name(name)):
            return variable_name(name)
        return str(self._path)


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."

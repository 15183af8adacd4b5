"""The checks of `nexus doctor`, one function each. None of them changes anything, and none raises."""

import errno
import importlib.metadata
import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from nexus_grpc import compiled
from nexus_grpc.configuration import ConfigurationError
from nexus_grpc.cpus import available_cpus, default_worker_count, parse_cpu_list, quota_cores
from nexus_grpc.ipc.confinement import missing_support
from nexus_grpc.ipc.errors import NexusError
from nexus_grpc.ipc.locales import DEFAULT_LOCALE, has_locale, how_to_add
from nexus_grpc.repository import read_repository
from nexus_grpc.settings import (
    Settings,
    flag_name,
    is_loopback,
    load_settings,
    variable_name,
)
from nexus_grpc.supervisor.banner import clear_text
from nexus_grpc.supervisor.envoy_setup import check_tls, find_binary, has_sidecar
from nexus_grpc.variables import unknown

State = Literal["ok", "warn", "fail"]

DISTRIBUTION = "nexus-grpc"
# Each connection is one file, each ring and doorbell another few.
OPEN_FILES_WANTED = 4096
# Room for the interpreter, ONNX Runtime and a small model in each process; measured 60 to 110 MiB.
PROCESS_BYTES = 128 << 20
_MIB = 1 << 20
# The libraries that are named in their row.
_NAMED = re.compile(r"(grpcio|onnxruntime|protobuf|numpy)\b(?!-)")
_NAMED_MAX = 4
# The bootstrap's fields are those of this release.
ENVOY_TESTED = "1.40"
# Memory ordering of the rings is argued for these (docs/decisions).
_MACHINES = ("x86_64", "aarch64")


@dataclass(frozen=True, slots=True)
class Finding:
    """One row: what was checked and found, and what to do about it (empty when nothing)."""

    state: State
    check: str
    found: str
    advice: str = ""


def run_checks(config: Path | None = None) -> list[Finding]:
    """Runs every check, in the order of a person's questions: settings, machine, libraries, models.

    Args:
        config: the settings file, as `--config` names it.
    """
    settings, findings = check_settings(config)
    checks: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
        check_platform,
        check_cpus,
        check_memory,
        check_open_files,
        check_ports,
        check_access,
        check_confinement,
        check_envoy,
        check_compiled,
        check_libraries,
        check_grpcio,
        check_locale,
        check_models,
    )
    for check in checks:
        try:
            findings += check(settings)
        except Exception as error:
            # A check that breaks is a finding too; the other checks still have something to say.
            name = check.__name__.removeprefix("check_").replace("_", " ")
            findings.append(Finding("fail", name, f"{type(error).__name__}: {error}", "please report this"))
    return findings


def check_settings(config: Path | None) -> tuple[Settings, list[Finding]]:
    """The settings as `nexus serve` would read them; the defaults, and what is wrong, where they are broken."""
    findings = list(check_variables(os.environ))
    try:
        settings = load_settings({"config": config})
    except ConfigurationError as error:
        broken = [Finding("fail", "settings", line, "correct it") for line in error.message.splitlines()]
        return Settings.restore("{}"), broken + findings
    return settings, [Finding("ok", "settings", f"host {settings.host}, gRPC port {settings.grpc_port}"), *findings]


def check_variables(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Variables that nobody reads; those that Kubernetes makes are its own."""
    for name, meant in unknown(environment, map(variable_name, Settings.model_fields)).items():
        advice = f"did you mean {meant}?" if meant else "unset it"
        yield Finding("warn", "settings", f"{name} is no setting and is ignored", advice)


def check_platform(_settings: Settings) -> Iterator[Finding]:
    """Linux on a known kind of CPU, with the two system calls that the rings stand on."""
    found = f"{platform.system()} {platform.release()} {platform.machine()}, Python {platform.python_version()}"
    if not (sys.platform == "linux" and hasattr(os, "memfd_create") and hasattr(os, "eventfd")):
        yield Finding("fail", "platform", found, "run on Linux (memfd_create and eventfd are needed)")
    elif platform.machine() not in _MACHINES:
        yield Finding("warn", "platform", found, f"tested on {' and '.join(_MACHINES)} only")
    else:
        yield Finding("ok", "platform", found)


def check_compiled(settings: Settings) -> Iterator[Finding]:
    """Whether the hot path runs as machine code (nexus_grpc/compiled)."""
    reason = compiled.why_not() if settings.compiled else "turned off by --no-compiled"
    if reason:
        yield Finding("warn", "hot path", f"runs as Python sources: {reason}", "a fifth more CPU per request")
    else:
        yield Finding("ok", "hot path", f"{len(compiled.MODULES)} modules run compiled")


def check_cpus(settings: Settings) -> Iterator[Finding]:
    """Cores, affinity and the cgroup's quota, and what the workers get of them."""
    affinity, quota = os.sched_getaffinity(0), quota_cores()
    usable = available_cpus()
    limit = "no quota" if quota is None else f"quota {quota:g}"
    found = f"{os.cpu_count()} in the machine, {len(affinity)} by affinity, {limit}: {len(usable)} usable"
    wanted = parse_cpu_list(settings.cpus)
    outside = sorted(set(wanted) - affinity)
    if outside:
        yield Finding("fail", "cores", f"cpus = {settings.cpus}: cores {outside} are not available", "correct cpus")
    elif len(usable) == 1:
        yield Finding("warn", "cores", found, "front and worker share one core; two or more serve better")
    else:
        yield Finding("ok", "cores", found)
    cores = wanted or usable
    if settings.workers > max(1, len(cores)):
        advice = f"leave workers at 0 ({default_worker_count(cores)} here)"
        yield Finding("warn", "workers", f"{settings.workers} workers on {len(cores)} cores", advice)


def check_memory(settings: Settings) -> Iterator[Finding]:
    """Free memory against what the processes and their rings take; /dev/shm is told for information only."""
    workers = settings.workers or default_worker_count(parse_cpu_list(settings.cpus) or available_cpus())
    rings_bytes = 2 * settings.ring_bytes * settings.fronts * workers
    needed_bytes = rings_bytes + PROCESS_BYTES * (1 + settings.fronts + workers)
    free_bytes = psutil.virtual_memory().available
    found = f"{free_bytes // _MIB} MiB free; about {needed_bytes // _MIB} MiB needed besides the models"
    if needed_bytes > free_bytes:
        yield Finding("fail", "memory", found, "lower workers, fronts or ring_bytes, or add memory")
    else:
        yield Finding("ok", "memory", found)
    try:
        shm = f"{shutil.disk_usage('/dev/shm').total // _MIB} MiB"
    except OSError:
        shm = "absent"
    yield Finding("ok", "/dev/shm", f"{shm}; not used: the rings are anonymous memory (memfd)")


def check_open_files(_settings: Settings) -> Iterator[Finding]:
    """The soft limit on open files, which bounds the number of connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    found = f"{'no limit' if soft == unlimited else soft} (at most {'no limit' if hard == unlimited else hard})"
    if soft != unlimited and soft < OPEN_FILES_WANTED:
        advice = f"ulimit -n {OPEN_FILES_WANTED} or more (systemd: LimitNOFILE): each connection is one file"
        yield Finding("warn", "open files", found, advice)
    else:
        yield Finding("ok", "open files", found)


def check_ports(settings: Settings) -> Iterator[Finding]:
    """Whether the ports are free. A warning only, as it may be this very server that listens there."""
    for name in ("grpc_port", "rest_port", "metrics_port"):
        port: int = getattr(settings, name)
        host = settings.rest_address if name == "rest_port" else settings.host
        check = f"port {port}"
        if port == 0:
            continue
        error = _bind_error(host, port)
        if error is None:
            yield Finding("ok", check, f"free on {host}")
        elif error.errno == errno.EADDRINUSE:
            yield Finding("warn", check, f"in use on {host}", f"stop what runs there, or set {flag_name(name)}")
        else:
            yield Finding("fail", check, f"{host}: {error.strerror}", "correct host or the port")


def _bind_error(host: str, port: int) -> OSError | None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            # As a server does: a connection that lingers in TIME_WAIT does not count as in use.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        return error
    return None


def check_access(settings: Settings) -> Iterator[Finding]:
    """Whether callers need a credential, and whether those can be read on the way."""
    tls = "TLS" if settings.grpc_tls_certificate else "no TLS"
    certificates = ", client certificates" if settings.tls_client_ca else ""
    found = f"--auth {settings.auth}, {tls} on the gRPC port{certificates}"
    exposed = clear_text(settings)
    if exposed:
        advice = "set --grpc-tls-certificate and --rest-tls-certificate, or trust the network"
        yield Finding("warn", "access", f"{found}; credentials travel in clear text to {', '.join(exposed)}", advice)
    elif settings.auth == "off" and not (is_loopback(settings.host) and is_loopback(settings.rest_address)):
        advice = "set --auth required, unless the network in front of it is trusted"
        yield Finding("warn", "access", f"{found}; other machines may do anything", advice)
    else:
        yield Finding("ok", "access", found)


def check_confinement(_settings: Settings) -> Iterator[Finding]:
    """Whether the kernel has what workers are confined with."""
    missing = missing_support()
    if missing:
        yield Finding("warn", "confinement", "; ".join(missing), "workers run less confined: see SECURITY.md")
    else:
        yield Finding("ok", "confinement", "seccomp and Landlock")


def check_envoy(settings: Settings) -> Iterator[Finding]:
    """Whether Envoy's binary is there and runs, and its TLS files; only where the server is to start it."""
    if not has_sidecar(settings):
        yield Finding("ok", "Envoy", "not started: REST is off" if not settings.rest_port else "an external one")
        return
    try:
        binary = find_binary()
        check_tls(settings)
    except ConfigurationError as error:
        yield Finding("fail", "Envoy", error.message, "")
        return
    try:
        done = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        yield Finding("fail", "Envoy", f"{binary} does not run: {error}", "run `make setup`, or set --rest-port 0")
        return
    # "…/envoy  version: <commit>/1.40.0/Clean/RELEASE/BoringSSL"
    parts = done.stdout.rpartition("version: ")[2].split("/")
    version = parts[1] if len(parts) > 1 else "unknown"
    if version.startswith(f"{ENVOY_TESTED}."):
        yield Finding("ok", "Envoy", f"{version}, {binary}")
    else:
        yield Finding("warn", "Envoy", f"{version}, tested with {ENVOY_TESTED}", "run `make setup`")


def check_libraries(_settings: Settings) -> Iterator[Finding]:
    """The installed version of each requirement against the range that this release was tested with."""
    try:
        requirements = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("warn", "libraries", f"{DISTRIBUTION} is not installed as a package", "run `make setup`")
        return
    good: list[str] = []
    # Those that matter most come first: the others are only counted.
    requirements.sort(key=lambda requirement: _NAMED.match(requirement) is None)
    for requirement in requirements:
        if ";" in requirement:
            continue  # Optional extras.
        match = re.match(r"[A-Za-z0-9._-]+", requirement)
        name = match[0] if match else requirement
        wanted = requirement[len(name) :].strip()
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding("fail", name, "not installed", "run `make setup`")
            continue
        if satisfies(version, wanted):
            good.append(f"{name} {version}")
        else:
            yield Finding("fail", name, f"{version}, expected {wanted}", "run `make setup`")
    yield Finding("ok", "libraries", f"{len(good)} as expected, among them {', '.join(good[:_NAMED_MAX])}")


def satisfies(version: str, wanted: str) -> bool:
    """Whether a version is in a range such as `>=1.85.1,<1.86`; only those two comparisons occur in this project."""
    numbers = _release(version)
    for bound in wanted.split(","):
        if bound.startswith(">=") and numbers < _release(bound[2:]):
            return False
        if bound.startswith("<") and numbers >= _release(bound[1:]):
            return False
    return True


def _release(version: str) -> tuple[int, ...]:
    """The numbers at the front of a version, without trailing zeros: 1.85.0 and 1.85 are the same release."""
    match = re.match(r"\s*(\d+(?:\.\d+)*)", version)
    numbers = [int(part) for part in match[1].split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def check_grpcio(settings: Settings) -> Iterator[Finding]:
    """Whether grpcio's internals are those that the fast front was written against."""
    advice = "install the pinned grpcio (`make setup`); until then the server uses the public API, which is slower"
    try:
        from nexus_grpc.front.grpcio_contract import contract_mismatches

        mismatches: list[str] = contract_mismatches()
    except ImportError as error:
        yield Finding("fail", "grpcio internals", f"cannot be checked: {error}", advice)
        return
    if mismatches:
        state: State = "warn" if settings.front_api == "public" else "fail"
        yield Finding(state, "grpcio internals", "; ".join(mismatches), advice)
    else:
        yield Finding("ok", "grpcio internals", "as expected")


def check_locale(_settings: Settings) -> Iterator[Finding]:
    """What text models are loaded with, where they name no other."""
    if has_locale(DEFAULT_LOCALE):
        yield Finding("ok", "locale", f"{DEFAULT_LOCALE}, for text models")
    else:
        found = f"{DEFAULT_LOCALE} is not there: models that change the case of text (StringNormalizer) do not load"
        yield Finding("warn", "locale", found, f"if you have such models: {how_to_add(DEFAULT_LOCALE)}")


def check_models(settings: Settings) -> Iterator[Finding]:
    """The model repository, and each model in it that can't be served."""
    try:
        contents = read_repository(settings.model_repository).beside(())
    except (ConfigurationError, NexusError) as error:
        yield Finding("fail", "models", error.message, "")
        return
    entries = contents.entries
    for folder in contents.skipped:
        yield Finding("warn", f"folder {folder.name}", folder.reason, "it is skipped; the models are served")
    broken = [entry for entry in entries if entry.error is not None]
    for entry in broken:
        yield Finding("warn", f"model {entry.name}", entry.error or "", "correct it; the other models are served")
    if entries:
        yield Finding("ok", "models", f"{len(entries) - len(broken)} in {settings.model_repository}")
    else:
        yield Finding("warn", "models", f"none in {settings.model_repository}", "put one in, as NAME/1/model.onnx")

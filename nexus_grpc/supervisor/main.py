"""`nexus serve`: run the supervisor until it is told to stop."""

import contextlib
import os
import sys

import setproctitle
import uvloop

from nexus_grpc import cpus, logs, python_log, variables
from nexus_grpc.configuration import ConfigurationError
from nexus_grpc.ipc.confinement import keep_private
from nexus_grpc.ipc.errors import StorageFailed
from nexus_grpc.ipc.segment import SegmentError
from nexus_grpc.registry.open import open_registry
from nexus_grpc.repository import read_repository
from nexus_grpc.settings import Settings, variable_name
from nexus_grpc.supervisor import log_pump, storage
from nexus_grpc.supervisor.data_folder import data_folder
from nexus_grpc.supervisor.envoy_setup import check_sidecar
from nexus_grpc.supervisor.ports import PortTaken
from nexus_grpc.supervisor.supervisor import StartFailed, Supervisor

EXIT_FINE, EXIT_FAILED = 0, 1


def run(settings: Settings) -> int:
    """Serve; return the exit code. Raises ConfigurationError when the model repository cannot be read, or Envoy not be
    started."""
    # In place of the command line, which may have a database's password in it.
    setproctitle.setproctitle("nexus: supervisor")
    keep_private()
    _keep_standard_streams()
    logs.configure(settings.log_format, settings.log_level, "supervisor")
    python_log.capture()
    for name, meant in variables.unknown(os.environ, map(variable_name, Settings.model_fields)).items():
        logs.logger().warning(variables.warning(name, meant))
    check_sidecar(settings)
    _check_cpus(settings.cpus)
    contents = read_repository(settings.model_repository)

    async def serve() -> int:
        with data_folder(settings.data_dir):
            storage.sweep_all(settings.model_repository)
            registry = open_registry(settings.registry_url, settings.data_dir)
            known = {row.id for row in registry.models()}
            return await Supervisor(settings, contents.beside(known), registry).run()

    try:
        return uvloop.run(serve())
    except (PortTaken, SegmentError, StartFailed, StorageFailed, OSError) as error:
        print(f"nexus: {getattr(error, 'message', None) or error}", file=sys.stderr)
        return EXIT_FAILED
    finally:
        log_pump.finish()


def _check_cpus(wanted: str) -> None:
    """Raises ConfigurationError for cores that this process may not use: its children could not start on them."""
    usable = sorted(os.sched_getaffinity(0))
    missing = [str(core) for core in cpus.parse_cpu_list(wanted) if core not in usable]
    if missing:
        text = f"cpus = {wanted!r}: there is no core {', '.join(missing[:8])} for this server; it may use"
        raise ConfigurationError(f"{text} {', '.join(map(str, usable))}")


def _keep_standard_streams() -> None:
    """Where one was closed, the next file that is opened would be it, and get what is printed or logged."""
    for descriptor in range(log_pump.STDERR + 1):
        try:
            os.fstat(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                nowhere = os.open(os.devnull, os.O_RDWR)
                if nowhere != descriptor:
                    os.dup2(nowhere, descriptor)
                    os.close(nowhere)

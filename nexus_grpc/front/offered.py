"""What of Triton's protocol this server offers: the extensions that it announces, and settings that are only read."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nexus_grpc import logs
from nexus_grpc.ipc.errors import InvalidInput, Unsupported

NO_SHARED_MEMORY = (
    "shared memory of clients is not offered here: send tensors in raw_input_contents, or behind the JSON (binary_data)"
)
# Methods that are refused whatever they ask for, and why.
REFUSED = {
    "SystemSharedMemoryRegister": NO_SHARED_MEMORY,
    "CudaSharedMemoryRegister": NO_SHARED_MEMORY,
}
# Methods that tell and change nothing.
ONLY_TELL = frozenset({"TraceSetting", "LogSettings"})
# Extension → the methods without which it is none.
# Source: https://github.com/triton-inference-server/server/tree/main/docs/protocol
_EXTENSIONS: Mapping[str, tuple[str, ...]] = {
    "classification": ("ModelInfer",),
    "model_repository": ("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"),
    "model_repository(unload_dependents)": ("RepositoryModelUnload",),
    "schedule_policy": ("ModelInfer",),
    "model_configuration": ("ModelConfig",),
    "system_shared_memory": ("SystemSharedMemoryRegister", "SystemSharedMemoryUnregister"),
    "cuda_shared_memory": ("CudaSharedMemoryRegister", "CudaSharedMemoryUnregister"),
    "binary_tensor_data": ("ModelInfer",),
    "parameters": ("ModelInfer",),
    "statistics": ("ModelStatistics",),
    "trace": ("TraceSetting",),
    "logging": ("LogSettings",),
}
_TRACE_OFF = {
    "trace_level": ("OFF",),
    "trace_rate": ("1000",),
    "trace_count": ("-1",),
    "log_frequency": ("0",),
    "trace_file": ("",),
    "trace_mode": ("triton",),
}
_BY_LEVEL = frozenset({"log_info", "log_warning", "log_verbose_level"})


def extensions(served: Iterable[str]) -> tuple[str, ...]:
    """What is announced.

    Args:
        served: the protocol's methods that there are.
    """
    offered = set(served) - set(REFUSED) - ONLY_TELL
    return tuple(name for name, methods in _EXTENSIONS.items() if offered.issuperset(methods))


def trace_settings() -> dict[str, Sequence[str]]:
    return dict(_TRACE_OFF)


def log_settings() -> dict[str, bool | int | str]:
    return {
        "log_file": "",
        "log_info": logs.is_logged("info"),
        "log_warning": logs.is_logged("warning"),
        "log_error": logs.is_logged("error"),
        "log_verbose_level": int(logs.is_logged("debug")),
        "log_format": "ISO8601",
    }


def check_trace_change(asked: Mapping[str, Sequence[str]]) -> None:
    """Nothing (which stands for the default) and what is so already are fine. Raises InvalidInput or Unsupported."""
    for name, value in asked.items():
        known = _known(name, _TRACE_OFF, "trace setting")
        if tuple(value) not in ((), known):
            raise Unsupported(
                f"trace setting '{name}' cannot be {','.join(value)}: this server does not trace; nothing was changed"
            )


def check_log_change(asked: Mapping[str, Any]) -> None:
    """What is so already is fine. Raises InvalidInput or Unsupported."""
    for name, value in asked.items():
        if value != _known(name, log_settings(), "log setting"):
            instead = "start it with another --log-level" if name in _BY_LEVEL else "see `nexus serve --help`"
            raise Unsupported(f"log setting '{name}' cannot be {value} while the server runs; {instead}")


def _known(name: str, settings: Mapping[str, Any], what: str) -> Any:
    if name not in settings:
        raise InvalidInput(f"unknown {what} '{name}'; there is: {', '.join(settings)}", field=name)
    return settings[name]

"""A trial: one model file looked through, loaded and run once, in a process made for it and thrown away.

`python -P -m nexus_grpc.worker.trial`, started by nexus_grpc.supervisor.trial. On stdin one JSON object, the control
message that has a worker load a model, with `supervisor_pid` and `limits` beside it. On stdout JSON lines:
{"step": "..."} before each step, so that a death tells what it was that killed, then the answer:

    {"ok": true, "metadata": base64, "config": base64, "inputs": [...], "outputs": [...],
     "sample_runs": bool, "probing": bool}
    {"ok": false, "kind": "not_onnx" | "refused" | "not_loadable" | "memory", "message": "..."}

Where `probing` is true a last line follows, {"veto": "why requests must not be batched, or empty"}; a process that does
not get that far is a veto, too (probe.py).

The model is not trusted: this process is confined as a worker is (ipc/confinement.py), and beyond that has a limited
address space and processor time, few file descriptors, low priority, and dies with the supervisor.
"""

import base64
import json
import os
import resource
import sys
from typing import Any, TextIO

from nexus_grpc.ipc.confinement import filter_system_calls, leave_folder, shed_privileges
from nexus_grpc.ipc.datatypes import ONNX_NUMBERS
from nexus_grpc.ipc.process import start_child

NICENESS = 10
# Standard streams, the model, warm-up files, the eventfds of onnxruntime's threads.
OPEN_FILES_MAX = 64


class NoMemory(Exception):
    """Loading or running needs more memory than it is given."""


def main() -> None:
    """Exit 0 with an answer; anything else says that the model killed this process, or that it is broken itself."""
    order = json.load(sys.stdin)
    # What a library prints must not come between the lines of the answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    start_child("trial", 0, order["supervisor_pid"], [])
    os.nice(NICENESS)
    leave_folder()
    # What cannot be had a worker has reported already.
    shed_privileges()
    tell(answers, {"step": "start"})
    # Ours, and trusted: imported before the limits, which so count what the model takes alone.
    from . import loader, probe, scan  # noqa: F401
    from .rowproof import proof  # noqa: F401

    filter_system_calls()
    limit(order["limits"])
    attempt(order, answers)


def tell(answers: TextIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def limit(limits: dict[str, int]) -> None:
    """Limit this process, for good; memory on top of what it has mapped already. Raises OSError."""
    with open("/proc/self/statm", encoding="ascii") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    for kind, limit in (
        (resource.RLIMIT_AS, mapped + limits["memory_bytes"]),
        (resource.RLIMIT_CPU, limits["cpu_seconds"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, OPEN_FILES_MAX),
    ):
        _soft, hard = resource.getrlimit(kind)
        hard = sys.maxsize if hard == resource.RLIM_INFINITY else hard
        limit = min(limit, hard)
        # A second between the two: SIGXCPU, which says why, comes at the soft limit; SIGKILL at the hard one.
        later = 1 if kind == resource.RLIMIT_CPU and limit < hard else 0
        resource.setrlimit(kind, (limit, limit + later))


def attempt(order: dict[str, Any], answers: TextIO) -> None:
    """Scan, load, run; answer; then look for a veto against batching."""
    answer, model = _answered(order, answers)
    tell(answers, answer)
    if answer.get("probing"):
        tell(answers, {"veto": _veto(model)})


def _veto(model: Any) -> str:
    from .probe import veto_of

    try:
        return veto_of(model)
    except Exception as error:
        return f"sample rows run together end in {type(error).__name__}"


def _answered(order: dict[str, Any], answers: TextIO) -> tuple[dict[str, Any], Any]:
    """The answer, and the model where there is one."""
    from nexus_grpc.ipc.errors import NexusError

    from .scan import ScanRefused, scan_file

    try:
        tell(answers, {"step": "scan"})
        scan_file(order["path"])
        return _load_and_run(order, answers)
    except ScanRefused as refused:
        return {"ok": False, "kind": refused.kind, "message": str(refused)}, None
    except (MemoryError, NoMemory):
        return {"ok": False, "kind": "memory", "message": ""}, None
    except NexusError as error:
        return {"ok": False, "kind": _kind(error.message), "message": error.message}, None
    except OSError as error:
        return {"ok": False, "kind": "not_loadable", "message": f"a file cannot be read: {error.strerror}"}, None
    except Exception as error:
        # Whatever a strange file provokes: the same words as a worker has for it.
        message = f"{type(error).__name__}: {error}"
        return {"ok": False, "kind": _kind(message), "message": message}, None


def _kind(message: str) -> str:
    from .probe import wants_memory

    return "memory" if wants_memory(message) else "not_loadable"


def _load_and_run(order: dict[str, Any], answers: TextIO) -> tuple[dict[str, Any], Any]:
    from .loader import LoadOrder, config_of, load_model, metadata_of

    tell(answers, {"step": "load"})
    # One core: a trial runs beside workers that serve.
    load_order = LoadOrder.from_message(order, 1)
    model = load_model(load_order)
    tell(answers, {"step": "run"})
    sample_runs = _run_once(model)
    answer = {
        "ok": True,
        "metadata": base64.b64encode(metadata_of(model).SerializeToString()).decode(),
        "config": base64.b64encode(config_of(load_order, model).SerializeToString()).decode(),
        "inputs": [_described(spec) for spec in model.inputs],
        "outputs": [_described(spec) for spec in model.outputs],
        "sample_runs": sample_runs,
        # What config.pbtxt says needs no trial.
        "probing": model.batchable and not model.batch_limit_is_strict,
    }
    return answer, model


def _run_once(model: Any) -> bool:
    """One run on the sample: to see that it comes back. Whether the model took it. Raises NoMemory."""
    from nexus_grpc.ipc.errors import NexusError

    from .sample import is_small, sample_feeds

    if not is_small(model.inputs):
        return False
    try:
        model.run(sample_feeds(model.inputs), False)
    except NexusError as error:
        # A model may well refuse such an input; not so a machine.
        if _kind(error.message) == "memory":
            raise NoMemory from None
        return False
    return True


def _described(spec: Any) -> dict[str, Any]:
    """A nexus.v1.TensorInfo as JSON; `dtype` is ONNX's number."""
    name = spec.datatype.name
    return {"name": spec.name, "dtype": ONNX_NUMBERS[name], "shape": list(spec.shape), "datatype": name}


if __name__ == "__main__":
    main()

"""A worker process: `python -m nexus_grpc.worker.main CONTROL_FD`. Started by the supervisor only.

The first control message says who this worker is; then it confines itself (ipc/confinement.py), loads what it is told
to, reports each model, and serves the rings of the fronts it is attached to. Loading happens on a thread of its own, so
that a worker keeps answering, and obeying, while a model loads (ONNX Runtime releases the interpreter lock while it
opens a session).
"""

import os
import sys
import threading
from collections.abc import Callable

from nexus_grpc import compiled
from nexus_grpc.ipc.confinement import filter_system_calls, leave_folder, shed_privileges
from nexus_grpc.ipc.control import ChannelClosed, ControlChannel
from nexus_grpc.ipc.process import control_socket, settle_memory, start_child


def main() -> None:
    channel = ControlChannel(control_socket(int(sys.argv[1])))
    hello, descriptors = channel.receive()
    start_child("worker", hello["index"], hello["supervisor_pid"], hello["cpus"])
    if hello["compiled"]:
        compiled.use()
    leave_folder()
    missing = shed_privileges()
    # Only now what starts threads: affinity and privileges are inherited by threads, so they must be set first.
    from .worker import Worker

    missing += filter_system_calls()
    if missing:
        channel.send({"type": "unconfined", "missing": missing})
    worker = Worker(channel, hello, descriptors)
    threads = {"control": worker.control, "loader": worker.load, "gentle loader": worker.load_gently}
    for name, work in threads.items():
        threading.Thread(target=_leave_with_supervisor, args=(work,), daemon=True, name=name).start()
    settle_memory()
    worker.run()
    # A loader may be inside ONNX Runtime just now; the interpreter's exit under its feet would abort the process.
    os._exit(0)


def _leave_with_supervisor(work: Callable[[], None]) -> None:
    try:
        work()
    except ChannelClosed:
        os._exit(1)


if __name__ == "__main__":
    main()

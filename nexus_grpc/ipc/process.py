"""What every child process does first: die with the supervisor, keep its own cores, be named, leave Ctrl-C alone, and
keep what it holds to itself.

Imports nothing heavy: affinity is set here, before grpc or onnxruntime start their threads.
"""

import ctypes
import gc
import os
import signal
import socket
import sys
import threading

import setproctitle

from nexus_grpc.ipc.confinement import keep_private

PR_SET_PDEATHSIG = 1
GC_YOUNG_OBJECTS = 10_000
# sysexits.h EX_SOFTWARE: an internal error.
EXIT_THREAD_DIED = 70


class ParentGone(SystemExit):
    """The supervisor died before the child could tie itself to it."""


def die_with_parent() -> None:
    """Have the kernel end this process when its parent's thread that made it ends."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def start_child(role: str, index: int, supervisor_pid: int, cpus: list[int]) -> None:
    """Make this process a well-behaved child. Raises ParentGone when the supervisor is gone already."""
    die_with_parent()
    if os.getppid() != supervisor_pid:  # it died between our start and the prctl
        raise ParentGone(1)
    # Ctrl-C reaches the whole process group; only the supervisor decides how its children stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if cpus:
        os.sched_setaffinity(0, cpus)
    setproctitle.setproctitle(f"nexus: {role} {index}")
    keep_private()
    threading.excepthook = _die_of_thread


def _die_of_thread(arguments: threading.ExceptHookArgs) -> None:
    """A process that lost a thread only looks alive: better dead, and replaced."""
    try:
        sys.excepthook(arguments.exc_type, arguments.exc_value or arguments.exc_type(), arguments.exc_traceback)
        sys.stderr.flush()  # which takes nothing when nobody reads it
    finally:
        os._exit(EXIT_THREAD_DIED)


def move_to_core(core: int) -> None:
    """Bind the calling thread alone."""
    os.sched_setaffinity(0, [core])


def settle_memory() -> None:
    """Called once everything long-lived is built: the collector need not look at it again, nor run so often.

    A request makes some dozens of short-lived objects without cycles; CPython's default of 700 between two young
    collections would have one run every few requests.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_YOUNG_OBJECTS, 20, 50)


def control_socket(descriptor: int) -> socket.socket:
    """The control channel's socket, inherited as `descriptor`."""
    return socket.socket(fileno=descriptor)

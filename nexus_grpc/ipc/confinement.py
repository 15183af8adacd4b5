"""What a process that runs models (a worker, a trial) does to itself, for good, before it opens the first one.

    single thread:  shed_privileges()        no new privileges, no capabilities, a Landlock domain of its own
    all threads:    filter_system_calls()    seccomp, once libraries are loaded and before a model's file is

A model file is data that a large C++ library parses, so the question is what somebody can do who has taken that process
over. By then it can open no socket, start no program or process, change no file, and look into no other process's
memory. It can read what its user can (SECURITY.md).

Neither step needs a privilege, and each stands alone: where the kernel, or what confines the container, does not allow
one, the process goes on without, and says so. A limit on processes (RLIMIT_NPROC) counts those of the user, whoever
started them: the filter does that better. A network namespace would need a user namespace, which many hosts forbid.
"""

import contextlib
import ctypes
import os
import platform
import resource
import sys
import tempfile
from collections.abc import Callable

from nexus_grpc.ipc.system_calls import MACHINES, build_filter

# linux/prctl.h, linux/seccomp.h, linux/capability.h, linux/landlock.h
PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 4, 38
SECCOMP_SET_MODE_FILTER, SECCOMP_GET_ACTION_AVAIL = 1, 2
SECCOMP_RET_ERRNO = 0x00050000
# All threads at once; and without turning off speculation, which older kernels otherwise do for filtered processes:
# that is for those who run foreign programs, and would cost each inference several per cent.
SECCOMP_FLAGS = 1 | 4
LANDLOCK_CREATE_RULESET_VERSION = 1
# LANDLOCK_ACCESS_FS_EXECUTE, _MAKE_CHAR, _MAKE_BLOCK: what nobody here does. A domain must forbid something; what it is
# for is that its processes may not look into (ptrace(2)'s rules, so /proc/PID/mem too) those outside.
LANDLOCK_FORBIDDEN = 1 << 0 | 1 << 6 | 1 << 11
CAPABILITY_VERSION_3 = 0x20080522
# CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: root reads models that belong to others. It writes none: see the filter.
CAPABILITIES_KEPT = 1 << 1 | 1 << 2
# The numbers of seccomp, landlock_create_ruleset and landlock_restrict_self.
_CALLS = {"x86_64": (317, 444, 446), "aarch64": (277, 444, 446)}

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def shed_privileges() -> list[str]:
    """Give up what this thread may do, for itself and those it starts: to be called while it is the only one.

    Returns what could not be had, and why; empty when all is well.
    """
    return _attempt(
        {
            "no new privileges": _forbid_new_privileges,
            "no capabilities": _drop_capabilities,
            "no access to other processes (Landlock)": _enter_domain,
        }
    )


def filter_system_calls() -> list[str]:
    """Deny what nexus_grpc.ipc.system_calls lists, to all threads. Libraries must be loaded: some make files or sockets
    then.

    Returns what could not be had, and why; empty when all is well.
    """
    return _attempt({"no sockets, programs or written files (seccomp)": _install_filter})


def missing_support() -> list[str]:
    """What of this the kernel does not offer to this process, and why; changes nothing (for `nexus doctor`)."""
    return _attempt({"Landlock": _look_for_landlock, "seccomp": _look_for_seccomp})


def leave_folder() -> None:
    """The working directory becomes an empty one that is gone already: nothing to be read there, or left behind."""
    try:
        folder = tempfile.mkdtemp(prefix="nexus-empty-")
    except OSError:
        # A container without a writable folder. Every path that this process is told is absolute anyway.
        os.chdir("/")
        return
    os.chdir(folder)
    os.rmdir(folder)


def keep_private() -> None:
    """For each process of the server, which all hold secrets or requests: no core dumps, and files for its user alone.

    Where there is no Landlock to keep workers out of this process's memory and environment, it is hidden from all
    processes of its user, debuggers among them.
    """
    os.umask(0o077)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        _look_for_landlock()
    except OSError:
        _libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def _attempt(steps: dict[str, Callable[[], None]]) -> list[str]:
    missing = []
    for what, step in steps.items():
        try:
            step()
        except OSError as error:
            missing.append(f"{what}: {error.strerror or error}")
    return missing


def _forbid_new_privileges() -> None:
    """What the two below rest on: without it they would need root."""
    _checked(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def _drop_capabilities() -> None:
    """Nothing to do unless root started us, or a container gave some."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    # Effective, permitted, inheritable; capabilities 0 to 31, then the rest.
    sets = (ctypes.c_uint32 * 6)()
    _checked(_libc.capget(header, sets))
    kept = sets[1] & CAPABILITIES_KEPT
    _checked(_libc.capset(header, (ctypes.c_uint32 * 6)(kept, kept, 0, 0, 0, 0)))


def _enter_domain() -> None:
    _, create, restrict = _numbers()
    handled = ctypes.c_uint64(LANDLOCK_FORBIDDEN)
    ruleset = _call(create, ctypes.addressof(handled), ctypes.sizeof(handled), 0)
    try:
        _call(restrict, ruleset, 0)
    finally:
        os.close(ruleset)


def _look_for_landlock() -> None:
    """Raises OSError when there is none."""
    _call(_numbers()[1], 0, 0, LANDLOCK_CREATE_RULESET_VERSION)


def _look_for_seccomp() -> None:
    action = ctypes.c_uint32(SECCOMP_RET_ERRNO)
    _call(_numbers()[0], SECCOMP_GET_ACTION_AVAIL, 0, ctypes.addressof(action))


def _install_filter() -> None:
    instructions = build_filter(platform.machine(), os.getpid()) if platform.machine() in MACHINES else b""
    program = _Program(len(instructions) // 8, instructions)
    stray = _call(_numbers()[0], SECCOMP_SET_MODE_FILTER, SECCOMP_FLAGS, ctypes.addressof(program))
    if stray:
        raise OSError(f"thread {stray} has a filter of its own")


def _numbers() -> tuple[int, int, int]:
    numbers = _CALLS.get(platform.machine())
    if numbers is None or sys.maxsize < 1 << 32:
        raise OSError(f"not known for {platform.machine()} processors")
    return numbers


def _call(number: int, *arguments: int) -> int:
    """A system call that glibc has no function for. Raises OSError."""
    return _checked(_libc.syscall(ctypes.c_long(number), *(ctypes.c_long(argument) for argument in arguments)))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result

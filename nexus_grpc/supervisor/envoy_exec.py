"""Becomes Envoy: `python envoy_exec.py SUPERVISOR_PID CORES NAME BINARY ARGUMENT…`, tied to its supervisor.

A program of its own, run without site-packages: PR_SET_PDEATHSIG has to be set in the child, it survives exec, and
Popen's preexec_fn is not safe beside threads. CORES is such as 0,2; NAME is what `ps` shows.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    supervisor_pid, cores, name, binary, *arguments = sys.argv[1:]
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(supervisor_pid):  # it died between our start and the prctl
        raise SystemExit(1)
    os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
    os.execv(binary, [name, *arguments])


if __name__ == "__main__":
    main()

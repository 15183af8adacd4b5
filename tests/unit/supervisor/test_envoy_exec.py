"""What Envoy is started through: it ties the process to its supervisor, or does not start it."""

import os
import subprocess
import sys

from nexus_grpc.supervisor import envoy_exec

SHOW = "tr '\\0' ' ' < /proc/$$/cmdline; grep Cpus_allowed_list /proc/$$/status"


def become(supervisor_pid: int) -> subprocess.CompletedProcess[str]:
    core = min(os.sched_getaffinity(0))
    command = [sys.executable, "-I", "-S", envoy_exec.__file__, str(supervisor_pid), str(core), "a name", "/bin/sh"]
    return subprocess.run([*command, "-c", SHOW], capture_output=True, text=True, timeout=20, check=False)


def test_it_becomes_the_program_under_its_name_and_on_its_cores() -> None:
    done = become(os.getpid())
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("a name -c ")
    assert done.stdout.split()[-1] == str(min(os.sched_getaffinity(0)))


def test_without_its_supervisor_it_does_not_start() -> None:
    done = become(os.getpid() + 1)
    assert (done.returncode, done.stdout) == (1, "")

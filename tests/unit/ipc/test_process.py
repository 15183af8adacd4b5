"""What every child does first. Tried on real processes: it changes signals, affinity and how threads die."""

import os
import signal
import subprocess
import sys

from nexus_grpc.ipc.process import EXIT_THREAD_DIED
from tests.unit.support import ROOT

START = """
import os, signal, sys, threading
from nexus_grpc.ipc.process import start_child
start_child("tester", 3, os.getppid(), [min(os.sched_getaffinity(0))])
"""
# A parent that starts a child, tells its pid once the child is tied to it, and waits to be killed.
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {START!r} + "print('tied', flush=True); signal.pause()"],
                         stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30)


def test_a_child_is_named_pinned_and_deaf_to_ctrl_c() -> None:
    done = run(
        START
        + """
os.kill(os.getpid(), signal.SIGINT)
os.kill(os.getpid(), signal.SIGTERM)
print(len(os.sched_getaffinity(0)))
print(open("/proc/self/cmdline").read().rstrip("\\0"))
"""
    )
    assert (done.returncode, done.stdout) == (0, "1\nnexus: tester 3\n")


def test_a_dying_thread_takes_the_process_along() -> None:
    done = run(START + "threading.Thread(target=lambda: 1 / 0).start()\nsignal.pause()")
    assert done.returncode == EXIT_THREAD_DIED == 70
    assert "ZeroDivisionError" in done.stderr


def test_a_child_whose_supervisor_is_another_process_ends() -> None:
    done = run(START.replace("os.getppid()", "1 << 30") + "print('lived')")
    assert (done.returncode, done.stdout) == (1, "")


def test_a_child_dies_with_its_parent() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = os.pidfd_open(int(parent.stdout.readline()))
    parent.kill()
    parent.wait(30)
    with parent.stdout:
        # Readable once the process is gone; the test's own time limit is the bound.
        ended = subprocess.run(
            [sys.executable, "-c", f"import select; p = select.poll(); p.register({child}); print(len(p.poll(20000)))"],
            pass_fds=[child],
            capture_output=True,
            text=True,
            timeout=30,
        )
    os.close(child)
    assert ended.stdout == "1\n"


def test_affinity_is_left_alone_without_a_list() -> None:
    code = START.replace("[min(os.sched_getaffinity(0))]", "[]") + "print(len(os.sched_getaffinity(0)))"
    assert run(code).stdout == f"{len(os.sched_getaffinity(0))}\n"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

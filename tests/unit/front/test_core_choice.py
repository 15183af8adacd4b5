"""The front's threads are bound for gRPC and free for REST, where cores are scarce."""

import contextlib
import os
import threading
from collections.abc import Callable

import pytest

from nexus_grpc.front.core_choice import WINDOW, CoreChoice

CORES = sorted(os.sched_getaffinity(0))


def in_a_thread(check: Callable[[], None]) -> None:
    """CoreChoice binds threads: not the one that runs the tests, and that is put back."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            check()
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    for number in map(int, os.listdir("/proc/self/task")):
        with contextlib.suppress(ProcessLookupError):  # it has ended since
            os.sched_setaffinity(number, CORES)
    if failures:
        raise failures[0]


@pytest.mark.skipif(len(CORES) < 2, reason="needs two cores")
def test_rest_frees_and_grpc_binds() -> None:
    own, others = CORES[0], CORES[1:]
    over = threading.Event()
    # Known to live for as long as it is looked at, as what earlier tests have left is not.
    bystander = threading.Thread(target=over.wait)
    bystander.start()
    assert bystander.native_id is not None
    other = bystander.native_id

    def check() -> None:
        choice = CoreChoice(own, CORES)
        assert os.sched_getaffinity(0) == {own}
        for _ in range(WINDOW - 1):
            choice.arrived(True)
        assert os.sched_getaffinity(0) == {own}
        choice.arrived(True)
        assert os.sched_getaffinity(0) == os.sched_getaffinity(other) == set(CORES)
        for _ in range(WINDOW):
            choice.arrived(False)
        assert os.sched_getaffinity(0) == os.sched_getaffinity(os.getpid()) == {own}
        assert os.sched_getaffinity(other) == set(others)

    try:
        in_a_thread(check)
    finally:
        over.set()
        bystander.join()


def test_with_cores_to_spare_nothing_changes() -> None:
    def check() -> None:
        choice = CoreChoice(CORES[0], [])
        for _ in range(3 * WINDOW):
            choice.arrived(True)
        assert os.sched_getaffinity(0) == {CORES[0]}

    in_a_thread(check)

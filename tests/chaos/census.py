"""What a server holds (processes, descriptors, memfds), to compare before and after a fault, and what it leaves."""

import contextlib
import dataclasses
import os
import pathlib
import time
from collections.abc import Iterator

import psutil

from tests.chaos.ledger import wait_until
from tests.harness import Server, running_server

# Descriptors that may come and go with connections, scrapes and what grpc opens lazily.
SLACK = 3
# A front closes a dead worker's link after two seconds (Dispatcher), so a census needs a little patience.
SETTLE_SECONDS = 8.0


@dataclasses.dataclass(frozen=True)
class Holding:
    """What one process holds. `sockets` are TCP connections, which clients open and close."""

    fds: int
    memfds: int
    memfd_maps: int


Census = dict[str, Holding]


def _holding(pid: int) -> Holding:
    """Raises OSError when the process is gone."""
    targets = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            targets.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    tcp = len(psutil.Process(pid).net_connections("tcp"))
    maps = pathlib.Path(f"/proc/{pid}/maps").read_text().count("/memfd:nexus")
    return Holding(len(targets) - tcp, sum("/memfd:" in target for target in targets), maps)


def take_census(server: Server) -> Census:
    """What the supervisor and each front, worker and Envoy hold now, by name such as `worker 0`."""
    census = {"supervisor": _holding(server.process.pid)}
    for role in ("front", "worker", "envoy"):
        for index, child in enumerate(server.children(role)):
            census[f"{role} {index}"] = _holding(child.pid)
    return census


def difference(before: Census, after: Census) -> list[str]:
    """What is not as before; empty when all is well."""
    if before.keys() != after.keys():
        return [f"processes: {sorted(before)} became {sorted(after)}"]
    found = []
    for name, was in before.items():
        now = after[name]
        if now.memfds > was.memfds or now.memfd_maps > was.memfd_maps or now.fds > was.fds + SLACK:
            found.append(f"{name}: {was} became {now}")
    return found


def assert_settled(server: Server, before: Census) -> None:
    """Every process is there, and holds no more than before; nobody is a zombie."""
    last: list[str] = []

    def settled() -> bool:
        nonlocal last
        try:
            last = difference(before, take_census(server)) + zombies_of(server)
        except (OSError, psutil.NoSuchProcess) as error:
            last = [str(error)]
        return not last

    try:
        wait_until(settled, SETTLE_SECONDS, "settled")
    except AssertionError:
        raise AssertionError(f"after {SETTLE_SECONDS} s: {last}") from None


def zombies_of(server: Server) -> list[str]:
    found = []
    for child in psutil.Process(server.process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.status() == psutil.STATUS_ZOMBIE:
                found.append(f"zombie {child.pid}")
    return found


def processes_in(folder: pathlib.Path) -> list[psutil.Process]:
    """Processes that work in a folder: a test's server runs in the test's own, and so do its children."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.cwd() == str(folder):
                found.append(process)
    return found


def shm_names() -> set[str]:
    """What is in /dev/shm under this project's name."""
    return {name for name in os.listdir("/dev/shm") if "nexus" in name}


def assert_nothing_left(folder: pathlib.Path, seconds: float = 1.0) -> float:
    """No process of a test's server is left. Returns the seconds until the last one was gone."""
    return wait_until(lambda: not processes_in(folder), seconds, f"no process left in {folder}")


@contextlib.contextmanager
def clean_server(
    tmp_path: pathlib.Path,
    repository: pathlib.Path,
    *options: str,
    prefix: tuple[str, ...] = (),
    rest: bool = False,
) -> Iterator[Server]:
    """A server that, unless the test ends it, must end with 0 at SIGTERM; in any case nothing of it may be left."""
    shm = shm_names()
    with running_server(tmp_path, *options, repository=repository, prefix=prefix, rest=rest) as server:
        # One front that answers makes it ready; a census wants them all.
        wait_until(lambda: '"event": "serving"' in server.log_text(), 20, "every process serves")
        yield server
        if server.process.poll() is None:
            assert server.stop(20) == 0, server.log_text()[-3000:]
        assert_nothing_left(tmp_path)
        assert shm_names() <= shm


def wait_replaced(server: Server, role: str, index: int, old_pid: int, seconds: float) -> float:
    """Until another process has the place. Returns the seconds that took."""

    def replaced() -> bool:
        for child in psutil.Process(server.process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                # Envoy has arguments after its name.
                if f"{' '.join(child.cmdline())} ".startswith(f"nexus: {role} {index} ") and child.pid != old_pid:
                    return True
        return False

    return wait_until(replaced, seconds, f"a new {role} {index} instead of {old_pid}")


def wait_serving_again(server: Server, index: int, old_pid: int, seconds: float) -> float:
    """Until a worker's successor has answered something, by the metrics. Returns the seconds that took."""
    started_s = time.monotonic()
    wait_replaced(server, "worker", index, old_pid, seconds)
    # Its counters go on from its predecessor's, which is dead: more can only be its own.
    batches = server.metric("nexus_batches_total", worker=str(index))
    left = seconds - (time.monotonic() - started_s)
    wait_until(
        lambda: server.metric("nexus_batches_total", worker=str(index)) > batches, left, f"worker {index} serves again"
    )
    return time.monotonic() - started_s

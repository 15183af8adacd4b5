"""The folder of what the server itself writes: one server's at a time."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from nexus_grpc.ipc.errors import StorageFailed

LOCK = "lock"


@contextlib.contextmanager
def data_folder(path: Path) -> Iterator[None]:
    """Make the folder if need be and hold it. Raises StorageFailed when another server has it, or it cannot be made."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        text = f"data_dir: {path} cannot be used ({error.strerror}); name another with --data-dir"
        raise StorageFailed(text) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise StorageFailed(
            f"data_dir: another server uses {path.resolve()}; stop it, or give this one a --data-dir of its own"
        ) from None
    try:
        yield
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether a server holds the folder now, as far as this container sees. Takes no lock, which would keep one that is
    just starting from it.

    Source: https://man7.org/linux/man-pages/man5/proc_locks.5.html
    """
    try:
        # Not the device: file systems over others tell another one here.
        inode = f":{os.stat(path / LOCK).st_ino}"
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return False
    return any("FLOCK" in line and any(word.endswith(inode) for word in line.split()) for line in lines)

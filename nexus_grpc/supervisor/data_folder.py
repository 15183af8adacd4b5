"""The folder of what the server itself writes: one server's at a time."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from nexus_grpc.ipc.errors import StorageFailed


@contextlib.contextmanager
def data_folder(path: Path) -> Iterator[None]:
    """Make the folder if need be and hold it. Raises StorageFailed when another server has it, or it cannot be made."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
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

"""Where files wait until they are complete and checked: a hidden folder in the model repository, on its file system, so
that moving them into place is one atomic rename. Scans of the repository ignore it.
"""

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from nexus_grpc.ipc.errors import StorageFailed, TooLarge

FOLDER = ".nexus-staging"
NO_SPACE = "there is no space left on the disk of the model repository; free some and try again"


class StagedFile:
    """A file that arrives in pieces. finish() or discard() ends it; nothing else knows its name until then."""

    def __init__(self, path: Path, descriptor: int, size_max: int) -> None:
        self.path = path
        self.size_bytes = 0
        self._descriptor = descriptor
        self._size_max = size_max
        self._hash = hashlib.sha256()

    @classmethod
    def create(cls, repository: Path, size_max: int) -> "StagedFile":
        """An empty one of at most `size_max` bytes. Raises StorageFailed."""
        path = staging_folder(repository) / staged_name("upload")
        try:
            return cls(path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), size_max)
        except OSError as error:
            raise failed(error) from None

    def write(self, chunk: bytes) -> None:
        """Append. Raises TooLarge or StorageFailed."""
        if self.size_bytes + len(chunk) > self._size_max:
            raise TooLarge(f"the file is larger than {self._size_max} bytes (upload_max_bytes)")
        try:
            write_all(self._descriptor, chunk)
        except OSError as error:
            raise failed(error) from None
        self._hash.update(chunk)
        self.size_bytes += len(chunk)

    def finish(self) -> tuple[Path, str, int]:
        """(path, SHA-256 as hexadecimal digits, bytes); the content is on the disk. Raises StorageFailed."""
        try:
            os.fsync(self._descriptor)
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)
        except OSError as error:
            self.discard()
            raise failed(error) from None
        return self.path, self._hash.hexdigest(), self.size_bytes

    def discard(self) -> None:
        """Remove it, whatever state it is in."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            with contextlib.suppress(OSError):
                os.close(descriptor)
        with contextlib.suppress(OSError):
            os.unlink(self.path)


def staging_folder(repository: Path) -> Path:
    """The folder, made if need be. Raises StorageFailed."""
    folder = repository / FOLDER
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise failed(error) from None
    return folder


def write_all(descriptor: int, content: bytes) -> None:
    """A write may take less than it was given. Raises OSError."""
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def staged_name(purpose: str) -> str:
    """A name nobody else has; it begins with the number of the process that it belongs to."""
    return f"{os.getpid()}-{purpose}-{secrets.token_hex(8)}"


def sweep(repository: Path, is_alive: Callable[[int], bool]) -> None:
    """Remove what belongs to processes that are gone."""
    with contextlib.suppress(OSError):
        for name in os.listdir(repository / FOLDER):
            number = name.partition("-")[0]
            if number.isdecimal() and not is_alive(int(number)):
                clear(repository / FOLDER / name)


def clear(path: Path) -> None:
    """Remove a folder, a file or a link, as far as the disk allows."""
    with contextlib.suppress(OSError):
        # It ignores errors, but not each: the end of a folder's listing may fail.
        shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.unlink(path)


def failed(error: OSError) -> StorageFailed:
    """An error of the file system for people; it names no path."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFailed(NO_SPACE, reason="NO_SPACE")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return StorageFailed("the model repository cannot be written by this server; check its permissions")
    return StorageFailed(f"the model repository cannot be written ({error.strerror}); nothing was changed")

"""Models' files: put into the repository and taken out of it, each by one atomic rename. Runs in a thread.

    commit: staging/<token>/…  complete and on the disk  ──rename──▶  <model>/<version>/   (or <model>/ when it is new)
    remove: <model>/<version>/  ──rename──▶  staging/<token>/…  ──▶  deleted

A crash before the rename leaves something in staging only, which the next start clears; one after it leaves a complete
version, or none.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nexus_grpc.ipc.errors import AlreadyExists, StorageFailed
from nexus_grpc.staging import clear, failed, staged_name, staging_folder, sweep, write_all
from nexus_grpc.version_folders import MODEL_FILE, version_folder

INFO_FILE = "model_info.json"
CURRENT_LINK = "current"
_CHUNK_BYTES = 1 << 20
# <model>/<version>/
FOLDERS_DEEP = 2
# A rename onto a folder that is there; which of the two it is depends on the file system (rename(2)).
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY)
_TARGET = re.compile(r"v?([1-9][0-9]{0,17})/?", re.ASCII)

FileFacts = tuple[str, int, int, int]
"""Path, time of the last change in ns (of its permissions, too), size in bytes, inode."""


def commit(
    repository: Path, staged: Path, model: str, version: int, info: Mapping[str, Any], file_name: str = MODEL_FILE
) -> Path:
    """Make a staged file a version of a model; return the model file's path.

    Args:
        info: becomes model_info.json.
        file_name: what the model's configuration calls the file.

    Raises AlreadyExists when the version is there, StorageFailed when the disk does not take it; nothing is left then.
    """
    temporary = staging_folder(repository) / staged_name("commit")
    built, target = temporary / model / str(version), repository / model / str(version)
    try:
        if _is_there(target.parent) and not target.parent.is_dir():
            raise AlreadyExists(f"'{model}' is something else than a folder in the model repository; take another id")
        if _is_there(target):
            raise _exists(model, version)
        _build(built, staged, file_name, info)
        _put(built, target)
        try:
            _sync(target.parent)
            _sync(repository)
        except OSError:
            uncommit(repository, model, version)
            raise
        return target / file_name
    except OSError as error:
        if error.errno in _TAKEN:
            raise _exists(model, version) from None
        raise failed(error) from None
    finally:
        clear(temporary)


def _exists(model: str, version: int) -> AlreadyExists:
    return AlreadyExists(f"model '{model}' has version {version} already; upload it as another version")


def _is_there(path: Path) -> bool:
    """Also a link that leads nowhere. Raises OSError."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def _build(folder: Path, staged: Path, file_name: str, info: Mapping[str, Any]) -> None:
    """A complete version folder, on the disk."""
    # For our user alone, as the staged file is.
    os.makedirs(folder.parent, mode=0o700)
    os.mkdir(folder, mode=0o700)
    os.rename(staged, folder / file_name)
    descriptor = os.open(folder / INFO_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        write_all(descriptor, json.dumps(dict(info), indent=2, ensure_ascii=False).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    for each in (folder / file_name, folder, folder.parent):
        _sync(each)


def _put(built: Path, target: Path) -> None:
    """One rename: of the model's folder when it is new, else of the version's. Raises OSError."""
    if not target.parent.is_dir():
        try:
            os.rename(built.parent, target.parent)
            return
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            # Another server made the model meanwhile, with whichever version.
    os.rename(built, target)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def uncommit(repository: Path, model: str, version: int) -> None:
    """Take a version back that the registry did not, as far as the disk allows. What stays is complete, and taken up by
    the next look at the files."""
    with contextlib.suppress(OSError, StorageFailed):
        _take_out(repository, model, version, is_durable=False)


def remove(repository: Path, model: str, version: int | None) -> None:
    """Delete a version's files, or (None) the whole model's. Gone already is fine.

    Raises StorageFailed; everything is there as before then.
    """
    try:
        _take_out(repository, model, version, is_durable=True)
    except FileNotFoundError:
        return
    except OSError as error:
        raise failed(error) from None


def _take_out(repository: Path, model: str, version: int | None, *, is_durable: bool) -> None:
    """One rename, then deletion. The last version takes the model's folder along, unless something of its owner's is
    in it. Raises OSError or StorageFailed."""
    home = repository / model
    version_home = home if version is None else version_folder(home, version)
    is_last = version is not None and os.listdir(home) == [version_home.name]
    folder = home if is_last else version_home
    grave = staging_folder(repository) / staged_name("removed")
    os.rename(folder, grave)
    try:
        if is_last and os.listdir(grave) != [version_home.name]:
            raise OSError(errno.EBUSY, "somebody else has just written to the model's folder")
        if is_durable:
            _sync(folder.parent)
    except OSError:
        os.rename(grave, folder)
        raise
    clear(grave)


def sweep_all(repository: Path) -> None:
    """Clear what a server that crashed left in staging; other servers may use the repository now."""
    sweep(repository, lambda pid: pid != os.getpid() and os.path.exists(f"/proc/{pid}"))


def repository_fingerprint(repository: Path) -> frozenset[FileFacts]:
    """What changes when anything in a repository does, down to the versions' files. Raises OSError."""
    found: set[FileFacts] = set()
    folders = [(os.fspath(repository), 0)]
    while folders:
        folder, depth = folders.pop()
        # One that goes while we look is seen to be gone by the next look; into one that may not be read (lost+found) we
        # do not look. Of the repository itself only the first is fine.
        passed_over = OSError if depth else FileNotFoundError
        with contextlib.suppress(passed_over), os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                facts = _facts(entry)
                found.add((entry.path, facts.st_ctime_ns, facts.st_size, facts.st_ino))
                if depth < FOLDERS_DEEP and _is_folder(entry):
                    folders.append((entry.path, depth + 1))
    return frozenset(found)


def _facts(entry: "os.DirEntry[str]") -> os.stat_result:
    """Of what a link leads to; of the link itself, if that is nowhere."""
    try:
        return entry.stat()
    except OSError:
        return entry.stat(follow_symlinks=False)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a loop of links
        return False


def file_sha256(path: Path) -> str:
    """As hexadecimal digits. Raises OSError."""
    content = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            content.update(chunk)
    return content.hexdigest()


def taken_numbers(repository: Path, model: str) -> set[int]:
    """The versions whose place is taken in a model's folder, be it by a folder without a file or by a broken link."""
    try:
        names = os.listdir(repository / model)
    except OSError:
        return set()
    return {int(match[1]) for match in map(_TARGET.fullmatch, names) if match}


def read_current(repository: Path, model: str) -> int | None:
    """The version that the model's `current` link names; None without one, or when it leads elsewhere."""
    try:
        match = _TARGET.fullmatch(os.readlink(repository / model / CURRENT_LINK))
    except OSError:
        return None
    return int(match[1]) if match else None

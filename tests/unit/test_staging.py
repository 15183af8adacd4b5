"""nexus_grpc/staging.py with real files; the full disk and the foreign faults are real too where that is possible."""

import contextlib
import errno
import hashlib
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexus_grpc.ipc.errors import StorageFailed, TooLarge
from nexus_grpc.staging import (
    FOLDER,
    NO_SPACE,
    StagedFile,
    clear,
    failed,
    staged_name,
    staging_folder,
    sweep,
    write_all,
)
from tests.unit.support import open_descriptors

SIZE_MAX = 1 << 20


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def staged(repository: Path) -> list[str]:
    return sorted(os.listdir(repository / FOLDER))


@pytest.fixture
def permissive_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@contextlib.contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """What is written beyond it fails, as on a full disk, after a part of it was taken.

    No fixture: pytest writes its progress, perhaps into a file, before fixtures end.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


# --- one file ---


def test_a_file_arrives_in_pieces(tmp_path: Path) -> None:
    pieces = [b"a" * 1000, b"", os.urandom(70_000), b"z"]
    before = open_descriptors()
    file = StagedFile.create(tmp_path, SIZE_MAX)
    for piece in pieces:
        file.write(piece)
    content = b"".join(pieces)
    path, sha256, size_bytes = file.finish()
    assert path.read_bytes() == content
    assert (sha256, size_bytes, file.size_bytes) == (hashlib.sha256(content).hexdigest(), len(content), len(content))
    assert open_descriptors() == before
    file.discard()
    assert staged(tmp_path) == []


@pytest.mark.usefixtures("permissive_umask")
def test_it_is_private_and_hidden(tmp_path: Path) -> None:
    file = StagedFile.create(tmp_path, SIZE_MAX)
    assert mode(file.path) == 0o600
    assert mode(tmp_path / FOLDER) == 0o700
    assert (tmp_path / FOLDER).name.startswith(".")
    assert file.path.parent == tmp_path / FOLDER
    assert file.path.name.startswith(f"{os.getpid()}-upload-")
    file.discard()


def test_a_limit_is_kept_to_the_byte(tmp_path: Path) -> None:
    file = StagedFile.create(tmp_path, 10)
    file.write(b"12345")
    with pytest.raises(TooLarge, match="larger than 10 bytes"):
        file.write(b"678901")
    assert file.size_bytes == 5
    file.write(b"67890")
    with pytest.raises(TooLarge):
        file.write(b"1")
    path, _, size_bytes = file.finish()
    assert (path.read_bytes(), size_bytes) == (b"1234567890", 10)


def test_a_write_that_the_disk_does_not_take(tmp_path: Path) -> None:
    file = StagedFile.create(tmp_path, SIZE_MAX)
    with file_size_limit(4096), pytest.raises(StorageFailed, match="nothing was changed"):
        file.write(b"x" * 4097)
    assert file.path.stat().st_size == 4096
    file.discard()
    assert staged(tmp_path) == []


def test_a_full_disk_says_so() -> None:
    """/dev/full: every write ends with ENOSPC."""
    file = StagedFile(Path("/nowhere"), os.open("/dev/full", os.O_WRONLY), SIZE_MAX)
    with pytest.raises(StorageFailed) as caught:
        file.write(b"x")
    assert (caught.value.message, caught.value.reason) == (NO_SPACE, "NO_SPACE")
    assert file.size_bytes == 0
    file.discard()


def test_a_file_whose_sync_fails_is_removed(tmp_path: Path) -> None:
    """A pipe cannot be synced (EINVAL)."""
    reader, writer = os.pipe()
    path = tmp_path / "staged"
    path.touch()
    before = open_descriptors()
    file = StagedFile(path, writer, SIZE_MAX)
    with pytest.raises(StorageFailed):
        file.finish()
    os.close(reader)
    assert not path.exists()
    assert len(before) - len(open_descriptors()) == 2


def test_discarding_twice_harms_nobody(tmp_path: Path) -> None:
    file = StagedFile.create(tmp_path, SIZE_MAX)
    number = file._descriptor
    file.discard()
    other = os.open(tmp_path, os.O_RDONLY)  # takes the number that was let go of
    assert other == number
    file.discard()
    os.fstat(other)
    os.close(other)


def test_nobody_has_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert staged_name("x") != staged_name("x")
    monkeypatch.setattr("nexus_grpc.staging.staged_name", lambda purpose: "same")
    file = StagedFile.create(tmp_path, SIZE_MAX)
    file.write(b"first")
    with pytest.raises(StorageFailed, match="File exists"):
        StagedFile.create(tmp_path, SIZE_MAX)
    assert file.finish()[0].read_bytes() == b"first"


def test_a_link_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nexus_grpc.staging.staged_name", lambda purpose: "same")
    os.symlink(tmp_path / "victim", staging_folder(tmp_path) / "same")
    with pytest.raises(StorageFailed):
        StagedFile.create(tmp_path, SIZE_MAX)
    assert not (tmp_path / "victim").exists()


# --- the folder ---


def test_the_folder_is_made_once(tmp_path: Path) -> None:
    first = staging_folder(tmp_path)
    (first / "kept").touch()
    assert staging_folder(tmp_path) == first == tmp_path / FOLDER
    assert staged(tmp_path) == ["kept"]


def test_a_repository_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match="No such file"):
        staging_folder(tmp_path / "missing")
    with pytest.raises(StorageFailed):
        StagedFile.create(tmp_path / "missing", SIZE_MAX)


def test_a_file_in_the_folder_s_place(tmp_path: Path) -> None:
    (tmp_path / FOLDER).touch()
    with pytest.raises(StorageFailed):
        StagedFile.create(tmp_path, SIZE_MAX)


@pytest.mark.parametrize(
    ("number", "text", "reason"),
    [
        (errno.ENOSPC, "no space left", "NO_SPACE"),
        (errno.EDQUOT, "no space left", "NO_SPACE"),
        (errno.EROFS, "check its permissions", "STORAGE_FAILED"),
        (errno.EACCES, "check its permissions", "STORAGE_FAILED"),
        (errno.EPERM, "check its permissions", "STORAGE_FAILED"),
        (errno.EIO, "Input/output error", "STORAGE_FAILED"),
    ],
)
def test_errors_for_people(number: int, text: str, reason: str) -> None:
    error = failed(OSError(number, os.strerror(number), "/secret/path"))
    assert text in error.message
    assert "secret" not in error.message
    assert error.reason == reason


def test_a_write_that_takes_less() -> None:
    """A pipe that is nearly full takes a part only: nothing is lost, nothing is doubled."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    content = os.urandom(1 << 20)
    with pytest.raises(BlockingIOError):
        write_all(writer, content)
    os.close(writer)
    with open(reader, "rb") as file:
        taken = file.read()
    assert 0 < len(taken) < len(content)
    assert content.startswith(taken)


# --- sweeping ---


def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def is_alive(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def test_sweeping_takes_only_what_the_dead_left(tmp_path: Path) -> None:
    folder, dead = staging_folder(tmp_path), dead_pid()
    (folder / f"{dead}-upload-1").write_bytes(b"half a file")
    (folder / f"{dead}-commit-2" / "shop" / "1").mkdir(parents=True)
    (folder / f"{dead}-commit-2" / "shop" / "1" / "model.onnx").touch()
    os.symlink(tmp_path, folder / f"{dead}-removed-3")
    os.symlink("nowhere", folder / f"{dead}-removed-4")
    (folder / "notes.txt").touch()
    (folder / "²-upload-5").touch()
    mine = StagedFile.create(tmp_path, SIZE_MAX)
    (tmp_path / "shop").mkdir()
    sweep(tmp_path, is_alive)
    assert staged(tmp_path) == sorted(["notes.txt", "²-upload-5", mine.path.name])
    assert (tmp_path / "shop").is_dir()
    sweep(tmp_path, lambda pid: False)
    assert staged(tmp_path) == ["notes.txt", "²-upload-5"]


def test_sweeping_where_nothing_was(tmp_path: Path) -> None:
    sweep(tmp_path, is_alive)
    sweep(tmp_path / "missing", is_alive)
    assert list(tmp_path.iterdir()) == []


def test_clearing_does_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / "gone").mkdir()
    os.symlink(tmp_path / "kept", tmp_path / "gone" / "link")
    clear(tmp_path / "gone")
    clear(tmp_path / "gone")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept" / "file").exists()

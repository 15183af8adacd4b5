"""nexus_grpc/supervisor/storage.py with real files. Faults at each of its steps: tests/chaos/test_upload_faults.py."""

import hashlib
import json
import os
import shutil
import stat
import threading
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest

from nexus_grpc.ipc.errors import AlreadyExists, StorageFailed
from nexus_grpc.repository import scan_model
from nexus_grpc.staging import FOLDER, StagedFile, staging_folder
from nexus_grpc.supervisor import storage
from tests.unit.test_staging import dead_pid

INFO = {"id": "shop", "version": "1", "labels": {"team": "ü"}}
CONTENT = b"model"
# Both orders of two threads come up in fewer.
ROUNDS = 60


def stage(repository: Path, content: bytes = CONTENT) -> Path:
    file = StagedFile.create(repository, 1 << 20)
    file.write(content)
    return file.finish()[0]


def put(repository: Path, model: str, version: int, content: bytes = CONTENT) -> Path:
    return storage.commit(repository, stage(repository, content), model, version, INFO)


def tree(repository: Path) -> list[str]:
    """What is there, but for the staging folder itself."""
    return sorted(str(path.relative_to(repository)) for path in repository.rglob("*") if path.name != FOLDER)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def failing_once(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    """The `number`-th call of one of os's functions ends with EIO."""
    real: Callable[..., Any] = getattr(os, name)
    count = 0

    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == number:
            raise OSError(5, "Input/output error")
        return real(*arguments, **options)

    monkeypatch.setattr(os, name, call)


# --- committing ---


def test_a_new_model(tmp_path: Path) -> None:
    path = put(tmp_path, "shop", 1)
    assert path == tmp_path / "shop" / "1" / "model.onnx"
    assert path.read_bytes() == CONTENT
    assert json.loads((path.parent / storage.INFO_FILE).read_text()) == INFO
    assert "ü" in (path.parent / storage.INFO_FILE).read_text()
    assert tree(tmp_path) == ["shop", "shop/1", "shop/1/model.onnx", "shop/1/model_info.json"]
    assert os.listdir(tmp_path / FOLDER) == []
    found = scan_model(tmp_path, "shop")
    assert found is not None
    assert ([each.version for each in found.present], found.error) == ([1], None)


def test_it_is_for_our_user_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    path = put(tmp_path, "shop", 1)
    os.umask(before)
    assert [mode(each) for each in (path, path.parent / storage.INFO_FILE)] == [0o600, 0o600]
    assert [mode(each) for each in (path.parent, path.parent.parent)] == [0o700, 0o700]


def test_another_version_of_a_model(tmp_path: Path) -> None:
    first = put(tmp_path, "shop", 1)
    (tmp_path / "shop" / "config.pbtxt").write_text("max_batch_size: 8")
    before = (first.stat().st_ino, first.stat().st_mtime_ns)
    put(tmp_path, "shop", 2, b"second")
    assert (tmp_path / "shop" / "2" / "model.onnx").read_bytes() == b"second"
    assert (first.stat().st_ino, first.stat().st_mtime_ns) == before
    assert (tmp_path / "shop" / "config.pbtxt").exists()


def test_the_file_has_the_name_it_is_given(tmp_path: Path) -> None:
    path = storage.commit(tmp_path, stage(tmp_path), "shop", 1, INFO, "net.onnx")
    assert path.name == "net.onnx"
    assert tree(tmp_path) == ["shop", "shop/1", "shop/1/model_info.json", "shop/1/net.onnx"]


@pytest.mark.parametrize("kind", ["version", "empty", "file", "broken link"])
def test_what_is_there_is_not_replaced(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "shop" / "1"
    if kind == "version":
        put(tmp_path, "shop", 1, b"first")
    else:
        target.parent.mkdir()
        {"empty": target.mkdir, "file": target.touch, "broken link": lambda: target.symlink_to("x")}[kind]()
    staging_folder(tmp_path)
    before = tree(tmp_path)
    staged = stage(tmp_path)
    with pytest.raises(AlreadyExists, match="has version 1 already"):
        storage.commit(tmp_path, staged, "shop", 1, INFO)
    staged.unlink()
    assert tree(tmp_path) == before
    if kind == "version":
        assert (target / "model.onnx").read_bytes() == b"first"


def test_a_file_in_the_model_s_place(tmp_path: Path) -> None:
    (tmp_path / "shop").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("shop", "link", "loop"):
        with pytest.raises(AlreadyExists, match=f"'{name}' is something else than a folder in the model repository"):
            put(tmp_path, name, 1)
    assert (tmp_path / "shop").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != FOLDER) == ["link", "loop", "shop"]


def test_the_places_that_are_taken(tmp_path: Path) -> None:
    put(tmp_path, "shop", 1)
    (tmp_path / "shop/v4").mkdir()
    (tmp_path / "shop/7").symlink_to("nowhere")
    for name in ("08", "9.0", "current", "config.pbtxt"):
        (tmp_path / "shop" / name).touch()
    assert storage.taken_numbers(tmp_path, "shop") == {1, 4, 7}
    assert storage.taken_numbers(tmp_path, "none") == set()


def test_a_staged_file_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match="No such file"):
        storage.commit(tmp_path, tmp_path / "missing", "shop", 1, INFO)
    assert tree(tmp_path) == []


@pytest.mark.parametrize("has_model", [False, True])
@pytest.mark.parametrize("number", [5, 6])
def test_a_rename_that_cannot_be_synced_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, has_model: bool
) -> None:
    """The first four syncs are of what is being built; then come the model's folder and the repository."""
    if has_model:
        put(tmp_path, "shop", 1)
    staged, before = stage(tmp_path), tree(tmp_path)
    with monkeypatch.context() as patched:
        failing_once(patched, "fsync", number)
        with pytest.raises(StorageFailed):
            storage.commit(tmp_path, staged, "shop", 2, INFO)
    assert tree(tmp_path) == [name for name in before if FOLDER not in name]
    put(tmp_path, "shop", 2)


def commits_at_once(repository: Path, *versions: int) -> list[str]:
    """What threads that begin together end with."""
    staged = [stage(repository, str(version).encode()) for version in versions]
    barrier = threading.Barrier(len(versions))

    def commit(path: Path, version: int) -> str:
        barrier.wait()
        try:
            storage.commit(repository, path, "shop", version, INFO)
        except AlreadyExists:
            path.unlink(missing_ok=True)
            return "exists"
        return "ok"

    with futures.ThreadPoolExecutor(len(versions)) as pool:
        return sorted(pool.map(commit, staged, versions))


@pytest.mark.parametrize("has_model", [False, True])
def test_of_two_at_once_one_wins(tmp_path: Path, has_model: bool) -> None:
    for number in range(ROUNDS):
        repository = tmp_path / str(number)
        repository.mkdir()
        if has_model:
            put(repository, "shop", 7)
        assert commits_at_once(repository, 1, 1) == ["exists", "ok"]
        assert (repository / "shop" / "1" / "model.onnx").read_bytes() == b"1"
        assert os.listdir(repository / FOLDER) == []


def test_two_versions_of_a_new_model_at_once(tmp_path: Path) -> None:
    """Two servers, one repository: whose rename of the whole folder comes second puts its version into it."""
    for number in range(ROUNDS):
        repository = tmp_path / str(number)
        repository.mkdir()
        assert commits_at_once(repository, 1, 2) == ["ok", "ok"]
        assert [(repository / "shop" / each / "model.onnx").read_text() for each in ("1", "2")] == ["1", "2"]
        assert os.listdir(repository / FOLDER) == []


# --- taking out ---


@pytest.mark.parametrize("take_out", [storage.remove, storage.uncommit])
def test_a_version_goes(tmp_path: Path, take_out: Callable[[Path, str, int], None]) -> None:
    put(tmp_path, "shop", 1)
    put(tmp_path, "shop", 2)
    take_out(tmp_path, "shop", 1)
    assert tree(tmp_path) == ["shop", "shop/2", "shop/2/model.onnx", "shop/2/model_info.json"]
    take_out(tmp_path, "shop", 2)
    assert tree(tmp_path) == []
    take_out(tmp_path, "shop", 2)


@pytest.mark.parametrize("take_out", [storage.remove, storage.uncommit])
def test_the_owner_s_files_stay(tmp_path: Path, take_out: Callable[[Path, str, int], None]) -> None:
    put(tmp_path, "shop", 1)
    (tmp_path / "shop" / "config.pbtxt").touch()
    take_out(tmp_path, "shop", 1)
    assert tree(tmp_path) == ["shop", "shop/config.pbtxt"]


def test_a_whole_model_goes(tmp_path: Path) -> None:
    put(tmp_path, "shop", 1)
    put(tmp_path, "shop", 2)
    put(tmp_path, "other", 1)
    (tmp_path / "shop" / "config.pbtxt").touch()
    storage.remove(tmp_path, "shop", None)
    assert tree(tmp_path) == ["other", "other/1", "other/1/model.onnx", "other/1/model_info.json"]
    storage.remove(tmp_path, "shop", None)


@pytest.mark.parametrize("version", [1, None])
@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_removal_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, version: int | None
) -> None:
    put(tmp_path, "shop", 1)
    before = tree(tmp_path)
    with monkeypatch.context() as patched:
        failing_once(patched, call, 1)
        with pytest.raises(StorageFailed, match="Input/output error"):
            storage.remove(tmp_path, "shop", version)
    assert tree(tmp_path) == before
    storage.remove(tmp_path, "shop", version)
    assert tree(tmp_path) == []


def test_what_cannot_be_taken_back_stays_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "shop", 1)
    before = tree(tmp_path)
    with monkeypatch.context() as patched:
        failing_once(patched, "rename", 1)
        storage.uncommit(tmp_path, "shop", 1)
    assert tree(tmp_path) == before


def test_a_version_that_comes_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another server's, after the look whether ours is the last one."""
    put(tmp_path, "shop", 1)
    real = os.listdir

    def listdir(path: Path) -> list[str]:
        found = real(path)
        if path == tmp_path / "shop":
            (path / "2").mkdir()
        return found

    with monkeypatch.context() as patched:
        patched.setattr(os, "listdir", listdir)
        with pytest.raises(StorageFailed, match="just written"):
            storage.remove(tmp_path, "shop", 1)
    assert tree(tmp_path) == ["shop", "shop/1", "shop/1/model.onnx", "shop/1/model_info.json", "shop/2"]


# --- the rest ---


def test_the_sweep_at_the_start(tmp_path: Path) -> None:
    """What has our own number is an earlier server's: in a container they often have the same."""
    put(tmp_path, "shop", 1)
    folder = staging_folder(tmp_path)
    for name in (f"{dead_pid()}-upload-a", f"{os.getpid()}-upload-b", f"{os.getppid()}-upload-c"):
        (folder / name).touch()
    storage.sweep_all(tmp_path)
    assert os.listdir(folder) == [f"{os.getppid()}-upload-c"]
    assert (tmp_path / "shop" / "1" / "model.onnx").exists()


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (2 << 20) + 3])
def test_a_file_s_sha256(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    assert storage.file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_the_sha256_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        storage.file_sha256(tmp_path / "missing")


@pytest.mark.parametrize(
    ("target", "version"),
    [
        ("1", 1), ("v1", 1), ("12/", 12), ("v3/", 3), ("999999999999999999", 999999999999999999),
        ("0", None), ("01", None), ("-1", None), ("1.0", None), ("latest", None), ("٣", None), ("1\n", None),
        ("../other/1", None), ("/etc", None), ("./1", None), ("1/..", None), ("1/model.onnx", None), ("V1", None),
    ],
)  # fmt: skip
def test_the_current_link(tmp_path: Path, target: str, version: int | None) -> None:
    (tmp_path / "shop").mkdir()
    os.symlink(target, tmp_path / "shop" / "current")
    assert storage.read_current(tmp_path, "shop") == version


def test_no_current_link(tmp_path: Path) -> None:
    assert storage.read_current(tmp_path, "shop") is None
    (tmp_path / "shop" / "current").mkdir(parents=True)
    assert storage.read_current(tmp_path, "shop") is None


def test_a_repositorys_fingerprint_changes_with_everything_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "m" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"one")
    (tmp_path / "m" / "current").symlink_to("1")
    (tmp_path / "m" / "dangling").symlink_to("nowhere")

    def relink() -> None:
        (tmp_path / "m" / "current").unlink()
        (tmp_path / "m" / "current").symlink_to("2")

    changes = [
        lambda: (folder / "model.onnx").write_bytes(b"other"),
        lambda: os.utime(folder / "model.onnx", ns=(1, 1)),
        lambda: (tmp_path / "m" / "config.pbtxt").write_text("max_batch_size: 1"),
        lambda: shutil.copytree(folder, tmp_path / "m" / "2"),
        relink,
        lambda: (tmp_path / "n").mkdir(),
        lambda: shutil.rmtree(folder),
        lambda: shutil.rmtree(tmp_path / "m"),
    ]
    seen = [storage.repository_fingerprint(tmp_path)]
    for change in changes:
        change()
        seen.append(storage.repository_fingerprint(tmp_path))
        assert seen[-1] == storage.repository_fingerprint(tmp_path)
    assert len(set(seen)) == len(changes) + 1
    (tmp_path / ".nexus-staging").mkdir()
    assert storage.repository_fingerprint(tmp_path) == seen[-1] == {each for each in seen[-1] if "/n" in each[0]}


def test_a_fingerprint_passes_over_what_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lost+found belongs to root, who runs these tests."""
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "iris/1").mkdir(parents=True)
    (tmp_path / "iris/1/loop").symlink_to("loop")
    real = os.scandir

    def scandir(path: str) -> Any:
        if path.endswith("lost+found"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert len(storage.repository_fingerprint(tmp_path)) == 4
    (tmp_path / "iris/1/model.onnx").write_bytes(b"")
    assert len(storage.repository_fingerprint(tmp_path)) == 5
    monkeypatch.setattr(os, "scandir", lambda path: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(PermissionError):
        storage.repository_fingerprint(tmp_path)


def test_a_version_whose_folder_has_a_v_is_removed(tmp_path: Path) -> None:
    for folder in ("iris/v1", "iris/2"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "model.onnx").write_bytes(b"")
    storage.remove(tmp_path, "iris", 1)
    assert os.listdir(tmp_path / "iris") == ["2"]
    storage.remove(tmp_path, "iris", 2)
    assert not (tmp_path / "iris").exists()

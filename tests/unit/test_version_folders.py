"""Version folders, and the model file in each; a broken one hides none of the others."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus_grpc.repository import ModelEntry, read_repository
from nexus_grpc.version_folders import version_folder


def add(root: Path, *files: str, config: str = "") -> None:
    for file in files:
        path = root / "m" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"onnx")
    if config:
        (root / "m/config.pbtxt").write_text(config)


def entry(root: Path) -> ModelEntry:
    (found,) = read_repository(root).entries
    return found


def present(root: Path) -> dict[int, str]:
    return {each.version: str(each.path.relative_to(root / "m")) for each in entry(root).present}


def test_versions_with_a_v(tmp_path: Path) -> None:
    add(tmp_path, "v1/model.onnx", "v2/model.onnx", "3/model.onnx")
    assert present(tmp_path) == {1: "v1/model.onnx", 2: "v2/model.onnx", 3: "3/model.onnx"}
    assert [each.version for each in entry(tmp_path).versions] == [3]
    assert entry(tmp_path).error is None
    assert entry(tmp_path).relative_path("2") == "m/v2/model.onnx"
    assert entry(tmp_path).relative_path("9") == "m/9/model.onnx"
    assert entry(tmp_path).relative_path("") == "m"


def test_the_same_version_twice(tmp_path: Path) -> None:
    add(tmp_path, "v1/model.onnx", "1/model.onnx", "v2/model.onnx")
    assert present(tmp_path) == {1: "1/model.onnx", 2: "v2/model.onnx"}
    assert entry(tmp_path).error == "1/ and v1/ are the same version: 1/ is taken; remove one"
    assert version_folder(tmp_path / "m", 1).name == "1"
    assert version_folder(tmp_path / "m", 2).name == "v2"
    assert version_folder(tmp_path / "m", 3).name == "3"


@pytest.mark.parametrize(
    ("files", "config", "taken"),
    [
        (["net.onnx"], "", "net.onnx"),
        (["net.onnx", "net.onnx.data", "notes.txt", ".hidden.onnx"], "", "net.onnx"),
        (["net.onnx", "model.onnx"], "", "model.onnx"),
        (["net.onnx", "other.onnx"], 'default_model_filename: "other.onnx"', "other.onnx"),
    ],
)
def test_which_file_is_the_model(tmp_path: Path, files: list[str], config: str, taken: str) -> None:
    add(tmp_path, *(f"1/{name}" for name in files), config=config)
    assert present(tmp_path) == {1: f"1/{taken}"}
    assert entry(tmp_path).error is None


@pytest.mark.parametrize(
    ("files", "config", "error"),
    [
        (["b.onnx", "a.onnx"], "", "has no file m/1/model.onnx, but 2 others: a.onnx, b.onnx; keep one, or name it in"
         " config.pbtxt (default_model_filename)"),
        (["net.onnx"], 'default_model_filename: "x.onnx"', "has no file m/1/x.onnx"),
        (["net.txt"], "", "has no file m/1/model.onnx"),
    ],
)  # fmt: skip
def test_where_there_is_none(tmp_path: Path, files: list[str], config: str, error: str) -> None:
    add(tmp_path, *(f"1/{name}" for name in files), config=config)
    assert present(tmp_path) == {}
    assert entry(tmp_path).error == f"version 1 {error}"


def test_a_file_whose_name_no_process_could_be_told_is_none(tmp_path: Path) -> None:
    (tmp_path / "m/1").mkdir(parents=True)
    with open(os.fsencode(tmp_path) + b"/m/1/\xff.onnx", "wb"):
        pass
    assert entry(tmp_path).error == "version 1 has no file m/1/model.onnx"


def test_one_broken_version_hides_none_of_the_others(tmp_path: Path) -> None:
    add(tmp_path, "1/model.onnx", "3/model.onnx", config="version_policy { all { } }")
    loop = tmp_path / "m/2"
    loop.mkdir()
    (loop / "model.onnx").symlink_to("model.onnx")
    (tmp_path / "m/4").mkdir()
    (tmp_path / "m/4/model.onnx").symlink_to("/etc/hostname")
    found = entry(tmp_path)
    assert [each.version for each in found.versions] == [1, 3]
    assert found.error is not None
    assert "version 2 cannot be read: Symlink loop" in found.error
    assert "version 4: model.onnx is a symbolic link that leads outside the model repository" in found.error


def test_the_only_file_may_not_lead_outside_either(tmp_path: Path) -> None:
    (tmp_path / "models/m/1").mkdir(parents=True)
    (tmp_path / "secret.onnx").write_bytes(b"")
    (tmp_path / "models/m/1/net.onnx").symlink_to(tmp_path / "secret.onnx")
    (found,) = read_repository(tmp_path / "models").entries
    assert found.present == ()
    assert found.error == "version 1: net.onnx is a symbolic link that leads outside the model repository"


@given(st.dictionaries(st.integers(1, 30), st.booleans(), max_size=8))
def test_a_version_is_its_number_with_or_without_a_v(
    tmp_path_factory: pytest.TempPathFactory, there: dict[int, bool]
) -> None:
    root = tmp_path_factory.mktemp("versions")
    (root / "m").mkdir()
    (root / "m/config.pbtxt").write_text("version_policy { all { } }")
    add(root, *(f"{'v' if has_v else ''}{number}/model.onnx" for number, has_v in there.items()))
    assert [each.version for each in entry(root).versions] == sorted(there)
    assert all(version_folder(root / "m", number).is_dir() for number in there)

"""The model repository: layout, version policies, broken models, and that nothing outside it is read."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus_grpc.configuration import ConfigurationError
from nexus_grpc.ipc.model_names import is_model_name
from nexus_grpc.model_config import ModelPolicy
from nexus_grpc.pb.inference.model_config_pb2 import ModelConfig
from nexus_grpc.repository import Contents, ModelEntry, Skipped, read_repository, scan, scan_model, selected_versions


def add_model(root: Path, name: str, *versions: str, config: str | None = None, file: str = "model.onnx") -> Path:
    """Puts a model with these version folders into the repository."""
    folder = root / name
    for version in versions:
        (folder / version).mkdir(parents=True)
        (folder / version / file).write_bytes(b"onnx")
    folder.mkdir(exist_ok=True)
    if config is not None:
        (folder / "config.pbtxt").write_text(config)
    return folder


def only(root: Path) -> ModelEntry:
    (entry,) = scan(root)
    return entry


def skipped(root: Path) -> dict[str, str]:
    """Why each folder is no model."""
    return {each.name: each.reason for each in read_repository(root).skipped}


def versions_of(entry: ModelEntry) -> list[int]:
    return [version.version for version in entry.versions]


def error_of(root: Path) -> str:
    error = only(root).error
    assert error is not None
    return error


def test_a_model_without_a_configuration(tmp_path: Path) -> None:
    folder = add_model(tmp_path, "iris", "1", "2", "10")
    entry = only(tmp_path)
    assert (entry.name, entry.path, entry.config, entry.error) == ("iris", folder, None, None)
    assert entry.policy == ModelPolicy()
    assert [(version.version, version.path) for version in entry.versions] == [(10, folder / "10" / "model.onnx")]


def test_models_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        add_model(tmp_path, name, "1")
    assert [entry.name for entry in scan(tmp_path)] == ["a", "b", "c"]


def test_hidden_and_plain_files_are_ignored(tmp_path: Path) -> None:
    add_model(tmp_path, ".git", "1")
    (tmp_path / "README.md").write_text("models")
    assert read_repository(tmp_path) == Contents()


def test_a_broken_model_does_not_hide_the_others(tmp_path: Path) -> None:
    add_model(tmp_path, "broken", "1", config="bogus: 1")
    add_model(tmp_path, "iris", "1")
    add_model(tmp_path, "refused", "1", config='backend: "python"')
    broken, iris, refused = scan(tmp_path)
    assert broken.error is not None
    assert broken.error.startswith('broken/config.pbtxt:1:1: field "bogus" of ModelConfig is not supported')
    assert (broken.config, broken.versions) == (None, ())
    assert iris.error is None
    assert refused.error is not None
    assert refused.error.startswith('refused/config.pbtxt: backend: "python" is not supported')


def test_the_policy_is_read_out(tmp_path: Path) -> None:
    add_model(tmp_path, "iris", "1", config='name: "iris" max_batch_size: 8 instance_group [ { count: 2 } ]')
    entry = only(tmp_path)
    assert entry.config is not None
    assert (entry.config.max_batch_size, entry.policy.max_batch_size, entry.policy.instances) == (8, 8, 2)


@pytest.mark.parametrize(
    ("policy", "versions"),
    [
        ("", [10]),
        ("version_policy { latest { num_versions: 2 } }", [2, 10]),
        ("version_policy { latest { num_versions: 9 } }", [1, 2, 10]),
        ("version_policy { all { } }", [1, 2, 10]),
        ("version_policy { specific { versions: [ 10, 1 ] } }", [1, 10]),
    ],
)
def test_version_policies(tmp_path: Path, policy: str, versions: list[int]) -> None:
    add_model(tmp_path, "iris", "1", "2", "10", config=policy)
    entry = only(tmp_path)
    assert versions_of(entry) == versions
    assert entry.error is None


@given(st.sets(st.integers(1, 10**17)), st.integers(1, 5))
def test_selected_versions(present: set[int], count: int) -> None:
    ordered = sorted(present)
    latest, everything = ModelConfig(), ModelConfig()
    latest.version_policy.latest.num_versions = count
    everything.version_policy.all.SetInParent()
    assert selected_versions(None, present) == selected_versions(ModelConfig(), present) == tuple(ordered[-1:])
    assert selected_versions(latest, present) == tuple(ordered[-count:])
    assert selected_versions(everything, present) == tuple(ordered)


def test_what_is_no_version_folder(tmp_path: Path) -> None:
    folder = add_model(tmp_path, "iris", "1", "01", "0", "-3", "V4", "5.0", "vv5", "٣", "9" * 19)
    (folder / "6").write_text("a file")
    assert versions_of(only(tmp_path)) == [1]


def test_no_version_folder_at_all(tmp_path: Path) -> None:
    add_model(tmp_path, "iris", config="")
    assert error_of(tmp_path) == "has no version folder: expected iris/1/model.onnx"


def test_a_missing_model_file(tmp_path: Path) -> None:
    folder = add_model(tmp_path, "iris", "1", "2", config="version_policy { all { } }")
    (folder / "2/model.onnx").unlink()
    entry = only(tmp_path)
    assert entry.error == "version 2 has no file iris/2/model.onnx"
    assert versions_of(entry) == [1]


def test_a_missing_specific_version(tmp_path: Path) -> None:
    add_model(tmp_path, "iris", "1", config="version_policy { specific { versions: [ 7 ] } }")
    assert error_of(tmp_path) == "version 7 has no file iris/7/model.onnx"


def test_another_file_name(tmp_path: Path) -> None:
    add_model(tmp_path, "iris", "1", config='default_model_filename: "net.onnx"', file="net.onnx")
    entry = only(tmp_path)
    assert entry.error is None
    assert entry.versions[0].path.name == "net.onnx"


@pytest.mark.parametrize("name", ["lost+found", "-x", "a..b", "a b", "ü", "a" * 129, "info", "upload", "_x"])
def test_a_folder_with_another_name_is_skipped(tmp_path: Path, name: str) -> None:
    add_model(tmp_path, name, "1")
    add_model(tmp_path, "iris", "1")
    assert only(tmp_path).name == "iris"
    assert list(skipped(tmp_path)) == [name]
    assert skipped(tmp_path)[name].startswith("not a model's name; expected 1 to 128 letters (a-z, A-Z), digits, ")
    assert scan_model(tmp_path, name) is None


def test_an_undecodable_folder_name(tmp_path: Path) -> None:
    os.mkdir(os.fsencode(tmp_path) + b"/\xff")
    assert list(skipped(tmp_path)) == ["\\udcff"]


def test_a_folder_name_commands_no_terminal(tmp_path: Path) -> None:
    (tmp_path / "a\x1b[2Jb\nc").mkdir()
    assert list(skipped(tmp_path)) == ["a\\x1b[2Jb\\nc"]
    folder = add_model(tmp_path, "iris", "1")
    (folder / "config.pbtxt").write_text("max_batch_size: 8\x1b[2J\0")
    assert error_of(tmp_path).isprintable()


def test_a_folder_with_nothing_of_a_model_is_skipped(tmp_path: Path) -> None:
    add_model(tmp_path, "scripts")
    (tmp_path / "scripts/train.py").write_text("")
    (tmp_path / "scripts/1").write_text("a file")
    reason = "has no version folder: expected scripts/1/model.onnx"
    assert skipped(tmp_path) == {"scripts": reason}
    assert scan_model(tmp_path, "scripts") == Skipped("scripts", reason)


def test_the_folder_of_a_model_is_no_repository(tmp_path: Path) -> None:
    add_model(tmp_path, "iris", "1")
    reason = (
        "has no version folder: expected 1/1/model.onnx; it looks like a version itself: is the repository the folder"
    )
    assert skipped(tmp_path / "iris") == {"1": reason + " above?"}


def test_a_models_file_among_the_folders_is_said_to_be_in_the_wrong_place(tmp_path: Path) -> None:
    add_model(tmp_path, "iris", "1")
    (tmp_path / "churn.onnx").write_bytes(b"")
    (tmp_path / ".hidden.onnx").write_bytes(b"")
    reason = "a model's file lies in a version's folder: expected churn/1/model.onnx"
    assert skipped(tmp_path) == {"churn.onnx": reason}
    assert [entry.name for entry in scan(tmp_path)] == ["iris"]


def test_of_two_names_that_differ_by_case_only_the_newcomer_is_skipped(tmp_path: Path) -> None:
    for name in ("Iris", "iris", "BertBase"):
        add_model(tmp_path, name, "1")
    found = read_repository(tmp_path).beside({"iris"})
    assert [entry.name for entry in found.entries] == ["BertBase", "iris"]
    reason = "'Iris' differs from the model 'iris' by case only; give it another name, or delete 'iris' first"
    assert found.skipped == (Skipped("Iris", reason),)
    # All at once: whoever comes first by the alphabet, each time.
    assert [entry.name for entry in scan(tmp_path)] == ["BertBase", "Iris"]


@pytest.mark.parametrize("name", ["", "../iris", "iris/", "iris\n", ".."])
def test_names_that_lead_elsewhere(tmp_path: Path, name: str) -> None:
    add_model(tmp_path, "iris", "1")
    assert not is_model_name(name)
    assert scan_model(tmp_path, name) is None


def test_scan_model(tmp_path: Path) -> None:
    add_model(tmp_path, "iris", "1")
    assert scan_model(tmp_path, "iris") == only(tmp_path)
    assert scan_model(tmp_path, "wine") is None


@pytest.mark.parametrize("link", ["", "1", "1/model.onnx", "config.pbtxt", "labels.txt", "warmup", "warmup/x.bin"])
def test_symbolic_links_that_lead_outside_are_refused(tmp_path: Path, link: str) -> None:
    root, outside = tmp_path / "models", tmp_path / "outside"
    root.mkdir()
    config = (
        'output { name: "Y" data_type: TYPE_INT64 label_filename: "labels.txt" } model_warmup { name: "w" '
        'inputs { key: "X" value { data_type: TYPE_FP32 dims: 1 input_data_file: "x.bin" } } }'
    )
    folder = add_model(root, "iris", "1", config=config)
    (folder / "labels.txt").write_text("a\n")
    (folder / "warmup").mkdir()
    (folder / "warmup/x.bin").write_bytes(bytes(4))
    assert only(root).error is None
    inside = folder / link if link else folder
    inside.rename(outside)
    inside.symlink_to(outside)
    assert "symbolic link that leads outside the model repository" in error_of(root)


def test_symbolic_links_inside_are_followed(tmp_path: Path) -> None:
    # As Kubernetes mounts a ConfigMap: everything is a link into a hidden folder.
    add_model(tmp_path / "..2026", "iris", "1")
    (tmp_path / "iris").symlink_to("..2026/iris")
    entry = only(tmp_path)
    assert (entry.error, versions_of(entry)) == (None, [1])


def test_a_repository_that_is_a_symbolic_link(tmp_path: Path) -> None:
    add_model(tmp_path / "real", "iris", "1")
    (tmp_path / "models").symlink_to("real")
    assert only(tmp_path / "models").error is None


def test_a_link_to_itself(tmp_path: Path) -> None:
    folder = add_model(tmp_path, "iris", "1")
    (folder / "config.pbtxt").symlink_to("config.pbtxt")
    assert only(tmp_path).error is not None


def test_labels(tmp_path: Path) -> None:
    folder = add_model(
        tmp_path, "iris", "1", config='output { name: "Y" data_type: TYPE_INT64 label_filename: "labels.txt" }'
    )
    assert "labels.txt, which is not in iris/" in error_of(tmp_path)
    (folder / "labels.txt").write_bytes("setosa\r\nver sicolor \n\nvirginica\u2028é\n\n".encode())
    assert only(tmp_path).labels == {"Y": ("setosa", "ver sicolor", "", "virginica\u2028é")}
    (folder / "labels.txt").write_bytes(b"")
    assert only(tmp_path).labels == {"Y": ()}
    (folder / "labels.txt").write_bytes(b"ok\n\xff")
    assert error_of(tmp_path) == "labels.txt is not UTF-8 text (byte 3)"


def test_warmup_files(tmp_path: Path) -> None:
    config = 'model_warmup {{ name: "w" inputs {{ key: "X" value {{ data_type: TYPE_FP32 input_data_file: "{}" }} }} }}'
    folder = add_model(tmp_path, "iris", "1", config=config.format("x.bin"))
    assert "iris/warmup/x.bin is not there" in error_of(tmp_path)
    (folder / "warmup").mkdir()
    (folder / "warmup/x.bin").write_bytes(bytes(4))
    assert only(tmp_path).warmup_files == {"x.bin": folder / "warmup/x.bin"}
    for name in ("../config.pbtxt", "/etc/passwd", "..", ""):
        (folder / "config.pbtxt").write_text(config.format(name))
        assert "input_data_file must be a plain file name" in error_of(tmp_path)


@pytest.mark.parametrize(("content", "message"), [(b"\xff", "is not UTF-8 text"), (b"#" * (1 << 20) + b"#", "larger")])
def test_a_configuration_that_is_no_text(tmp_path: Path, content: bytes, message: str) -> None:
    folder = add_model(tmp_path, "iris", "1")
    (folder / "config.pbtxt").write_bytes(content)
    assert message in error_of(tmp_path)


def test_a_folder_for_a_configuration(tmp_path: Path) -> None:
    folder = add_model(tmp_path, "iris", "1")
    (folder / "config.pbtxt").mkdir()
    assert error_of(tmp_path) == "cannot be read: Is a directory (config.pbtxt)"


def test_a_missing_repository(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="does not exist; create it, or name another with --model-repository"):
        scan(tmp_path / "models")


def test_a_file_for_a_repository(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("")
    with pytest.raises(ConfigurationError, match="is not a folder"):
        scan(tmp_path / "models")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_repository(tmp_path: Path) -> None:
    tmp_path.chmod(0)
    try:
        with pytest.raises(ConfigurationError, match="check its permissions"):
            scan(tmp_path)
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["config.pbtxt", "labels.txt"])
def test_a_pipe_is_no_text_and_nobody_waits_for_it(tmp_path: Path, name: str) -> None:
    config = 'output { name: "y" data_type: TYPE_FP32 dims: 3 label_filename: "labels.txt" }'
    folder = add_model(tmp_path, "iris", "1", config=None if name == "config.pbtxt" else config)
    os.mkfifo(folder / name)
    assert error_of(tmp_path) == f"{name} is a pipe or a device; expected a file"


@pytest.mark.parametrize(
    ("policy", "versions"),
    [(None, [3]), ("version_policy { latest { num_versions: 2 } }", [1, 3]), ("version_policy { all { } }", [1, 3])],
)
def test_a_newest_folder_without_a_file_takes_no_older_versions_place(
    tmp_path: Path, policy: str | None, versions: list[int]
) -> None:
    folder = add_model(tmp_path, "iris", "1", "3", config=policy)
    (folder / "7").mkdir()
    entry = only(tmp_path)
    assert versions_of(entry) == versions
    assert entry.broken == {7: "version 7 has no file iris/7/model.onnx"}
    assert entry.error == entry.broken[7]


def test_nothing_stands_in_for_a_specific_version(tmp_path: Path) -> None:
    add_model(tmp_path, "iris", "1", "2", config="version_policy { specific { versions: [ 2, 7 ] } }")
    assert versions_of(only(tmp_path)) == [2]
    assert only(tmp_path).broken == {7: "version 7 has no file iris/7/model.onnx"}

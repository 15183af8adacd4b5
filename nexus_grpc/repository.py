"""The model repository: a folder of models in Triton's layout, read into `ModelEntry` values.

    <root>/<model>/config.pbtxt              optional
    <root>/<model>/<version>/model.onnx      or another file: see version_folders.py
    <root>/<model>/<labels>.txt              an output's label_filename
    <root>/<model>/warmup/<file>             a warm-up input's input_data_file

Nothing outside the root is ever read: names are checked, and a symbolic link that leads out is refused. A model that
is broken gets an `error` and never hides the others. A folder that is no model is `Skipped`, with the reason; hidden
folders and plain files are nobody's business.
"""

import os
import stat
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nexus_grpc.config_notes import notes_of
from nexus_grpc.config_refusals import printable
from nexus_grpc.configuration import ConfigurationError
from nexus_grpc.ipc import model_names
from nexus_grpc.ipc.errors import ModelNotServable
from nexus_grpc.model_config import ModelPolicy, check_config, is_file_name, parse_config, policy_of
from nexus_grpc.pb.inference.model_config_pb2 import ModelConfig
from nexus_grpc.version_folders import (
    MODEL_FILE,
    MODEL_SUFFIX,
    VersionEntry,
    VersionFolders,
    check_inside,
    has_version_folder,
    read_versions,
)

CONFIG_FILE = "config.pbtxt"
WARMUP_FOLDER = "warmup"
# Real ones are a few KiB; ImageNet-21k's labels are 400 KB.
CONFIG_BYTES_MAX = 1 << 20
LABELS_BYTES_MAX = 16 << 20


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One model folder.

    Attributes:
        name: the folder's name; a valid model id unless `error` says otherwise.
        path: the model's folder.
        config: the parsed config.pbtxt; None if there is none or it is broken.
        policy: read out of the configuration; the defaults where there is none.
        versions: what the version policy selects and has a model file, ascending.
        present: all versions that have a model file, ascending.
        labels: class labels by output name.
        warmup_files: files of warm-up values, by the name the configuration gives them.
        broken: versions that the policy asks for and that are not there, with the reasons; others may be.
        error: why the model can't be served as it is; None if nothing is wrong.
        notes: what the configuration says and has no effect here.
    """

    name: str
    path: Path
    config: ModelConfig | None = None
    policy: ModelPolicy = field(default_factory=ModelPolicy)
    versions: tuple[VersionEntry, ...] = ()
    present: tuple[VersionEntry, ...] = ()
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    warmup_files: Mapping[str, Path] = field(default_factory=dict)
    broken: Mapping[int, str] = field(default_factory=dict)
    error: str | None = None
    notes: tuple[str, ...] = ()

    def relative_path(self, version: str) -> str:
        """A version's file, or where it would be, relative to the repository; the model's folder without a version."""
        for each in self.present:
            if str(each.version) == version:
                return f"{self.name}/{each.path.parent.name}/{each.path.name}"
        return f"{self.name}/{version}/{_model_file(self.config)}" if version else self.name


@dataclass(frozen=True, slots=True)
class Skipped:
    """What is in the repository and is no model, and why. The name is printable, whatever the folder's was."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in the repository, in the order of the names."""

    entries: tuple[ModelEntry, ...] = ()
    skipped: tuple[Skipped, ...] = ()

    def beside(self, known: Collection[str]) -> "Contents":
        """Without the models whose name differs by case only from one that came before them.

        Args:
            known: the names of the models that there were already.
        """
        refused = model_names.newcomers([entry.name for entry in self.entries], known)
        late = [Skipped(name, model_names.taken_text(name, holder)) for name, holder in refused.items()]
        kept = tuple(entry for entry in self.entries if entry.name not in refused)
        return Contents(kept, tuple(sorted((*self.skipped, *late), key=lambda each: each.name)))


def read_repository(root: Path) -> Contents:
    """Reads all of it.

    Raises:
        ConfigurationError: the root is missing, not a folder or not readable.
    """
    real_root, names = _list_root(root)
    read = [_read_folder(root / name, real_root) for name in names if _is_folder(root / name)]
    entries = tuple(each for each in read if isinstance(each, ModelEntry))
    stray = [_stray(name) for name in names if name.endswith(MODEL_SUFFIX) and not _is_folder(root / name)]
    return Contents(entries, (*(each for each in read if isinstance(each, Skipped)), *stray))


def scan(root: Path, known: Collection[str] = ()) -> list[ModelEntry]:
    """The models alone. Raises ConfigurationError, as `read_repository`."""
    return list(read_repository(root).beside(known).entries)


def scan_model(root: Path, name: str) -> ModelEntry | Skipped | None:
    """Reads one folder of the repository again; None if there is none (or `name` can't be a model's name).

    Raises:
        ConfigurationError: as `read_repository`.
    """
    real_root, names = _list_root(root)
    if not model_names.is_model_name(name) or name not in names or not _is_folder(root / name):
        return None
    return _read_folder(root / name, real_root)


def _list_root(root: Path) -> tuple[Path, list[str]]:
    """The root without symbolic links, and the names in it that are not hidden."""
    try:
        real_root = root.resolve(strict=True)
        return real_root, sorted(name for name in os.listdir(root) if not name.startswith("."))
    except FileNotFoundError:
        raise ConfigurationError(
            f"model_repository: the folder {root} does not exist; create it, or name another with --model-repository"
        ) from None
    except NotADirectoryError:
        raise ConfigurationError(f"model_repository: {root} is not a folder; expected one folder per model") from None
    except (OSError, RuntimeError) as error:
        # RuntimeError: a loop of symbolic links (pathlib, before Python 3.13).
        raise ConfigurationError(f"model_repository: {root} cannot be read ({error}); check its permissions") from error


def selected_versions(config: ModelConfig | None, present: Iterable[int]) -> tuple[int, ...]:
    """Applies the version policy: the newest one by default, `latest` n, `all`, or the `specific` ones.

    Returns:
        Versions, ascending; for `specific`, those named, present or not.
    """
    ordered = sorted(set(present))
    choice = None if config is None else config.version_policy.WhichOneof("policy_choice")
    if config is None or choice is None:
        return tuple(ordered[-1:])
    if choice == "latest":
        return tuple(ordered[-config.version_policy.latest.num_versions :])
    if choice == "specific":
        return tuple(sorted(set(config.version_policy.specific.versions)))
    return tuple(ordered)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        # Not even stat is allowed: shown as a broken model rather than hidden.
        return True


def _read_folder(folder: Path, root: Path) -> ModelEntry | Skipped:
    name = folder.name
    if not model_names.is_model_name(name):
        return Skipped(printable(name), f"not a model's name; expected {model_names.EXPECTED}")
    try:
        check_inside(folder, root)
        if not has_version_folder(folder) and not os.path.lexists(folder / CONFIG_FILE):
            return Skipped(name, _no_versions(folder, None))
        return _read_model(folder, root)
    except ModelNotServable as error:
        return ModelEntry(name, folder, error=error.message)
    except (OSError, RuntimeError, ValueError) as error:
        return ModelEntry(name, folder, error=f"cannot be read: {_reason(error)}")


def _read_model(folder: Path, root: Path) -> ModelEntry:
    """Raises OSError, RuntimeError or ValueError."""
    config: ModelConfig | None = None
    try:
        config = _read_config(folder, root)
        policy = ModelPolicy() if config is None else policy_of(config)
        there = read_versions(folder, root, config.default_model_filename if config is not None else "")
        versions, broken, wrong = _selected(folder, there, config)
        return ModelEntry(
            name=folder.name,
            path=folder,
            config=config,
            policy=policy,
            versions=versions,
            present=there.found,
            labels=_read_labels(folder, root, config),
            warmup_files=_find_warmup_files(folder, root, config),
            broken=broken,
            error=wrong,
            notes=() if config is None else notes_of(config),
        )
    except ModelNotServable as error:
        return ModelEntry(folder.name, folder, config=config, error=error.message)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({Path(str(error.filename)).name})" if error.filename else error.strerror
    return str(error)


def _read_text(path: Path, root: Path, bytes_max: int) -> str:
    """Reads a UTF-8 file inside the repository.

    Raises:
        FileNotFoundError: there is no such file.
        ModelNotServable: it lies outside, is no plain file, is too large, or is not UTF-8.
    """
    check_inside(path, root)
    with open(path, "rb", opener=_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ModelNotServable(f"{path.name} is a pipe or a device; expected a file")
        content = file.read(bytes_max + 1)
    if len(content) > bytes_max:
        raise ModelNotServable(f"{path.name} is larger than {bytes_max} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ModelNotServable(f"{path.name} is not UTF-8 text (byte {error.start})") from None


def _without_waiting(path: str, flags: int) -> int:
    """Opening a pipe would wait for whoever writes into it."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _read_config(folder: Path, root: Path) -> ModelConfig | None:
    try:
        text = _read_text(folder / CONFIG_FILE, root, CONFIG_BYTES_MAX)
    except FileNotFoundError:
        return None
    path = f"{folder.name}/{CONFIG_FILE}"
    config = parse_config(text, path=path)
    try:
        check_config(config, folder.name)
    except ModelNotServable as error:
        raise ModelNotServable(f"{path}: {error.message}", reason=error.reason, field=error.field) from None
    return config


def _stray(name: str) -> Skipped:
    """A model's file among the models' folders."""
    shown = printable(name)
    expected = f"{shown.removesuffix(MODEL_SUFFIX)}/1/{MODEL_FILE}"
    return Skipped(shown, f"a model's file lies in a version's folder: expected {expected}")


def _no_versions(folder: Path, config: ModelConfig | None) -> str:
    text = f"has no version folder: expected {folder.name}/1/{_model_file(config)}"
    if folder.name.isdecimal() and any(folder.glob(f"*{MODEL_SUFFIX}")):
        text += "; it looks like a version itself: is the repository the folder above?"
    return text


def _model_file(config: ModelConfig | None) -> str:
    return (config.default_model_filename if config is not None else "") or MODEL_FILE


def _selected(
    folder: Path, there: VersionFolders, config: ModelConfig | None
) -> tuple[tuple[VersionEntry, ...], dict[int, str], str | None]:
    """The versions that the policy selects of those that have a file, so that a folder without one takes no other
    version's place; what is wrong with those that it would have selected; and all that is wrong in one text."""
    found = [each.version for each in there.found]
    if not found and not there.problems:
        return (), {}, _no_versions(folder, config)
    broken = {
        version: there.problems.get(version, f"version {version} has no file {_expected(folder, version, config)}")
        for version in selected_versions(config, [*found, *there.problems])
        if version not in found
    }
    chosen = selected_versions(config, found)
    wrong = "; ".join([*broken.values(), *there.doubled])
    return tuple(each for each in there.found if each.version in chosen), broken, wrong or None


def _expected(folder: Path, version: int, config: ModelConfig | None) -> str:
    return f"{folder.name}/{version}/{_model_file(config)}"


def _read_labels(folder: Path, root: Path, config: ModelConfig | None) -> dict[str, tuple[str, ...]]:
    """One label per line, in the order of the classes; blank lines at the end don't count.

    Raises:
        ModelNotServable: a label file is missing or not text.
    """
    labels: dict[str, tuple[str, ...]] = {}
    for output in config.output if config is not None else ():
        if not output.label_filename:
            continue
        try:
            text = _read_text(folder / output.label_filename, root, LABELS_BYTES_MAX)
        except FileNotFoundError:
            raise ModelNotServable(
                f'label_filename: output "{output.name}" names {output.label_filename}, which is not in {folder.name}/'
            ) from None
        # splitlines() would also split at characters such as U+2028, which a label may contain.
        labels[output.name] = tuple(line.strip() for line in text.rstrip().split("\n")) if text.strip() else ()
    return labels


def _find_warmup_files(folder: Path, root: Path, config: ModelConfig | None) -> dict[str, Path]:
    """Where the values of each `input_data_file` are.

    Raises:
        ModelNotServable: a file is missing, or its name leads out of the warm-up folder.
    """
    files: dict[str, Path] = {}
    for warmup in config.model_warmup if config is not None else ():
        for name, tensor in warmup.inputs.items():
            file_name = tensor.input_data_file
            if tensor.WhichOneof("input_data_type") != "input_data_file":
                continue
            if not is_file_name(file_name):
                raise ModelNotServable(f'model_warmup: input "{name}": input_data_file must be a plain file name')
            path = folder / WARMUP_FOLDER / file_name
            check_inside(path, root)
            if not path.is_file():
                raise ModelNotServable(f"model_warmup: {folder.name}/{WARMUP_FOLDER}/{file_name} is not there")
            files[file_name] = path
    return files

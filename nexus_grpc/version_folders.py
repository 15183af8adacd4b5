"""A model's version folders, and the model file in each.

    1/  2/                    as in Triton's repositories
    v1/  v2/                  the same versions; where both are there, the plain number is taken
    1/model.onnx              or what the configuration calls it (default_model_filename)
    1/<any name>.onnx         where the configuration says nothing, and it is the only one

One version that is broken, or may not be read, hides none of the others.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nexus_grpc.ipc.errors import ModelNotServable

MODEL_FILE = "model.onnx"
MODEL_SUFFIX = ".onnx"
# Versions travel as int64; leading zeros would give one version two names.
_VERSION = re.compile(r"v?([1-9][0-9]{0,17})", re.ASCII)
# So many are named in a message.
_NAMED_MAX = 5


@dataclass(frozen=True, slots=True)
class VersionEntry:
    """A version that has a model file."""

    version: int
    path: Path


@dataclass(frozen=True, slots=True)
class VersionFolders:
    """What is there of a model's versions.

    Attributes:
        found: those that have a model file, ascending.
        problems: why the others have none, by number.
        doubled: of versions that have two folders, what was done about it.
    """

    found: tuple[VersionEntry, ...] = ()
    problems: Mapping[int, str] = field(default_factory=dict)
    doubled: tuple[str, ...] = ()


def version_folder(model: Path, version: int) -> Path:
    """Where a version is, or would be."""
    plain, other = model / str(version), model / f"v{version}"
    return other if other.is_dir() and not plain.is_dir() else plain


def has_version_folder(model: Path) -> bool:
    """Raises OSError."""
    return any(_VERSION.fullmatch(path.name) and path.is_dir() for path in model.iterdir())


def read_versions(model: Path, root: Path, file_name: str) -> VersionFolders:
    """Look at all version folders of a model.

    Args:
        root: the repository, without symbolic links: no file outside it is taken.
        file_name: what the configuration calls the model file; empty where it says nothing.

    Raises OSError.
    """
    folders: dict[int, Path] = {}
    doubled = []
    for path in sorted(model.iterdir(), key=lambda path: path.name):  # "1" before "v1"
        match = _VERSION.fullmatch(path.name)
        if match is None or not path.is_dir():
            continue
        taken = folders.setdefault(int(match[1]), path)
        if taken != path:
            doubled.append(f"{taken.name}/ and {path.name}/ are the same version: {taken.name}/ is taken; remove one")
    found, problems = [], {}
    for version in sorted(folders):
        try:
            found.append(VersionEntry(version, _model_file(folders[version], root, file_name)))
        except ModelNotServable as error:
            is_missing = error.reason == ModelNotServable.reason
            problems[version] = f"version {version}{'' if is_missing else ':'} {error.message}"
        except (OSError, RuntimeError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            problems[version] = f"version {version} cannot be read: {reason}"
    return VersionFolders(tuple(found), problems, tuple(doubled))


def _model_file(folder: Path, root: Path, file_name: str) -> Path:
    """Raises ModelNotServable, OSError or RuntimeError (a loop of symbolic links) when there is none."""
    path = folder / (file_name or MODEL_FILE)
    check_inside(path, root)
    if path.is_file():
        return path
    missing = f"has no file {folder.parent.name}/{folder.name}/{path.name}"
    others = () if file_name else tuple(_onnx_files(folder))
    if len(others) == 1:
        check_inside(others[0], root)
        return others[0]
    if others:
        names = ", ".join(path.name for path in others[:_NAMED_MAX]) + (", …" if len(others) > _NAMED_MAX else "")
        missing += f", but {len(others)} others: {names}; keep one, or name it in config.pbtxt (default_model_filename)"
    raise ModelNotServable(missing)


def _onnx_files(folder: Path) -> Iterable[Path]:
    """Those that can be named to other processes, in the order of their names."""
    for path in sorted(folder.iterdir()):
        is_hidden = path.name.startswith(".")
        if path.suffix == MODEL_SUFFIX and not is_hidden and path.name.isprintable() and path.is_file():
            yield path


def check_inside(path: Path, root: Path) -> None:
    """Raises ModelNotServable when a symbolic link leads out of the repository; OSError or RuntimeError."""
    if not path.resolve().is_relative_to(root):
        raise ModelNotServable(
            f"{path.name} is a symbolic link that leads outside the model repository", reason="OUTSIDE_REPOSITORY"
        )

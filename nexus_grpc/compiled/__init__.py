"""The hot path's modules, compiled to machine code by mypyc: the same source, a fifth less CPU per request.

`make setup` builds them into lib/ (build.py) where there is a C compiler; fronts and workers then import them in place
of their sources (`use`), unless a source has changed since: what runs is always what stands there. Everything works
without, and unit tests run the sources. See docs/decisions/0009.

Stands alone: it is imported before anything else of the server.
"""

import hashlib
import importlib.machinery
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

LIBRARY = Path(__file__).parent / "lib"
MANIFEST = "manifest.json"
SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]
ROOT = Path(__file__).resolve().parents[2]
# In the repository, and where the package is installed.
HOW = "`make setup`" if (ROOT / "Makefile").exists() else "`python -m nexus_grpc.compiled.build`"
# The code of all modules, which their own libraries stand for.
SHARED = "nexus_compiled__mypyc"
MODULES = (
    *(f"nexus_grpc.access.{name}" for name in ("authenticator", "call", "gate")),
    *(f"nexus_grpc.limits.{name}" for name in ("admission", "backlog", "buckets", "circuit", "limiter")),
    *(f"nexus_grpc.ipc.{name}" for name in ("ends", "ring", "stats", "wire")),
    *(
        f"nexus_grpc.front.{name}"
        for name in (
            "callers",
            "completion_queue",
            "core_choice",
            "dispatcher",
            "endings",
            "flight",
            "guard",
            "hot_methods",
            "http_calls",
            "json_requests",
            "large_messages",
            "lingering",
            "link",
            "protection",
            "public_api",
            "request_ids",
            "routes",
            "split",
            "streams",
            "waiting",
        )
    ),
    *(
        f"nexus_grpc.worker.{name}"
        for name in (
            "assembly",
            "batcher",
            "decisions",
            "http_decode",
            "http_forms",
            "infer_decode",
            "infer_form",
            "json_tensors",
            "link",
            "loop",
            "model",
            "named_inputs",
            "predict_codec",
            "predictions",
            "request_parameters",
            "requests",
            "results",
            "session",
            "shadow",
            "shapes",
            "template",
            "tensors",
            "v2_decode",
            "v2_envelope",
            "v2_form",
            "verdicts",
            "witness",
        )
    ),
)


def source_of(module: str) -> Path:
    return ROOT / (module.replace(".", "/") + ".py")


def library_of(module: str, folder: Path = LIBRARY) -> Path:
    return folder / (module.replace(".", "/") + SUFFIX)


def fingerprints() -> dict[str, str]:
    """SHA-256 of every module's source. Raises OSError when one cannot be read."""
    return {module: hashlib.sha256(source_of(module).read_bytes()).hexdigest() for module in MODULES}


def why_not(folder: Path = LIBRARY) -> str:
    """Why the compiled modules are not used; empty when they are."""
    try:
        built = json.loads((folder / MANIFEST).read_text())
        current = manifest()
    except FileNotFoundError:
        return f"not built: {HOW} does it where there is a C compiler"
    except (OSError, ValueError) as error:
        return f"unreadable: {error}"
    sizes = built.pop("sizes", {}) if isinstance(built, dict) else {}
    if built == current and sizes != library_sizes(folder):
        return f"damaged: {HOW} builds them anew"
    if built != current:
        return f"built from other sources, or for another Python: {HOW} builds them anew"
    return ""


class _Finder:
    """A sys.meta_path entry: modules by name from where they were built."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names = frozenset((*MODULES, SHARED))

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self._names:
            return None
        return importlib.util.spec_from_file_location(name, library_of(name, self._folder))


def use(folder: Path = LIBRARY) -> bool:
    """Have this process import the compiled modules, if there are any that fit. Before it imports one of them."""
    if why_not(folder):
        return False
    finder = _Finder(folder)
    sys.meta_path.insert(0, finder)
    try:
        importlib.import_module(SHARED)
    except ImportError:  # a library of which something is missing, or for another machine
        sys.meta_path.remove(finder)
        return False
    return True


def library_sizes(folder: Path = LIBRARY) -> dict[str, int]:
    """Bytes of each library in a folder, by its path there: half a file is no library."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob(f"*{SUFFIX}"))}


def manifest() -> dict[str, Any]:
    """What build.py writes beside its libraries, with their sizes."""
    return {"suffix": SUFFIX, "sources": fingerprints()}

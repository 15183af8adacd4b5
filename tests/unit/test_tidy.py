"""House rules that a machine can check. Ratchets: the limits may go down, not up."""

import ast
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 400
TEST_FILE_LINES_MAX = 450
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
# The one module that may use grpcio's inside, and the one that may import onnxruntime, which it keeps from telling.
GRPC_INSIDE = "nexus_grpc/front/completion_queue.py"
ORT_MODULE = "workers/onnx_runtime.py"


def tracked_files() -> list[pathlib.Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.py"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    paths = [ROOT / name for name in listed] or [path for path in ROOT.rglob("*.py") if ".venv" not in path.parts]
    return [path for path in paths if path.exists() and "_pb2" not in path.name]


def relative(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


def imported_names(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


FILES = tracked_files()


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_file_is_tidy(path: pathlib.Path) -> None:
    text = path.read_text()
    limit = TEST_FILE_LINES_MAX if "tests" in path.parts else FILE_LINES_MAX
    lines = text.count("\n")
    assert lines <= limit, f"{lines} lines, at most {limit}"
    if path.name != "test_tidy.py":
        assert not UNFINISHED.search(text), "unfinished business belongs in an issue"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            length = node.end_lineno - node.lineno + 1
            assert length <= FUNCTION_LINES_MAX, f"{node.name}: {length} lines, at most {FUNCTION_LINES_MAX}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_file_imports_what_it_may(path: pathlib.Path) -> None:
    names = imported_names(ast.parse(path.read_text()))
    inside = {name for name in names if name.startswith(("grpc._", "grpc.._")) or name == "grpc._server"}
    if relative(path) != GRPC_INSIDE and "tests" not in path.parts:
        assert not inside, f"only {GRPC_INSIDE} touches grpcio's inside"
    if relative(path) != ORT_MODULE:
        assert not any(name.split(".")[0] == "onnxruntime" for name in names), f"only {ORT_MODULE} imports it"


def test_package_init_files_import_nothing() -> None:
    """Workers import nexus_grpc.ipc: the packages above it must cost nothing."""
    for name in ("nexus_grpc/__init__.py", "nexus_grpc/ipc/__init__.py", "workers/__init__.py"):
        assert not imported_names(ast.parse((ROOT / name).read_text()))

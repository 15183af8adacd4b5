"""nexus_grpc/compiled: used only when it was built from the sources that are there."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nexus_grpc import compiled
from nexus_grpc.compiled import build


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / compiled.MANIFEST).write_text(json.dumps({**compiled.manifest(), "sizes": {}}))
    return tmp_path


def test_sources_that_have_not_changed(folder: Path) -> None:
    assert compiled.why_not(folder) == ""


def test_a_source_that_has_changed(folder: Path) -> None:
    manifest = compiled.manifest()
    manifest["sources"]["nexus_grpc.front.link"] = "0" * 64
    (folder / compiled.MANIFEST).write_text(json.dumps(manifest))
    assert "make setup" in compiled.why_not(folder)
    assert not compiled.use(folder)


def test_another_python(folder: Path) -> None:
    (folder / compiled.MANIFEST).write_text(json.dumps({**compiled.manifest(), "suffix": ".cpython-399.so"}))
    assert "another Python" in compiled.why_not(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"], ids=["empty", "cut", "list", "no text"])
def test_a_broken_manifest(folder: Path, content: bytes) -> None:
    (folder / compiled.MANIFEST).write_bytes(content)
    assert compiled.why_not(folder)


def test_nothing_built(tmp_path: Path) -> None:
    assert compiled.why_not(tmp_path).startswith("not built")
    assert not compiled.use(tmp_path)


def test_every_module_is_there_once() -> None:
    assert len(set(compiled.MODULES)) == len(compiled.MODULES)
    assert [module for module in compiled.MODULES if not compiled.source_of(module).is_file()] == []


def test_no_compiled_module_has_a_struct() -> None:
    """msgspec does not know what mypyc makes of one, and decodes something else without a word."""
    sources = {module: compiled.source_of(module).read_text() for module in compiled.MODULES}
    assert [module for module, text in sources.items() if "(msgspec.Struct" in text] == []


def test_this_process_runs_the_sources() -> None:
    """Unit tests hand in stand-ins, which compiled code refuses."""
    from nexus_grpc.front import dispatcher

    assert str(dispatcher.__file__).endswith(".py")


@pytest.mark.skipif(bool(compiled.why_not()), reason="the hot path is not compiled here")
def test_what_is_built_is_what_is_imported() -> None:
    program = (
        "from nexus_grpc import compiled; assert compiled.use(); import importlib;"
        "print([importlib.import_module(m).__file__.endswith(compiled.SUFFIX) for m in compiled.MODULES])"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(shown.stdout.lower()) == [True] * len(compiled.MODULES)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """People are told, and served; CI fails."""
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setattr(build, "why_not", lambda: "not built")
    for ci, code in (("false", 0), ("true", 1)):
        monkeypatch.setenv("CI", ci)
        assert build.main([]) == code
    assert re.search(r"no-such-compiler.*runs its sources all the same", capsys.readouterr().err)


def test_there_is_a_compiler_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a build that silently does nothing is seen."""
    if shutil.which("cc") or shutil.which("gcc"):
        assert build.missing() == ""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where one small module is built, and where logs are kept."""
    monkeypatch.setenv("CI", "false")
    monkeypatch.setattr(build, "LIBRARY", tmp_path / "lib")
    monkeypatch.setattr(build, "MODULES", ("nexus_grpc.front.request_ids",))
    monkeypatch.setattr(build, "why_not", lambda: "not built")
    monkeypatch.setattr(build.tempfile, "tempdir", str(tmp_path))
    return tmp_path


def said(captured: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in captured.readouterr().err.splitlines() if not line.startswith("compiling ")]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'x.c:1:2: error: nothing pleases me' >&2; exit 1", "x.c:1:2: error: nothing pleases me"),
        ("exit 3", "exit status 3"),
        # It says that all is well.
        ('while [ $# -gt 1 ]; do [ "$1" = -o ] && echo garbage >"$2"; shift; done', "cannot be imported"),
    ],
    ids=["fails", "fails in silence", "garbage"],
)
def test_a_compiler_that_fails(
    place: Path, script: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that says what it said, and where the rest is; nothing half-built is left."""
    compiler = place / "cc"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    assert build.main([]) == 0
    [line] = said(capsys)
    told = re.fullmatch(rf"not compiled: .*({words}).*? \(all of it: (\S+)\); .*runs its sources.*", line)
    assert told, line
    assert sorted(path.name for path in place.iterdir()) == sorted(["cc", Path(told[2]).name])


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no compiler")
def test_a_compiler_that_works(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main([]) == 0
    assert re.fullmatch(r"compiled in \d+ s", *said(capsys))
    assert [path.name for path in place.iterdir()] == ["lib"]
    # Half a file is no library.
    library = compiled.library_of("nexus_grpc.front.request_ids", place / "lib")
    library.write_bytes(library.read_bytes()[:100])
    assert compiled.why_not(place / "lib").startswith("damaged")
    assert not compiled.use(place / "lib")


def test_libraries_that_cannot_be_loaded_are_passed_over(folder: Path) -> None:
    library = compiled.library_of(compiled.SHARED, folder)
    library.write_bytes(b"for another machine")
    told = {**compiled.manifest(), "sizes": compiled.library_sizes(folder)}
    (folder / compiled.MANIFEST).write_text(json.dumps(told))
    assert compiled.why_not(folder) == ""
    finders = list(sys.meta_path)
    assert not compiled.use(folder)
    assert sys.meta_path == finders


@pytest.mark.parametrize("error", [build.Failed("x.c: error"), PermissionError("lib: read-only"), KeyboardInterrupt()])
def test_what_goes_wrong_is_an_error_only_where_it_must_not(
    place: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(work: Path, log: Path) -> None:
        raise error

    monkeypatch.setattr(build, "build_apart", fail)
    interrupted = isinstance(error, KeyboardInterrupt)
    assert build.main([]) == (130 if interrupted else 0)
    assert build.main(["--require"]) == (130 if interrupted else 1)
    monkeypatch.setenv("CI", "true")
    assert build.main([]) == (130 if interrupted else 1)


def test_another_one_that_was_faster(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(work: Path, log: Path) -> None:
        monkeypatch.setattr(build, "why_not", lambda: "")
        raise FileExistsError("lib")

    monkeypatch.setattr(build, "build_apart", fail)
    assert build.main(["--require"]) == 0


@pytest.mark.parametrize("compiler", [" ", "no-such-compiler"])
def test_a_compiler_that_is_none(compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", compiler)
    assert build.missing() == "" if not compiler.strip() else compiler in build.missing()


@pytest.mark.parametrize("lacking", ["mypyc", "setuptools"])
def test_without_what_compiles_python(
    lacking: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find_spec = build.importlib.util.find_spec
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None if name == lacking else find_spec(name))
    monkeypatch.setattr(build, "why_not", lambda: "not built")
    monkeypatch.setenv("CI", "false")
    assert build.main([]) == 0
    assert f"not compiled: it takes {lacking}" in capsys.readouterr().err

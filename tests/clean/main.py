"""What a newcomer does, on machines where nothing is: `python3 tests/clean/main.py [ROOM ...]`, as root.

Each room gets a fresh clone of the last commit and the README's two commands: one call by gRPC, one by REST, Ctrl-C.
Nothing may be left running, and nothing may be printed that looks like a fault.

    compiler   Debian 13 (Python 3.13) with a C compiler: the hot path is compiled, and that it is so is checked
    source     Debian 12 (Python 3.11) without one: one line says so
    nobody     Debian 12: a user without a home, without HOME, in a folder with spaces
    image      Debian 12: the Dockerfile's steps, and its command as its user
    package    Debian 12: the sdist, made into a wheel, in an empty environment elsewhere
    readme     the room of `compiler`, with curl and grpcurl: every command of the README, as it is printed
    pythons    an empty folder with Python 3.12, and with 3.13, where this machine has them: `pip install PATH`

Standard library only: it runs before anything of ours is installed. It uses the ports 8001, 8080 and 8002.
"""

import argparse
import contextlib
import dataclasses
import glob
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from tests.clean import image, readme
from tests.clean.rooms import ROOT_USER, Bare, Room, Root, debian

ROOT = pathlib.Path(__file__).resolve().parents[2]
REST = "http://127.0.0.1:8080"
IRIS = {"model_id": "iris", "features": [5.1, 3.5, 1.4, 0.2]}
# Installing takes most of it.
READY_SECONDS = 600.0
STOP_SECONDS = 40.0
FAULTS = ("Traceback", "Error ", "error:", "WARNING", "Warning")
HOMELESS = 4711
# Beside those that the Debians have.
OTHER_PYTHONS = ("3.12", "3.13")
# What compiles, and what the README calls with.
TRIXIE = ("gcc", "libc6-dev", "python3-dev", "curl")


@dataclasses.dataclass
class Place:
    """Where rooms are made.

    Attributes:
        folder: for everything; removed at the end unless it was named by whoever started this.
    """

    folder: pathlib.Path

    def bookworm(self) -> Root:
        return debian(self.folder / "bookworm", "bookworm")

    def clone(self, room: Room, name: str, owner: int) -> pathlib.Path:
        """A fresh clone of the last commit, below a home of its own."""
        home = room.folder / "home" / name
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        subprocess.run(["git", "clone", "-q", "--no-hardlinks", str(ROOT), str(home / "nexus")], check=True)
        give(home, owner)
        return home / "nexus"


def give(folder: pathlib.Path, owner: int) -> None:
    """Make everything in `folder` the user's."""
    if owner != os.getuid():
        subprocess.run(["chown", "-R", f"{owner}:{owner}", str(folder)], check=True)


def fetch(path: str, body: object = None) -> tuple[int, str]:
    """A REST request: (status, answer). Raises OSError when nobody answers."""
    payload = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(REST + path, payload, {"content-type": "application/json"} if payload else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def until_ready(process: "subprocess.Popen[bytes]", log: pathlib.Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, f"it ended with {process.returncode}:\n{log.read_text()[-4000:]}"
        with contextlib.suppress(OSError):
            if fetch("/ready")[0] == 200:
                return
        time.sleep(0.2)
    raise AssertionError(f"not ready after {READY_SECONDS:g} s:\n{log.read_text()[-4000:]}")


@contextlib.contextmanager
def serving(room: Room, line: str, cwd: pathlib.Path, **variables: str) -> Iterator[pathlib.Path]:
    """`line` runs and serves; yields its log. At the end: Ctrl-C, nothing left running, no fault in the log."""
    log = room.folder / "serve.log"
    log.unlink(missing_ok=True)
    process = room.popen(line, cwd, log, **variables)
    try:
        until_ready(process, log)
        yield log
        os.killpg(process.pid, signal.SIGINT)
        process.wait(STOP_SECONDS)
        left = room.until_empty(STOP_SECONDS)
        assert not left, f"still running after Ctrl-C: {left}\n{log.read_text()[-4000:]}"
    finally:
        room.close()
    faults = [said for said in log.read_text().splitlines() if any(fault in said for fault in FAULTS)]
    # make says itself that it was interrupted.
    assert not [said for said in faults if not said.startswith("make")], "\n".join(faults)


def call(room: Room, nexus: str, cwd: pathlib.Path) -> None:
    """One prediction by gRPC, one by REST."""
    said = room.run(f"{nexus} predict iris 5.1,3.5,1.4,0.2", cwd)
    assert "probabilities" in said, said
    status, answer = fetch("/predict", IRIS)
    assert status == 200, answer
    assert json.loads(answer)["probabilities"][0] > 0.9, answer


def with_compiler(place: Place) -> None:
    room = debian(place.folder / "trixie", "trixie", *TRIXIE)
    checkout = place.clone(room, "newcomer", 1000)
    home = room.inside(checkout.parent)
    # CI=true: a hot path that cannot be compiled is an error.
    with serving(room, "make serve", checkout, HOME=home, CI="true") as log:
        call(room, ".venv/bin/nexus", checkout)
        assert "compiled in " in log.read_text(), log.read_text()
        assert "modules run compiled" in room.run(".venv/bin/nexus doctor || true", checkout, HOME=home)


def every_command(place: Place) -> None:
    room = debian(place.folder / "trixie", "trixie", *TRIXIE)
    checkout = room.folder / "home" / "newcomer" / "nexus"
    assert (checkout / ".venv").is_dir(), "run the room `compiler` first, with --keep"
    grpcurl = shutil.which("grpcurl", path=f"{ROOT}/.tools/bin:{os.environ['PATH']}")
    assert grpcurl, "grpcurl is missing: make tools"
    shutil.copy(grpcurl, room.folder / "usr" / "local" / "bin" / "grpcurl")
    home = {"HOME": room.inside(checkout.parent)}
    page = checkout / "README.md"
    serve, test = readme.first_commands(page)
    assert (serve, test) == (readme.SERVE, readme.TEST)
    room.run(f"make --dry-run {test.removeprefix('make ')}", checkout, **home)
    commands = checkout.parent / "commands.sh"
    commands.write_text(readme.script(page))
    with serving(room, serve, checkout, **home):
        output = room.run(f"bash {shlex.quote(room.inside(commands))}", checkout, **home)
    missing = readme.missing(output)
    assert not missing, f"{missing} not in what the README's commands print:\n{output}"


def without_compiler(place: Place) -> None:
    room = place.bookworm()
    checkout = place.clone(room, "newcomer", 1000)
    with serving(room, "make serve", checkout, HOME=room.inside(checkout.parent)) as log:
        call(room, ".venv/bin/nexus", checkout)
        told = [line for line in log.read_text().splitlines() if "not compiled" in line]
        assert len(told) == 1, told
        assert "C compiler" in told[0], told


def nobody(place: Place) -> None:
    room = place.bookworm()
    room.user = HOMELESS
    checkout = place.clone(room, "a folder with spaces", HOMELESS)
    with serving(room, "make serve COMPILE=0", checkout) as log:
        call(room, ".venv/bin/nexus", checkout)
        assert "not compiled" not in log.read_text(), log.read_text()


def package(place: Place) -> None:
    room = place.bookworm()
    checkout = place.clone(room, "packager", 1000)
    home = {"HOME": room.inside(checkout.parent)}
    room.run("python3 -m venv ../build && ../build/bin/pip install -q build", checkout, **home)
    room.run("../build/bin/python -m build --sdist --outdir ../dist", checkout, **home)
    elsewhere = checkout.parent / "elsewhere"
    elsewhere.mkdir()
    shutil.copytree(checkout / "models", elsewhere / "models")
    give(elsewhere, 1000)
    shutil.rmtree(checkout)
    room.run("python3 -m venv env && env/bin/pip install -q ../dist/*.tar.gz", elsewhere, **home)
    installed(room, elsewhere, **home)


def dockerfile(place: Place) -> None:
    base, folder = place.bookworm().folder, place.folder / "image"
    shutil.rmtree(base / "home")
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(["cp", "-a", str(base), str(folder)], check=True)
    room = Root(folder)
    # What the official image has that Debian has not: the interpreter under this name, and its headers.
    room.user = ROOT_USER
    room.run("ln -s python3 /usr/bin/python; apt-get update -q; apt-get install -q -y python3-dev", folder)
    context = place.clone(room, "builder", os.getuid())
    built = image.build(room, context)
    shutil.copytree(context / "models", folder / "models", dirs_exist_ok=True)
    shutil.rmtree(context)
    with serving(room, built.command, folder / built.folder.lstrip("/"), **built.variables) as log:
        call(room, f"PATH={built.variables['PATH']} nexus", folder / "app")
        assert '"hot_path": "compiled"' in log.read_text(), log.read_text()


def other_pythons(place: Place) -> None:
    for version in OTHER_PYTHONS:
        python = find_python(version)
        if not python:
            print(f"           no Python {version} on this machine: left out")
            continue
        shutil.rmtree(place.folder / "bare", ignore_errors=True)
        room = Bare(place.folder / "bare", python)
        checkout = place.clone(room, "newcomer", os.getuid())
        elsewhere = checkout.parent / "elsewhere"
        elsewhere.mkdir()
        room.run(f'"{python}" -m venv env && env/bin/pip install -q ../nexus', elsewhere)
        (checkout / "models").rename(elsewhere / "models")
        shutil.rmtree(checkout)
        installed(room, elsewhere)


def installed(room: Room, folder: pathlib.Path, **variables: str) -> None:
    """What `pip install` put into `folder`/env is whole, and its names are its own."""
    names = "import importlib.metadata as m; print({f.parts[0] for f in m.files('nexus-grpc')})"
    tops = room.run(f'env/bin/python -c "{names}"', folder, **variables)
    assert "workers" not in tops, tops
    with serving(room, "env/bin/nexus serve", folder, **variables):
        call(room, "env/bin/nexus", folder)
    bootstrap = json.loads(room.run("env/bin/nexus envoy bootstrap", folder, **variables))
    assert bootstrap["static_resources"]["listeners"], "an empty bootstrap"


def find_python(version: str) -> str:
    """An interpreter of that version that runs; empty when there is none."""
    found = [
        shutil.which(f"python{version}"),
        *glob.glob(os.path.expanduser(f"~/.pyenv/versions/{version}.*/bin/python3")),
    ]
    for python in filter(None, found):
        if subprocess.run([python, "-c", "import ensurepip, venv"], capture_output=True, check=False).returncode == 0:
            return os.path.realpath(python)
    return ""


ROOMS: dict[str, Callable[[Place], None]] = {
    "compiler": with_compiler,
    "readme": every_command,
    "source": without_compiler,
    "nobody": nobody,
    "image": dockerfile,
    "package": package,
    "pythons": other_pythons,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rooms", nargs="*", choices=[*ROOMS, []], help="which; all of them if none is named")
    parser.add_argument("--keep", type=pathlib.Path, help="make the rooms in this folder, and leave them there")
    arguments = parser.parse_args()
    folder = arguments.keep or pathlib.Path(tempfile.mkdtemp(prefix="nexus-clean-"))
    folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    try:
        for name in arguments.rooms or ROOMS:
            begun_s = time.monotonic()
            try:
                ROOMS[name](Place(folder.resolve()))
                print(f"{name:10} works, {time.monotonic() - begun_s:.0f} s", flush=True)
            except (AssertionError, OSError, subprocess.SubprocessError) as error:
                failed += 1
                print(f"{name:10} FAILED: {error}", flush=True)
    finally:
        if not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"{len(arguments.rooms or ROOMS) - failed} passed, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

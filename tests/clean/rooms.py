"""Clean rooms: machines on which nothing was ever installed, to find out what a newcomer's first command does.

A `Root` is a Debian made by debootstrap (as root): a fresh machine, but for the kernel and the network. A `Bare` is an
empty folder with a short PATH, for Pythons that no Debian has. Standard library only: this runs before anything of ours
is installed. The package registries' settings of this machine (pip's, certificates, proxies) go along, nothing else.
"""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

ARCHIVE = "http://deb.debian.org/debian"
# Where pip finds packages, and whom it trusts.
REGISTRY_FILES = ("etc/pip.conf", "etc/resolv.conf", "etc/hosts", "etc/ssl/certs/ca-certificates.crt")
REGISTRY_VARIABLES = re.compile(
    "PIP_(CERT|INDEX_URL|EXTRA_INDEX_URL|TRUSTED_HOST|DEFAULT_TIMEOUT)|SSL_CERT_[A-Z]+|([a-z]+|[A-Z]+)_(proxy|PROXY)"
)
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ROOT_USER, PERSON = 0, 1000
# Mounts end with the namespace, that is with the command.
ENTER = """
mount --make-rprivate / && mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev" && mount --rbind /sys "$1/sys"
root=$1 user=$2; shift 2; exec chroot --userspec="$user" "$root" "$@"
"""


def registry_variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if REGISTRY_VARIABLES.fullmatch(name)}


class Room:
    """A place where commands find nothing but what the place has.

    Attributes:
        folder: the room's own folder, as this process sees it.
        python: the interpreter to begin with, as the room names it.
    """

    def __init__(self, folder: pathlib.Path, python: str = "python3") -> None:
        self.folder = folder
        self.python = python

    def inside(self, path: pathlib.Path) -> str:
        """A path below `folder` as the room's commands see it."""
        raise NotImplementedError

    def command(self, line: str, cwd: pathlib.Path, variables: dict[str, str]) -> list[str]:
        """What runs a line of shell in the room, in `cwd`, with these variables and those of the registries alone."""
        raise NotImplementedError

    def popen(self, line: str, cwd: pathlib.Path, log: pathlib.Path, **variables: str) -> "subprocess.Popen[bytes]":
        """Start a line of shell in a session of its own, as a terminal would; output goes to `log`."""
        with open(log, "ab") as output:
            return subprocess.Popen(
                self.command(line, cwd, variables),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Children of a shell's background jobs inherit a SIGINT that is ignored.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def run(self, line: str, cwd: pathlib.Path, seconds: float = 600, **variables: str) -> str:
        """Run a line of shell; returns what it printed. Raises AssertionError with that when it fails."""
        done = subprocess.run(
            self.command(line, cwd, variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert done.returncode == 0, f"`{line}` ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def processes(self) -> list[int]:
        """What runs in the room, by process ids."""
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if self._owns(entry):
                        found.append(int(entry.name))
        return found

    def _owns(self, process: pathlib.Path) -> bool:
        raise NotImplementedError

    def until_empty(self, seconds: float) -> list[int]:
        """Wait until nothing runs here any more; returns what still does."""
        deadline = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left

    def close(self) -> None:
        """End whatever still runs here."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class Root(Room):
    """A root folder of its own, entered as `user` (a number)."""

    user = PERSON

    def inside(self, path: pathlib.Path) -> str:
        return "/" + str(path.relative_to(self.folder))

    def command(self, line: str, cwd: pathlib.Path, variables: dict[str, str]) -> list[str]:
        given = {"PATH": PATH, "LANG": "C.UTF-8", **registry_variables(), **variables}
        script = f'cd "$0" && {line}'
        become = ["env", "-i", *(f"{name}={value}" for name, value in given.items())]
        enter = ["unshare", "--mount", "sh", "-ec", ENTER, "enter", str(self.folder), f"{self.user}:{self.user}"]
        return [*enter, *become, "sh", "-c", script, self.inside(cwd)]

    def _owns(self, process: pathlib.Path) -> bool:
        return os.readlink(process / "root") == str(self.folder)


class Bare(Room):
    """An empty folder; commands find those of `tools` and the interpreter's folder, and no compiler."""

    tools = ("sh", "env", "make", "git", "find", "rm", "mkdir", "touch", "grep", "sed", "expand", "cat", "ls", "uname")

    def __init__(self, folder: pathlib.Path, python: str) -> None:
        super().__init__(folder, python)
        self._bin = folder / "bin"
        self._bin.mkdir(parents=True)
        for tool in self.tools:
            if found := shutil.which(tool):
                (self._bin / tool).symlink_to(found)

    def inside(self, path: pathlib.Path) -> str:
        return str(path)

    def command(self, line: str, cwd: pathlib.Path, variables: dict[str, str]) -> list[str]:
        given = {"PATH": str(self._bin), "LANG": "C.UTF-8", "HOME": str(self.folder), **registry_variables()}
        become = ["env", "-i", *(f"{name}={value}" for name, value in {**given, **variables}.items())]
        return [*become, "sh", "-c", f'cd "$0" && {line}', str(cwd)]

    def _owns(self, process: pathlib.Path) -> bool:
        return os.readlink(process / "cwd").startswith(str(self.folder))


def debian(folder: pathlib.Path, suite: str, *packages: str) -> Root:
    """A fresh Debian in `folder`, with Python, make and these packages; one that is there already is taken as it is."""
    if not (folder / "etc" / "debian_version").exists():
        include = ",".join(("python3", "python3-venv", "make", "ca-certificates", *packages))
        command = ["debootstrap", "--variant=minbase", f"--include={include}", suite, str(folder), ARCHIVE]
        made = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        assert made.returncode == 0, f"{' '.join(command)}:\n{made.stdout[-2000:]}"
    for name in REGISTRY_FILES:
        if os.path.exists(f"/{name}"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(f"/{name}", folder / name)
    return Root(folder)

"""Runs the unit tests against the newest wheel in dist/, as it would be installed: `make test-wheel`.

In a folder where the repository's own package is not: what the wheel lacks is missing there. Sources' own tests
(tidiness, what is compiled) stay out: they look at the repository.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ("nexus_grpc", "workers", "envoy", "proto", "setup.py")
OF_THE_REPOSITORY = ("tests/unit/test_tidy.py", "tests/unit/test_compiled.py")
WHERE = "import nexus_grpc.worker.loop, nexus_grpc.pb.nexus.v1.inference_pb2 as m; print(m.__file__)"


def copy_rest(folder: pathlib.Path) -> None:
    """Everything of the repository but the package and what it is made from."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if name.split("/")[0] not in PACKAGE and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def main(arguments: list[str]) -> int:
    wheels = sorted((ROOT / "dist").glob("*.whl"), key=lambda path: path.stat().st_mtime)
    if not wheels:
        sys.exit("no wheel in dist/: make wheel")
    with tempfile.TemporaryDirectory(prefix="nexus-wheel-") as name:
        site, rest = pathlib.Path(name, "site"), pathlib.Path(name, "rest")
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target", str(site)]
        subprocess.run([sys.executable, *install, str(wheels[-1])], check=True)
        copy_rest(rest)
        environment = {**os.environ, "PYTHONPATH": str(site)}
        found = subprocess.run(
            [sys.executable, "-c", WHERE], cwd=rest, env=environment, stdout=subprocess.PIPE, text=True, check=True
        ).stdout
        assert found.startswith(str(site)), f"the tests would run against {found}"
        left_out = [f"--ignore={path}" for path in OF_THE_REPOSITORY]
        command = [sys.executable, "-m", "pytest", "-q", "-n", str(2 * (os.cpu_count() or 1)), "--dist", "loadfile"]
        options = [*left_out, "-m", "not alone and not timed and not long", *(arguments or ["tests/unit"])]
        return subprocess.call([*command, *options], cwd=rest, env=environment)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

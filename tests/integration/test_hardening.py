"""What a running server shows and may do: its processes' privileges, environments, titles, files and log."""

import contextlib
import dataclasses
import json
import os
import pathlib
import stat
import subprocess
import sys
from collections.abc import Iterator

import grpc
import psutil
import pytest

from nexus_grpc.ipc.confinement import missing_support
from nexus_grpc.settings import load_settings
from tests.harness import MODELS, NEXUS, Server, copy_models, free_port, running_server
from tests.integration import rest, uploading
from tests.integration.client import Client, iris_request, refusal
from tests.lifecycle import Admin, wait_for
from tests.postgres import PASSWORD, running_postgres

# Found wherever a part of it leaks.
PLANTED = "pl4nted"
API_KEY, TOKEN = f"nxk_{PLANTED}_0123456789abcdef0123456789abcdef", f"eyJhbGciOiJFUzI1NiJ9.{PLANTED}.c2lnbmF0dXJl"
CREDENTIALS = (("x-api-key", API_KEY), ("authorization", f"Bearer {TOKEN}"))
# What whoever starts servers has around. NEXUS_LOG_LEVEL is here to see that workers and fronts do without.
ENVIRONMENT = {
    "NEXUS_LOG_LEVEL": "debug",
    "NEXUS_LOG_SAMPLE": "1",
    "AWS_SECRET_ACCESS_KEY": PLANTED,
    "DATABASE_URL": f"postgresql://app:{PLANTED}@db/app",
    "REDIS_URL": f"redis://:{PLANTED}@cache/0",
    "GITHUB_TOKEN": PLANTED,
    "PGPASSWORD": PLANTED,
    "HTTPS_PROXY": f"http://user:{PLANTED}@proxy:3128",
    "PYTHONSECRET": PLANTED,
}

needs_seccomp = pytest.mark.skipif(
    any(text.startswith("seccomp") for text in missing_support()), reason="this kernel has no seccomp filters for us"
)
needs_landlock = pytest.mark.skipif(
    any(text.startswith("Landlock") for text in missing_support()), reason="this kernel has no Landlock for us"
)


@contextlib.contextmanager
def careless() -> Iterator[None]:
    """Started by somebody whose umask hides nothing."""
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


@dataclasses.dataclass(frozen=True)
class Site:
    """A server that has answered with and without errors, and received an upload."""

    server: Server
    folder: pathlib.Path

    def processes(self) -> dict[str, psutil.Process]:
        """By their titles."""
        family = [psutil.Process(self.server.process.pid), *psutil.Process(self.server.process.pid).children()]
        return {" ".join(each.cmdline()[0].split()[:3]): each for each in family}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("careless")
    repository = copy_models(folder / "models", "iris")
    # Nobody listens there, which a server must put up with.
    redis = f"--redis-url=redis://:{PLANTED}@127.0.0.1:{free_port()}/0"
    with (
        careless(),
        running_server(
            folder, redis, "--workers=2", repository=repository, environment=ENVIRONMENT, rest=True
        ) as server,
    ):
        _use(server)
        yield Site(server, folder)
        assert "Traceback" not in server.log_text()


def _use(server: Server) -> None:
    headers = {name.replace("-", "_"): value for name, value in CREDENTIALS}
    with contextlib.closing(Client(server.address)) as client:
        client.infer(iris_request(), metadata=CREDENTIALS)
        assert refusal(lambda: client.infer(iris_request(model_version="77"), metadata=CREDENTIALS)).detailed
    scalar = (MODELS / "scalar" / "1" / "model.onnx").read_bytes()
    form = uploading.form_of(scalar, id="uploaded")
    answer = rest.post(server.rest_port, uploading.PATH, form, Content_Type=uploading.FORM, **headers)
    assert answer.status in (200, 201), answer
    assert rest.get(server.rest_port, "/health", **headers).status == 200
    assert rest.post(server.rest_port, "/predict", {"model_id": "none", "features": [1]}, **headers).status == 404
    assert rest.get(server.rest_port, "/nowhere", **headers).status == 404


def threads_of(process: psutil.Process) -> Iterator[dict[str, str]]:
    """/proc/PID/task/*/status, as a table each."""
    for path in pathlib.Path(f"/proc/{process.pid}/task").glob("*/status"):
        yield {key: value.strip() for key, _, value in (line.partition(":") for line in path.read_text().splitlines())}


# --- processes ---


@needs_seccomp
def test_workers_are_confined_in_all_their_threads(site: Site) -> None:
    workers = site.server.children("worker")
    assert len(workers) == 2
    for worker in workers:
        threads = list(threads_of(worker))
        assert len(threads) >= 4
        for thread in threads:
            assert (thread["Seccomp"], thread["NoNewPrivs"]) == ("2", "1"), thread["Name"]
            # Of root's capabilities it keeps those to read others' models: CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH.
            assert int(thread["CapPrm"], 16) & ~0b110 == 0, thread["Name"]
            assert int(thread["CapEff"], 16) & ~0b110 == 0, thread["Name"]
        assert os.readlink(f"/proc/{worker.pid}/cwd").endswith(" (deleted)")
    assert "workers are not confined" not in site.server.log_text()


# Becomes a program for which there is no Landlock (landlock_create_ruleset is 444 everywhere), as on an older kernel.
WITHOUT_LANDLOCK = """
import ctypes, errno, os, struct, sys
steps = [(0x20, 0, 0, 0), (0x15, 0, 1, 444), (0x06, 0, 0, 0x50000 | errno.ENOSYS), (0x06, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *step) for step in steps))
program = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code))
prctl = ctypes.CDLL(None, use_errno=True).prctl
assert prctl(38, 1, 0, 0, 0) == 0
assert prctl(22, 2, program, 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""


@needs_seccomp
def test_what_the_kernel_does_not_allow_is_said_once_and_the_rest_holds(tmp_path: pathlib.Path) -> None:
    repository = copy_models(tmp_path / "models", "iris")
    prefix = (sys.executable, "-c", WITHOUT_LANDLOCK)
    with running_server(tmp_path, "--workers=2", repository=repository, prefix=prefix) as server:
        lines = [
            line for line in server.log_text().splitlines() if "workers are not confined as they should be" in line
        ]
        [warning] = [json.loads(line) for line in lines]
        assert warning["level"] == "warning"
        assert "no access to other processes (Landlock): Function not implemented" in str(warning["missing"])
        for worker in server.children("worker"):
            assert {thread["NoNewPrivs"] for thread in threads_of(worker)} == {"1"}
            # That of the test, and its own.
            assert {thread["Seccomp_filters"] for thread in threads_of(worker)} == {"2"}
        # Hidden from their own user instead: what undumpable processes have in /proc belongs to root.
        for process in (server.process.pid, server.children("front")[0].pid):
            command = [sys.executable, "-c", READ_MEMORY, str(process)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            assert done.stdout == "Permission denied\n", done


# Without root's right to look into anybody's: CAP_SYS_PTRACE.
READ_MEMORY = """
import sys
from nexus_grpc.ipc.confinement import _drop_capabilities
_drop_capabilities()
try:
    open(f"/proc/{sys.argv[1]}/environ").read()
    print("read")
except OSError as error:
    print(error.strerror)
"""


def test_no_process_leaves_a_core_or_files_for_others(site: Site) -> None:
    processes = site.processes()
    ours = {title: process for title, process in processes.items() if not title.startswith("nexus: envoy")}
    assert set(ours) == {"nexus: supervisor", "nexus: front 0", "nexus: worker 0", "nexus: worker 1"}
    for title, process in ours.items():
        assert process.rlimit(psutil.RLIMIT_CORE) == (0, 0), title
        assert next(threads_of(process))["Umask"] == "0077", title


def test_no_child_is_told_a_secret_by_its_environment(site: Site) -> None:
    children = {title: process for title, process in site.processes().items() if title != "nexus: supervisor"}
    assert {title.split()[1] for title in children} == {"front", "worker", "envoy"}
    for title, process in children.items():
        # Of our own processes this is what their titles left of it; the whole is in test_environment.py.
        text = pathlib.Path(f"/proc/{process.pid}/environ").read_text()
        assert PLANTED not in text, title
        assert "NEXUS_" not in text, title


def test_no_title_shows_a_secret(site: Site) -> None:
    for title, process in site.processes().items():
        command = pathlib.Path(f"/proc/{process.pid}/cmdline").read_text()
        assert PLANTED not in command, title
        assert "redis" not in command, title
    assert "nexus: supervisor" in site.processes()


# --- the log ---


def test_the_log_has_no_credential(site: Site) -> None:
    # It does say what was asked for, with all there is to say; Envoy's lines come late.
    wait_for(lambda: "/nowhere" in site.server.log_text())
    text = site.server.log_text()
    assert '"model": "iris"' in text
    for secret in (PLANTED, API_KEY, TOKEN):
        assert secret not in text


def test_the_database_s_password_is_nowhere_to_be_seen(tmp_path: pathlib.Path) -> None:
    with running_postgres() as postgres:
        url = postgres.tcp_url(postgres.create_database())
        hidden = url.split(":")[2].split("@")[0]
        repository = copy_models(tmp_path / "models", "iris")
        options = (f"--registry-url={url}", "--log-level=debug", "--workers=1")
        with running_server(tmp_path, *options, repository=repository) as server:
            family = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children()]
            for process in family:
                assert "postgresql" not in " ".join(process.cmdline())
                # The supervisor alone knows the database; its environment began without.
                assert hidden not in pathlib.Path(f"/proc/{process.pid}/environ").read_text()
            postgres.stop("immediate")
            told = told_while_away(server)
            assert "UNAVAILABLE" in told
            for secret in (PASSWORD, hidden):
                assert secret not in told
                assert secret not in server.log_text()


def told_while_away(server: Server) -> str:
    """What a client is told of a change while the database is away."""
    with Admin(server.address) as admin, pytest.raises(grpc.RpcError) as refused:
        admin.models("UpdateRecord", id="iris", description="new")
    return str(refused.value)


# --- files ---


def modes(folder: pathlib.Path) -> dict[str, str]:
    """Of everything beneath, by path: such as 0o600."""
    return {
        str(path.relative_to(folder)): oct(stat.S_IMODE(path.lstat().st_mode))
        for path in [folder, *folder.rglob("*")]
        if not path.is_symlink()
    }


def test_what_the_server_writes_is_for_its_user_alone(site: Site) -> None:
    found = modes(site.folder / "data")
    assert {"registry.db", "lock"} <= set(found)
    for path, mode in found.items():
        assert mode == ("0o700" if (site.folder / "data" / path).is_dir() else "0o600"), path
    uploaded = modes(site.folder / "models" / "uploaded")
    assert uploaded == {".": "0o700", "1": "0o700", "1/model.onnx": "0o600", "1/model_info.json": "0o600"}
    assert modes(site.folder / "models" / ".nexus-staging") == {".": "0o700"}


def test_what_people_gave_keeps_its_modes(site: Site) -> None:
    given = modes(site.folder / "models" / "iris")
    assert given == modes(MODELS / "iris")


def test_the_server_s_unix_sockets_have_no_file(site: Site) -> None:
    """Its sockets with a name on a file system: Envoy's admin socket, whose name is taken away once it serves."""
    for title, process in site.processes().items():
        paths = [each.laddr for each in process.net_connections("unix") if str(each.laddr).startswith("/")]
        for path in paths:
            assert not os.path.exists(str(path)), title


# --- settings ---


def test_what_is_wrong_about_a_secret_setting_is_said_without_it(tmp_path: pathlib.Path) -> None:
    for name in ("NEXUS_REDIS_URL", "NEXUS_REGISTRY_URL"):
        url = f"redis://:{PLANTED}@127.0.0.1/{'0' * 5000}"
        variables = {key: value for key, value in os.environ.items() if not key.startswith("NEXUS_")}
        done = subprocess.run(
            [*NEXUS, "serve"], cwd=tmp_path, env={**variables, name: url}, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 78
        assert f"(from {name}): expected a shorter text" in done.stderr
        assert PLANTED not in done.stdout + done.stderr


def test_settings_hide_their_secrets_from_tracebacks_and_logs() -> None:
    settings = load_settings({"redis_url": f"redis://:{PLANTED}@h/0", "registry_url": f"postgresql://u:{PLANTED}@h/d"})
    assert PLANTED not in repr(settings)
    assert PLANTED not in str(settings)

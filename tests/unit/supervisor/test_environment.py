"""What children are told of the environment."""

import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from nexus_grpc.supervisor.environment import child_environment, envoy_environment, trial_environment

NEEDED = {"PATH": os.environ["PATH"], "HOME": "/home/nexus", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "TMPDIR": "/tmp"}
SECRET = {
    "NEXUS_REGISTRY_URL": "postgresql://nexus:secret@db/nexus",
    "NEXUS_REDIS_URL": "redis://:secret@cache/0",
    "NEXUS_CONFIG": "/etc/secret.toml",
    "AWS_ACCESS_KEY_ID": "secret",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "DATABASE_URL": "secret",
    "REDIS_URL": "secret",
    "PGPASSWORD": "secret",
    "GITHUB_TOKEN": "secret",
    "https_proxy": "http://user:secret@proxy",
    "HTTPS_PROXY": "http://user:secret@proxy",
    "KUBECONFIG": "secret",
    # Of families that are passed on.
    "PYTHONSECRET": "secret",
    "LC_TOKEN": "secret",
    "GRPC_API_KEY": "secret",
    "ORT_PASSWORD": "secret",
    "ENVOY_CREDENTIALS": "secret",
}
WORKER, FRONT = lambda: child_environment(holds_models=True), lambda: child_environment(holds_models=False)
Told = Callable[[], dict[str, str]]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        monkeypatch.delenv(name)
    for name, value in {**NEEDED, **SECRET}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "told", [WORKER, FRONT, trial_environment, envoy_environment], ids=["worker", "front", "trial", "envoy"]
)
def test_nobody_is_told_a_secret(told: Told) -> None:
    show = "import json, os; print(json.dumps(dict(os.environ)))"
    done = subprocess.run([sys.executable, "-c", show], env=told(), capture_output=True, text=True, check=True)
    seen = json.loads(done.stdout)
    assert "secret" not in done.stdout
    assert not SECRET.keys() & seen.keys()
    assert seen["PATH"] == NEEDED["PATH"]


def test_each_is_told_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    steering = {
        "ORT_LOGGING": "1",
        "GRPC_VERBOSITY": "debug",
        "OMP_NUM_THREADS": "2",
        "PYTHONUNBUFFERED": "1",
        "COVERAGE_PROCESS_START": "x",
    }
    for name, value in steering.items():
        monkeypatch.setenv(name, value)
    huge = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    shared = {**NEEDED, "OMP_NUM_THREADS": "2", "PYTHONUNBUFFERED": "1"}
    assert WORKER() == {**shared, "ORT_LOGGING": "1", **huge}
    assert FRONT() == {**shared, "GRPC_VERBOSITY": "debug", "COVERAGE_PROCESS_START": "x"}
    assert envoy_environment() == {**NEEDED, "GRPC_VERBOSITY": "debug", "TZ": "UTC"}
    # What onnxruntime does with a stranger's file is not for the environment to say.
    own = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    kept = {name: value for name, value in NEEDED.items() if name != "HOME"}
    assert trial_environment() == {**kept, **own, **huge}


def test_whoever_started_us_decides_about_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1")
    assert WORKER()["GLIBC_TUNABLES"] == "glibc.malloc.check=1:glibc.malloc.hugetlb=1"
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    assert WORKER()["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=0"
    assert "GLIBC_TUNABLES" in FRONT()

"""What the supervisor's children are told of its environment: what is listed here, and nothing else.

An allow-list, because what must stay behind has no common name: passwords of databases, tokens of clouds and CI
systems, and whatever else the service manager or orchestrator that started us puts there. Our own settings (NEXUS_*)
reach fronts by control message, and workers not at all.
"""

import os
import re

# To find programs, libraries, folders and time zones, and to speak the right language.
_SYSTEM = (
    "PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|LC_[A-Z]+|TZ|TZDIR|TMPDIR|LD_LIBRARY_PATH|LD_PRELOAD|VIRTUAL_ENV|TERM"
)
_PYTHON = "PYTHON[A-Z]+"
# What measures tests' coverage: not in workers, which could not write it down once they are confined.
_COVERAGE = "COVERAGE_[A-Z_]+"
# Allocators and numerical libraries.
_MEMORY = "GLIBC_TUNABLES|MALLOC_[A-Z_]+|OMP_[A-Z_]+|OPENBLAS_[A-Z_]+|MKL_[A-Z_]+"
# gRPC's own switches, and certificates of the servers that a front asks. No proxies: they come with passwords.
_NETWORK = "GRPC_[A-Z_]+|SSL_CERT_FILE|SSL_CERT_DIR"

_WORKER = re.compile(f"{_SYSTEM}|{_PYTHON}|{_MEMORY}|ORT_[A-Z_]+")
_FRONT = re.compile(f"{_SYSTEM}|{_PYTHON}|{_COVERAGE}|{_MEMORY}|{_NETWORK}")
_ENVOY = re.compile(f"{_SYSTEM}|{_NETWORK}|ENVOY_[A-Z_]+")
# A file that somebody sends is tried as it is: no ORT_*, which steers onnxruntime.
_TRIAL = re.compile("PATH|LD_LIBRARY_PATH|LANG|LC_ALL|TZ|TMPDIR|PYTHONPATH|PYTHONHOME")
# numpy's threads are idle here, and their stacks count against the address space.
_TRIAL_VARIABLES = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
# Whatever else a name may be.
_SECRET = re.compile("TOKEN|PASSW|SECRET|CREDENTIAL|(^|_)KEY")

# Weights in pages of 2 MiB: a load makes 60 times fewer page faults, takes half the time, and disturbs who shares its
# cores far less (docs/decisions/0008). https://www.gnu.org/software/libc/manual/html_node/Memory-Allocation-Tunables.html
_HUGE_PAGES = "glibc.malloc.hugetlb=1"


def child_environment(*, holds_models: bool) -> dict[str, str]:
    """For a front, or for a worker, which holds models."""
    return with_huge_pages(_only(_WORKER)) if holds_models else _only(_FRONT)


def trial_environment() -> dict[str, str]:
    """For the process that tries a model."""
    return with_huge_pages({**_only(_TRIAL), **_TRIAL_VARIABLES})


def envoy_environment() -> dict[str, str]:
    """For Envoy, whose log is in UTC as everybody's is."""
    return {**_only(_ENVOY), "TZ": "UTC"}


def with_huge_pages(environment: dict[str, str]) -> dict[str, str]:
    """Have malloc ask for huge pages, unless whoever started us decided about that."""
    given = environment.get("GLIBC_TUNABLES", "")
    if "glibc.malloc.hugetlb" in given:
        return environment
    return {**environment, "GLIBC_TUNABLES": f"{given}:{_HUGE_PAGES}" if given else _HUGE_PAGES}


def _only(names: re.Pattern[str]) -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if names.fullmatch(name) is not None and not _SECRET.search(name)
    }

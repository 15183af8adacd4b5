"""What a child process is told of our environment."""

import os

# What a child needs not know, and would show in /proc/PID/environ.
_DROPPED = ("NEXUS_CONFIG",)
# Weights in pages of 2 MiB: a load makes 60 times fewer page faults, takes half the time, and disturbs who shares its
# cores far less (docs/decisions/0008). https://www.gnu.org/software/libc/manual/html_node/Memory-Allocation-Tunables.html
_HUGE_PAGES = "glibc.malloc.hugetlb=1"


def child_environment(*, holds_models: bool) -> dict[str, str]:
    """For a front or a worker."""
    environment = {name: value for name, value in os.environ.items() if name not in _DROPPED}
    return with_huge_pages(environment) if holds_models else environment


def with_huge_pages(environment: dict[str, str]) -> dict[str, str]:
    """Have malloc ask for huge pages, unless whoever started us decided about that."""
    given = environment.get("GLIBC_TUNABLES", "")
    if "glibc.malloc.hugetlb" in given:
        return environment
    return {**environment, "GLIBC_TUNABLES": f"{given}:{_HUGE_PAGES}" if given else _HUGE_PAGES}

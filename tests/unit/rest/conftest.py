"""One Envoy and one backend for all live tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from nexus_grpc.rest.bootstrap import EnvoyOptions
from tests.harness import free_port
from tests.unit.rest.live import running_backend, running_envoy

ORIGIN = "http://page.example"
TIMEOUT_S = 2.0
UPLOAD_TIMEOUT_S = 4.0
MAX_BODY = 8 << 20


@pytest.fixture(scope="session")
def envoy_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("envoy") / "envoy.log"


@pytest.fixture(scope="session")
def envoy(envoy_log: Path) -> Iterator[tuple[int, int]]:
    """(REST port, process id of Envoy)."""
    backend, nobody = free_port(), free_port()
    options = EnvoyOptions(
        port=free_port(),
        # The second front is away: its share must go to the first.
        upstreams=(f"127.0.0.1:{backend}", f"127.0.0.1:{nobody}"),
        metrics=f"127.0.0.1:{nobody}",
        cors_origins=(ORIGIN,),
        max_body_bytes=MAX_BODY,
        timeout_s=TIMEOUT_S,
        upload_timeout_s=UPLOAD_TIMEOUT_S,
    )
    with running_backend(backend), running_envoy(options, envoy_log.parent) as process:
        yield options.port, process.pid


@pytest.fixture
def rest_port(envoy: tuple[int, int]) -> int:
    return envoy[0]

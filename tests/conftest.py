"""Fixtures shared by all tests: one running server per transport, with the demo models and those of graphs.py."""

import pathlib
from collections.abc import Iterator

import pytest

from tests.harness import MODELS, Server, copy_models, running_server
from tests.integration.client import Client
from tests.integration.graphs import add_test_models

TRANSPORTS = ("auto", "public")


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The demo models and the test models."""
    folder = copy_models(tmp_path_factory.mktemp("models"), *(path.name for path in MODELS.iterdir() if path.is_dir()))
    add_test_models(folder)
    return folder


@pytest.fixture(scope="session", params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def server(transport: str, repository: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Shared by all tests of a transport: tests must leave it as it was. Logs every request."""
    folder = tmp_path_factory.mktemp(f"server-{transport}")
    with running_server(folder, f"--front-api={transport}", "--log-sample=1", repository=repository) as running:
        yield running


@pytest.fixture(scope="session")
def rest_server(repository: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One with Envoy on `rest_port`, shared as `server` is. Logs every request."""
    folder = tmp_path_factory.mktemp("server-rest")
    with running_server(folder, "--log-sample=1", repository=repository, rest=True) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    client = Client(server.address)
    yield client
    client.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests measured (record_property), as nobody sees what passing tests print."""
    reports = [each for kind in ("passed", "") for each in terminalreporter.stats.get(kind, ())]
    measured = {report.nodeid: report.user_properties for report in reports if getattr(report, "user_properties", ())}
    if measured:
        terminalreporter.section("measured")
    for nodeid, properties in measured.items():
        terminalreporter.write_line(nodeid)
        for name, value in properties:
            terminalreporter.write_line(f"    {name}: {value}")

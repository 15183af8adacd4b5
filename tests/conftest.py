"""Fixtures shared by all tests: one running server per transport, with the demo models and those of graphs.py."""

import contextlib
import functools
import pathlib
import signal
from collections.abc import Callable, Iterator

import pytest

from tests.harness import MODELS, Server, copy_models, running_server
from tests.integration.client import Client
from tests.integration.graphs import add_test_models

# The fallback for another grpcio than the pinned one: a rare set-up.
TRANSPORTS = ("auto", pytest.param("public", marks=pytest.mark.long))

# Whoever starts tests in the background ignores Ctrl-C for them, and so for the programs that they start: with a
# handler here, those get the default.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
def servers(repository: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Server]]:
    """(transport) → its server, started when it is first asked for, and there until the end."""
    with contextlib.ExitStack() as running:

        @functools.cache
        def server_of(transport: str) -> Server:
            folder = tmp_path_factory.mktemp(f"server-{transport}")
            options = (f"--front-api={transport}", "--log-sample=1")
            return running.enter_context(running_server(folder, *options, repository=repository))

        yield server_of


@pytest.fixture(scope="session")
def server(transport: str, servers: Callable[[str], Server]) -> Server:
    """Shared by all tests of a transport: tests must leave it as it was. Logs every request."""
    return servers(transport)


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

"""One registry of each kind for every test of the contract."""

import contextlib
import dataclasses
import pathlib
import sqlite3
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from nexus_grpc.registry.open import open_registry
from nexus_grpc.registry.store import Registry
from tests.postgres import Postgres, running_postgres

KINDS = ("sqlite", "postgres")


@dataclasses.dataclass
class Place:
    """Where a registry is, for opening it as often as a test likes and for looking behind its back."""

    url: str
    folder: pathlib.Path
    opened: list[Registry] = dataclasses.field(default_factory=list)

    def open(self) -> Registry:
        registry = open_registry(self.url, self.folder)
        self.opened.append(registry)
        return registry

    def sql(self, statement: str) -> list[Any]:
        """Runs a statement in the database itself. Raises the driver's errors."""
        if self.url:
            with psycopg.connect(self.url, autocommit=True) as connection:
                cursor = connection.execute(statement.encode())
                return cursor.fetchall() if cursor.description else []
        with contextlib.closing(sqlite3.connect(self.folder / "registry.db", isolation_level=None)) as file:
            return file.execute(statement).fetchall()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[Place]:
    """An empty one."""
    url = ""
    if request.param == "postgres":
        server: Postgres = request.getfixturevalue("postgres_server")
        url = server.url(server.create_database())
    place = Place(url, tmp_path / "data")
    yield place
    for registry in place.opened:
        registry.close()


@pytest.fixture
def registry(place: Place) -> Registry:
    return place.open()


@pytest.fixture
def database(postgres_server: Postgres, tmp_path: pathlib.Path) -> Iterator[Place]:
    """In PostgreSQL, empty. The server runs again afterwards, whatever the test did to it."""
    place = Place(postgres_server.url(postgres_server.create_database()), tmp_path / "data")
    yield place
    for registry in place.opened:
        registry.close()
    postgres_server.stop()
    postgres_server.start()

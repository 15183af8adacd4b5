"""What only PostgreSQL does: it goes away, and comes back."""

import socket
import threading

import pytest

from nexus_grpc.ipc.errors import StorageFailed
from nexus_grpc.registry.open import open_registry
from nexus_grpc.registry.records import Change, ModelRow, VersionRow
from nexus_grpc.registry.store import Registry
from tests.postgres import PASSWORD, Postgres
from tests.unit.registry.conftest import Place

IRIS, FIRST = ModelRow("iris", traffic={"primary": 1}), VersionRow("iris", 1, labels={"team": "ü"})
ADD = Change("ada", "upload", "iris", "1", put_models=(IRIS,), put_versions=(FIRST,))


@pytest.mark.parametrize("how", ["fast", "immediate"])
def test_a_restart_between_calls_goes_unnoticed(database: Place, postgres_server: Postgres, how: str) -> None:
    registry = database.open()
    assert registry.apply(ADD) == 1
    postgres_server.stop(how)
    postgres_server.start()
    assert registry.apply(Change("bob", "update", "iris")) == 2
    postgres_server.stop(how)
    postgres_server.start()
    assert [row.action for row in registry.history()] == ["update", "upload"]


def test_while_it_is_away_reads_are_served_and_changes_fail(database: Place, postgres_server: Postgres) -> None:
    registry = database.open()
    registry.apply(ADD)
    registry.save_statistics("iris", {"A": 1})
    postgres_server.stop("immediate")
    for reader in (registry, database.open()):
        assert (reader.models(), reader.versions()) == ([IRIS], [FIRST])
        assert [row.action for row in reader.history("iris")] == ["upload"]
        assert reader.history("churn") == []
        assert reader.statistics("iris") == {"A": 1}
        with pytest.raises(StorageFailed, match="cannot be used") as failure:
            reader.apply(Change("bob", "delete", "iris", delete_models=("iris",)))
        assert failure.value.reason == "REGISTRY_FAILED"
        assert reader.models() == [IRIS]
    postgres_server.start()
    assert registry.apply(Change("bob", "delete", "iris", delete_models=("iris",))) == 2
    assert registry.models() == []


def test_another_servers_changes_are_seen_after_an_outage(database: Place, postgres_server: Postgres) -> None:
    registry, other = database.open(), Place(database.url, database.folder.with_name("other")).open()
    registry.apply(ADD)
    other.apply(Change("eve", "add", "churn", put_models=(ModelRow("churn"),)))
    postgres_server.stop()
    other.close()
    assert registry.models() == [IRIS]
    postgres_server.start()
    assert [row.id for row in registry.models()] == ["churn", "iris"]
    postgres_server.stop()
    assert [row.id for row in registry.models()] == ["churn", "iris"]


def test_without_a_snapshot_it_must_be_there(database: Place, postgres_server: Postgres) -> None:
    name = database.url.split("/")[3].split("?")[0]
    postgres_server.stop()
    with pytest.raises(StorageFailed, match=rf"127\.0\.0\.1:{postgres_server.port}/{name} cannot be used") as failure:
        open_registry(postgres_server.tcp_url(name), database.folder)
    assert not any(part in str(failure.value) for part in ("sesame", PASSWORD[6:]))


def test_another_databases_snapshot_is_not_ours(database: Place, postgres_server: Postgres) -> None:
    database.open().apply(ADD)
    other = postgres_server.url(postgres_server.create_database())
    postgres_server.stop()
    with pytest.raises(StorageFailed):
        open_registry(other, database.folder)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"registry": "x"}', b"\xff\xfe", b'{"models": [[1, 2]]}']
)
def test_a_broken_snapshot_is_as_none(database: Place, postgres_server: Postgres, content: bytes) -> None:
    registry = database.open()
    registry.apply(ADD)
    (database.folder / "registry-snapshot.json").write_bytes(content)
    assert Place(database.url, database.folder).open().models() == [IRIS]
    (database.folder / "registry-snapshot.json").write_bytes(content)
    postgres_server.stop()
    with pytest.raises(StorageFailed):
        database.open()


def test_a_wrong_password_is_not_shown(database: Place, postgres_server: Postgres) -> None:
    name = database.url.split("/")[3].split("?")[0]
    for wrong in ("hush", "hu@sh", "hu/sh:1"):
        with pytest.raises(StorageFailed, match="password authentication failed") as failure:
            open_registry(postgres_server.tcp_url(name, wrong), database.folder)
        assert "hu" not in str(failure.value)
    assert open_registry(postgres_server.tcp_url(name), database.folder).models() == []


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u@h/d",
        "postgresql://u:hush@h:port/d",
        "postgresql://u:hu@sh@h/d",
        "postgresql://u:hu/sh@h/d",
        "postgresql://u@h/d?nonsense=hush",
        "registry.db",
    ],
)
def test_a_url_that_is_none(url: str, database: Place) -> None:
    with pytest.raises(StorageFailed, match="registry_url") as failure:
        open_registry(url, database.folder)
    assert "sh@" not in str(failure.value)
    assert "hush" not in str(failure.value)


def test_a_database_of_another_encoding_is_refused(postgres_server: Postgres, database: Place) -> None:
    name = postgres_server.create_database("ENCODING 'LATIN1'", "LOCALE 'C'")
    with pytest.raises(StorageFailed, match="encoding is LATIN1; expected a database made with ENCODING 'UTF8'"):
        open_registry(postgres_server.url(name), database.folder)


class Cutter:
    """Stands between a registry and PostgreSQL's socket; can end the connection when a COMMIT has been answered, or
    before it is passed on."""

    def __init__(self, server: Postgres, database: str) -> None:
        self._target = str(server.folder / f".s.PGSQL.{server.port}")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"postgresql://{server.user}@127.0.0.1:{self._listener.getsockname()[1]}/{database}"
        self.cut = ""
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._target)
            committing = threading.Event()
            for source, sink, is_client in ((client, server, True), (server, client, False)):
                pump = threading.Thread(target=self._pump, args=(source, sink, is_client, committing), daemon=True)
                pump.start()

    def _pump(self, source: socket.socket, sink: socket.socket, is_client: bool, committing: threading.Event) -> None:
        with source, sink:
            while True:
                try:
                    data = source.recv(65536)
                    if not data:
                        break
                    if is_client and b"COMMIT" in data:
                        committing.set()
                    if committing.is_set() and self.cut == ("before" if is_client else "after"):
                        self.cut, self.cuts = "", self.cuts + 1
                        break
                    sink.sendall(data)
                except OSError:
                    break
            for each in (source, sink):
                try:
                    each.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_connection_lost_in_the_commit(database: Place, postgres_server: Postgres, moment: str) -> None:
    """Whether the server made it or not: the change is made once."""
    cutter = Cutter(postgres_server, database.url.split("/")[3].split("?")[0])
    registry: Registry = open_registry(cutter.url, database.folder)
    assert registry.apply(ADD) == 1
    cutter.cut = moment
    assert registry.apply(Change("bob", "update", "iris", put_models=(ModelRow("iris", "once"),))) == 2
    assert cutter.cuts == 1
    assert [row.action for row in database.open().history()] == ["update", "upload"]
    assert [row.name for row in registry.models()] == ["once"]
    registry.close()
    cutter.close()

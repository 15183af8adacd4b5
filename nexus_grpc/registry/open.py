"""Which registry the settings mean."""

from pathlib import Path

from nexus_grpc.ipc.errors import StorageFailed
from nexus_grpc.registry.store import Registry


def open_registry(url: str, data_dir: Path, *, keeps_snapshot: bool = True, makes: bool = True) -> Registry:
    """PostgreSQL by URL, else a SQLite file in the data folder. Raises StorageFailed.

    Args:
        keeps_snapshot: whether it may read and write the copy in the data folder that stands in for PostgreSQL. The
            server's own may, all others (a command, a second connection) must not.
        makes: make one where there is none; else StorageFailed has the reason NO_REGISTRY.
    """
    if not url:
        from nexus_grpc.registry.sqlite import SqliteRegistry

        return SqliteRegistry(data_dir, makes=makes)
    if not url.startswith(("postgresql://", "postgres://")):
        raise StorageFailed("registry_url: expected postgresql://user@host/database, or nothing for a SQLite file")
    # Late: psycopg takes long to import, and most servers do without.
    from nexus_grpc.registry.postgres import PostgresRegistry

    return PostgresRegistry(url, data_dir if keeps_snapshot else None, makes=makes)

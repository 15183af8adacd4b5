"""Work on many things, one after the other, of which each may fail alone."""

import contextlib
from collections.abc import Iterator
from typing import Any

from nexus_grpc import logs
from nexus_grpc.configuration import ConfigurationError
from nexus_grpc.ipc.errors import NexusError


@contextlib.contextmanager
def apart(event: str, **about: Any) -> Iterator[None]:
    """What fails inside is logged, as `event` with the reason; what comes after goes on.

    Args:
        about: what it was done for, such as model="iris".
    """
    try:
        yield
    except Exception as error:
        logs.logger().error(event, **about, **why(error))


def why(error: Exception) -> dict[str, Any]:
    """What the log says of an error: its reason, or for a bug of ours where it is."""
    if isinstance(error, (NexusError, ConfigurationError)):
        return {"reason": error.message}
    return {"reason": str(error)} if isinstance(error, OSError) else {"exc_info": error}

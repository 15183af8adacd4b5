"""What Python and its libraries say by themselves becomes events: `logging`, `warnings`, exceptions that nobody caught.

For processes that log (supervisor and fronts). Workers and trials leave it on standard error, a pipe to the supervisor,
which makes the same events of it (supervisor/log_pump.py).
"""

import logging
import sys
import threading
import time
from types import TracebackType
from typing import Any

from nexus_grpc import logs

# structlog has no name for those between.
_LEVELS = (logging.ERROR, logging.WARNING, logging.INFO)
# Its exceptions are about what clients send (metadata that are no text): no fault of ours, and no traceback.
_OF_CLIENTS = "grpc._cython"
RECORDS_PER_SECOND_MAX = 100


class _Events(logging.Handler):
    """Hands records on, as events with the `logger` that they are from."""

    def __init__(self) -> None:
        super().__init__()
        self._second = 0
        self._count = 0
        self._left_out_count = 0

    def emit(self, record: logging.LogRecord) -> None:
        if not self._is_room():
            self._left_out_count += 1
            return
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # arguments that don't fit the text: somebody's bug, and not ours to die of
            text = str(record.msg)
        name = "python" if record.name == "py.warnings" else record.name
        level = next((level for level in _LEVELS if record.levelno >= level), logging.DEBUG)
        about: dict[str, Any] = {"exc_info": record.exc_info} if record.exc_info else {}
        if name.startswith(_OF_CLIENTS):
            level, about = logging.DEBUG, {}
        if self._left_out_count:
            about["left_out_count"], self._left_out_count = self._left_out_count, 0
        logs.logger().log(level, text.strip(), logger=name, **about)

    def _is_room(self) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._count = second, 0
        self._count += 1
        return self._count <= RECORDS_PER_SECOND_MAX


def capture() -> None:
    """From now on, in this process; after logs.configure. What a thread dies of goes where sys.excepthook goes."""
    logging.basicConfig(handlers=[_Events()], force=True)
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _died_of
    sys.unraisablehook = _ignored


def _uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    logs.logger().error("uncaught exception", logger="python", exc_info=(kind, error, traceback))


def _died_of(arguments: threading.ExceptHookArgs) -> None:
    _uncaught(arguments.exc_type, arguments.exc_value or arguments.exc_type(), arguments.exc_traceback)


def _ignored(arguments: "sys.UnraisableHookArgs") -> None:
    error = arguments.exc_value or arguments.exc_type()
    where = f"{arguments.err_msg or 'Exception ignored in'}: {arguments.object!r}"
    logs.logger().error(where, logger="python", exc_info=(arguments.exc_type, error, arguments.exc_traceback))

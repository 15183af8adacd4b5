"""How much memory large messages may take in a front, and giving it back."""

import ctypes

from nexus_grpc.front.flight import Flight
from nexus_grpc.ipc.errors import InvalidInput, Overloaded
from nexus_grpc.ipc.wire import HTTP_ANSWER_MAX_BYTES

_malloc_trim = ctypes.CDLL(None).malloc_trim


def too_large_for_rest(size: int) -> InvalidInput:
    return InvalidInput(
        f"the answer has {size} bytes, REST carries {HTTP_ANSWER_MAX_BYTES}: ask for fewer rows or outputs, or use gRPC"
    )


class LargeMessages:
    """The messages that travel by memfd: at most `bytes_max` of them in flight (one alone may be larger)."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes = 0
        self._bytes_max = bytes_max
        self._some_ended = False

    def admit(self, flight: Flight) -> None:
        """Count a flight's message in. Raises Overloaded when there is no room for it now."""
        size = len(flight.message)
        if self._bytes and self._bytes + size > self._bytes_max:
            raise Overloaded(f"{self._bytes} bytes of large messages are in flight; try again later")
        self._bytes += size
        flight.oversize_bytes = size

    def release(self, flight: Flight) -> None:
        """Its flight has ended."""
        self._bytes -= flight.oversize_bytes
        self._some_ended = True
        flight.message = b""

    def answered(self) -> None:
        """A large answer was copied."""
        self._some_ended = True

    def trim(self) -> None:
        """Give what ended messages held back to the system."""
        if self._some_ended:
            self._some_ended = False
            _malloc_trim(0)

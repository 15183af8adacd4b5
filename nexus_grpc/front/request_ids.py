"""Ids for requests that bring none."""

import itertools


class RequestIds:
    """Makes request ids: UUID-shaped (version 8: vendor-specific), a random prefix per process and a counter."""

    def __init__(self, random_bytes: bytes) -> None:
        digits = random_bytes.hex()
        prefix = f"{digits[:8]}-{digits[8:12]}-8{digits[12:15]}-a{digits[15:18]}-"
        self._format = prefix.encode() + b"%012x"
        self._counter = itertools.count(1)

    def next(self) -> bytes:
        return self._format % next(self._counter)

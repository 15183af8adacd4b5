"""When a dead process's successor starts: at once after a long life, with growing pauses after short ones."""

import time

# A process that lived shorter than this died of itself: the next one starts with back-off.
SHORT_LIFE_SECONDS = 5.0
FIRST_SECONDS, MAX_SECONDS = 0.2, 10.0
# A process that dies this often before it first became ready cannot start here.
BOOT_ATTEMPTS_MAX = 3


class Backoff:
    """Of one place for a process: begin() at each birth, next_delay() at each death."""

    def __init__(self) -> None:
        self._born_s = 0.0
        self._delay_s = 0.0

    def begin(self) -> None:
        self._born_s = time.monotonic()

    def next_delay(self) -> float:
        """Seconds to wait before the next process."""
        if time.monotonic() - self._born_s >= SHORT_LIFE_SECONDS:
            self._delay_s = 0.0
        delay = self._delay_s
        self._delay_s = min(MAX_SECONDS, max(FIRST_SECONDS, 2 * delay))
        return delay

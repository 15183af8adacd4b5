"""The request ledger for REST: clients on kept connections, each request with values of its own and one end.

The ends are 200, another status, REFUSED (nobody listens: nothing was sent) and BROKEN (the connection ended instead of
an answer: the request is lost).
"""

import collections
import contextlib
import dataclasses
import http.client
import itertools
import json
import threading
import time
from types import TracebackType
from typing import Self

from tests.chaos.ledger import rows_of, wait_until

REFUSED, BROKEN = 0, -1
JOIN_SECONDS = 30.0


@dataclasses.dataclass(frozen=True)
class RestEntry:
    """`status` is one of HTTP's, REFUSED or BROKEN; `right` is about the answer's content."""

    number: int
    status: int
    right: bool
    sent_s: float
    ended_s: float
    text: str = ""


class RestClient:
    """One client, on one connection for as long as the server keeps it."""

    def __init__(self, port: int, timeout: float = 20.0) -> None:
        self._port, self._timeout = port, timeout
        self._connection: http.client.HTTPConnection | None = None

    def ask(self, model: str, number: int, last: int = 1) -> RestEntry:
        counts = rows_of(number, last)
        tensor = {"name": "counts", "datatype": "INT64", "shape": list(counts.shape), "data": counts.ravel().tolist()}
        body = json.dumps({"id": str(number), "inputs": [tensor]}).encode()
        sent_s = time.monotonic()
        try:
            connection = self._connected()
        except OSError as error:
            return RestEntry(number, REFUSED, False, sent_s, time.monotonic(), str(error))
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", f"/v2/models/{model}/infer", body, headers)
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            return RestEntry(number, BROKEN, False, sent_s, time.monotonic(), repr(error))
        if response.will_close:
            self.close()
        right = response.status == 200 and _is_right(json.loads(answer), number, last)
        return RestEntry(number, response.status, right, sent_s, time.monotonic(), "" if right else answer.decode())

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self) -> http.client.HTTPConnection:
        if self._connection is None:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=self._timeout)
            connection.connect()
            self._connection = connection
        return self._connection


def _is_right(answer: dict, number: int, last: int) -> bool:
    counts = rows_of(number, last)
    expected = {"total": counts.sum(axis=1).tolist(), "affine": (3 * counts + 7).ravel().tolist()}
    return answer["id"] == str(number) and {each["name"]: each["data"] for each in answer["outputs"]} == expected


class RestLedger:
    """Clients that ask until told to stop. Use as a context manager; check() afterwards."""

    def __init__(
        self, port: int, model: str = "counts_i64", *, clients: int = 8, last: int = 1, pause: float = 0.01
    ) -> None:
        self.entries: list[RestEntry] = []
        self._port, self._model, self._last, self._pause = port, model, last, pause
        self._numbers = itertools.count(1)
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._ask_on, daemon=True) for _ in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _ask_on(self) -> None:
        with contextlib.closing(RestClient(self._port)) as client:
            while not self._stopping.is_set():
                self.entries.append(client.ask(self._model, next(self._numbers), self._last))
                self._stopping.wait(self._pause)

    def stop(self) -> None:
        """Ask no more and wait for the answers that are due."""
        self._stopping.set()
        deadline = time.monotonic() + JOIN_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        assert not any(thread.is_alive() for thread in self._threads), "requests without any end"

    def succeeded(self) -> int:
        return sum(entry.status == 200 for entry in list(self.entries))

    def wait_for(self, count: int, seconds: float = 20.0) -> None:
        """Until so many more requests have succeeded: load goes on."""
        target = self.succeeded() + count
        wait_until(lambda: self.succeeded() >= target, seconds, f"{count} more successes")

    def others(self) -> list[RestEntry]:
        """Those that did not succeed."""
        return [entry for entry in self.entries if entry.status != 200]

    def check(self, *allowed: int) -> None:
        """Each request ended with 200 and the right answer, or with one of `allowed`."""
        wrong = [entry for entry in self.entries if entry.status == 200 and not entry.right]
        assert not wrong, f"wrong answers: {wrong[:5]}"
        failed = [entry for entry in self.others() if entry.status not in allowed]
        assert not failed, f"{collections.Counter(entry.status for entry in self.entries)}: {failed[:5]}"
        assert self.succeeded(), "nothing succeeded at all"

"""A client that does not wait: it sends by a timetable, whatever becomes of what it sent, as many users together do.

    python -m loadtest.open_loop 127.0.0.1:8001 --rounds 800 --rate 600      # a server with slow_model.py's model
    python -m loadtest.open_loop 127.0.0.1:8001 --rounds 800 --in-flight 8   # closed loop: how much it can do

A client that waits for answers asks less of a slow server, and does not measure what the others would have waited
(coordinated omission). So times count from when a request was due, not from when it went out; so does its deadline.
Prints one JSON object: the fields of Summary.
"""

import argparse
import asyncio
import dataclasses
import gc
import json
import random
import time
from collections import Counter
from collections.abc import Iterable

import grpc
import psutil
from google.rpc import error_details_pb2, status_pb2

from loadtest import slow_model
from loadtest.h2load import percentile
from loadtest.payloads import MODEL_INFER
from loadtest.processes import steal_percent

URGENT, PATIENT = 2, 8
URGENT_SHARE = 0.2
# Different requests, sent in turn.
REQUESTS = 16
# Of RESOURCE_EXHAUSTED, by ErrorInfo.reason: a refusal that is meant to be.
SHED_REASONS = frozenset({"LOAD_SHED", "DEADLINE_TOO_SHORT", "OVERLOADED"})
SEED = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Due:
    """A request in the timetable; seconds from the beginning."""

    at_s: float
    priority: int
    number: int


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    due: Due
    # From when it was due: until it was sent, and until it ended.
    lag_s: float
    took_s: float
    # grpc.StatusCode's name, and the answer or, of an error, google.rpc.Status.
    code: str
    content: bytes


@dataclasses.dataclass(slots=True)
class Counts:
    """Of one priority: all, answered within the deadline, not answered by then, refused."""

    offered: int = 0
    good: int = 0
    late: int = 0
    shed: int = 0


@dataclasses.dataclass(frozen=True)
class Summary:
    """Of the requests that were due while it was measured.

    Attributes:
        counts: by priority.
        reasons: refusals by ErrorInfo.reason.
        errors: answers that are neither right nor such a refusal nor late, by what they are.
        p50_us, p99_us: until the end of what was accepted, that is of all but the refused; 0 when nothing was.
        lag_p99_us: how late the client was itself.
        run_seconds: all of the run, with what came before and after.
        client_cpu_seconds: the client's own, in the whole run.
        steal_percent: of all cores' time, taken by the hypervisor meanwhile.
    """

    seconds: float
    counts: dict[int, Counts]
    reasons: dict[str, int]
    errors: dict[str, int]
    p50_us: int
    p99_us: int
    lag_p99_us: int
    run_seconds: float = 0.0
    client_cpu_seconds: float = 0.0
    steal_percent: float = 0.0


def timetable(rate: float, seconds: float, seed: int = SEED) -> list[Due]:
    """Exactly rate * seconds requests, at random moments: independent users, not a metronome. The same each time."""
    chance = random.Random(seed)
    times = sorted(chance.uniform(0, seconds) for _ in range(round(rate * seconds)))
    return [Due(at_s, _priority(chance), index % REQUESTS) for index, at_s in enumerate(times)]


def _priority(chance: random.Random) -> int:
    return URGENT if chance.random() < URGENT_SHARE else PATIENT


class Client:
    """Sends, and keeps what became of it; looks at answers only afterwards, so as to cost little meanwhile."""

    def __init__(self, channel: grpc.aio.Channel, deadline_s: float) -> None:
        # No serializers: the requests are made beforehand, the answers read later.
        self._method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(MODEL_INFER)
        self._deadline_s = deadline_s
        self._began_s = time.perf_counter()
        self.outcomes: list[Outcome] = []

    def now_s(self) -> float:
        return time.perf_counter() - self._began_s

    async def open_loop(self, requests: list[Due]) -> None:
        async with asyncio.TaskGroup() as group:
            for due in requests:
                await asyncio.sleep(max(0.0, due.at_s - self.now_s()))
                group.create_task(self._send(due))

    async def closed_loop(self, in_flight: int, seconds: float) -> None:
        async with asyncio.TaskGroup() as group:
            for index in range(in_flight):
                group.create_task(self._one_after_another(index, seconds))

    async def _one_after_another(self, index: int, seconds: float) -> None:
        chance = random.Random(index)
        while (now_s := self.now_s()) < seconds:
            await self._send(Due(now_s, _priority(chance), index % REQUESTS))

    async def _send(self, due: Due) -> None:
        lag_s = self.now_s() - due.at_s
        call = self._method(
            slow_model.request(due.number),
            timeout=max(0.0, self._deadline_s - lag_s),
            metadata=(("x-nexus-priority", str(due.priority)),),
        )
        try:
            code, content = "OK", await call
        except grpc.aio.AioRpcError as error:
            code, content = error.code().name, _details(error)
        self.outcomes.append(Outcome(due, lag_s, self.now_s() - due.at_s, code, content))


def _details(error: grpc.aio.AioRpcError) -> bytes:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            return value if isinstance(value, bytes) else value.encode()
    return b""


def reason_of(status: bytes) -> str:
    """ErrorInfo.reason in a serialised google.rpc.Status; empty when there is none."""
    info = error_details_pb2.ErrorInfo()
    for detail in status_pb2.Status.FromString(status).details:
        if detail.Unpack(info):
            return str(info.reason)
    return ""


def summarise(outcomes: Iterable[Outcome], begin_s: float, end_s: float, deadline_s: float, rounds: int) -> Summary:
    counts = {URGENT: Counts(), PATIENT: Counts()}
    reasons, errors = Counter[str](), Counter[str]()
    accepted_us, lags_us = list[int](), list[int]()
    for outcome in outcomes:
        if not begin_s <= outcome.due.at_s < end_s:
            continue
        count, took_s = counts[outcome.due.priority], outcome.took_s
        count.offered += 1
        lags_us.append(int(outcome.lag_s * 1e6))
        reason = reason_of(outcome.content) if outcome.code == "RESOURCE_EXHAUSTED" else ""
        if reason in SHED_REASONS:
            count.shed += 1
            reasons[reason] += 1
            continue
        if outcome.code == "DEADLINE_EXCEEDED":
            # It was accepted, and nobody knows when it would have been answered: at the deadline at the earliest.
            took_s = max(took_s, deadline_s)
            count.late += 1
        elif outcome.code != "OK":
            errors[f"{outcome.code} {reason}".strip()] += 1
        elif not slow_model.is_right(outcome.content, outcome.due.number, rounds):
            errors["a wrong answer"] += 1
        elif took_s > deadline_s:
            count.late += 1
        else:
            count.good += 1
        accepted_us.append(int(took_s * 1e6))
    accepted_us.sort()
    lags_us.sort()
    return Summary(
        seconds=end_s - begin_s,
        counts=counts,
        reasons=dict(reasons),
        errors=dict(errors),
        p50_us=percentile(accepted_us, 50) if accepted_us else 0,
        p99_us=percentile(accepted_us, 99) if accepted_us else 0,
        lag_p99_us=percentile(lags_us, 99) if lags_us else 0,
    )


async def run(arguments: argparse.Namespace) -> Summary:
    """Warms up, measures, and goes on for a deadline more: what is measured must not be spared at its end."""
    deadline_s = arguments.deadline_ms / 1000
    end_s = arguments.warm_up + arguments.seconds
    requests = timetable(arguments.rate, end_s + deadline_s)
    async with grpc.aio.insecure_channel(arguments.target) as channel:
        await channel.channel_ready()
        cpu_s, times = time.process_time(), psutil.cpu_times()
        client = Client(channel, deadline_s)
        if arguments.rate:
            await client.open_loop(requests)
        else:
            await client.closed_loop(arguments.in_flight, end_s + deadline_s)
        took_s, cpu_s = client.now_s(), time.process_time() - cpu_s
    summary = summarise(client.outcomes, arguments.warm_up, end_s, deadline_s, arguments.rounds)
    return dataclasses.replace(
        summary, run_seconds=took_s, client_cpu_seconds=cpu_s, steal_percent=steal_percent(times)
    )


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="loadtest.open_loop", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", help="host:port of the server, which has the slow model")
    parser.add_argument("--rounds", type=int, required=True, help="of that model: tells right answers from wrong ones")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--rate", type=float, default=0.0, help="requests per second, whatever becomes of them")
    how.add_argument("--in-flight", type=int, default=0, help="so many at a time, each after the answer to the last")
    parser.add_argument("--seconds", type=float, default=8.0, help="measured (default 8)")
    parser.add_argument("--warm-up", type=float, default=2.0, help="seconds before, the same load (default 2)")
    parser.add_argument("--deadline-ms", type=float, default=500.0, help="of each request (default 500)")
    return parser.parse_args(argv)


def main() -> None:
    gc.disable()  # a pause of the client's would look like one of the server's
    print(json.dumps(dataclasses.asdict(asyncio.run(run(parse_arguments())))))


if __name__ == "__main__":
    main()

"""The overload benchmark's own arithmetic, and that its client does not wait for a slow server."""

import asyncio
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from nexus_grpc.worker.onnx_runtime import ort

# loadtest/ is not part of the installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from loadtest import open_loop, overload, plan, report, runner, slow_model
from loadtest.open_loop import PATIENT, URGENT, Counts, Due, Outcome
from loadtest.overload import Figures
from loadtest.plan import Result
from nexus_grpc.ipc.errors import DeadlinePassed, Overloaded, RateLimited
from nexus_grpc.ipc.rich_errors import status_bytes
from nexus_grpc.pb.inference import grpc_service_pb2 as oip

ROUNDS = 70
FIGURES = Figures(600.0, 210.0, 66.0, 0.5, 99.0, 80.0, 20.0, 15.0, 3000.0, 1.0)


def answer(number: int, rounds: int = ROUNDS) -> bytes:
    response = oip.ModelInferResponse(model_name=slow_model.NAME)
    response.raw_output_contents.append(np.roll(sent(number), rounds).tobytes())
    return response.SerializeToString()


def sent(number: int) -> "np.ndarray[Any, np.dtype[np.float32]]":
    request = oip.ModelInferRequest.FromString(slow_model.request(number))
    return np.frombuffer(request.raw_input_contents[0], np.float32)


def test_the_model_answers_what_it_should() -> None:
    session = ort.InferenceSession(slow_model.model(ROUNDS), providers=["CPUExecutionProvider"])
    (output,) = session.run(["y"], {"x": sent(3)})
    response = oip.ModelInferResponse(raw_output_contents=[output.tobytes()]).SerializeToString()
    assert slow_model.is_right(response, 3, ROUNDS)
    assert not slow_model.is_right(response, 4, ROUNDS)
    assert not slow_model.is_right(response, 3, ROUNDS + 1)
    assert not slow_model.is_right(b"", 3, ROUNDS)


def test_the_timetable_is_exact_in_number_and_random_in_time() -> None:
    due = open_loop.timetable(rate=600.0, seconds=10.0)
    times = np.array([each.at_s for each in due])
    assert len(due) == 6000
    assert due == open_loop.timetable(600.0, 10.0)
    assert (np.diff(times) >= 0).all()
    assert times[0] >= 0
    assert times[-1] <= 10.0
    # Of independent arrivals the gaps vary as much as they are long.
    assert np.std(np.diff(times)) == pytest.approx(1 / 600, rel=0.1)
    assert sum(each.priority == URGENT for each in due) == pytest.approx(1200, rel=0.1)


def outcome(
    took_s: float, code: str = "OK", content: bytes = b"", priority: int = PATIENT, at_s: float = 2.5
) -> Outcome:
    return Outcome(Due(at_s, priority, 1), 0.001, took_s, code, content)


def shed(reason: str) -> Outcome:
    return outcome(0.001, "RESOURCE_EXHAUSTED", status_bytes(Overloaded("later", reason=reason)))


def test_outcomes_are_told_apart() -> None:
    outcomes = [
        outcome(0.1, content=answer(1), priority=URGENT),
        outcome(0.2, content=answer(1)),
        outcome(0.6, content=answer(1)),
        # The server gave up a moment before the client would have: not better than the deadline.
        outcome(0.49, "DEADLINE_EXCEEDED", status_bytes(DeadlinePassed("late"))),
        shed("LOAD_SHED"),
        shed("DEADLINE_TOO_SHORT"),
        shed("OVERLOADED"),
        # Before and after what is measured.
        outcome(0.1, content=answer(1), at_s=1.9),
        outcome(0.1, "INTERNAL", at_s=10.0),
    ]
    summary = open_loop.summarise(outcomes, 2.0, 10.0, 0.5, ROUNDS)
    assert summary.counts == {URGENT: Counts(1, 1, 0, 0), PATIENT: Counts(6, 1, 2, 3)}
    assert summary.reasons == {"LOAD_SHED": 1, "DEADLINE_TOO_SHORT": 1, "OVERLOADED": 1}
    assert summary.errors == {}
    assert (summary.p50_us, summary.p99_us, summary.lag_p99_us) == (200_000, 600_000, 1000)


@pytest.mark.parametrize(
    ("bad", "name"),
    [
        (outcome(0.1, content=answer(2)), "a wrong answer"),
        (outcome(0.1, content=answer(1, ROUNDS + 1)), "a wrong answer"),
        (outcome(0.1, "UNAVAILABLE"), "UNAVAILABLE"),
        (outcome(0.1, "RESOURCE_EXHAUSTED"), "RESOURCE_EXHAUSTED"),
        (outcome(0.1, "RESOURCE_EXHAUSTED", status_bytes(RateLimited("slower"))), "RESOURCE_EXHAUSTED RATE_LIMITED"),
    ],
)
def test_what_is_neither_right_nor_refused_spoils_the_row(bad: Outcome, name: str) -> None:
    summary = open_loop.summarise([bad], 2.0, 10.0, 0.5, ROUNDS)
    assert summary.errors == {name: 1}
    with pytest.raises(overload.OverloadError, match=name):
        overload.read(as_json(errors=summary.errors), {})


def as_json(**changed: Any) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "seconds": 8.0,
        "counts": {
            str(URGENT): {"offered": 100, "good": 99, "late": 1, "shed": 0},
            str(PATIENT): {"offered": 400, "good": 61, "late": 4, "shed": 335},
        },
        "errors": {},
        "p50_us": 50_000,
        "p99_us": 120_000,
        "lag_p99_us": 2000,
        "run_seconds": 10.0,
        "client_cpu_seconds": 1.5,
        "steal_percent": 0.5,
    }
    return summary | changed


def test_the_summary_is_read() -> None:
    measured = overload.read(as_json(), {"worker": 8.0, "front": 2.0, "supervisor": 0.1})
    assert (measured.good_per_s, measured.p50_us, measured.p99_us) == (20.0, 50_000, 120_000)
    assert measured.figures == Figures(62.5, 25.0, 67.0, 1.0, 99.0, 80.0, 20.0, 15.0, 2000, 0.5)


def test_a_client_that_could_not_keep_up_spoils_the_row() -> None:
    with pytest.raises(overload.OverloadError, match="keep up"):
        overload.read(as_json(lag_p99_us=500_000), {})


def test_an_answer_at_all_is_needed() -> None:
    nothing = {"offered": 100, "good": 0, "late": 0, "shed": 100}
    with pytest.raises(overload.OverloadError, match="nothing"):
        overload.read(as_json(counts={str(URGENT): nothing, str(PATIENT): nothing}), {})


def test_the_calmest_of_three_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def steals(*percents: float) -> None:
        left = iter(percents)
        monkeypatch.setattr(overload, "_measure_once", lambda *_: overload.read(as_json(steal_percent=next(left)), {}))

    for percents, calmest in (((4.0,), 4.0), ((9.0, 5.0), 5.0), ((9.0, 7.0, 8.0), 7.0)):
        steals(*percents)
        measured = overload.measure(None, 8.0, rate=600.0)  # type: ignore[arg-type]
        assert measured.figures.steal_percent == calmest


def test_goodput_is_divided_by_the_best_row_of_its_repeat() -> None:
    rows = plan.select("overload-capacity,overload-3")
    goodputs = {"overload-capacity": (200.0, 100.0, 180.0), "overload-3": (190.0, 120.0, 90.0)}
    measured = {name: [Result(rate, overload=FIGURES) for rate in rates] for name, rates in goodputs.items()}
    combined = runner.combine(rows, measured)
    assert combined["overload-capacity"].ratio == 1.0
    assert combined["overload-3"].ratio == 0.95
    assert combined["overload-3"].overload == FIGURES


def test_overload_has_a_table_of_its_own() -> None:
    rows = plan.select("echo-1,overload-3")
    result = Result(190.0, p50_us=50_000, p99_us=120_000, ratio=0.95, spread_percent=3.0, overload=FIGURES)
    results = {"echo-1": Result(problem="no"), "overload-3": result}
    facts = report.Circumstances("make bench", 6.0, 3, "1", 0.0, 0.0)
    first, _, rest = report.markdown(rows, results, [], facts).partition("## Overload")
    line = "| 3 × capacity | 600 | 190 | 3 | 0.95 | 210 | 66.0 | 0.5 | 50 | 120 | 99.0 | 80 / 20 / 15 | 3 | 1 |"
    assert line in rest.splitlines()
    assert "3 × capacity" not in first


# --- the client, on a server that does one thing at a time ---


class OneByOne(grpc.GenericRpcHandler):
    def __init__(self, takes_s: float) -> None:
        self._takes_s, self._lock = takes_s, threading.Lock()

    def service(self, details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes]":
        return grpc.unary_unary_rpc_method_handler(self._answer)

    def _answer(self, message: bytes, _context: grpc.ServicerContext) -> bytes:
        with self._lock:
            time.sleep(self._takes_s)
        numbers = np.frombuffer(oip.ModelInferRequest.FromString(message).raw_input_contents[0], np.float32)
        return answer(int(numbers[0]) // slow_model.WIDTH)


@pytest.fixture
def slow_target() -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(200))
    server.add_generic_rpc_handlers((OneByOne(0.02),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def measure(target: str, *options: str) -> open_loop.Summary:
    common = [target, "--rounds", str(ROUNDS), "--seconds", "0.6", "--warm-up", "0.4", "--deadline-ms", "300"]
    return asyncio.run(open_loop.run(open_loop.parse_arguments([*common, *options])))


def test_the_client_goes_on_sending_while_the_server_is_slow(slow_target: str) -> None:
    """At most 50 a second can be answered; 150 are asked for, and waited for from when they were due."""
    summary = measure(slow_target, "--rate", "150")
    offered, late = (sum(getattr(each, name) for each in summary.counts.values()) for name in ("offered", "late"))
    assert offered == pytest.approx(90, abs=30)
    assert late > offered / 2
    assert summary.p99_us >= 300_000
    assert summary.errors == {}


def test_a_closed_loop_asks_for_no_more_than_is_answered(slow_target: str) -> None:
    summary = measure(slow_target, "--in-flight", "2")
    offered, good = (sum(getattr(each, name) for each in summary.counts.values()) for name in ("offered", "good"))
    assert offered == good
    assert 1 <= offered <= 35
    assert summary.errors == {}

"""The benchmark's own arithmetic: a wrong reading of h2load would be a wrong claim about the server."""

import struct
import sys
from pathlib import Path

import numpy as np
import pytest

# loadtest/ is not part of the installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from loadtest import cli, h2load, payloads, plan, runner, wrk
from loadtest.overload import Figures
from loadtest.payloads import Expected
from loadtest.plan import ROWS, Result
from nexus_grpc.pb.inference import grpc_service_pb2 as oip
from nexus_grpc.pb.nexus.v1 import inference_pb2 as nexus

# h2load nghttp2/1.52.0, -n 5000 -c 1 -m 1, as printed.
OUTPUT = """\
progress: 100% done

finished in 2.82s, 1770.97 req/s, 247.41KB/s
requests: 5000 total, 5000 started, 5000 done, 5000 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 5000 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 698.52KB (715280) total, 14.72KB (15075) headers (space savings 96.28%), 410.16KB (420000) data
                     min         max         mean         sd        +/- sd
time for request:      177us      9.73ms       550us       326us    95.92%
time for connect:      661us       661us       661us         0us   100.00%
time to 1st byte:     2.31ms      2.31ms      2.31ms         0us   100.00%
req/s           :    1771.14     1771.14     1771.14        0.00   100.00%
"""
LOG = "1795224162491806\t200\t2244\n1795224162491749\t200\t2386\n1795224162491812\t-1\t2361\n"
EXPECTED = payloads.Expected(np.array([1], np.int64), np.array([[0.1, 0.7, 0.2]], np.float32))


def test_summary_is_read() -> None:
    summary = h2load.parse_summary(OUTPUT)
    assert summary == h2load.Summary(2.82, 1770.97, 5000, 5000, 420000)


@pytest.mark.parametrize(("printed", "seconds"), [("863.21ms", 0.86321), ("950us", 0.00095), ("12.00s", 12.0)])
def test_summary_units(printed: str, seconds: float) -> None:
    summary = h2load.parse_summary(OUTPUT.replace("2.82s", printed))
    assert summary.seconds == pytest.approx(seconds)


def test_other_output_is_refused() -> None:
    with pytest.raises(h2load.H2loadError, match="not understood"):
        h2load.parse_summary("starting benchmark...\n")


def test_log_is_read_and_failures_are_kept_apart() -> None:
    assert h2load.parse_log(LOG) == ([2244, 2386], 1)
    assert h2load.parse_log("") == ([], 0)


def test_log_may_gain_columns() -> None:
    assert h2load.parse_log("1795224162491806\t200\t2244\tmore\n") == ([2244], 0)


@pytest.mark.parametrize(
    ("count", "percent", "expected"),
    [(100, 50, 50), (100, 99, 99), (101, 50, 51), (101, 99, 100), (1, 99, 1), (2, 50, 1), (100, 100, 100), (100, 0, 1)],
)
def test_percentile_is_nearest_rank(count: int, percent: float, expected: int) -> None:
    assert h2load.percentile(range(1, count + 1), percent) == expected


def test_percentile_of_nothing() -> None:
    with pytest.raises(ValueError, match="no values"):
        h2load.percentile([], 50)


@pytest.mark.parametrize("in_flight", [1, 32, 256])
def test_connections_times_streams_is_the_level(in_flight: int) -> None:
    arguments = h2load.command("http://127.0.0.1:1/x", Path("body.bin"), in_flight, 10, Path("log"))
    connections, streams = (int(arguments[arguments.index(flag) + 1]) for flag in ("-c", "-m"))
    assert connections * streams == in_flight
    assert {"te: trailers", "content-type: application/grpc", "--log-file"} <= set(arguments)


def test_frame_is_grpcs() -> None:
    assert payloads.frame(b"") == b"\0\0\0\0\0"
    assert payloads.frame(b"abc") == b"\0\0\0\0\x03abc"


def test_frames_come_apart_again() -> None:
    messages = [b"", b"abc", bytes(300)]
    assert payloads.split_frames(payloads.frames(messages)) == messages


@pytest.mark.parametrize("body", [b"\x01\0\0\0\0", b"\0\0\0", b"\0\0\0\0\x04abc"])
def test_broken_frames_are_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="frame"):
        payloads.split_frames(body)


def test_model_infer_payload() -> None:
    request = oip.ModelInferRequest.FromString(payloads.model_infer(32))
    assert list(request.inputs[0].shape) == [32, 4]
    assert struct.unpack("<4f", request.raw_input_contents[0][:16]) == pytest.approx((5.1, 3.5, 1.4, 0.2))


def test_predict_payload_is_what_a_person_would_send() -> None:
    assert list(nexus.PredictRequest.FromString(payloads.predict()).features) == [5.1, 3.5, 1.4, 0.2]


def _answer(label: int) -> bytes:
    response = oip.ModelInferResponse(model_name="iris")
    for name in ("probabilities", "label"):  # the order is the server's affair
        response.outputs.add(name=name)
    response.raw_output_contents.extend([EXPECTED.probabilities.tobytes(), np.array([label], np.int64).tobytes()])
    return response.SerializeToString()


def test_answers_are_compared() -> None:
    payloads.check_model_infer(_answer(1), EXPECTED)
    with pytest.raises(payloads.WrongAnswerError, match="label"):
        payloads.check_model_infer(_answer(2), EXPECTED)
    with pytest.raises(payloads.WrongAnswerError, match="raw outputs"):
        payloads.check_model_infer(b"", EXPECTED)


def test_a_stream_error_is_a_wrong_answer() -> None:
    response = nexus.PredictResponse(prediction=[1.0], probabilities=[0.1, 0.7, 0.2])
    payloads.check_predict_stream(nexus.PredictStreamResponse(response=response).SerializeToString(), EXPECTED)
    error = nexus.PredictStreamResponse(error=nexus.StreamError(code="NOT_FOUND", message="no such model"))
    with pytest.raises(payloads.WrongAnswerError, match="NOT_FOUND"):
        payloads.check_predict_stream(error.SerializeToString(), EXPECTED)


def test_answers_without_a_message_are_noticed() -> None:
    runner.check_size(data_bytes=8400, stream_count=100, answer_bytes=84, slack=0.02)
    with pytest.raises(runner.RowError, match="errors"):
        runner.check_size(data_bytes=84 * 90, stream_count=100, answer_bytes=84, slack=0.02)


def test_ratio_is_the_median_of_each_repeats_own() -> None:
    rows = plan.select("echo-32,infer-32")
    measured = {
        "echo-32": [Result(requests_per_second=rate) for rate in (100.0, 200.0, 50.0)],
        "infer-32": [Result(requests_per_second=rate) for rate in (500.0, 1000.0, 200.0)],
    }
    combined = runner.combine(rows, measured)
    assert combined["infer-32"].ratio == 5.0
    assert combined["infer-32"].requests_per_second == 500.0
    assert combined["echo-32"].ratio is None


def test_one_wrong_repeat_fails_the_row_and_leaves_its_targets_unmeasured() -> None:
    rows = plan.select("infer-32")
    combined = runner.combine(rows, {"infer-32": [Result(requests_per_second=9.0), Result(problem="wrong label")]})
    assert combined["infer-32"].problem == "wrong label"
    assert {target.verdict for target in plan.targets(combined)} <= {"-", "info"}


def test_targets() -> None:
    results = {
        "infer-32": Result(requests_per_second=30e3, ratio=4.1, rss_mib={"front": 91.0, "worker": 100.0}),
        "guarded-32": Result(requests_per_second=28e3, ratio=0.89),
        "infer-256": Result(requests_per_second=29e3, ratio=3.9),
        "echo-1": Result(p50_us=90.0),
        "infer-1": Result(p50_us=90.0),
        "rest-256": Result(requests_per_second=13e3, ratio=0.41),
        "infer-1b": Result(p50_us=100.0),
        "rest-1": Result(p50_us=251.0),
        "batch-32": Result(rows_per_second=400e3),
        "ort": Result(rows_per_second=500e3),
        "quiet-25": Result(p99_us=1000.0),
        "loading-25": Result(p99_us=2000.0),
        "quiet-50": Result(p99_us=1000.0),
        "loading-50": Result(p99_us=2001.0),
        "overload-capacity": Result(requests_per_second=200.0, ratio=1.0),
        "overload-3": Result(requests_per_second=168.0, ratio=0.84, p99_us=500_000.0, overload=Figures(*[1.0] * 10)),
        "overload-3-bare": Result(requests_per_second=2.0, ratio=0.01),
        "idle": Result(idle_cpu_percent=0.4),
    }
    verdicts = [target.verdict for target in plan.targets(results)]
    expected = ["pass", "FAIL", "FAIL", "info", "pass", "pass", "FAIL", "pass", "pass", "FAIL"]
    expected += ["FAIL", "pass", "info", "info", "FAIL", "pass", "pass"]
    assert verdicts == expected


WRK_OUTPUT = """\
Running 3s test @ http://127.0.0.1:8080/predict
  1 threads and 256 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency    15.01ms    8.53ms 190.26ms   84.99%
    Req/Sec    17.80k     2.24k   21.54k    73.33%
  Latency Distribution
     50%  920.00us
     75%   16.98ms
     90%   22.31ms
     99%    1.05s
  53345 requests in 3.02s, 29.40MB read
Requests/sec:  17663.58
Transfer/sec:      9.74MB
"""


def test_wrk_is_read() -> None:
    load = wrk.parse(WRK_OUTPUT)
    assert (load.p50_us, load.p99_us) == (920, 1_050_000)
    assert load.summary.total_count == 53345
    assert load.summary.requests_per_second == 17663.58


@pytest.mark.parametrize(
    "line", ["  Non-2xx or 3xx responses: 7", "  Socket errors: connect 0, read 3, write 0, timeout 0"]
)
def test_wrong_answers_that_wrk_saw_spoil_the_row(line: str) -> None:
    with pytest.raises(wrk.WrkError, match=line.strip()[:12]):
        wrk.parse(WRK_OUTPUT.replace("Requests/sec", line + "\nRequests/sec"))


def test_what_wrk_did_not_say_is_an_error() -> None:
    with pytest.raises(wrk.WrkError, match="not understood"):
        wrk.parse("unable to connect")


def test_the_floor_answers_what_the_server_would() -> None:
    expected = Expected(np.array([0]), np.array([[0.9, 0.1, 0.0]], np.float32))
    payloads.check_rest_predict(payloads.rest_answer(expected), expected)


def test_rows_can_be_chosen() -> None:
    assert [row.name for row in plan.select("echo-1, infer-1")] == ["echo-1", "infer-1"]
    assert plan.select("*") == list(ROWS)
    with pytest.raises(ValueError, match="'nothing'"):
        plan.select("nothing")


def test_every_reference_is_measured_before_its_row() -> None:
    names = [row.name for row in ROWS]
    assert all(names.index(row.reference) < names.index(row.name) for row in ROWS if row.reference)


def test_without_h2load_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    assert cli.main(["--no-write"]) == 2
    assert "apt-get install nghttp2-client" in " ".join(capsys.readouterr().err.split())

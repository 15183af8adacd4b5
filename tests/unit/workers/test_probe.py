"""What sample rows say against batching: they may veto it, and nothing else."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from nexus_grpc.ipc.errors import InferenceFailed
from nexus_grpc.worker import probe
from nexus_grpc.worker.loader import load_model
from nexus_grpc.worker.model import Model, TensorSpec
from nexus_grpc.worker.probe import veto_of
from tests.unit.support import ROOT, Graph, load_order, model_of, spec

Outputs = list[np.ndarray[Any, Any]]


def running(answer: Callable[[Any], Any], *inputs: TensorSpec, output: TensorSpec | None = None) -> Model:
    """A model that gives `answer` of its first input."""
    model = model_of(*inputs, outputs=[output or spec("y", "FP32", -1, 2)])

    def run(feeds: dict[str, np.ndarray[Any, Any]], oversize: bool) -> Outputs:
        return [answer(next(iter(feeds.values())))]

    model.run = run
    return model


def raising(x: Any) -> Any:
    raise InferenceFailed("no")


def raising_together(x: Any) -> Any:
    return x if len(x) == 1 else raising(x)


def out_of_memory(x: Any) -> Any:
    if len(x) == 1:
        return x
    raise InferenceFailed("Failed to allocate memory for requested buffer")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda x: x * 2, ""),
        (lambda x: x * np.float32(1 + len(x) * 1e-3), ""),  # the last bits, by the number of rows
        (lambda x: np.full_like(x, np.nan), ""),
        (lambda x: x - x.mean(axis=0), "together than alone"),
        (lambda x: np.maximum(x, x.max() - 8), "together than alone"),
        (lambda x: x + np.float32(1e-3) * x[-1:] * (len(x) > 1), "together than alone"),
        (lambda x: x[::-1], "together than alone"),
        (lambda x: x[:1], "has not one row for each row"),
        (lambda x: x[0], "has not one row for each row"),
        (lambda x: x.reshape(1, -1), "has not one row for each row"),
        (raising, ""),
        (raising_together, "that run alone fail together"),
        (out_of_memory, "more memory than there is"),
    ],
)
def test_what_is_found_against_batching(answer: Callable[[Any], Any], reason: str) -> None:
    found = veto_of(running(answer))
    assert reason in found
    assert bool(reason) == bool(found)


def test_integers_and_text_must_be_equal() -> None:
    ids, words = spec("x", "INT64", -1, -1), spec("x", "BYTES", -1)
    assert veto_of(running(lambda x: x + 1, ids, output=spec("y", "INT64", -1, -1))) == ""
    assert veto_of(running(lambda x: x + x.max(), ids, output=spec("y", "INT64", -1, -1)))
    assert veto_of(running(lambda x: x, words, output=spec("y", "BYTES", -1))) == ""
    assert veto_of(running(lambda x: x[::-1], words, output=spec("y", "BYTES", -1)))


def test_samples_stay_small() -> None:
    def refuse(x: Any) -> Any:
        raise AssertionError(f"run on {x.shape}")

    assert veto_of(running(refuse, spec("x", "FP32", -1, 1 << 24))) == ""


def test_a_slow_model_is_tried_for_a_while_and_not_vetoed(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []

    def slow(x: Any) -> Any:
        runs.append(len(x))
        time.sleep(0.05)
        return x

    monkeypatch.setattr(probe, "SECONDS_MAX", 0.01)
    assert veto_of(running(slow)) == ""
    assert runs == [1]


# Eight rows of 16 MiB as FP16, joined, and the comparison's 8 bytes for each of a row's values.
BEYOND_MEMORY = """
import resource, sys
from pathlib import Path
from tests.unit.support import load_order
from nexus_grpc.worker.loader import load_model
from nexus_grpc.worker.probe import veto_of
model = load_model(load_order(sys.argv[1]))
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (160 << 20), resource.RLIM_INFINITY))
print(veto_of(model))
"""


def test_what_cannot_be_compared_for_want_of_memory_is_not_batched(tmp_path: Path) -> None:
    wide = numpy_helper.from_array(np.array([1, 8 << 20], dtype=np.int64), "wide")
    node = helper.make_node("Expand", ["x", "wide"], ["y"])
    half = TensorProto.FLOAT16
    path = Graph([node], [("x", half, ["batch", 1])], [("y", half, ["batch", 8 << 20])], [wide]).save(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", BEYOND_MEMORY, path], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "sample rows run together take more memory than there is\n"), (
        done.stderr
    )


def test_demo_models_are_not_vetoed() -> None:
    for path in sorted(ROOT.glob("models/*/*/model.onnx")):
        model = load_model(load_order(str(path)))
        if model.batchable:
            assert veto_of(model) == "", path

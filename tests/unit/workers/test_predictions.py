"""Into which bucket an answer falls, and what the buckets are called."""

import numpy as np
import pytest

from nexus_grpc.ipc.stats import PREDICTION_BUCKETS
from nexus_grpc.worker.model import Model
from nexus_grpc.worker.predictions import count_predictions, prediction_labels
from nexus_grpc.worker.results import BatchResult
from nexus_grpc.worker.tensors import Array
from tests.unit.support import model_of, spec


def counted(model: Model, *outputs: Array) -> dict[str, int]:
    """Counts by the bucket's name, as `status` shows them."""
    result = BatchResult(model, list(outputs), len(outputs[0]))
    counts = count_predictions(result)
    names = prediction_labels(model)
    assert len(names) <= PREDICTION_BUCKETS
    return {names[index]: count for index, count in enumerate(counts) if count}


def texts(*values: str) -> Array:
    return np.array(values, dtype=object)


def test_the_likeliest_class_counts() -> None:
    model = model_of(outputs=[spec("label", "INT64", -1), spec("probabilities", "FP32", -1, 3)])
    probabilities = np.array([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3], [0.0, 0.6, 0.4]], dtype=np.float32)
    assert counted(model, np.array([7, 7, 7]), probabilities) == {"1": 2, "0": 1}


def test_classes_beyond_the_last_bucket_are_others() -> None:
    model = model_of(outputs=[spec("probabilities", "FP32", -1, 20)])
    assert counted(model, np.eye(20, dtype=np.float32)) == {**{str(n): 1 for n in range(15)}, "other": 5}


def test_sixteen_classes_have_a_bucket_each() -> None:
    model = model_of(outputs=[spec("probabilities", "FP32", -1, 16)])
    assert counted(model, np.eye(16, dtype=np.float32)) == {str(n): 1 for n in range(16)}


def test_whole_numbers_are_labels() -> None:
    model = model_of(outputs=[spec("label", "INT64", -1)])
    assert counted(model, np.array([0, 1, 1, 2, 14, 15, -1, 2**62])) == {"0": 1, "1": 2, "2": 1, "14": 1, "other": 3}


def test_unsigned_numbers_and_truth_values_are_labels() -> None:
    assert counted(model_of(outputs=[spec("y", "UINT64", -1)]), np.array([3, 2**64 - 1], dtype=np.uint64)) == {
        "3": 1,
        "other": 1,
    }
    assert counted(model_of(outputs=[spec("y", "BOOL", -1)]), np.array([True, False, True])) == {"true": 2, "false": 1}


def test_texts_of_known_labels() -> None:
    output = spec("y", "BYTES", -1)
    object.__setattr__(output, "labels", ("ham", "spam"))
    assert counted(model_of(outputs=[output]), texts("spam", "spam", "ham", "eggs")) == {
        "spam": 2,
        "ham": 1,
        "other": 1,
    }


def test_other_texts_stay_with_their_like() -> None:
    """Two workers never meet: the same text must have the same bucket in both."""
    model = model_of(outputs=[spec("y", "BYTES", -1)])
    first, second = counted(model, texts("a", "b", "a")), counted(model, texts("a", "a", "b"))
    assert first == second
    assert sorted(first.values()) == [1, 2]


@pytest.mark.parametrize("kind", ["FP16", "FP32", "FP64"])
def test_numbers_fall_into_ranges(kind: str) -> None:
    model = model_of(outputs=[spec("y", kind, -1, 2)])
    values = np.array([[-5e3, 9], [-0.05, 9], [0, 9], [0.3, 9], [1e4, 9], [np.nan, 9], [np.inf, 9]])
    found = counted(model, values.astype(model.outputs[0].datatype.dtype))
    assert found == {"< -1000": 1, "-0.1 to 0": 1, "0 to 0.1": 1, "0.25 to 0.5": 1, ">= 10000": 3}


def test_one_probability_falls_into_ranges() -> None:
    model = model_of(outputs=[spec("probability", "FP32", -1, 1)])
    assert counted(model, np.array([[0.2], [0.9], [0.8]], dtype=np.float32)) == {"0.1 to 0.25": 1, "0.75 to 1": 2}


def test_an_unbatched_model_counts_one_answer() -> None:
    model = model_of(outputs=[spec("y", "FP32")], max_batch_size=0)
    assert sum(count_predictions(BatchResult(model, [np.array(0.5, dtype=np.float32)], 1))) == 1


def test_no_values_no_counts() -> None:
    model = model_of(outputs=[spec("y", "FP32", -1, -1)])
    nothing = np.zeros((2, 0), dtype=np.float32)
    assert count_predictions(BatchResult(model, [nothing], 2)) == []
    # A graph may answer another shape than it declares.
    model = model_of(outputs=[spec("probabilities", "FP32", -1, 3)])
    assert count_predictions(BatchResult(model, [nothing], 2)) == []

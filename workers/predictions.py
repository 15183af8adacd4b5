"""Which answers a variant gives how often: counts by class, or by range of values. For experiments' arms alone."""

import numpy as np

from nexus_grpc.ipc.stats import PREDICTION_BUCKETS
from workers.model import Model
from workers.results import BatchResult
from workers.tensors import BYTES

# Lower bounds of the ranges of a number; below the first one is a range of its own.
BOUNDS = (-1000.0, -100.0, -10.0, -1.0, -0.1, 0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 10.0, 100.0, 1000.0, 10_000.0)
_OTHER = "other"

assert len(BOUNDS) + 1 == PREDICTION_BUCKETS


def prediction_labels(model: Model) -> list[str]:
    """What the buckets are called."""
    classes = _class_count(model)
    if classes:
        labels = model.class_labels
        names = [labels[index] if index < len(labels) else str(index) for index in range(classes)]
        return names if classes <= PREDICTION_BUCKETS else [*names[: PREDICTION_BUCKETS - 1], _OTHER]
    if model.outputs[0].datatype is BYTES:
        return []
    edges = [f"{bound:g}" for bound in BOUNDS]
    return [f"< {edges[0]}", *(f"{low} to {high}" for low, high in zip(edges, [*edges[1:], "more"], strict=True))]


def _class_count(model: Model) -> int:
    """How many classes the probabilities are of; 0 without probabilities, or when that varies."""
    if model.probabilities_index < 0:
        return 0
    shape = model.outputs[model.probabilities_index].shape
    return shape[-1] if shape and shape[-1] > 1 else 0


def count_predictions(result: BatchResult) -> list[int]:
    """Counts by bucket of a batch's answers."""
    model = result.model
    if _class_count(model):
        classes = result.outputs[model.probabilities_index].argmax(axis=-1).ravel()
        buckets = np.minimum(classes, PREDICTION_BUCKETS - 1)
    elif model.outputs[0].datatype is BYTES or not result.outputs[0].size:
        return []
    else:
        values = result.outputs[0].reshape(len(result.outputs[0]) if result.outputs[0].ndim else 1, -1)[:, 0]
        buckets = np.searchsorted(BOUNDS, values.astype(np.float64), side="right")
    counts: list[int] = np.bincount(buckets, minlength=PREDICTION_BUCKETS).tolist()
    return counts

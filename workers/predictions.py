"""Which answers a variant gives how often: counts by class, or by range of values. For experiments' arms alone.

A model's answers fall into PREDICTION_BUCKETS buckets: the likeliest class where it gives probabilities, else the label
where its first output is whole numbers or text, else ranges of the first output's first value.
"""

import itertools
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from nexus_grpc.ipc.stats import PREDICTION_BUCKETS

from .model import Model
from .results import BatchResult
from .tensors import BYTES, Array, is_float

# Lower bounds of the ranges of a number; below the first one is a range of its own.
BOUNDS = (-1000.0, -100.0, -10.0, -1.0, -0.1, 0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 10.0, 100.0, 1000.0, 10_000.0)
_LAST = PREDICTION_BUCKETS - 1
_OTHER = "other"

assert len(BOUNDS) == _LAST


def prediction_labels(model: Model) -> list[str]:
    """What the buckets are called."""
    classes = _class_count(model)
    if classes:
        return _names(model.class_labels, classes)
    spec = model.outputs[0]
    if spec.datatype is BYTES:
        return [*spec.labels[:_LAST], _OTHER] if spec.labels else [f"texts {n}" for n in range(_LAST + 1)]
    if spec.datatype.dtype.kind == "b":
        return ["false", "true"]
    if spec.datatype.dtype.kind in "iu":
        return _names(spec.labels, PREDICTION_BUCKETS + 1)
    edges = [f"{bound:g}" for bound in BOUNDS]
    between = [f"{low} to {high}" for low, high in itertools.pairwise(edges)]
    return [f"< {edges[0]}", *between, f">= {edges[-1]}"]


def _names(labels: Sequence[str], count: int) -> list[str]:
    names = [labels[index] if index < len(labels) else str(index) for index in range(min(count, PREDICTION_BUCKETS))]
    return names if count <= PREDICTION_BUCKETS else [*names[:_LAST], _OTHER]


def _class_count(model: Model) -> int:
    """How many classes the probabilities are of; 0 without probabilities, or when that varies."""
    if model.probabilities_index < 0:
        return 0
    shape = model.outputs[model.probabilities_index].shape
    return shape[-1] if shape and shape[-1] > 1 else 0


def count_predictions(result: BatchResult) -> list[int]:
    """Counts by bucket of a batch's answers."""
    model = result.model
    classes = _class_count(model)
    output = result.outputs[model.probabilities_index if classes else 0]
    if not output.size:  # whatever the graph declares
        return []
    if classes:
        buckets = np.minimum(output.argmax(axis=-1).ravel(), _LAST)
    else:
        values = output.reshape(len(output) if output.ndim else 1, -1)[:, 0]
        buckets = _buckets(values, model.outputs[0].labels)
    counts: list[int] = np.bincount(buckets, minlength=PREDICTION_BUCKETS).tolist()
    return counts


def _buckets(values: Any, labels: tuple[str, ...]) -> Array:
    if values.dtype == object:
        return np.array([_text_bucket(str(text), labels) for text in values.tolist()], dtype=np.int64)
    if is_float(values.dtype):
        ranges: Array = np.searchsorted(BOUNDS, values.astype(np.float64), side="right")
        return ranges
    is_own = (values >= 0) & (values < _LAST)
    return np.where(is_own, values, _LAST).astype(np.int64)


def _text_bucket(text: str, labels: tuple[str, ...]) -> int:
    """By the known labels; without, by a checksum: all workers and versions must put a text into the same bucket."""
    if not labels:
        return zlib.crc32(text.encode("utf-8", "surrogatepass")) % PREDICTION_BUCKETS
    return min(labels.index(text) if text in labels else len(labels), _LAST)

"""Shadows: copies of a model's batches, run on a candidate when nothing else is to be done, compared and thrown away.

A copy is the batch's arrays, which nobody else needs any more. At most BACKLOG_MAX wait, of BACKLOG_BYTES together;
what comes on top is dropped and counted. So a shadow costs the answers nothing but, at worst, the time of one batch.
"""

import collections
import random
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from nexus_grpc.ipc.stats import WorkerStats, WorkerWord

from .model import Model
from .results import BatchResult
from .session import as_served
from .tensors import Array, is_float
from .witness import size_in_memory

BACKLOG_MAX = 64
# A batch of large requests may be of hundreds of megabytes.
BACKLOG_BYTES = 16 << 20
BASIS_POINTS = 10_000
# Two models' probabilities or values that differ by less agree.
RTOL, ATOL = 1e-3, 1e-5
_random = random.Random().random


class _Copy(NamedTuple):
    slot: int
    candidate: int
    feeds: dict[str, Array]
    outputs: list[Array]
    rows: int
    primary_ns: int
    size_bytes: int


class Shadows:
    """Used on the loop's thread. `sources` is empty while nothing is shadowed.

    Args:
        model_of: the model in a slot.
        stats: takes the counts, in the slot that is shadowed.
    """

    def __init__(self, model_of: Callable[[int], Model | None], stats: WorkerStats) -> None:
        self._model_of = model_of
        self._stats = stats
        self.sources: dict[int, tuple[int, float]] = {}
        self._waiting: collections.deque[_Copy] = collections.deque()
        self._waiting_bytes = 0

    def set(self, slot: int, candidate: int, basis_points: int) -> None:
        """Copy this share of the slot's batches to another; 0 for none.

        Nothing for a slot that has no model here: whatever gets it later is not meant.
        """
        if self._model_of(slot) is None:
            return
        wanted = candidate if basis_points else 0
        self._stats.shadowed_by(slot, wanted)
        if wanted != self.sources.get(slot, (0, 0.0))[0]:
            self._drop_copies(lambda copy: copy.slot == slot)
        if wanted:
            self.sources[slot] = (candidate, basis_points / BASIS_POINTS)
        else:
            self.sources.pop(slot, None)

    def forget(self, slot: int) -> None:
        """A slot is shadowed no longer, and nobody's shadow either."""
        self.sources = {
            source: (candidate, share)
            for source, (candidate, share) in self.sources.items()
            if slot not in (source, candidate)
        }
        self._drop_copies(lambda copy: slot in (copy.slot, copy.candidate))

    def _drop_copies(self, unwanted: Callable[[_Copy], bool]) -> None:
        self._waiting = collections.deque([copy for copy in self._waiting if not unwanted(copy)])
        self._waiting_bytes = sum(copy.size_bytes for copy in self._waiting)

    def copy(self, slot: int, feeds: dict[str, Array], result: BatchResult, primary_ns: int) -> None:
        """Keep a batch that was just answered, if its slot is shadowed and it is chosen."""
        candidate, share = self.sources.get(slot, (0, 0.0))
        if not candidate or (share < 1 and _random() >= share):
            return
        size_bytes = sum(size_in_memory(array) for array in (*feeds.values(), *result.outputs))
        if len(self._waiting) >= BACKLOG_MAX or self._waiting_bytes + size_bytes > BACKLOG_BYTES:
            self._stats.shadow_dropped(slot)
            return
        self._waiting_bytes += size_bytes
        rows = max(1, result.rows)
        self._waiting.append(_Copy(slot, candidate, feeds, result.outputs, rows, primary_ns, size_bytes))

    def run_one(self) -> bool:
        """Run the oldest copy. False when there is none."""
        if not self._waiting:
            return False
        copy = self._waiting.popleft()
        self._waiting_bytes -= copy.size_bytes
        candidate, primary = self._model_of(copy.candidate), self._model_of(copy.slot)
        stats = self._stats
        if primary is None:
            return True
        if candidate is None:  # it is to be in fewer workers than we are
            stats.shadow_dropped(copy.slot)
            return True
        started_ns = time.monotonic_ns()
        stats.busy(started_ns)
        # If it takes the worker down, this says who it was.
        stats.gauge(WorkerWord.SHADOWING, copy.candidate)
        try:
            outputs = candidate.run(copy.feeds, False)
            candidate_ns = time.monotonic_ns() - started_ns
            served = [as_served(spec, output) for spec, output in zip(candidate.outputs, outputs, strict=True)]
            disagreed = disagreeing(primary, copy.outputs, candidate, served, copy.rows)
        except Exception:
            # Nobody waits for it: whatever a candidate provokes is a count, and costs the worker's models nothing.
            stats.shadow_failed(copy.slot)
        else:
            stats.shadowed(copy.slot, copy.rows, disagreed, copy.primary_ns, candidate_ns)
        stats.gauge(WorkerWord.SHADOWING, 0)
        return True


def disagreeing(primary: Model, outputs: list[Array], candidate: Model, others: list[Array], rows: int) -> int:
    """How many rows two models answer differently: another class where they classify, else another value.

    Raises ValueError when their answers cannot be compared.
    """
    one = _answers(primary, outputs, rows)
    other = _answers(candidate, others, rows)
    if one.shape != other.shape:
        raise ValueError(f"answers of shape {one.shape} and {other.shape}")
    if is_float(one.dtype) and is_float(other.dtype):
        same = np.isclose(one, other, RTOL, ATOL, equal_nan=True)
    else:
        same = one == other
    return int(rows - np.count_nonzero(same.reshape(rows, -1).all(axis=1)))


def _answers(model: Model, outputs: list[Array], rows: int) -> Array:
    """(rows, …): the classes of the probabilities, or the first output."""
    if model.probabilities_index >= 0 and model.outputs[model.probabilities_index].shape[-1:] != (1,):
        classes: Array = outputs[model.probabilities_index].reshape(rows, -1).argmax(axis=1)
        return classes
    return outputs[0].reshape(rows, -1)

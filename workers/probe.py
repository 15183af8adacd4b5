"""The trial's veto: rows run in company, alone, and in other company.

That rows are independent is proved from the graph (rowproof/). What the proof cannot see is a mistake in an operator's
implementation, so a model is tried with rows unlike each other, in several sizes, from very small to very large. Only
in a throw-away process: a run may kill it. What it finds says "do not batch", never "do not serve".
"""

import itertools
import math
import time
from collections.abc import Iterator

import numpy as np

from nexus_grpc.ipc.errors import NexusError

from .model import Model, Shape, TensorSpec, zeros
from .session import as_served
from .tensors import BYTES, Array, is_float

# Alone, sums may be blocked otherwise than in company: 0.005 of the largest value has been seen. Beside other rows of
# the same number they are not.
ALONE_TOLERANCE, COMPANY_TOLERANCE = 3e-2, 1e-4
BATCH_SIZES = (2, 3, 8)
# What dimensions of any size are.
FREE_SIZES = (1, 4, 17)
SAMPLE_BYTES_MAX = 16 << 20
SECONDS_MAX = 3.0
# How the allocators under ONNX Runtime (C++'s, its arena's, protobuf's) say that there is no memory.
MEMORY_COMPLAINTS = ("bad allocation", "bad_alloc", "Failed to allocate memory", "out of memory", "Unable to allocate")

_NO_MEMORY = "sample rows run together take more memory than there is"


class _OutOfTime(Exception):
    """A slow model: what was not tried says nothing."""


def veto_of(model: Model) -> str:
    """Why the model's rows should not be run together; empty where nothing was found against it.

    Rows that the model refuses alone say nothing, and so does what a slow model had no time for.
    """
    deadline = time.monotonic() + SECONDS_MAX
    try:
        free_sizes = FREE_SIZES if any(-1 in spec.row_shape for spec in model.inputs) else FREE_SIZES[:1]
        for free, count in itertools.product(free_sizes, BATCH_SIZES):
            for feeds in _samples(model, free, count):
                if reason := _found(model, feeds, count, deadline):
                    return reason
    except _OutOfTime:
        return ""
    except MemoryError:
        return _NO_MEMORY
    return ""


def wants_memory(message: str) -> bool:
    return any(words in message for words in MEMORY_COMPLAINTS)


def _samples(model: Model, free: int, count: int) -> Iterator[dict[str, Array]]:
    shapes = {spec.name: (count, *(free if dim == -1 else dim for dim in spec.row_shape)) for spec in model.inputs}
    size = sum(math.prod(shapes[spec.name]) * spec.datatype.itemsize_bytes for spec in model.inputs)
    if size > SAMPLE_BYTES_MAX:
        return
    for turn in range(2):
        random = np.random.default_rng([free, count, turn])
        yield {spec.name: _sample(spec, shapes[spec.name], random) for spec in model.inputs}


def _sample(spec: TensorSpec, shape: Shape, random: np.random.Generator) -> Array:
    """Rows unlike each other: of floats one is a million times another; of integers some are padding."""
    array = zeros(spec, shape)
    rows = array.reshape(shape[0], -1)
    for index, row in enumerate(rows):
        if spec.datatype is BYTES:
            row[...] = ("a", "", "Bc")[index % 3]
        elif spec.datatype.is_float:
            largest = 4 if spec.datatype.dtype.itemsize == 2 else 6
            row[...] = random.normal(size=row.shape) * 10.0 ** random.integers(-largest, largest + 1)
        else:
            row[: len(row) - index % 3] = random.integers(0, 2, max(0, len(row) - index % 3))
    return array


def _found(model: Model, feeds: dict[str, Array], count: int, deadline: float) -> str:
    try:
        alone = [
            _run(model, {name: array[row : row + 1] for name, array in feeds.items()}, deadline) for row in range(count)
        ]
    except NexusError as error:
        return _NO_MEMORY if wants_memory(error.message) else ""
    try:
        together = _run(model, feeds, deadline)
        # The first row beside others, of the same number.
        other = _run(
            model, {name: np.concatenate([array[:1], array[:0:-1]]) for name, array in feeds.items()}, deadline
        )
    except NexusError as error:
        return _NO_MEMORY if wants_memory(error.message) else "sample rows that run alone fail together"
    for index, spec in enumerate(model.outputs):
        whole = together[index]
        if whole.shape[:1] != (count,) or any(parts[index].shape != (1, *whole.shape[1:]) for parts in alone):
            return f"output '{spec.name}' has not one row for each row of the inputs, or rows of several shapes"
        parted = np.concatenate([parts[index] for parts in alone])
        if not all(_close(whole[row : row + 1], parted[row : row + 1], ALONE_TOLERANCE) for row in range(count)):
            return f"sample rows get other values of output '{spec.name}' together than alone"
        if not _close(whole[:1], other[index][:1], COMPANY_TOLERANCE):
            return f"a sample row gets another value of output '{spec.name}' beside other rows"
    return ""


def _run(model: Model, feeds: dict[str, Array], deadline: float) -> list[Array]:
    if time.monotonic() > deadline:
        raise _OutOfTime
    return [as_served(spec, output) for spec, output in zip(model.outputs, model.run(feeds, False), strict=True)]


def _close(one: Array, other: Array, tolerance: float) -> bool:
    """Of floats: within a part of the row's largest value; what is not finite is so in both."""
    if not is_float(one.dtype):
        return bool(np.array_equal(one, other))
    first, second = np.asarray(one, np.float64), np.asarray(other, np.float64)
    finite = np.isfinite(first) & np.isfinite(second)
    if not np.array_equal(first[~finite], second[~finite], equal_nan=True):
        return False
    scale = float(np.abs(first[finite]).max(initial=0.0))
    return bool((np.abs(first[finite] - second[finite]) <= tolerance * scale + 1e-5).all())

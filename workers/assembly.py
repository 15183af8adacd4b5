"""Before and after a run: the batch's requests joined into arrays, and the outputs as they were promised."""

from typing import Any

import numpy as np

from .model import Model
from .requests import Request
from .results import BatchResult
from .session import as_served
from .tensors import Array


def assemble(model: Model, batch: list[Request], rows: int) -> dict[str, Array]:
    """Each input's pieces, joined in order, with the batch's shape."""
    feeds: dict[str, Array] = {}
    for index, (name, shape) in enumerate(batch[0].signature):
        spec = model.input_named(name)
        assert spec is not None
        full = (rows, *shape) if model.max_batch_size and not spec.is_constant else shape
        pieces = [request.pieces[index] for request in batch]
        if spec.datatype.dtype.hasobject:
            joined: Any = np.concatenate(pieces) if len(pieces) > 1 else pieces[0]
            feeds[name] = joined.reshape(full)
        else:
            joined = b"".join(pieces) if len(pieces) > 1 else pieces[0]  # type: ignore[arg-type]
            feeds[name] = np.frombuffer(joined, spec.datatype.dtype).reshape(full)
    return feeds


def as_result(model: Model, outputs: list[Array], rows: int) -> BatchResult:
    """The run's outputs, in the promised dtypes; as given where a batched model's have not one row per input row."""
    served = [as_served(spec, output) for spec, output in zip(model.outputs, outputs, strict=True)]
    if model.max_batch_size:
        for array in served:
            if array.ndim == 0 or array.shape[0] != rows:
                return BatchResult(model, served, rows, as_given=True)
    return BatchResult(model, served, rows)

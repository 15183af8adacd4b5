"""The outputs of one batch, cut into the rows of its requests."""

from typing import Any

import numpy as np

from nexus_grpc.ipc.errors import InferenceFailed

from .json_tensors import json_values
from .model import Model, Shape
from .tensors import Array, encode_bytes_tensor, is_float


class BatchResult:
    """Outputs of one run. `rows` is the batch's row count; for an unbatched model there is one request and no cut, and
    so it is with `as_given`, for a batched model that gave another number of rows than it got."""

    __slots__ = (
        "_blobs",
        "_finite",
        "_row_bytes",
        "_values",
        "as_given",
        "is_cut",
        "model",
        "outputs",
        "row_shapes",
        "rows",
    )

    def __init__(self, model: Model, outputs: list[Array], rows: int, as_given: bool = False) -> None:
        self.model = model
        self.outputs = outputs
        self.rows = rows
        self.as_given = as_given
        self.is_cut = is_cut = model.batchable and not as_given
        self.row_shapes = tuple([output.shape[1:] if is_cut else output.shape for output in outputs])
        self._blobs: list[bytes | None] = [None] * len(outputs)
        self._row_bytes = [0] * len(outputs)
        # Whether an output is all finite numbers; None: not looked at.
        self._finite: list[bool | None] = [None] * len(outputs)
        self._values: dict[int, list[list[object]]] = {}

    def array(self, index: int, first: int, last: int) -> Array:
        """One request's part of output `index`."""
        return self.outputs[index][first:last] if self.is_cut else self.outputs[index]

    def row_values(self, index: int) -> list[list[object]]:
        """Output `index` as one flat list of Python values per row of the batch (one row when unbatched).

        Raises InferenceFailed where there is no telling which row is whose.
        """
        values = self._values.get(index)
        if values is None:
            if self.as_given and self.rows != 1:
                raise InferenceFailed(
                    f"model '{self.model.name}' answered {self.rows} rows with another number of them; ask for one row"
                    " at once, or use ModelInfer"
                )
            rows = self.rows if self.is_cut else 1
            values = self._values[index] = self.outputs[index].reshape(rows, -1).tolist()
        return values

    def json_row(self, index: int, row: int) -> list[Any]:
        """One row of output `index` as JSON can carry it."""
        if self._finite[index] is None:
            output = self.outputs[index]
            self._finite[index] = output.dtype.kind in "biu" or (
                is_float(output.dtype) and bool(np.isfinite(output).all())
            )
        if self._finite[index]:
            return self.row_values(index)[row]
        if self.as_given:
            self.row_values(index)  # raises where there are several rows
        return json_values(self.array(index, row, row + 1))

    def others(self, row: int) -> dict[str, Array]:
        """One row of each output that is neither the first one nor the probabilities, by name."""
        shown = {0, self.model.probabilities_index}
        return {
            spec.name: self.outputs[index][row] if self.is_cut else self.outputs[index]
            for index, spec in enumerate(self.model.outputs)
            if index not in shown
        }

    def shape(self, index: int, rows: int) -> Shape:
        return (rows, *self.row_shapes[index]) if self.is_cut else self.row_shapes[index]

    def raw(self, index: int, first: int, last: int) -> bytes:
        """One request's part of output `index` as raw little-endian content."""
        output = self.outputs[index]
        if output.dtype == object:
            return encode_bytes_tensor(self.array(index, first, last))
        blob = self._blobs[index]
        if blob is None:
            blob = self._blobs[index] = output.tobytes()
            self._row_bytes[index] = len(blob) // self.rows
        if not self.is_cut:
            return blob
        row_bytes = self._row_bytes[index]
        return blob[first * row_bytes : last * row_bytes]

    def raw_parts(self, index: int, count: int) -> list[bytes]:
        """Output `index` as raw content, cut into `count` equal parts. Not for text."""
        blob = self.outputs[index].tobytes()
        size = len(blob) // count
        return [blob[start : start + size] for start in range(0, len(blob), size)] if size else [b""] * count


def top_classes(values: Array, count: int, labels: tuple[str, ...]) -> list[bytes]:
    """`classification`: the `count` largest of a row as b"value:index[:label]", largest first (Triton's format)."""
    flat = values.ravel()
    order = np.argsort(-flat.astype(np.float64), kind="stable")[:count]
    found = []
    for index in order.tolist():
        text = f"{flat[index].item():f}:{index}"
        if index < len(labels):
            text += f":{labels[index]}"
        found.append(text.encode())
    return found

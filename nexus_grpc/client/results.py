"""What calls answer with: plain values and numpy arrays."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
Parameter = bool | int | float | str


@dataclasses.dataclass(frozen=True, slots=True)
class Timing:
    """Where the time went on the server, in microseconds."""

    queue_us: int
    """From the request's arrival to the start of its batch."""
    batch_size: int
    """Rows in the batch that the request rode in."""
    infer_us: int
    """In ONNX Runtime, for the whole batch."""
    total_us: int
    """From arrival to the encoding of the answer."""


class InferResult(Mapping[str, Array]):
    """The outputs by name, in the order of the answer, and what else it told.

    Arrays have the datatype's dtype and the answer's shape. Numeric ones are read-only views of the message: `.copy()`
    one to change it. BYTES arrays have dtype object and hold `bytes`; `text()` gives `str`.

    Attributes:
        model, model_version: who has answered.
        request_id: under which the server's log knows the request.
        parameters: the answer's parameters.
        timing: the server's stages, when the call asked for them.
    """

    __slots__ = ("_outputs", "model", "model_version", "parameters", "request_id", "timing")

    def __init__(
        self,
        outputs: dict[str, Array],
        *,
        model: str,
        model_version: str,
        request_id: str,
        parameters: dict[str, Parameter],
        timing: Timing | None,
    ) -> None:
        self._outputs = outputs
        self.model = model
        self.model_version = model_version
        self.request_id = request_id
        self.parameters = parameters
        self.timing = timing

    def __getitem__(self, name: str) -> Array:
        return self._outputs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._outputs)

    def __len__(self) -> int:
        return len(self._outputs)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}: {array.dtype}{list(array.shape)}" for name, array in self._outputs.items())
        return f"InferResult({self.model} {self.model_version}: {shapes})"

    def text(self, name: str) -> npt.NDArray[np.object_]:
        """A BYTES output as an object array of `str` of the same shape.

        Raises:
            KeyError: no such output.
            TypeError: it is not BYTES.
            UnicodeDecodeError: an element is not UTF-8.
        """
        array = self._outputs[name]
        if array.dtype != object:
            raise TypeError(f"output '{name}' is {array.dtype}, not text")
        texts = np.empty(array.size, dtype=object)
        texts[:] = [item.decode() for item in array.ravel().tolist()]
        return texts.reshape(array.shape)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class RowPrediction:
    """One row's prediction: the model's first output, flattened."""

    prediction: npt.NDArray[np.float64]
    """Shape [values]; empty when the output is text."""
    labels: tuple[str, ...]
    """The output where it is text."""
    probabilities: npt.NDArray[np.float64]
    """Shape [classes]; empty when the model gives none."""
    confidence: float
    """The largest of `probabilities`; 0 without them."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Prediction(RowPrediction):
    """The answer to `predict`."""

    model: str
    model_version: str
    request_id: str
    latency_ms: float
    timestamp: str
    """RFC 3339, UTC."""
    variant: str
    batch_size: int
    cache_hit: bool
    timing: Timing | None


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class BatchPrediction(Sequence[RowPrediction]):
    """The answer to `predict_batch`: one RowPrediction per row, in order."""

    rows: tuple[RowPrediction, ...]
    model: str
    model_version: str
    request_id: str
    latency_ms: float
    timestamp: str
    variant: str
    batch_size: int
    timing: Timing | None

    @overload
    def __getitem__(self, index: int) -> RowPrediction: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[RowPrediction, ...]: ...

    def __getitem__(self, index: int | slice) -> RowPrediction | tuple[RowPrediction, ...]:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)


@dataclasses.dataclass(frozen=True, slots=True)
class ModelState:
    """One version in the server's repository. `state` is READY, LOADING or UNAVAILABLE, then with a `reason`."""

    name: str
    version: str
    state: str
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class TensorInfo:
    """An input or output: OIP datatype, and shape with -1 for any size (the batch dimension included)."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model's metadata."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]

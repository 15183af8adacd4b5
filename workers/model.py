"""What a worker knows of a loaded model version, apart from its ONNX Runtime session."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .tensors import Array, Datatype
from .witness import Witness

PROBABILITIES_PREFIX = "prob"
DEFAULT_VARIANT = "default"
Shape = tuple[int, ...]
# Feeds by input name → one array per output, in the model's order.
Run = Callable[[dict[str, Array], bool], list[Array]]
# Groups of dimensions, by input and axis of its row shape, that the model calls by one name.
EqualSizes = tuple[tuple[tuple[str, int], ...], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output as clients see it. `shape` has -1 for dynamic dimensions, batch dimension included.

    any_rank: the number of dimensions is not declared, and `shape` empty.
    is_constant: an initialiser that a request may override: it holds no rows, whatever the other inputs do.
    """

    name: str
    datatype: Datatype
    shape: Shape
    optional: bool = False
    labels: tuple[str, ...] = ()
    any_rank: bool = False
    is_constant: bool = False

    @property
    def row_shape(self) -> Shape:
        return self.shape[1:]

    def fits(self, shape: Shape) -> bool:
        return self.any_rank or shape_fits(self.shape, shape)


@dataclasses.dataclass(frozen=True, slots=True)
class QueuePolicy:
    """From config.pbtxt's dynamic_batching. Zero means: no wait, no limit, no timeout."""

    max_queue_delay_ns: int = 0
    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_size: int = 0
    default_timeout_ns: int = 0
    allow_timeout_override: bool = True
    # The queue's levels, 1 going first; 0 = it has none.
    priority_levels: int = 0
    default_priority: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Decision:
    """From config.pbtxt's parameters: what the probability of the positive class decides.

    `labels` name the classes in the order of the probabilities; `threshold` None = the largest probability decides.
    `limit` is the threshold as the probabilities' datatype has it: what a model calls 0.1 must reach 0.1.
    """

    labels: tuple[str, ...]
    positive_index: int
    threshold: float | None
    limit: float
    positive_name: str
    negative_name: str


@dataclasses.dataclass(slots=True)
class Model:
    """A model version ready to run.

    `max_batch_size` 0 means that requests are never batched (fixed or meaningless batch dimension).
    `batching` says why, for the model's owner; `equal_sizes` is what the proof that they may be builds on.
    """

    slot: int
    name: str
    version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    # Whether a request with more rows than max_batch_size is refused (the config says so) or run alone.
    batch_limit_is_strict: bool
    queue: QueuePolicy
    run: Run
    # Which experiment's arm this is: an arm shares its version's `run`, and nothing else.
    variant: str = DEFAULT_VARIANT
    # What requests may call the version.
    version_names: frozenset[str] = frozenset()
    decision: Decision | None = None
    # images.py's ImageInput, where the configuration says how images become numbers.
    image: Any = None
    batching: str = ""
    equal_sizes: EqualSizes = ()
    # Initialisers that requests may override; they are not among the inputs.
    constants: tuple[TensorSpec, ...] = ()
    templates: Any = None
    template_misses: int = 0
    # The output that holds class probabilities, or -1.
    probabilities_index: int = -1
    # Says whose fault a failed run is; an arm's is its version's, as the session is.
    witness: Witness = dataclasses.field(default_factory=Witness)

    def __post_init__(self) -> None:
        self.templates = {}
        self.template_misses = 0
        self.version_names |= {"", self.version, f"v{self.version}"}
        for index, spec in reversed(list(enumerate(self.outputs))):
            if spec.name.lower().startswith(PROBABILITIES_PREFIX) and spec.datatype.is_float:
                self.probabilities_index = index

    def as_arm(self, slot: int, variant: str) -> "Model":
        """A copy under another slot, with the same session."""
        return dataclasses.replace(self, slot=slot, variant=variant)

    @property
    def is_arm(self) -> bool:
        return self.variant != DEFAULT_VARIANT

    @property
    def class_labels(self) -> tuple[str, ...]:
        """The names of the classes that the probabilities are of; empty when unknown."""
        if self.decision is not None:
            return self.decision.labels
        return self.outputs[self.probabilities_index].labels if self.probabilities_index >= 0 else ()

    @property
    def batchable(self) -> bool:
        return self.max_batch_size > 0

    def may_share(self, signature: tuple[tuple[str, Shape], ...]) -> bool:
        """Whether requests of this signature (see requests.py) may be run together.

        What is proved of rows holds for rows that are not empty and whose dimensions of one name are of one size.
        """
        shapes = dict(signature)
        if self.constants and any(spec.name in shapes for spec in self.constants):
            return False
        if self.batch_limit_is_strict:
            return True
        if any(0 in shape for shape in shapes.values()):
            return False
        return all(
            len({shapes[name][axis] for name, axis in group if name in shapes}) <= 1 for group in self.equal_sizes
        )

    def end_batching(self, reason: str) -> None:
        """From now on each request runs alone. Those that wait were decoded for a batch, so it stays batchable."""
        self.max_batch_size = 1
        self.batching = reason
        # Nothing waits for company that will not come.
        self.queue = dataclasses.replace(self.queue, max_queue_delay_ns=0)

    def input_named(self, name: str) -> TensorSpec | None:
        """What a request may feed."""
        for spec in self.inputs:
            if spec.name == name:
                return spec
        return next((spec for spec in self.constants if spec.name == name), None)

    def has_rows(self, spec: TensorSpec) -> bool:
        """Whether a request's tensor leads with the rows that make a batch."""
        return self.batchable and not spec.is_constant

    def row_of(self, spec: TensorSpec, shape: Shape) -> Shape:
        """A request's tensor as its signature has it: without the rows."""
        return shape[1:] if self.has_rows(spec) else shape

    def fed(self, tensors: Mapping[str, object]) -> list[TensorSpec]:
        """What of it the request feeds, in the model's order."""
        return [spec for spec in (*self.inputs, *self.constants) if spec.name in tensors]

    def output_index(self, name: str) -> int:
        """Position of an output, or -1."""
        return next((index for index, spec in enumerate(self.outputs) if spec.name == name), -1)


def shape_text(shape: Shape) -> str:
    return "[" + ",".join(str(dim) for dim in shape) + "]"


def shape_fits(expected: Shape, got: Shape) -> bool:
    """Whether a shape matches one with -1 for any size."""
    return len(expected) == len(got) and all(want in (-1, have) for want, have in zip(expected, got, strict=True))


def zeros(spec: TensorSpec, shape: Shape) -> Array:
    """An array of the input's dtype: zeros, or empty strings."""
    if spec.datatype.dtype == object:
        array = np.empty(shape, dtype=object)
        array.fill("")
        return array
    return np.zeros(shape, dtype=spec.datatype.dtype)

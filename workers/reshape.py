"""config.pbtxt's `reshape`: clients see a tensor's `dims`, the graph gets, or gives, its `reshape.shape`.

Dimensions of any size (-1) keep their size, in their order, as in Triton; a batch dimension stays in front.
"""

import dataclasses
from typing import Any

import numpy as np

from nexus_grpc.ipc.errors import InferenceFailed, ModelNotServable
from nexus_grpc.pb.inference import model_config_pb2 as config_pb

from .model import Run, Shape, TensorSpec, shape_fits, shape_text
from .session import OpenedSession
from .tensors import Array


@dataclasses.dataclass(frozen=True, slots=True)
class Reshape:
    """From one shape to another, behind the first `kept` dimensions."""

    kept: int
    before: Shape
    after: Shape

    def __call__(self, array: Array) -> Array:
        """Raises ValueError when the array has another shape than `before`."""
        kept, given = array.shape[: self.kept], array.shape[self.kept :]
        if len(given) != len(self.before):
            raise ValueError(f"has shape {shape_text(array.shape)}")
        any_size = iter([size for size, dim in zip(given, self.before, strict=True) if dim == -1])
        return array.reshape((*kept, *(next(any_size) if dim == -1 else dim for dim in self.after)))

    def back(self) -> "Reshape":
        return Reshape(self.kept, self.after, self.before)


def reshaped(opened: OpenedSession, config: config_pb.ModelConfig | None, name: str) -> OpenedSession:
    """The session as clients see it. Raises ModelNotServable when a reshape.shape is not the graph's."""
    if config is None or not any(item.HasField("reshape") for item in (*config.input, *config.output)):
        return opened
    batched = config.max_batch_size > 0
    into = _reshapes(config.input, opened.inputs, batched, name)
    out_of = _reshapes(config.output, opened.outputs, batched, name)
    inputs = tuple(_as_seen(spec, into.get(spec.name)) for spec in opened.inputs)
    outputs = tuple(_as_seen(spec, out_of.get(spec.name)) for spec in opened.outputs)
    back = [out_of[spec.name].back() if spec.name in out_of else None for spec in opened.outputs]
    return dataclasses.replace(opened, inputs=inputs, outputs=outputs, run=_run(opened.run, into, back))


def _reshapes(declared: Any, specs: tuple[TensorSpec, ...], batched: bool, name: str) -> dict[str, Reshape]:
    """From what clients see to what the graph has, by tensor."""
    known, found = {spec.name: spec for spec in specs}, {}
    for item in declared:
        spec = known.get(item.name)
        if spec is None or not item.HasField("reshape"):
            continue  # an unknown name is the loader's to refuse
        dims, shape = tuple(item.dims), tuple(item.reshape.shape)
        kept = int(batched or len(shape) == len(spec.shape) - 1)
        graph = spec.shape[kept:]
        if not (spec.any_rank or shape_fits(graph, shape) or shape_fits(shape, graph)):
            raise ModelNotServable(
                f"config.pbtxt of '{name}': '{item.name}' has reshape.shape {list(shape)}, the model has"
                f" {shape_text(graph)}"
            )
        found[item.name] = Reshape(kept, dims, shape)
    return found


def _as_seen(spec: TensorSpec, reshape: Reshape | None) -> TensorSpec:
    if reshape is None:
        return spec
    rows = (-1,) * reshape.kept if spec.any_rank else spec.shape[: reshape.kept]
    return dataclasses.replace(spec, shape=(*rows, *reshape.before), any_rank=False)


def _run(run: Run, into: dict[str, Reshape], back: list[Reshape | None]) -> Run:
    def run_reshaped(feeds: dict[str, Array], oversize: bool) -> list[Array]:
        fed = {name: into[name](array) if name in into else array for name, array in feeds.items()}
        outputs = run(fed, oversize)
        try:
            return [
                array if change is None else change(np.asarray(array))
                for array, change in zip(outputs, back, strict=True)
            ]
        except ValueError as error:
            raise InferenceFailed(f"an output cannot be given the shape that config.pbtxt says: it {error}") from None

    return run_reshaped


__all__ = ["Reshape", "reshaped"]

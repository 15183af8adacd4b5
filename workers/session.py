"""ONNX Runtime sessions.

Opens a model file, says what its inputs and outputs are, and runs it. Sequence-of-maps outputs (scikit-learn
classifiers exported with ZipMap) become a `probabilities` tensor, one column per class, and the label output beside
them is called `label`.
"""

import ctypes
import dataclasses
import re
from typing import Any, Literal

import numpy as np

from nexus_grpc.ipc.datatypes import ONNX_NUMBERS
from nexus_grpc.ipc.errors import InferenceFailed, ModelNotServable
from nexus_grpc.ipc.locales import LOCALE_COMPLAINT, missing_locale

from .graph_inputs import undeclared_ranks
from .model import Run, Shape, TensorSpec, zeros
from .onnx_runtime import SHRINK_ARENA, ort, share_arena
from .tensors import BF16, BY_NAME, BY_ONNX, BYTES, Array, Datatype

SEQUENCE_OF_MAPS = {"seq(map(string,tensor(float)))", "seq(map(int64,tensor(float)))"}
ZIPMAP_LABEL, ZIPMAP_PROBABILITIES = "label", "probabilities"
_OPTIONAL = re.compile(r"optional\((.+)\)")
OPTIMISATION_LEVELS = {
    "disable": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
DEFAULT_PROVIDERS = ("CPUExecutionProvider",)
# After a run on an oversize request the arena's blocks go back to the system, except those that its outputs are in: the
# next run gives these back, or the process by itself (memory.py).
Shrinking = Literal["never", "oversize", "always"]


def onnxruntime_version() -> str:
    return str(ort.__version__)


def available_providers() -> tuple[str, ...]:
    return tuple(ort.get_available_providers())


@dataclasses.dataclass(frozen=True, slots=True)
class OpenedSession:
    """A model file, opened: the graph's inputs and outputs as clients see them, and how to run it."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    run: Run
    # The name that the graph gives each leading dimension; None for a fixed or nameless one.
    batch_symbols: frozenset[str | None]
    # Initialisers that a run may override.
    constants: tuple[TensorSpec, ...] = ()


def open_session(path: str, name: str, options: dict[str, Any], cores: int) -> OpenedSession:
    """Load a model file.

    Args:
        path: the model.onnx file.
        name: the model's name, for messages.
        options: `execution_providers`, `intra_op_thread_count` and `inter_op_thread_count` (0 = as many as the worker
            has cores, and one; in parallel mode as many), `graph_optimization_level`, `execution_mode`,
            `enable_mem_arena`, `enable_mem_pattern`, `shrink_arena`.
        cores: how many cores this worker has.

    Raises ModelNotServable with the reason: an unavailable provider, a file that is no ONNX model, a type that cannot
    be served.
    """
    providers = list(options.get("execution_providers") or DEFAULT_PROVIDERS)
    missing = [provider for provider in providers if provider not in ort.get_available_providers()]
    if missing:
        raise ModelNotServable(
            f"model '{name}' asks for execution provider {', '.join(missing)}, which this onnxruntime does not have;"
            f" available: {', '.join(ort.get_available_providers())}"
        )
    try:
        session = ort.InferenceSession(path, _session_options(options, cores), providers=providers)
    except Exception as error:
        raise ModelNotServable(f"model '{name}' cannot be loaded: {_reason(error, path)}") from None
    opened = _opened(name, path, session, _shrinking(options))
    constants = tuple(_constant_spec(node) for node in session.get_overridable_initializers() if node.type in BY_ONNX)
    return dataclasses.replace(opened, constants=constants)


def _session_options(options: dict[str, Any], cores: int) -> Any:
    session_options = ort.SessionOptions()
    session_options.intra_op_num_threads = options.get("intra_op_thread_count") or cores
    is_parallel = options.get("execution_mode") == "parallel"
    if is_parallel:
        session_options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    session_options.inter_op_num_threads = options.get("inter_op_thread_count") or (cores if is_parallel else 1)
    session_options.enable_cpu_mem_arena = options.get("enable_mem_arena", True)
    if session_options.enable_cpu_mem_arena:
        share_arena(session_options)
    session_options.enable_mem_pattern = options.get("enable_mem_pattern", True)
    session_options.graph_optimization_level = OPTIMISATION_LEVELS[options.get("graph_optimization_level", "all")]
    # Spinning threads would steal the cores that the other processes need.
    session_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session_options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    session_options.log_severity_level = 3
    return session_options


def _shrinking(options: dict[str, Any]) -> Shrinking:
    """Without an arena there is nothing to shrink: ONNX Runtime would refuse the run."""
    if not options.get("enable_mem_arena", True):
        return "never"
    return "always" if options.get("shrink_arena") else "oversize"


def _reason(error: Exception, path: str) -> str:
    """ORT's messages carry source locations and the full path; the first line without the path says what is wrong."""
    text = str(error).strip().split("\n", 1)[0].replace(path, "model.onnx")
    wanted = LOCALE_COMPLAINT.search(text)
    return missing_locale(wanted[1]) if wanted else text


def _shape(dims: list[Any]) -> Shape:
    return tuple(dim if isinstance(dim, int) and dim >= 0 else -1 for dim in dims)


def _datatype(name: str, node: Any, type_: str = "") -> Datatype:
    datatype = BY_ONNX.get(type_ or node.type)
    if datatype is None:
        raise ModelNotServable(
            f"model '{name}': '{node.name}' has type {node.type}, which cannot be served; export it with tensors alone"
        )
    return datatype


def _input_spec(name: str, node: Any, any_rank: bool) -> TensorSpec:
    """`optional(tensor(float))` may be left out of a run."""
    inner = _OPTIONAL.fullmatch(node.type)
    datatype = _datatype(name, node, inner[1] if inner else "")
    return TensorSpec(node.name, datatype, _shape(node.shape), optional=inner is not None, any_rank=any_rank)


def _output_spec(name: str, node: Any, any_rank: bool) -> TensorSpec:
    return TensorSpec(node.name, _datatype(name, node), _shape(node.shape), any_rank=any_rank)


def _constant_spec(node: Any) -> TensorSpec:
    return TensorSpec(node.name, BY_ONNX[node.type], _shape(node.shape), optional=True, is_constant=True)


def _symbols(nodes: list[Any]) -> frozenset[str | None]:
    return frozenset(node.shape[0] if node.shape and isinstance(node.shape[0], str) else None for node in nodes)


def _opened(name: str, path: str, session: Any, shrinking: Shrinking) -> OpenedSession:
    nodes = session.get_outputs()
    if not nodes:
        raise ModelNotServable(f"model '{name}' has no outputs")
    symbols = _symbols(session.get_inputs())
    # Of a scalar, and of what has no declared number of dimensions, the session says the same.
    unclear = [node.name for node in (*session.get_inputs(), *nodes) if not node.shape]
    any_rank = undeclared_ranks(path) if unclear else frozenset()
    inputs = tuple(_input_spec(name, node, not node.shape and node.name in any_rank) for node in session.get_inputs())
    maps = [index for index, node in enumerate(nodes) if node.type in SEQUENCE_OF_MAPS]
    run = _plain_run(session, [node.name for node in nodes], shrinking)
    if not maps:
        outputs = tuple(_output_spec(name, node, not node.shape and node.name in any_rank) for node in nodes)
        return OpenedSession(inputs, outputs, run, symbols)
    if len(maps) > 1:
        raise ModelNotServable(f"model '{name}' has {len(maps)} sequence-of-maps outputs; one can be served")
    classes = _declared_classes(path, nodes[maps[0]].name) or _class_keys(name, run, inputs, maps[0])
    outputs = tuple(_zipmap_spec(name, node, index, maps[0], classes) for index, node in enumerate(nodes))
    return OpenedSession(inputs, outputs, _zipmap_run(run, maps[0], classes), symbols)


def _zipmap_spec(name: str, node: Any, index: int, map_index: int, classes: tuple[Any, ...]) -> TensorSpec:
    if index == map_index:
        labels = tuple(str(key) for key in classes)
        return TensorSpec(ZIPMAP_PROBABILITIES, BY_NAME["FP32"], (-1, len(classes)), labels=labels)
    shown = ZIPMAP_LABEL if node.name == "output_label" else node.name
    return TensorSpec(shown, _datatype(name, node), _shape(node.shape))


def _declared_classes(path: str, output: str) -> tuple[Any, ...]:
    """The classes of a ZipMap as its node lists them; empty where they are not found in the file."""
    # onnx takes 0.2 s and 12 MB: not for workers without such a model.
    from .rowproof.skim import NotSkimmed, skim_file

    try:
        nodes = skim_file(path).graph.node
    except (OSError, NotSkimmed):
        return ()
    for node in nodes:
        if node.op_type == "ZipMap" and output in node.output:
            for attribute in node.attribute:
                if attribute.name == "classlabels_int64s":
                    return tuple(attribute.ints)
                if attribute.name == "classlabels_strings":
                    return tuple(text.decode("utf-8", "replace") for text in attribute.strings)
    return ()


def _class_keys(name: str, run: Run, inputs: tuple[TensorSpec, ...], map_index: int) -> tuple[Any, ...]:
    """The classes of a ZipMap that does not list them where it is looked for: a run on one row of zeros tells."""
    feeds = {spec.name: zeros(spec, tuple(max(dim, 1) for dim in spec.shape)) for spec in inputs}
    try:
        rows: Any = run(feeds, False)[map_index]
        return tuple(rows[0])
    except (InferenceFailed, IndexError) as error:
        raise ModelNotServable(f"model '{name}': the classes of its ZipMap cannot be found out: {error}") from None


def _plain_run(session: Any, names: list[str], shrinking: Shrinking) -> Run:
    shrink = ort.RunOptions()
    if shrinking != "never":
        shrink.add_run_config_entry(*SHRINK_ARENA)
    always = shrinking == "always"
    session_run = _bfloat_run(session) if _has_bfloats(session) else session.run
    shrink_next = False

    def run(feeds: dict[str, Array], oversize: bool) -> list[Array]:
        nonlocal shrink_next
        options = shrink if oversize or shrink_next or always else None
        shrink_next = oversize
        try:
            return session_run(names, feeds, options)  # type: ignore[no-any-return]
        except Exception as error:
            raise _run_error(error) from None

    return run


def _has_bfloats(session: Any) -> bool:
    return any(BF16.onnx in node.type for node in (*session.get_inputs(), *session.get_outputs()))


def _bfloat_run(session: Any) -> Any:
    """`session.run`, which takes and gives no bfloat16: ONNX Runtime's own values do."""

    def run(names: list[str], feeds: dict[str, Array], options: Any) -> list[Array]:
        given = {name: _ort_value(array) for name, array in feeds.items()}
        return [_array_of(value) for value in session.run_with_ort_values(names, given, options)]

    return run


def _ort_value(array: Array) -> Any:
    if array.dtype != BF16.dtype:
        return ort.OrtValue.ortvalue_from_numpy(array)
    bits = np.ascontiguousarray(array).view(np.uint16)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, ONNX_NUMBERS[BF16.name])


def _array_of(value: Any) -> Array:
    if value.data_type() != BF16.onnx:
        return value.numpy()  # type: ignore[no-any-return]
    shape = tuple(value.shape())
    content = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(content, BF16.dtype).reshape(shape)


def _run_error(error: Exception) -> InferenceFailed:
    """ORT's code does not tell whose fault it is: a candidate's table that is too short for the input, too, is
    INVALID_ARGUMENT, and lengths that do not agree are RUNTIME_EXCEPTION (see witness.py)."""
    text = str(error).strip().split("\n", 1)[0]
    return InferenceFailed(f"inference failed: {text}")


def _zipmap_run(run: Run, map_index: int, classes: tuple[Any, ...]) -> Run:
    def run_unzipped(feeds: dict[str, Array], oversize: bool) -> list[Array]:
        outputs = run(feeds, oversize)
        rows: Any = outputs[map_index]
        outputs[map_index] = np.array([[row[key] for key in classes] for row in rows], dtype=np.float32).reshape(
            len(rows), len(classes)
        )
        return outputs

    return run_unzipped


def as_served(spec: TensorSpec, output: Any) -> Array:
    """An output with the dtype its datatype promises (ORT gives scalars and text in several forms)."""
    if type(output) is np.ndarray and output.dtype == spec.datatype.dtype and output.flags.c_contiguous:
        return output
    array = np.asarray(output)
    if spec.datatype is BYTES:
        return array.astype(object)
    return np.asarray(array, dtype=spec.datatype.dtype, order="C")  # ascontiguousarray would make a scalar an array


__all__ = ["OpenedSession", "as_served", "available_providers", "onnxruntime_version", "open_session"]

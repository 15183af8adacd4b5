"""May a model's rows be run together? Proved from the graph, or not.

Proved means: in real arithmetic, for all inputs, a row's answer does not depend on the rows beside it. It holds for
batches of rows of one shape without empty dimensions, in which dimensions of one declared name are of one size
(`Proof.equal_sizes`), of fewer than 10⁹ rows. The last bits of sums may differ, and a row that makes the run fail makes
it fail for its company (the worker's loop runs them again, each alone).
"""

import dataclasses
import time

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TypeProto, inliner, shape_inference

from .sizes import BATCH, Dim, symbol
from .skim import NotSkimmed, skim_file
from .table import RULES
from .values import Fixed, Lost, Rows
from .walk import DOMAINS, State, TooLong, Walk, subgraphs, tensor_value

# Longer than any model that was seen takes (12 ms in the median); a worker has other things to do.
SECONDS_MAX = 10.0
# After functions are unfolded.
NODES_MAX = 100_000
ADVICE = "if its rows are independent all the same, set max_batch_size in config.pbtxt"
# By input: the axes, counted without the batch's, that must be of one size with others.
Axes = tuple[tuple[str, int], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Proof:
    """The verdict. `node` and `op_type` name what decided against; empty where it was no node."""

    rows_apart: bool
    node: str = ""
    op_type: str = ""
    why: str = ""
    advice: str = ""
    # Groups of input dimensions that the model calls by one name: the proof takes each group for one size.
    equal_sizes: tuple[Axes, ...] = ()

    @property
    def text(self) -> str:
        """One sentence for the model's owner."""
        if self.rows_apart:
            return "requests are batched: the graph proves that rows do not change each other"
        where = f"node '{self.node}' ({self.op_type}): " if self.op_type else ""
        return f"requests are not batched: {where}{self.why}; {self.advice}"


def refused(why: str, node: str = "", op_type: str = "") -> Proof:
    return Proof(False, node, op_type, why, ADVICE)


def prove_file(path: str) -> Proof:
    """The verdict on a model file; never raises."""
    try:
        return prove(skim_file(path))
    except NotSkimmed as reason:
        return refused(str(reason))
    except Exception as error:
        return refused(f"the file cannot be read ({type(error).__name__})")


def prove(model: ModelProto) -> Proof:
    """The verdict on a model, which is changed on the way; never raises."""
    try:
        return _proved(model, time.monotonic() + SECONDS_MAX)
    except TooLong:
        return refused("the graph is too large to be looked through")
    except _NotFollowed as reason:
        return refused(str(reason))
    except Exception as error:
        return refused(f"the graph is not understood ({type(error).__name__}: {error})"[:300])


class _NotFollowed(Exception):
    """Something about the model as a whole is not followed."""


def _proved(model: ModelProto, deadline: float) -> Proof:
    model = _unfolded(model)
    _forget_claims(model.graph)
    state: State = {}
    held = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    held |= {tensor.values.name: list(tensor.dims) for tensor in model.graph.sparse_initializer}
    names: dict[str, list[tuple[str, int]]] = {}
    for item in model.graph.input:
        if item.name not in held:
            state[item.name] = _input_rows(item.name, item.type, names)
        elif item.type.HasField("tensor_type"):
            # What it says here is a claim.
            item.type.tensor_type.ClearField("shape")
            item.type.tensor_type.shape.SetInParent()
            for size in held[item.name]:
                item.type.tensor_type.shape.dim.add(dim_value=size)
    if not state:
        return refused("the model has no inputs")
    _check_order(model.graph, set(held))
    shapes = _inferred(model)
    for tensor in model.graph.initializer:
        state[tensor.name] = tensor_value(tensor)
    for sparse in model.graph.sparse_initializer:
        state[sparse.values.name] = Fixed(tuple(sparse.dims))
    opsets = {"" if item.domain == "ai.onnx" else item.domain: item.version for item in model.opset_import}
    Walk(opsets, shapes, deadline).run(model.graph.node, state)
    for item in model.graph.output:
        verdict = _output_verdict(item.name, state)
        if verdict is not None:
            return verdict
    return Proof(True, equal_sizes=tuple(tuple(group) for group in names.values() if len(group) > 1))


def _output_verdict(name: str, state: State) -> Proof | None:
    """Why an output is not one row per row of the inputs; None where it is."""
    value = state.get(name)
    if isinstance(value, Lost):
        return refused(value.why, value.node, value.op_type)
    if not isinstance(value, Rows):
        return refused(f"output '{name}' does not hold a row for each row of the inputs")
    if value.axis or value.layout != (1, 1):
        return refused(f"the rows of output '{name}' are not its first dimension, one for one")
    return None


def _input_rows(name: str, type_: TypeProto, names: dict[str, list[tuple[str, int]]]) -> Rows:
    """An input as rows; its dimensions get symbols, in the model as well, for ONNX's inference."""
    if not type_.HasField("tensor_type") or not type_.tensor_type.HasField("shape"):
        raise _NotFollowed(f"input '{name}' has no declared number of dimensions")
    dims = type_.tensor_type.shape.dim
    shape: list[Dim] = []
    for axis, dim in enumerate(dims):
        # onnxruntime reads a negative size as "any".
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            if axis == 0:
                break
            shape.append(dim.dim_value)
            continue
        if axis == 0:
            shape.append(BATCH)
            continue
        if dim.dim_param:
            names.setdefault(dim.dim_param, []).append((name, axis - 1))
        shape.append(symbol(f"input {dim.dim_param}" if dim.dim_param else f"input {name}.{axis}"))
    if not shape:
        raise _NotFollowed(f"input '{name}' has no first dimension of any size")
    for dim, size in zip(dims, shape, strict=True):
        if not isinstance(size, int):
            dim.dim_param = str(size)
    return Rows(0, tuple(shape))


def _forget_claims(graph: GraphProto) -> None:
    """Drop what the file says of shapes inside: the proof believes what it can derive."""
    del graph.value_info[:]
    for item in graph.output:
        if item.type.HasField("tensor_type"):
            item.type.tensor_type.ClearField("shape")  # an empty one would claim that there are no dimensions
    for node in graph.node:
        for inner in subgraphs(node):
            _forget_claims(inner)


def _check_order(graph: GraphProto, known: set[str]) -> None:
    """Every node's inputs come before it. Raises _NotFollowed: ONNX's inference is native code, and dies of others."""
    own: set[str] = set()

    def add(names: set[str]) -> None:
        own.update(names - known)
        known.update(names)

    add({item.name for item in graph.input} | {tensor.name for tensor in graph.initializer})
    for node in graph.node:
        for name in node.input:
            if name and name not in known:
                raise _NotFollowed(f"'{name[:100]}' is used before it is made")
        for inner in subgraphs(node):
            _check_order(inner, known)
        add(set(node.output))
    for item in graph.output:
        if item.name not in known:
            raise _NotFollowed(f"output '{item.name[:100]}' is never made")
    known -= own


# Where onnxruntime broadcasts and ONNX's inference believes the first operand.
_NOT_INFERRED = frozenset({"Einsum", "PRelu"})
_UNKNOWN_DOMAIN = "nexus.unknown"


def _hide(graph: GraphProto) -> list[tuple[NodeProto, str]]:
    """Make what ONNX's inference is not believed about unknown to it; return which nodes, with their domains."""
    hidden = []
    for node in graph.node:
        key = f"{node.domain}:{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        if key in _NOT_INFERRED or (key not in RULES and key not in ("Constant", "Shape", "Size")):
            hidden.append((node, node.domain))
            node.domain = _UNKNOWN_DOMAIN
    return hidden


def _inferred(model: ModelProto) -> dict[str, tuple[Dim, ...]]:
    """What ONNX's own inference says of shapes, without the batch; empty where it gives up."""
    hidden = _hide(model.graph)
    model.opset_import.add(domain=_UNKNOWN_DOMAIN, version=1)
    try:
        model = shape_inference.infer_shapes(model)
    except Exception:
        return {}
    finally:
        for node, domain in hidden:
            node.domain = domain
    found: dict[str, tuple[Dim, ...]] = {}
    for item in (*model.graph.value_info, *model.graph.output):
        if item.type.HasField("tensor_type") and item.type.tensor_type.HasField("shape"):
            shape: list[Dim] = []
            for axis, dim in enumerate(item.type.tensor_type.shape.dim):
                known = dim.HasField("dim_value") and dim.dim_value >= 0
                shape.append(dim.dim_value if known else symbol(f"shape of {item.name}.{axis}"))
            found[item.name] = tuple(shape)
    return found


def _unfolded(model: ModelProto) -> ModelProto:
    """With the functions that the model brings put in the places where it calls them. Raises _NotFollowed."""
    functions = {(function.domain, function.name): function for function in model.functions}
    for domain, name in functions:
        if domain == "ai.onnx" or domain in DOMAINS:
            raise _NotFollowed(f"the model brings its own '{name[:100]}'")
    counts: dict[tuple[str, str], int] = {}
    count = sum(_unfolded_count(node_key, functions, counts) for node_key in _calls(model.graph))
    if count > NODES_MAX:
        raise TooLong
    return inliner.inline_local_functions(model) if functions else model


def _calls(part: GraphProto | FunctionProto) -> list[tuple[str, str]]:
    found = []
    for node in part.node:
        found.append((node.domain, node.op_type))
        for inner in subgraphs(node):
            found += _calls(inner)
    return found


def _unfolded_count(
    key: tuple[str, str],
    functions: dict[tuple[str, str], FunctionProto],
    counts: dict[tuple[str, str], int],
) -> int:
    """How many nodes a call becomes."""
    if key not in functions:
        return 1
    if key not in counts:
        counts[key] = NODES_MAX + 1  # one that calls itself has no end
        counts[key] = sum(_unfolded_count(inner, functions, counts) for inner in _calls(functions[key]))
    return counts[key]

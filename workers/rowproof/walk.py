"""The walk through a graph: every value gets what is known of it, node by node."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, SparseTensorProto, TensorProto, helper, numpy_helper

from .contents import ELEMENTS_MAX, followed, is_narrow
from .control import carried, joined, scanned, turn_of
from .places import bound
from .sizes import Dim, Element, Size, of_batch, product
from .table import RANDOM, RULES
from .values import Call, Fixed, Lost, NotProved, RowNumbers, RowPlaces, Rows, Sizes, Value, contents, need

DOMAINS = frozenset({"", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"})
# Not those that wrap round where nobody looks: integers of fewer bits.
_NUMBERS = frozenset({TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL, TensorProto.FLOAT, TensorProto.DOUBLE})
NOT_IN_TABLE = "the operator is not one that is known to keep rows apart"

State = dict[str, Value]
Shapes = Mapping[str, tuple[Dim, ...]]


class TooLong(Exception):
    """The walk takes longer than it may."""


def tensor_value(tensor: TensorProto) -> Fixed:
    """A constant: its shape, and its contents where they are few."""
    shape = tuple(tensor.dims)
    count = product(shape)
    is_here = tensor.data_type in _NUMBERS and tensor.data_location != TensorProto.EXTERNAL
    if isinstance(count, int) and count <= ELEMENTS_MAX and is_here and len(shape) <= 2:
        try:
            value = np.array(numpy_helper.to_array(tensor).tolist(), dtype=object).reshape(shape)
        except (ValueError, TypeError):
            return Fixed(shape)
        return Fixed(shape, value, tensor.data_type == TensorProto.INT32)
    return Fixed(shape)


def attribute_value(value: Any) -> Fixed:
    """What a Constant node holds."""
    if isinstance(value, TensorProto):
        return tensor_value(value)
    if isinstance(value, SparseTensorProto):
        return Fixed(tuple(value.dims))
    elements = value if isinstance(value, list | tuple) else [value]
    if elements and len(elements) <= ELEMENTS_MAX and all(isinstance(element, int | float) for element in elements):
        array = np.array(list(elements), dtype=object)
        return Fixed((len(array),), array) if elements is value else Fixed((), array.reshape(()))
    return Fixed((len(elements),) if elements is value else ())


def captured(graph: GraphProto, bound: Iterable[str] = ()) -> set[str]:
    """The names that a subgraph takes from outside."""
    known = {*bound, *(item.name for item in graph.input), *(item.name for item in graph.initializer)}
    found: set[str] = set()
    for node in graph.node:
        found |= {name for name in node.input if name and name not in known}
        for subgraph in subgraphs(node):
            found |= captured(subgraph, known)
        known |= set(node.output)
    return found | {item.name for item in graph.output if item.name not in known}


def subgraphs(node: NodeProto) -> list[GraphProto]:
    found = []
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            found.append(attribute.g)
        elif attribute.type == AttributeProto.GRAPHS:
            found += attribute.graphs
    return found


def attributes_of(node: NodeProto) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for attribute in node.attribute:
        if attribute.type not in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
            value = helper.get_attribute_value(attribute)
            found[attribute.name] = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return found


class Walk:
    """One pass over a graph.

    Args:
        opsets: version by domain ("" is ai.onnx).
        shapes: what ONNX's own inference knows of the values' shapes.
        deadline: time.monotonic() at which the walk gives up.
        scope: the node whose subgraph this is; other nodes' subgraphs may have values of the same names.
    """

    def __init__(self, opsets: Mapping[str, int], shapes: Shapes, deadline: float, scope: str = "") -> None:
        self._opsets = opsets
        self._shapes = shapes
        self._deadline = deadline
        self._scope = scope

    def run(self, nodes: Iterable[NodeProto], state: State) -> None:
        """Add what the nodes give to `state`. Raises TooLong."""
        for node in nodes:
            if time.monotonic() > self._deadline:
                raise TooLong
            outputs = self._outputs(node, state)
            for index, name in enumerate(node.output):
                if name:
                    value = outputs[index] if index < len(outputs) else _lost(node, "an output that is not followed")
                    state[name] = self._refined(name, value)

    def _outputs(self, node: NodeProto, state: State) -> Sequence[Value]:
        """Nothing that a node holds may end the walk: what a rule stumbles over is not proved."""
        try:
            inputs = [state[name] if name else None for name in node.input]
            for value in inputs:
                if isinstance(value, Lost):
                    return [value] * len(node.output)
            return self._known(node, inputs, state)
        except NotProved as reason:
            return [_lost(node, str(reason))] * len(node.output)
        except TooLong:
            raise
        except Exception as error:
            why = f"it is not understood ({type(error).__name__}: {error})"
            return [_lost(node, why[:200])] * len(node.output)

    def _known(self, node: NodeProto, inputs: list[Value | None], state: State) -> Sequence[Value]:
        domain = "" if node.domain == "ai.onnx" else node.domain
        need(domain in DOMAINS, "an operator of another library")
        inner = subgraphs(node)
        if inner:
            return self._with_subgraphs(node, inner, inputs, state)
        outputs = len(node.output)
        while outputs > 1 and not node.output[outputs - 1]:
            outputs -= 1
        call = Call(
            op_type=node.op_type,
            domain=domain,
            label=f"{node.op_type}@{self._place(node)}",
            attributes=attributes_of(node),
            inputs=tuple(inputs),
            outputs=outputs,
            opset=self._opsets.get(domain, 1),
        )
        if not domain and call.op_type == "Constant":
            return [attribute_value(next(iter(call.attributes.values()), None))]
        if not domain and call.op_type in ("Shape", "Size"):
            return [_shape_of(call)]
        key = f"{domain}:{call.op_type}" if domain else call.op_type
        if all(value is None or isinstance(value, Fixed | Sizes) for value in inputs):
            found = self._without_rows(call, key, node)
            if found is not None:
                return found
        rule = RULES.get(key)
        if rule is None:
            raise NotProved(NOT_IN_TABLE)
        return rule(call)

    def _place(self, node: NodeProto) -> str:
        return self._scope + next((name for name in node.output if name), node.name)

    def _without_rows(self, call: Call, key: str, node: NodeProto) -> Sequence[Value] | None:
        """Of inputs that do not depend on the rows' contents; None where a rule must say more."""
        need(key not in RANDOM, "it draws random numbers")
        elements = followed(call)
        if elements is not None and call.outputs == 1:
            return [contents(elements, is_narrow(call))]
        if any(isinstance(value, Sizes) for value in call.inputs):
            return None
        return [Fixed(self._shapes.get(name), below=bound(call)) for name in node.output]

    def _with_subgraphs(
        self, node: NodeProto, inner: list[GraphProto], inputs: list[Value | None], state: State
    ) -> Sequence[Value]:
        taken = [state[name] for graph in inner for name in captured(graph)]
        for value in taken:
            if isinstance(value, Lost):
                return [value] * len(node.output)
        if all(value is None or isinstance(value, Fixed) for value in (*inputs, *taken)):
            need(not any(_draws(graph) for graph in inner), "it draws random numbers")
            return [Fixed()] * len(node.output)
        need(node.domain in ("", "ai.onnx") and self._opsets.get("", 1) >= 9, "a subgraph that takes rows")
        if node.op_type == "Scan":
            return self._scan(node, inner[0], inputs, state)
        need(node.op_type == "If", "a subgraph that takes rows")
        condition = inputs[0]
        if not isinstance(condition, Fixed):
            raise NotProved("its condition depends on the batch")
        branches = {attribute.name: attribute.g for attribute in node.attribute}
        then, other = branches["then_branch"], branches["else_branch"]
        if condition.value is not None and condition.value.size == 1 and isinstance(condition.value.item(), bool):
            return self._branch(node, then if condition.value.item() else other, state)
        return joined(self._branch(node, then, state), self._branch(node, other, state))

    def _scan(self, node: NodeProto, body: GraphProto, inputs: list[Value | None], state: State) -> Sequence[Value]:
        """Turns along something else than the batch. At least one for sure: onnxruntime dies of some without any."""
        attributes = attributes_of(node)
        count = attributes["num_scan_inputs"]
        first = len(inputs) - count
        need(0 < count <= len(inputs) == len(body.input), "its inputs are not its body's")
        need(not any(attributes.get("scan_output_axes", [])), "its outputs are not stacked first")
        before = [carried(value) for value in inputs[:first]]
        along = zip(inputs[first:], attributes.get("scan_input_axes") or [0] * count, strict=True)
        turns = [turn_of(value, axis) for value, axis in along]
        steps = next((size for _, size in turns if isinstance(size, int) and size > 0), None)
        if steps is None:
            raise NotProved("it may have no turn")
        values = [*before, *(value for value, _ in turns)]
        given = {item.name: value for item, value in zip(body.input, values, strict=True)}
        return scanned(before, self._branch(node, body, {**state, **given}), steps)

    def _branch(self, node: NodeProto, graph: GraphProto, state: State) -> list[Value]:
        inside: State = {**state, **{tensor.name: tensor_value(tensor) for tensor in graph.initializer}}
        need(not graph.sparse_initializer, "a sparse tensor")
        # Names in here may be others' outside: what is inferred is of those.
        Walk(self._opsets, {}, self._deadline, f"{self._place(node)}/").run(graph.node, inside)
        outputs = [inside[item.name] for item in graph.output]
        for value in outputs:
            need(isinstance(value, Rows | Fixed), value.why if isinstance(value, Lost) else "a branch counts rows")
        return outputs

    def _refined(self, name: str, value: Value) -> Value:
        """With sizes that ONNX's inference knows and the rule does not."""
        known = self._shapes.get(name)
        if not isinstance(value, Rows) or known is None or len(known) != value.rank:
            return value
        shape = [
            better if axis != value.axis and isinstance(size, Size) and isinstance(better, int) else size
            for axis, (size, better) in enumerate(zip(value.shape, known, strict=True))
        ]
        return value.with_shape(shape)


def _lost(node: NodeProto, why: str) -> Lost:
    name = node.name or next((name for name in node.output if name), "")
    operator = f"{node.domain}:{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
    return Lost(name[:200], operator[:100], why)


def _draws(graph: GraphProto) -> bool:
    """Whether something in a subgraph is random."""
    return any(
        (f"{node.domain}:{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type) in RANDOM
        or node.domain not in (*DOMAINS, "ai.onnx")
        or any(_draws(inner) for inner in subgraphs(node))
        for node in graph.node
    )


def _shape_of(call: Call) -> Value:
    """Shape and Size."""
    value = call.inputs[0]
    if not isinstance(value, Fixed | Sizes | Rows | RowNumbers | RowPlaces):
        raise NotProved("what it measures is not known")
    if value.shape is None:
        return Fixed()
    shape: list[Element] = list(value.shape)
    if call.op_type == "Size":
        total = product(value.shape)
        return contents(np.array([total], dtype=object).reshape(())) if not of_batch(total) else Sizes(_scalar(total))
    chosen = shape[call.get("start", 0) : call.get("end")]
    array = np.empty(len(chosen), dtype=object)
    array[:] = chosen
    return contents(array)


def _scalar(element: Element) -> np.ndarray[Any, np.dtype[Any]]:
    array = np.empty((), dtype=object)
    array[()] = element
    return array

"""Random graphs of anything: each step is an operator on values that are there already, tried alone before it stays.

Nothing here knows what keeps rows apart. Values are those of a batch of BATCH rows, so that shapes that are chosen by
them are right for it, and wrong, or right by chance, for others.
"""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from nexus_grpc.worker.onnx_runtime import ort

BATCH = 3
FLOAT, INT = np.dtype(np.float32), np.dtype(np.int64)
KINDS = {FLOAT: TensorProto.FLOAT, INT: TensorProto.INT64, np.dtype(bool): TensorProto.BOOL}
OPSETS = (helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("ai.onnx.ml", 3))
ELEMENTS_MAX = 4000
Array = np.ndarray[Any, Any]


def session(model: onnx.ModelProto, optimised: bool = False) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def inner_graphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]


class Graph:
    """What is there so far. `inputs`: dtype, declared dimensions, and the sizes of those behind the batch's."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.numbers = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.values: dict[str, Array] = {}
        self.constants: list[onnx.TensorProto] = []
        self.inputs: dict[str, tuple[Any, list[Any], list[int]]] = {}
        sizes: dict[str, int] = {}
        for index in range(self.random.choice([1, 1, 2, 3])):
            declared: list[Any] = ["batch"]
            for _ in range(self.random.choice([0, 1, 1, 2, 2, 3])):
                size = self.random.choice([1, 2, 2, 3, 4])
                name = self.random.choice("hwk--")
                declared.append(size if name == "-" else name)
                sizes.setdefault(name, size)
            own = [size if isinstance(size, int) else sizes[size] for size in declared[1:]]
            dtype = self.random.choice([FLOAT, FLOAT, INT])
            self.inputs[f"x{index}"] = dtype, declared, own
            self.values[f"x{index}"] = self.data(dtype, [BATCH, *own])

    def data(self, dtype: Any, shape: Any) -> Array:
        return drawn(self.numbers, dtype, shape)

    def constant(self, value: Any, dtype: Any = INT) -> str:
        array = np.asarray(value, dtype)
        name = f"k{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        self.values[name] = array
        return name

    def pick(self, fits: Callable[[Array], Any] = lambda value: True) -> str:
        """A value that fits, rather a late one. Raises IndexError without one."""
        found = [name for name, value in self.values.items() if value.size and fits(value)]
        return self.random.choice(found[-6:] if self.random.random() < 0.6 else found)

    def floats(self, rank_min: int = 0) -> str:
        return self.pick(lambda value: value.dtype == FLOAT and value.ndim >= rank_min)

    def any(self, rank_min: int = 0) -> str:
        return self.pick(lambda value: value.ndim >= rank_min)

    def axis(self, name: str, more: int = 0) -> int:
        rank = self.values[name].ndim + more
        return self.random.randint(-rank, rank - 1)

    def add(self, operator: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> str:
        """The first output's name. Raises ValueError where the step does not stay."""
        names = [f"v{len(self.nodes)}_{index}" for index in range(outputs)]
        node = helper.make_node(operator, inputs, names, name=f"n{len(self.nodes)}", domain=domain, **attributes)
        results = dict(zip(names, self._alone(node), strict=True))
        for value in results.values():
            fits = isinstance(value, np.ndarray) and value.dtype in KINDS and value.size <= ELEMENTS_MAX
            if not fits or (value.dtype == FLOAT and value.size and not np.abs(value).max() < 1e6):
                raise ValueError(operator)
        self.nodes.append(node)
        self.values |= results
        return names[0]

    def _alone(self, node: onnx.NodeProto) -> list[Any]:
        taken = {name for name in node.input if name}
        taken |= {name for graph in inner_graphs(node) for own in graph.node for name in own.input} & self.values.keys()
        given = [
            helper.make_tensor_value_info(name, KINDS[self.values[name].dtype], [None] * self.values[name].ndim)
            for name in taken
        ]
        model = self._made([node], given, list(node.output), [])
        found: list[Any] = session(model).run(None, {name: self.values[name] for name in taken})
        return found

    @staticmethod
    def _made(nodes: Any, inputs: Any, outputs: list[str], constants: Any) -> onnx.ModelProto:
        values = [helper.make_empty_tensor_value_info(name) for name in outputs]
        graph = helper.make_graph(nodes, "g", inputs, values, constants)
        return helper.make_model(graph, opset_imports=OPSETS, ir_version=8)

    def model(self, outputs: list[str]) -> onnx.ModelProto:
        """With what the outputs need, and nothing else: what fails beside them says nothing."""
        needed, nodes = set(outputs), []
        for node in reversed(self.nodes):
            if needed & set(node.output):
                nodes.append(node)
                needed |= {
                    *node.input,
                    *(name for graph in inner_graphs(node) for own in graph.node for name in own.input),
                }
        inputs = [
            helper.make_tensor_value_info(name, KINDS[kind], dims) for name, (kind, dims, _) in self.inputs.items()
        ]
        return self._made(nodes[::-1], inputs, outputs, self.constants)

    def feeds(self, rows: int, seed: int, other_sizes: bool = False) -> dict[str, Array]:
        numbers, sizes, found = np.random.default_rng(seed), {}, {}
        for name, (dtype, declared, own) in self.inputs.items():
            shape = [rows]
            for size, known in zip(declared[1:], own, strict=True):
                free = other_sizes and not isinstance(size, int)
                shape.append(sizes.setdefault(size, int(numbers.integers(1, 6))) if free else known)
            found[name] = drawn(numbers, dtype, shape)
        return found


def drawn(numbers: np.random.Generator, dtype: Any, shape: Any) -> Array:
    if dtype == INT:
        return numbers.integers(-2, 4, size=shape)
    return np.round(numbers.normal(size=shape) * 2, 2).astype(np.float32)

"""Small graphs written as text (onnx.parser's language), and what onnxruntime says of rows in company and alone."""

from typing import Any

import numpy as np
import onnx
import onnx.parser

from nexus_grpc.worker.onnx_runtime import ort

DOMAINS = '"ai.onnx.ml": 3, "com.microsoft": 1'
Feeds = dict[str, np.ndarray[Any, Any]]


def graph(body: str, inputs: str = "float[n, 4] x", consts: str = "", opset: int = 18, outputs: str = "y") -> Any:
    """A model whose outputs have no declared shape; inference gives them their types."""
    text = (
        f'<ir_version: 8, opset_import: ["": {opset}, {DOMAINS}]> g ({inputs}) => ({outputs}) <{consts}> {{ {body} }}'
    )
    return onnx.parser.parse_model(text.replace("<>", ""))


def run(model: Any, feeds: Feeds) -> list[Any]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)  # type: ignore[no-any-return]


def alone(model: Any, feeds: Feeds) -> list[Any]:
    """Each row by itself, put together again."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    count = len(next(iter(feeds.values())))
    parts = [session.run(None, {name: array[row : row + 1] for name, array in feeds.items()}) for row in range(count)]
    return [np.concatenate([part[index] for part in parts]) for index in range(len(parts[0]))]

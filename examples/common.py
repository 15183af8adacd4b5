"""What every example script shares: pinned ONNX versions, reproducible files and the repository layout."""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from onnx import TensorProto, helper
from sklearn.linear_model import LogisticRegression

MODELS_DIR = Path(__file__).resolve().parents[1] / "models"

# Old enough for any recent ONNX Runtime, new enough for every operator used here.
IR_VERSION = 8
OPSETS: Mapping[str, int] = {"": 17, "ai.onnx.ml": 3}

SEED = 7

# The leading dimension of every model that takes batches of any size.
BATCH = "batch"

Shape = Sequence[int | str | None]


@dataclass(frozen=True)
class Example:
    """One model, the files that lie beside its version folder, and a line on how good it is."""

    name: str
    model: onnx.ModelProto
    note: str = ""
    files: Mapping[str, str] = field(default_factory=dict)


Builder = Callable[[], Example]


def logistic_regression() -> LogisticRegression:
    """A classifier that processors agree on: Newton steps reach the optimum, L-BFGS stops somewhere near it."""
    return LogisticRegression(solver="newton-cholesky", tol=1e-8)


def tensor(name: str, elem_type: int, shape: Shape) -> onnx.ValueInfoProto:
    """A graph input or output; `[]` is a scalar and a string or None is a dimension of any size."""
    return helper.make_tensor_value_info(name, elem_type, list(shape))


def floats(name: str, shape: Shape) -> onnx.ValueInfoProto:
    """A float32 graph input or output."""
    return tensor(name, TensorProto.FLOAT, shape)


def graph_model(
    name: str,
    doc: str,
    nodes: Iterable[onnx.NodeProto],
    inputs: Iterable[onnx.ValueInfoProto],
    outputs: Iterable[onnx.ValueInfoProto],
    constants: Iterable[onnx.TensorProto] = (),
) -> onnx.ModelProto:
    """A checked model made of hand-written nodes."""
    graph = helper.make_graph(list(nodes), name, list(inputs), list(outputs), list(constants))
    return finish(helper.make_model(graph), name, doc)


def finish(model: onnx.ModelProto, name: str, doc: str) -> onnx.ModelProto:
    """Replace everything that varies between runs or library versions, then check the model."""
    model.ir_version = IR_VERSION
    model.producer_name = "nexus-grpc-examples"
    model.producer_version = "1"
    model.domain = "nexus.examples"
    model.model_version = 1
    model.doc_string = doc
    # skl2onnx names the graph with a random UUID.
    model.graph.name = name
    # skl2onnx lowers each opset to what it needs, in no fixed order and sometimes twice; its operators mean the same
    # at the versions pinned here.
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in OPSETS.items())
    onnx.checker.check_model(model, full_check=True)
    return model


def write(example: Example, out: Path) -> Path:
    """Write `<out>/<name>/1/model.onnx` and the files beside it; return the model's path."""
    path = out / example.name / "1" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(example.model.SerializeToString(deterministic=True))
    for filename, text in example.files.items():
        (out / example.name / filename).write_text(text, encoding="utf-8", newline="\n")
    return path


def build(builders: Mapping[str, Builder], out: Path) -> None:
    """Build every model given and print one line about each."""
    for builder in builders.values():
        example = builder()
        path = write(example, out)
        note = f"  {example.note}" if example.note else ""
        print(f"{example.name:<14} {path.stat().st_size:>7} bytes  {path}{note}")


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The command line that every script has."""
    result = argparse.ArgumentParser(description=doc)
    result.add_argument("--out", type=Path, default=MODELS_DIR, help="model repository to write (default: models/)")
    return result


def main(doc: str | None, builders: Mapping[str, Builder]) -> None:
    """Run one family's script."""
    build(builders, parser(doc).parse_args().out)

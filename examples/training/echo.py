"""Hand-written graphs that give their inputs back: text, and one tensor of every numeric type."""

import sys
from pathlib import Path

from onnx import TensorProto, helper

# Lets the script run by its path as well as with `python -m`.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples import common

# Words that text_echo knows; any other text has code -1.
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

TYPES: dict[str, int] = {
    "bool": TensorProto.BOOL,
    "uint8": TensorProto.UINT8,
    "uint16": TensorProto.UINT16,
    "uint32": TensorProto.UINT32,
    "uint64": TensorProto.UINT64,
    "int8": TensorProto.INT8,
    "int16": TensorProto.INT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "float16": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
}


def text_echo() -> common.Example:
    """echo = text, code = the number that the text spells."""
    shape: common.Shape = (common.BATCH, 1)
    encoder = helper.make_node(
        "LabelEncoder",
        ["text"],
        ["code"],
        "encode",
        domain="ai.onnx.ml",
        keys_strings=list(WORDS),
        values_int64s=list(range(len(WORDS))),
        default_int64=-1,
    )
    model = common.graph_model(
        "text_echo",
        "Text as it came, and the digit it spells or -1.",
        [helper.make_node("Identity", ["text"], ["echo"], "identity"), encoder],
        [common.tensor("text", TensorProto.STRING, shape)],
        [common.tensor("echo", TensorProto.STRING, shape), common.tensor("code", TensorProto.INT64, shape)],
    )
    return common.Example("text_echo", model)


def all_types() -> common.Example:
    """out_T = in_T for every numeric type; rows are shared, and each tensor has a width of its own."""
    model = common.graph_model(
        "all_types",
        "Identity over every numeric type.",
        [helper.make_node("Identity", [f"in_{name}"], [f"out_{name}"], f"identity_{name}") for name in TYPES],
        [common.tensor(f"in_{name}", kind, [common.BATCH, f"width_{name}"]) for name, kind in TYPES.items()],
        [common.tensor(f"out_{name}", kind, [common.BATCH, f"width_{name}"]) for name, kind in TYPES.items()],
    )
    return common.Example("all_types", model)


BUILDERS: dict[str, common.Builder] = {"text_echo": text_echo, "all_types": all_types}

if __name__ == "__main__":
    common.main(__doc__, BUILDERS)

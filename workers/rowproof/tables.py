"""ai.onnx.ml's operators on tables, [N, features], and those on text."""

from collections.abc import Sequence

from .sizes import Dim
from .values import Call, NotProved, Rows, Value, need, rows


def _table(call: Call, index: int = 0) -> Rows:
    """A vector is one row to these, so the batch must be axis 0 of two."""
    value = rows(call, index)
    need(value.axis == 0 and value.rank == 2, "its input is not [N, features]")
    return value


def _single_table(call: Call) -> Rows:
    need(len(call.inputs) == 1, "it has more than one input")
    return _table(call)


def regressor(call: Call) -> Sequence[Value]:
    value = _single_table(call)
    return [value.with_shape([value.shape[0], call.size("targets")])]


def classifier(call: Call) -> Sequence[Value]:
    """Labels and scores."""
    value = _single_table(call)
    names = ("classlabels_int64s", "classlabels_strings", "classlabels_ints")
    labels: list[object] = next((call.get(name) for name in names if call.get(name)), [])
    known = len(labels) > 1 and call.op_type != "SVMClassifier"
    width: Dim = len(labels) if known else call.size("classes")
    return [value.with_shape(value.shape[:1]), value.with_shape([value.shape[0], width])]


def same_table(call: Call) -> Sequence[Value]:
    return [_single_table(call)]


def join_features(call: Call) -> Sequence[Value]:
    first = _table(call)
    need(all(_table(call, index).layout == first.layout for index in range(len(call.inputs))), "batch axes differ")
    return [first.with_shape([first.shape[0], call.size("width")])]


def zip_map(call: Call) -> Sequence[Value]:
    """A sequence of one map per row."""
    value = _single_table(call)
    return [value.with_shape(value.shape[:1])]


def string_normaliser(call: Call) -> Sequence[Value]:
    value = rows(call)
    if call.get("stopwords") or value.rank != 1:
        raise NotProved("it may drop strings")
    return [value]


def hashes(call: Call) -> Sequence[Value]:
    """com.microsoft:MurmurHash3, of each element."""
    return [rows(call)]

"""What numpy makes of Python's numbers, as the model takes it; and one array for the only input."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nexus_grpc.client.casting import KNOWN_MAX, Deadline, KnownInputs, StreamCasting, fit, is_unchanged, may_help
from nexus_grpc.client.errors import InvalidInput, invalid
from nexus_grpc.client.results import TensorInfo

X = TensorInfo("x", "FP32", (-1,))


def info(datatype: str) -> tuple[TensorInfo, ...]:
    return (TensorInfo("x", datatype, (-1,)),)


@pytest.mark.parametrize(
    ("value", "datatype", "dtype"),
    [
        ([0.5, 1.5], "FP32", "float32"),
        ([0.5], "FP16", "float16"),
        ([1.0, -2.0], "INT8", "int8"),
        ([1, 2], "FP32", "float32"),
        ([1, 2], "UINT8", "uint8"),
        ([float("nan"), float("inf")], "FP32", "float32"),
        ([0.1], "FP64", "float64"),
        ([1, 2], "INT64", "int64"),
    ],
)
def test_what_is_cast(value: list[float], datatype: str, dtype: str) -> None:
    for inputs in ({"x": np.array(value)}, np.array(value)):
        cast = np.asarray(fit(inputs, info(datatype), None)["x"])
        assert cast.dtype.name == dtype
        assert np.array_equal(cast.astype(np.float64), np.array(value, np.float64), equal_nan=True)


@pytest.mark.parametrize(
    ("value", "datatype"),
    [
        ([0.1], "FP32"),
        ([1e300], "FP32"),
        ([1.5], "INT64"),
        ([float("nan")], "INT32"),
        ([300], "UINT8"),
        ([-1], "UINT64"),
        ([2**53 + 1], "FP64"),
        ([2**63 - 1], "FP32"),
        ([2.0**63], "INT64"),
    ],
)
def test_what_would_be_changed_is_refused(value: list[float], datatype: str) -> None:
    with pytest.raises(InvalidInput, match=r"not exact in it; if that is fine, send x\.astype\(np\."):
        fit({"x": np.array(value)}, info(datatype), None)


@given(arrays(np.float64, st.integers(0, 4)), st.sampled_from(["FP16", "FP32", "INT8", "INT64", "UINT64"]))
def test_a_cast_never_changes_a_number(array: np.ndarray, datatype: str) -> None:
    try:
        cast = np.asarray(fit(array, info(datatype), None)["x"])
    except InvalidInput:
        return
    assert [float(item) for item in cast.tolist()] == pytest.approx(array.tolist(), rel=0, abs=0, nan_ok=True)


def test_what_is_left_alone() -> None:
    narrow, text, ragged = np.zeros(2, np.int32), np.array(["a"], object), [[1], [2, 3]]
    for value in (narrow, text, ragged):
        inputs = {"x": value, "other": np.zeros(2)}
        fitted = fit(inputs, (X,), None)
        assert is_unchanged(inputs, fitted)
    wide = np.zeros(2)
    assert fit({"x": wide}, (X,), {"x": "FP64"})["x"] is wide
    assert fit({"x": wide}, info("BOOL"), None)["x"] is wide


def test_one_array_for_several_inputs() -> None:
    with pytest.raises(InvalidInput, match="the model's inputs are 'x', 'z'; expected arrays by name"):
        fit(np.zeros(2), (X, TensorInfo("z", "FP32", (-1,))), None)


def test_when_it_may_help() -> None:
    from_server = InvalidInput("INVALID_ARGUMENT", "no", details=[{}])
    assert may_help({"x": np.zeros(2)}, None, from_server)
    assert may_help({"x": [1, 2]}, None, from_server)
    assert not may_help({"x": np.zeros(2)}, {"x": "FP64"}, from_server)
    assert not may_help({"x": np.zeros(2, np.float32)}, None, from_server)
    assert not may_help({"x": np.zeros(2)}, None, invalid("no"))
    assert not may_help(np.zeros(2), None, from_server)


def test_what_is_known_has_a_limit() -> None:
    known = KnownInputs()
    for number in range(KNOWN_MAX + 1):
        known.keep((str(number), ""), (X,))
    assert known.get(("0", "")) is None
    assert known.get((str(KNOWN_MAX), "")) == (X,)
    known.drop((str(KNOWN_MAX), ""))
    known.drop(("never", ""))
    assert known.get((str(KNOWN_MAX), "")) is None


def test_a_deadline_over_several_calls() -> None:
    assert Deadline(None).remaining_s() is None
    assert Deadline(-1).remaining_s() == -1
    assert Deadline(1e-9).remaining_s() == pytest.approx(0.001)
    assert 9 < (Deadline(10).remaining_s() or 0) <= 10


def test_a_stream_asks_once_and_does_without_for_arrays_by_name() -> None:
    """One who may only predict cannot ask."""
    wide, exact = {"x": np.array([0.5])}, {"x": np.array([0.5], np.float32)}
    casts = StreamCasting(None)
    assert not casts.asks(exact)
    assert casts.asks(wide)
    casts.failed(wide, invalid("no"))
    assert not casts.asks(wide)
    assert casts.fit(wide) is wide
    assert casts.asks(wide["x"])
    with pytest.raises(InvalidInput, match="no"):
        casts.failed(wide["x"], invalid("no"))
    casts.learn((X,))
    assert not casts.asks(wide["x"])
    assert casts.fit(wide["x"])["x"].dtype == np.float32
    assert not StreamCasting({"x": "FP64"}).asks(wide)
    assert not StreamCasting(None).asks({"x": [[1], [1, 2]]})

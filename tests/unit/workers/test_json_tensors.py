"""JSON values as tensors."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus_grpc.ipc.errors import InvalidInput
from nexus_grpc.worker.json_tensors import (
    flatten,
    full_tensor,
    json_piece,
    json_values,
    nested,
    number_piece,
    row_tensor,
)
from nexus_grpc.worker.tensors import BY_NAME
from tests.unit.support import model_of, spec

INTEGERS = ["INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"]


@pytest.mark.parametrize("datatype", INTEGERS)
def test_the_bounds_of_integers(datatype: str) -> None:
    tensor = spec("x", datatype, -1, 1)
    bounds = np.iinfo(tensor.datatype.dtype)
    raw = number_piece(tensor, [bounds.min, bounds.max], "feature", "feature")
    assert np.frombuffer(raw, tensor.datatype.dtype).tolist() == [bounds.min, bounds.max]
    for wrong in (bounds.min - 1, bounds.max + 1, 0.5, 1e300):
        with pytest.raises(InvalidInput, match=r"feature 1 \(.*\) does not fit " + datatype):
            number_piece(tensor, [0, wrong], "feature", "feature")


def test_whole_floats_are_integers() -> None:
    assert np.frombuffer(
        number_piece(spec("x", "INT32", -1, 1), [2.0, -0.0], "feature", "feature"), "<i4"
    ).tolist() == [2, 0]


def test_floats_may_round_and_must_not_overflow() -> None:
    assert np.frombuffer(number_piece(spec("x", "FP32", -1, 1), [0.1, 3], "x", "x"), "<f4").tolist() == [
        np.float32(0.1),
        3,
    ]
    with pytest.raises(InvalidInput, match=r"x 0 \(1e\+39\) does not fit FP32"):
        number_piece(spec("x", "FP32", -1, 1), [1e39], "x", "x")


@pytest.mark.parametrize(
    ("datatype", "values", "words"),
    [
        ("FP32", ["nan"], 'expected a number, null or "NaN", .* for FP32, value 0 is text'),
        ("FP32", [None, True], "value 1 is true or false"),
        ("INT64", [None], "expected a number for INT64, value 0 is null"),
        ("INT64", ["NaN"], "expected a number for INT64, value 0 is text"),
        ("BYTES", [None], "value 0 is null"),
        ("BOOL", [None], "value 0 is null"),
        ("INT64", [{}], "value 0 is an object"),
        ("BYTES", [1], "expected text for BYTES, value 0 is a number"),
        ("BOOL", [1], "expected true or false for BOOL"),
        ("FP32", [1, [2]], "value 1 is a list"),
    ],
)
def test_values_of_the_wrong_kind(datatype: str, values: list[object], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        json_piece(spec("x", datatype, -1, 1), values, "x")


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
def test_what_answers_write_is_read_and_null_is_missing(datatype: str) -> None:
    tensor = spec("x", datatype, -1, 1)
    array = np.array([1.5, np.nan, np.inf, -np.inf], tensor.datatype.dtype)
    assert json_piece(tensor, json_values(array), "x") == array.tobytes()
    assert json_piece(tensor, [1.5, None, "Infinity", "-Infinity"], "x") == array.tobytes()


def test_lists_without_values() -> None:
    tensor = spec("past", "FP32", -1, -1, 2)
    model = model_of(tensor)
    for data in ([], [[]], [[[]]]):
        assert full_tensor(model, tensor, (1, 0, 2), data) == (b"", (1, 0, 2))
        assert row_tensor(model, tensor, (), data) == (b"", (0, 2))
    assert full_tensor(model, tensor, (2, 0, 2), [[], []]) == (b"", (2, 0, 2))
    assert row_tensor(model, tensor, (0, 2), []) == (b"", (0, 2))
    for data in ([[]], []):
        with pytest.raises(InvalidInput, match="expected 4 values"):
            full_tensor(model, tensor, (1, 2, 2), data)
    with pytest.raises(InvalidInput, match="expected 4 features, got 0"):
        row_tensor(model_of(spec("x", "FP32", -1, 4)), spec("x", "FP32", -1, 4), (), [])


def test_ragged_lists() -> None:
    for data in ([[1], [1, 2]], [[1], 2], [[[1]], [[1], [2]]]):
        with pytest.raises(InvalidInput, match="not all of one length"):
            flatten(data, "x")


def test_lists_of_any_depth_end() -> None:
    data: list[object] = [1]
    for _ in range(100):
        data = [data]
    with pytest.raises(InvalidInput):
        flatten(data, "x")


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_nesting_and_flattening_are_inverse(shape: list[int]) -> None:
    values = list(range(int(np.prod(shape))))
    data = nested(values, tuple(shape))
    assert np.array(data).shape == tuple(shape)
    assert flatten(data, "x") == (values, tuple(shape))


def test_a_row_by_shape_by_nesting_or_flat() -> None:
    tensor = spec("x", "FP32", -1, 2, 2)
    model = model_of(tensor)
    expected = np.array([1, 2, 3, 4], "<f4").tobytes()
    for shape, data in (
        ((), [[1, 2], [3, 4]]),
        ((), [[[1, 2], [3, 4]]]),
        ((), [1, 2, 3, 4]),
        ((2, 2), [1, 2, 3, 4]),
        ((1, 2, 2), [[1, 2], [3, 4]]),
    ):
        assert row_tensor(model, tensor, shape, data) == (expected, (2, 2))
    with pytest.raises(InvalidInput, match=r"expected one row of shape \[2,2\], got \[2,2,2\]"):
        row_tensor(model, tensor, (), [[[1, 2], [3, 4]]] * 2)
    with pytest.raises(InvalidInput, match="expected 4 features, got 3"):
        row_tensor(model, tensor, (), [1, 2, 3])
    with pytest.raises(InvalidInput, match=r"expected 6 values for shape \[2,3\], got 4"):
        row_tensor(model, tensor, (2, 3), [1, 2, 3, 4])


def test_a_whole_tensor() -> None:
    tensor = spec("x", "INT64", -1, 2)
    model = model_of(tensor)
    for data in ([1, 2, 3, 4], [[1, 2], [3, 4]]):
        assert full_tensor(model, tensor, (2, 2), data) == (np.array([1, 2, 3, 4], "<i8").tobytes(), (2, 2))
    for data in ([1, 2, 3], [[1, 2, 3, 4]], [[1], [2], [3], [4]]):
        with pytest.raises(InvalidInput, match="expected 4 values"):
            full_tensor(model, tensor, (2, 2), data)


def test_what_json_cannot_carry_travels_as_text() -> None:
    assert json_values(np.array([1.5, np.nan, np.inf, -np.inf], np.float32)) == [1.5, "NaN", "Infinity", "-Infinity"]
    assert json_values(np.array([True, False])) == [True, False]
    assert json_values(np.array(["ä", b"b"], dtype=object)) == ["ä", "b"]


def test_bfloat16_rounds_and_has_limits() -> None:
    piece = json_piece(spec("x", "BF16", 2), [1.5, 1.00390625], "x")
    assert piece == b"\xc0\x3f\x80\x3f"
    with pytest.raises(InvalidInput, match=r"value of 'x', 1 \(1e\+39\) does not fit BF16"):
        json_piece(spec("x", "BF16", 2), [1.0, 1e39], "x")
    values = np.array([0.5, np.nan, -np.inf], ml_dtypes.bfloat16)
    assert json_values(values) == [0.5, "NaN", "-Infinity"]


def test_the_table_of_datatypes_is_covered() -> None:
    assert {*INTEGERS, "BOOL", "BYTES", "FP16", "BF16", "FP32", "FP64"} == set(BY_NAME)

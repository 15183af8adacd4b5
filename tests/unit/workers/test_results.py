"""A batch's outputs, cut into requests."""

import numpy as np
import pytest

from nexus_grpc.worker.results import BatchResult, top_classes
from tests.unit.support import model_of, spec


def test_rows_of_a_batch() -> None:
    array = np.arange(6, dtype=np.float32).reshape(3, 2)
    result = BatchResult(model_of(), [array], 3)
    assert result.raw(0, 1, 3) == array[1:3].tobytes()
    assert result.array(0, 1, 3).tolist() == [[2, 3], [4, 5]]
    assert result.shape(0, 2) == (2, 2)
    assert result.row_values(0) == [[0, 1], [2, 3], [4, 5]]


def test_an_unbatched_model_s_output_is_whole() -> None:
    array = np.arange(6, dtype=np.float32).reshape(3, 2)
    result = BatchResult(model_of(max_batch_size=0), [array], 1)
    assert result.raw(0, 0, 1) == array.tobytes()
    assert result.shape(0, 1) == (3, 2)
    assert result.row_values(0) == [[0, 1, 2, 3, 4, 5]]


def test_a_scalar_output() -> None:
    model = model_of(outputs=[spec("y", "FP32")], max_batch_size=0)
    result = BatchResult(model, [np.array(1.5, dtype=np.float32)], 1)
    assert (result.shape(0, 1), result.row_values(0)) == ((), [[1.5]])
    assert result.raw(0, 0, 1) == np.float32(1.5).tobytes()


def test_text_rows_are_encoded_one_by_one() -> None:
    model = model_of(outputs=[spec("y", "BYTES", -1, 1)])
    result = BatchResult(model, [np.array([["a"], ["ä"]], dtype=object)], 2)
    assert result.raw(0, 1, 2) == b"\2\0\0\0\xc3\xa4"


def test_outputs_without_columns() -> None:
    model = model_of(outputs=[spec("y", "FP32", -1, -1)])
    result = BatchResult(model, [np.zeros((2, 0), dtype=np.float32)], 2)
    assert (result.raw(0, 0, 1), result.row_values(0)) == (b"", [[], []])


@pytest.mark.parametrize("count", [2, 3, 2**62])
def test_top_classes_largest_first(count: int) -> None:
    values = np.array([0.1, 0.7, 0.2], dtype=np.float32)
    found = top_classes(values, count, ("a", "b"))
    assert found == [b"0.700000:1:b", b"0.200000:2", b"0.100000:0:a"][:count]


@pytest.mark.parametrize("dtype", ["?", "<i8", "<u8", "<f2", "<f8"])
def test_top_classes_of_every_kind_of_number(dtype: str) -> None:
    assert top_classes(np.array([0, 1], dtype=dtype), 1, ()) == [b"1.000000:1"]


def test_ties_keep_their_order_and_nan_comes_last() -> None:
    values = np.array([np.nan, 1.0, 1.0], dtype=np.float32)
    assert top_classes(values, 3, ()) == [b"1.000000:1", b"1.000000:2", b"nan:0"]

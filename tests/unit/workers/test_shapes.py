"""Whether a request fits the model, and what it is told when not."""

import pytest

from nexus_grpc.ipc.errors import InvalidInput
from nexus_grpc.worker.model import Shape, TensorSpec
from nexus_grpc.worker.shapes import (
    EMPTY_TENSOR_MAX,
    check_missing,
    check_shape,
    common_rows,
    feature_count,
    resolve_row,
)
from tests.unit.support import model_of, spec

PAIR = spec("x", "FP32", -1, 2)
SEQUENCE = spec("x", "FP32", -1, -1)


@pytest.mark.parametrize("shape", [(1, 2), (1000, 2)])
def test_shapes_that_fit(shape: Shape) -> None:
    check_shape(model_of(PAIR), PAIR, shape)


@pytest.mark.parametrize("shape", [(), (2,), (1, 3), (1, 2, 1), (-1, 2), (1, -2)])
def test_shapes_that_do_not(shape: Shape) -> None:
    with pytest.raises(InvalidInput, match=r"input 'x' of model 'm': expected shape \[-1,2\], got") as caught:
        check_shape(model_of(PAIR), PAIR, shape)
    assert caught.value.field == "x"


def test_a_batch_has_a_row() -> None:
    with pytest.raises(InvalidInput, match="at least 1 row"):
        check_shape(model_of(PAIR), PAIR, (0, 2))
    check_shape(model_of(PAIR, max_batch_size=0), PAIR, (0, 2))


def test_a_tensor_without_elements_may_not_claim_any_number_of_rows() -> None:
    check_shape(model_of(SEQUENCE), SEQUENCE, (4, 0))
    check_shape(model_of(SEQUENCE), SEQUENCE, (EMPTY_TENSOR_MAX, 0))
    for shape in ((EMPTY_TENSOR_MAX + 1, 0), (2**62, 0)):
        with pytest.raises(InvalidInput, match="too large for a tensor without elements"):
            check_shape(model_of(SEQUENCE), SEQUENCE, shape)


def test_missing_inputs_are_named_unless_optional() -> None:
    model = model_of(PAIR, spec("mask", "BOOL", -1, 2, optional=True), spec("z", "FP32", -1, 1))
    check_missing(model, ["x", "z"])
    with pytest.raises(InvalidInput, match="expects inputs 'x', 'mask', 'z'; missing: x, z") as caught:
        check_missing(model, ["mask"])
    assert caught.value.field == "x"


def test_inputs_agree_on_their_rows() -> None:
    model = model_of(PAIR, spec("z", "FP32", -1, 1))
    assert common_rows(model, {"x": (3, 2), "z": (3, 1)}) == 3
    with pytest.raises(InvalidInput, match=r"same batch dimension, got 'x' \[3,2\], 'z' \[2,1\]"):
        common_rows(model, {"x": (3, 2), "z": (2, 1)})
    assert common_rows(model_of(PAIR, max_batch_size=0), {"x": (3, 2), "z": (2, 1)}) == 1


def test_only_a_declared_limit_is_strict() -> None:
    assert common_rows(model_of(PAIR, max_batch_size=4), {"x": (5, 2)}) == 5
    assert common_rows(model_of(PAIR, max_batch_size=4, strict=True), {"x": (4, 2)}) == 4
    with pytest.raises(InvalidInput, match="batch of 5 rows is larger than model 'm' allows: 4"):
        common_rows(model_of(PAIR, max_batch_size=4, strict=True), {"x": (5, 2)})


@pytest.mark.parametrize(
    ("tensor", "max_batch_size", "count", "row"),
    [
        (PAIR, 8, 2, (2,)),
        (PAIR, 0, 2, (2,)),
        (spec("x", "FP32", -1, 2, 3), 8, 6, (2, 3)),
        (spec("x", "FP32", -1), 8, 1, ()),
        (spec("x", "FP32", 3, 2), 0, 6, (3, 2)),
        (spec("x", "FP32"), 0, 1, ()),
        (SEQUENCE, 8, 0, (-1,)),
    ],
)
def test_values_per_row(tensor: TensorSpec, max_batch_size: int, count: int, row: Shape) -> None:
    assert feature_count(model_of(tensor, max_batch_size=max_batch_size), tensor) == (count, row)


def test_flat_features_cannot_fill_two_dynamic_dimensions() -> None:
    tensor = spec("x", "FP32", -1, -1, -1)
    with pytest.raises(InvalidInput, match="2 dynamic dimensions"):
        feature_count(model_of(tensor), tensor)


def test_a_dynamic_dimension_takes_what_is_left_over() -> None:
    model = model_of(SEQUENCE)
    assert resolve_row(model, (-1,), 5, 0) == (5,)
    assert resolve_row(model, (2, -1), 6, 0) == (2, 3)
    assert resolve_row(model, (2,), 2, 2) == (2,)
    with pytest.raises(InvalidInput, match="expected a multiple of 2 features, got 5"):
        resolve_row(model, (2, -1), 5, 0)
    with pytest.raises(InvalidInput, match="expected a multiple of 1 features, got 0"):
        resolve_row(model, (-1,), 0, 0)
    with pytest.raises(InvalidInput, match="expected 2 features, got 3"):
        resolve_row(model, (2,), 3, 2)


def test_dimensions_of_size_zero_take_nothing() -> None:
    model = model_of(SEQUENCE)
    assert resolve_row(model, (0, 2), 0, 0) == (0, 2)
    for row in ((0, 2), (0, -1)):
        with pytest.raises(InvalidInput):
            resolve_row(model, row, 4, 0)

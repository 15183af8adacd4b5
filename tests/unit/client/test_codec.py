"""Arrays to tensors and back: every datatype, dtype, byte order and shape; malformed answers."""

import subprocess
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nexus_grpc.client import InvalidInput, NexusClientError, codec
from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from nexus_grpc.worker.tensors import BY_NAME, decode_bytes_tensor

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
NUMBERS = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
)
WORDS = st.one_of(st.text(st.characters(codec="utf-8"), max_size=20), st.binary(max_size=20))


def there_and_back(value: Any, datatype: str = "") -> np.ndarray:
    name, shape, raw = codec.encode_tensor("x", value, datatype)
    return codec.decode_tensor("x", name, shape, raw)


def as_bytes(array: np.ndarray) -> list[bytes]:
    return [item if isinstance(item, bytes) else str(item).encode() for item in array.ravel().tolist()]


@given(hnp.arrays(NUMBERS, SHAPES), st.booleans())
def test_numbers_come_back_bit_by_bit(array: np.ndarray, transposed: bool) -> None:
    array = array.T if transposed else array
    back = there_and_back(array)
    assert back.shape == array.shape
    assert back.dtype == array.dtype.newbyteorder("<")
    assert back.tobytes() == np.ascontiguousarray(array).astype(back.dtype).tobytes()


@given(hnp.arrays(object, SHAPES, elements=WORDS))
def test_text_comes_back_as_bytes(array: np.ndarray) -> None:
    back = there_and_back(array)
    assert back.shape == array.shape
    assert back.dtype == object
    assert back.ravel().tolist() == as_bytes(array)


@pytest.mark.parametrize("dtype", ["U", "S", np.dtypes.StringDType()])
def test_numpys_own_string_dtypes(dtype: Any) -> None:
    array = np.array([["one", ""], ["three", "x"]], dtype)
    assert there_and_back(array).tolist() == [[b"one", b""], [b"three", b"x"]]
    assert there_and_back(np.array(["größer", "日本"], "U")).tolist() == ["größer".encode(), "日本".encode()]


@given(hnp.arrays(object, st.integers(0, 8), elements=st.text(st.characters(codec="utf-8"))))
def test_the_worker_reads_text_the_same(array: np.ndarray) -> None:
    _, _, raw = codec.encode_tensor("x", array)
    assert decode_bytes_tensor(raw, array.size, "x").tolist() == array.tolist()


def test_datatypes_are_the_servers() -> None:
    for name, datatype in BY_NAME.items():
        if name != codec.BYTES:
            assert codec.encode_tensor("x", np.zeros((2, 1), datatype.dtype))[0] == name
    assert codec.encode_tensor("x", 1.5)[:2] == ("FP64", ())
    assert codec.encode_tensor("x", [[1, 2]])[:2] == ("INT64", (1, 2))
    assert codec.encode_tensor("x", ["a"])[:2] == ("BYTES", (1,))


def test_bf16() -> None:
    array = np.array([[1.5, -2.0, 3e38]], ml_dtypes.bfloat16)
    assert codec.encode_tensor("x", array)[0] == "BF16"
    assert there_and_back(array).dtype == array.dtype
    assert there_and_back(array).tobytes() == array.tobytes()
    assert there_and_back(array.view(np.uint16), "BF16").tobytes() == array.tobytes()
    assert codec.encode_tensor("x", array.view(np.uint16))[0] == "UINT16"


def test_bf16_without_ml_dtypes_is_its_bit_patterns() -> None:
    program = """
import sys
sys.modules["ml_dtypes"] = None
import numpy as np
from nexus_grpc.client import codec
datatype, shape, raw = codec.encode_tensor("x", np.array([0x3FC0], np.uint16), "BF16")
back = codec.decode_tensor("x", datatype, shape, raw)
assert (datatype, back.dtype, back.tolist()) == ("BF16", np.uint16, [0x3FC0])
assert codec.encode_tensor("x", back)[0] == "UINT16"
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_the_client_brings_no_server_along() -> None:
    program = """
import sys
import nexus_grpc.client
ours = {name.split(".")[1] for name in sys.modules if name.startswith("nexus_grpc.")}
assert ours == {"client", "pb"}, ours
assert not {"onnxruntime", "pydantic", "workers"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros(2, complex), "dtype complex128"),
        (np.array(["2026-01-01"], "M8[D]"), "datetime64"),
        ([["a", 1, None]], "element 1 is int"),
        (np.array(["\ud800"], object), "element 0 can't be encoded"),
        ([[1, 2], [3]], "inhomogeneous"),
    ],
)
def test_what_cannot_be_sent(value: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        codec.encode_tensor("x", np.array(value, object) if isinstance(value, list) and "a" in value[0] else value)
    assert "'x'" in caught.value.message


@pytest.mark.parametrize(("dtype", "datatype"), [("f4", "FP64"), ("f4", "BF16"), ("O", "FP32"), ("u2", "INT16")])
def test_a_datatype_that_does_not_fit_the_array(dtype: str, datatype: str) -> None:
    with pytest.raises(InvalidInput, match=f"can't be sent as {datatype}"):
        codec.encode_tensor("x", np.zeros(1, dtype), datatype)


@given(
    st.sampled_from([*BY_NAME, "BF16", "STRING", ""]),
    st.lists(st.integers(-2, 5), max_size=4),
    st.binary(max_size=64),
)
def test_any_answer_is_decoded_or_refused(datatype: str, shape: list[int], raw: bytes) -> None:
    outcome: Any
    try:
        outcome = codec.decode_tensor("y", datatype, shape, raw)
    except NexusClientError as error:
        outcome = error
    if isinstance(outcome, NexusClientError):
        assert (outcome.code, outcome.reason) == ("INTERNAL", "MALFORMED_ANSWER")
        assert "'y'" in outcome.message
    else:
        assert outcome.shape == tuple(shape)


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("BOOL", "bool_contents", [True, False]),
        ("INT8", "int_contents", [-128, 127]),
        ("UINT32", "uint_contents", [0, 2**32 - 1]),
        ("INT64", "int64_contents", [-(2**63), 2**63 - 1]),
        ("UINT64", "uint64_contents", [0, 2**64 - 1]),
        ("FP32", "fp32_contents", [0.5, -1.0]),
        ("FP64", "fp64_contents", [0.1, 1e300]),
        ("BYTES", "bytes_contents", [b"a", b"\xff"]),
    ],
)
def test_typed_contents(datatype: str, field: str, values: list[Any]) -> None:
    contents = pb.InferTensorContents(**{field: values})
    array = codec.decode_typed("y", datatype, [2, 1], contents)
    assert array.ravel().tolist() == values
    assert array.shape == (2, 1)
    with pytest.raises(NexusClientError, match="2 elements for shape"):
        codec.decode_typed("y", datatype, [3], contents)


def test_typed_contents_out_of_range() -> None:
    with pytest.raises(NexusClientError, match="does not fit INT8"):
        codec.decode_typed("y", "INT8", [1], pb.InferTensorContents(int_contents=[300]))


@given(
    st.one_of(
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(allow_nan=False),
        st.text(st.characters(codec="utf-8")),
    )
)
def test_parameters_come_back(value: bool | int | float | str) -> None:
    back = codec.decode_parameter(pb.InferParameter.FromString(codec.encode_parameter("p", value).SerializeToString()))
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, None, b"bytes", [1]])
def test_parameters_that_cannot_be(value: Any) -> None:
    with pytest.raises(InvalidInput, match="parameter 'p'"):
        codec.encode_parameter("p", value)


def test_rows() -> None:
    assert codec.encode_row([1, 2.5]) == ([1.0, 2.5], [])
    assert codec.encode_row(np.arange(4, dtype=np.float32).reshape(2, 2)) == ([0.0, 1.0, 2.0, 3.0], [])
    assert codec.encode_row([True, False]) == ([1.0, 0.0], [])
    assert codec.encode_row(np.array([1.5], ml_dtypes.bfloat16)) == ([1.5], [])
    assert codec.encode_row(["a", "ü"]) == ([], ["a", "ü"])
    assert codec.encode_row(np.array([b"b"], object)) == ([], ["b"])
    assert codec.encode_row([2**53]) == ([2.0**53], [])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([2**53 + 1, 2**54], "not exact as a double"),
        ([1j], "complex"),
        (np.array([b"\xff"], object), "not UTF-8"),
        (np.array(["\ud800"], object), "not UTF-8"),
        (np.array([None]), "NoneType"),
    ],
)
def test_rows_that_cannot_be(row: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        codec.encode_row(row)

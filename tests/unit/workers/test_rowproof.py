"""What the verdict says of whole models: odd inputs, functions, weights left out, files that are none."""

import pathlib

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from nexus_grpc.worker.rowproof import proof
from nexus_grpc.worker.rowproof.proof import prove, prove_file
from nexus_grpc.worker.rowproof.skim import SMALL_BYTES, skim
from nexus_grpc.worker.rowproof.table import RANDOM, RULES

from .rowgraphs import graph, run

ROOT = pathlib.Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("inputs", "why"),
    [
        ("float[4] x", "no first dimension of any size"),
        ("float x", "no first dimension of any size"),
        ("float[] x", "no declared number of dimensions"),
        ("float[n, 4] x, float[4] x2", "input 'x2' has no first dimension of any size"),
        ("seq(float[n]) x", "no declared number of dimensions"),
        ("", "no inputs"),
    ],
)
def test_inputs_that_are_no_rows_are_refused(inputs: str, why: str) -> None:
    body = "y = Relu(x)" if inputs else "y = Constant<value = float[2] {1, 2}>()"
    verdict = prove(graph(body, inputs))
    assert not verdict.rows_apart
    assert why in verdict.text


def test_an_output_without_rows_is_refused() -> None:
    verdict = prove(graph("y = Neg(w) z = Relu(x)", consts="float[2] w = {1, 2}", outputs="z, y"))
    assert "output 'y' does not hold a row" in verdict.text


def test_an_output_with_several_rows_for_one_is_refused() -> None:
    verdict = prove(graph("y = Reshape(x, s)", consts="int64[1] s = {-1}"))
    assert "rows of output 'y' are not its first dimension" in verdict.text


def test_what_a_file_claims_of_shapes_is_not_believed() -> None:
    model = graph("t = Transpose(x) y = Reshape(t, s)", "float[n, m] x", "int64[2] s = {0, 2}")
    claim = helper.make_tensor_value_info("t", TensorProto.FLOAT, ["n", 2])
    model.graph.value_info.append(claim)
    assert not prove(model).rows_apart


def test_what_a_file_claims_of_an_initialiser_is_not_believed() -> None:
    """Were `w` one element wide along the batch, the sum would keep rows apart."""
    model = graph("v = Neg(w) y = Add(x, v)", "float[n, 2] x", "float[2, 2] w = {1, 2, 3, 4}")
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [1, 2]))
    assert "its own extent along the batch axis" in prove(model).text


def test_an_output_of_a_branch_is_not_taken_for_a_scalar() -> None:
    """The two branches are of different shapes: which is taken depends on the rows' length."""
    branches = "<then_branch = g1 () => (float[3, 1] t) { t = Identity(tall) }"
    branches += ", else_branch = g2 () => (float e) { e = Identity(half) }>"
    body = f"s = Shape(x) l = Gather(s, one) c = Greater(l, one) b = If {branches} (c) d = Neg(b) y = Add(x, d)"
    consts = "int64 one = {1}, float[3, 1] tall = {1, 2, 3}, float half = {0.5}"
    assert_meeting(graph(body, "float[n, h] x", consts))


def test_einsum_widens_what_is_one_element_wide() -> None:
    """ONNX's inference takes a dimension for what the first operand says."""
    body = """w = Einsum<equation = "a,ba->ba">(one, x) t = Transpose(w) f = Reshape(t, all) s = Shape(x)
        n = Gather(s, first) r = Concat<axis = 0>(n, all) y = Reshape(f, r)"""
    consts = "float[1] one = {1}, int64[1] all = {-1}, int64[1] first = {0}"
    assert_meeting(graph(body, "float[n, h] x", consts))


def assert_meeting(model: onnx.ModelProto) -> None:
    """It is not proved, and rightly so."""
    feeds = {"x": np.arange(6, dtype=np.float32).reshape(3, 2)}
    [first, *_] = run(model, {"x": feeds["x"][:1]})
    [together, *_] = run(model, feeds)
    assert not np.array_equal(together[:1], first)
    assert not prove(model).rows_apart


def test_a_slice_that_begins_before_the_beginning_is_read_as_onnx_reads_it() -> None:
    """Going backwards from there, ONNX takes the first element and Python none."""
    body = "s = Shape(x) c = Slice(s, before, first, i0, back) t = Concat<axis = 0>(c, four) y = Reshape(x, t)"
    consts = (
        "int64[1] before = {-9}, int64[1] first = {-99}, int64[1] i0 = {0}, int64[1] back = {-1}, int64[1] four = {4}"
    )
    assert not prove(graph(body, consts=consts)).rows_apart


@pytest.mark.parametrize(("kind", "numbers"), [(np.int32, (2**31 - 1, 2**31 - 1, 3)), (np.uint8, (128, 128, 1))])
def test_integers_that_wrap_round_are_not_followed(kind: type, numbers: tuple[int, int, int]) -> None:
    """The slice takes the first row, though its end is beyond all rows for whoever adds without wrapping."""
    body = "s = Add(a, b) t = Add(s, c) u = Cast<to = 7>(t) e = Mul(u, big) f = Slice(x, z, e, z) y = Add(x, f)"
    model = graph(body, consts=f"int64[1] z = {{0}}, int64[1] big = {{{1 if kind is np.int32 else 2**30}}}")
    for name, number in zip("abc", numbers, strict=True):
        model.graph.initializer.append(numpy_helper.from_array(np.array([number], kind), name))
    assert "it cuts the batch" in prove(model).text


def test_a_product_that_wraps_round_is_not_followed() -> None:
    consts = "int32[3] a = {65536, 65536, 2}, int64[1] z = {0}"
    body = "p = ReduceProd<axes = [0]>(a) e = Cast<to = 7>(p) f = Slice(x, z, e, z) y = Add(x, f)"
    assert "it cuts the batch" in prove(graph(body, consts=consts, opset=17)).text


def test_a_remainder_that_keeps_its_sign_is_another() -> None:
    consts = "int64[1] a = {-5}, int64[1] b = {3}, int64[1] i0 = {0}"
    body = (
        "p = Mod(a, b) q = Mod<fmod = 1>(a, b) s = Shape(x) n = Gather(s, i0) t = Concat<axis = 0>(n, p)"
        " u = Concat<axis = 0>(n, q) c = ConstantOfShape(t) y = Reshape(c, u)"
    )
    assert not prove(graph(body, consts=consts)).rows_apart


def test_a_sparse_constant_has_the_dimensions_that_it_stands_for() -> None:
    values, places = helper.make_tensor("v", 1, [2], [1.0, 2.0]), helper.make_tensor("p", 7, [2], [0, 19])
    model = graph("c = Identity(x) y = Add(x, c)")
    constant = helper.make_node("Constant", [], ["c"], sparse_value=helper.make_sparse_tensor(values, places, [5, 4]))
    model.graph.node[0].CopyFrom(constant)
    assert "its own extent along the batch axis" in prove(model).text


def test_small_weights_beside_the_file_are_weights_all_the_same(tmp_path: pathlib.Path) -> None:
    model = graph("y = Add(x, w)", consts="float[4] w = {1, 2, 3, 4}")
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones(4, np.float32), "w"))
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    assert prove_file(str(path)).rows_apart, prove_file(str(path)).text


def test_sizes_in_two_subgraphs_are_two_though_their_names_are_one() -> None:
    branches = [
        [
            helper.make_graph(
                [helper.make_node("Slice", ["x", "z", end, "o"], ["t"]), helper.make_node("Identity", ["t"], [name])],
                name,
                [],
                [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
            )
            for name in names
        ]
        for end, names in (("three", ("a1", "a2")), ("two", ("b1", "b2")))
    ]
    consts = "bool c = {1}, int64[1] z = {0}, int64[1] o = {1}, int64[1] three = {3}, int64[1] two = {2}"
    model = graph("p = Relu(x) q = Relu(x) s = Shape(q) y = Reshape(p, s)", "float[n, k] x", consts)
    for node, (then, other) in zip(model.graph.node, branches, strict=False):
        node.CopyFrom(helper.make_node("If", ["c"], list(node.output), then_branch=then, else_branch=other))
    assert "is given the shape" in prove(model).text


def test_dimensions_of_one_name_are_told() -> None:
    model = graph("y = Add(x, x2)", "float[n, length] x, float[n, 1, length] x2")
    assert not prove(model).rows_apart  # their batches do not line up
    model = graph("y = Add(x, x2)", "float[n, length] x, float[n, length] x2")
    assert prove(model).equal_sizes == ((("x", 0), ("x2", 0)),)


FUNCTION = """
<ir_version: 8, opset_import: ["": 18, "mine": 1]>
g (float[n, 4] x) => (float[n, 4] y) {{ y = mine.f(x) }}
<domain: "mine", opset_import: ["": 18]> f (a) => (b) {{ {body} }}
"""


def test_functions_are_looked_into() -> None:
    assert prove(onnx.parser.parse_model(FUNCTION.format(body="b = Relu(a)"))).rows_apart
    verdict = prove(onnx.parser.parse_model(FUNCTION.format(body="m = ReduceMax(a) b = Sub(a, m)")))
    assert verdict.op_type == "ReduceMax"


def test_a_function_that_calls_itself_is_refused() -> None:
    model = onnx.parser.parse_model(FUNCTION.format(body="b = Relu(a)"))
    model.functions[0].node.append(helper.make_node("f", ["a"], ["c"], domain="mine"))
    assert "too large" in prove(model).text


def test_a_function_in_the_place_of_an_operator_is_refused() -> None:
    model = graph("y = Relu(x)")
    own = helper.make_function("", "Relu", ["a"], ["b"], [helper.make_node("ReduceMax", ["a"], ["b"])], [])
    model.functions.append(own)
    assert "brings its own 'Relu'" in prove(model).text


def test_a_graph_that_takes_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "SECONDS_MAX", 0.0)
    assert "too large" in prove(graph("y = Relu(x)")).text


def test_a_node_that_takes_what_is_not_there_is_refused() -> None:
    """ONNX's inference, native code, dies of some."""
    model = graph("y = ai.onnx.ml.LabelEncoder<keys_int64s = [0], values_int64s = [1]>(x)", "int64[n, 4] x")
    model.graph.node[0].input[0] = "other"
    assert "'other' is used before it is made" in prove(model).text
    model = graph("y = Relu(x)")
    model.graph.output[0].name = "other"
    assert "output 'other' is never made" in prove(model).text


def test_a_rule_that_stumbles_proves_nothing() -> None:
    model = graph("y = Transpose(x)")
    model.graph.node[0].attribute.append(helper.make_attribute("perm", "text"))
    assert "not understood" in prove(model).text or "perm" in prove(model).text


@pytest.mark.parametrize("content", [b"", b"\x00", b"not a model", b"\x3a\xff\xff\xff\xff\x0f"])
def test_a_file_that_is_no_model_is_refused(tmp_path: pathlib.Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert not prove_file(str(path)).rows_apart
    assert not prove_file(str(tmp_path / "missing.onnx")).rows_apart


def test_weights_are_left_out_before_the_file_is_parsed() -> None:
    model = graph("y = MatMul(x, w)")
    big = np.zeros((4, SMALL_BYTES), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(big, "w"))
    thin = skim(memoryview(model.SerializeToString()))
    assert thin.ByteSize() < 1000
    assert list(thin.graph.initializer[0].dims) == [4, SMALL_BYTES]
    assert prove(thin).rows_apart


def test_a_small_model_is_read_whole() -> None:
    model = graph("y = Add(x, w)", consts="float[4] w = {1, 2, 3, 4}")
    assert skim(memoryview(model.SerializeToString())) == model


def test_the_demo_models_are_proved() -> None:
    verdicts = {path.parts[-3]: prove_file(str(path)) for path in ROOT.glob("models/*/*/model.onnx")}
    assert {name for name, verdict in verdicts.items() if not verdict.rows_apart} == {"fixed_batch", "scalar"}


def test_no_random_operator_is_in_the_table() -> None:
    assert not RANDOM & set(RULES)

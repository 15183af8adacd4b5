"""Each operator of the table: a graph in which it keeps rows apart is proved, and onnxruntime agrees; one in which it
does not is refused, at that operator."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from nexus_grpc.worker.rowproof.proof import prove
from nexus_grpc.worker.rowproof.table import RULES

from .rowgraphs import alone, graph, run

ROWS = 3
IMAGE = "float[n, 2, 6, 6] x"
SEQUENCE = "float[n, 3, 4] x"
UINT8 = "uint8[n, 4] x"
TEXT = "string[n] x"
INTEGERS = "int64[n, 4] x"
MATRIX = "float[4, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7}"
SCALE = "float s = {0.5}, uint8 z = {3}"
ONE = "int64[1] i = {1}"


@dataclasses.dataclass(frozen=True)
class Case:
    body: str
    inputs: str = "float[n, 4] x"
    consts: str = ""
    opset: int = 18
    outputs: str = "y"

    def model(self) -> Any:
        return graph(self.body, self.inputs, self.consts, self.opset, self.outputs)


LINEAR = """
    s = Shape(x) n = Gather(s, i0) l = Gather(s, i1) r = Range(i0, n, i1) p = Range(i0, l, i1) q = Add(p, {place})
    ru = Unsqueeze(r, a123) pu = Unsqueeze(q, a012) m = Mul(ru, l) t = Add(pu, m) f = Reshape(x, all)
    g = Gather<axis = 0>(f, t) y = Cast<to = 1>(g)
"""
LINEAR_CONSTANTS = """int64 i0 = {0}, int64 i1 = {1}, int64[1] all = {-1}, int64[3] a123 = {1, 2, 3},
    int64[3] a012 = {0, 1, 2}"""
PROVED = {
    "elementwise": Case("a = Relu(x) b = Mul(a, x) y = Add(b, w)", consts="float[4] w = {1, 2, 3, 4}"),
    "a scalar": Case("y = Div(x, w)", consts="float w = {3}"),
    "Where": Case("c = Greater(x, w) y = Where(c, x, w)", consts="float w = {0}"),
    "Identity": Case("y = Identity(x)"),
    "Cast": Case("y = Cast<to = 11>(x)"),
    "Clip": Case("y = Clip(x, w)", consts="float w = {0}"),
    "Dropout": Case("y = Dropout(x)"),
    "QuantizeLinear": Case("q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)", consts=SCALE),
    "a constant table": Case("y = Gather<axis = 0>(w, x)", INTEGERS, "float[3] w = {1, 2, 3}"),
    "Gather": Case("y = Gather<axis = 1>(x, i)", consts="int64[2] i = {3, 0}"),
    "GatherElements": Case("t = ArgMax<axis = 1>(x) y = GatherElements<axis = 1>(x, t)"),
    "ScatterElements": Case(
        "t = ArgMax<axis = 1>(x) u = Neg(t) v = Cast<to = 1>(u) y = ScatterElements<axis=1>(x, t, v)"
    ),
    "Slice": Case("y = Slice(x, i, e, i)", consts=f"{ONE}, int64[1] e = {{3}}"),
    "all of the batch": Case("y = Slice(x, i, e, i)", consts="int64[1] i = {0}, int64[1] e = {9223372036854775807}"),
    "OneHot": Case("y = OneHot(x, d, v)", INTEGERS, "int64 d = {4}, float[2] v = {0, 1}"),
    "OneHotEncoder": Case("y = ai.onnx.ml.OneHotEncoder<cats_int64s = [0, 1]>(x)", INTEGERS),
    "ArrayFeatureExtractor": Case("y = ai.onnx.ml.ArrayFeatureExtractor(x, i)", consts="int64[2] i = {1, 2}"),
    "MatMul": Case("y = MatMul(x, w)", consts=MATRIX),
    "MatMul of rows": Case("t = Transpose<perm = [0, 2, 1]>(x) y = MatMul(x, t)", SEQUENCE),
    "MatMulInteger": Case("y = MatMulInteger(x, w, z)", UINT8, "uint8[4, 1] w = {1, 2, 3, 4}, uint8 z = {3}"),
    "QLinearMatMul": Case(
        "y = QLinearMatMul(x, s, z, w, s, z, s, z)", UINT8, f"{SCALE}, uint8[4, 1] w = {{1, 2, 3, 4}}"
    ),
    "Gemm": Case("y = Gemm<transB = 1>(x, w, c)", consts=f"{MATRIX}, float[4] c = {{1, 2, 3, 4}}"),
    "FusedMatMul": Case("y = com.microsoft.FusedMatMul<transB = 1>(x, w)", consts=MATRIX),
    "Einsum": Case('y = Einsum<equation = "nij,nkj->nik">(x, x)', SEQUENCE),
    "CDist": Case('y = com.microsoft.CDist<metric = "euclidean">(x, w)', consts=MATRIX),
    "Softmax": Case("y = Softmax<axis = 1>(x)"),
    "old Softmax": Case("y = Softmax<axis = 1>(x)", opset=11),
    "ReduceMean": Case("y = ReduceMean(x, i)", consts=ONE),
    "ReduceSumSquare": Case("y = ReduceSumSquare<keepdims = 0>(x, i)", consts="int64[1] i = {-1}"),
    "ArgMin": Case("y = ArgMin<axis = 1, keepdims = 0>(x)"),
    "CumSum": Case("y = CumSum(x, i)", consts=ONE),
    "TopK": Case("y, t = TopK<axis = 1>(x, i)", consts=ONE, outputs="y, t"),
    "LpNormalization": Case("y = LpNormalization<axis = 1>(x)"),
    "LayerNormalization": Case("y = LayerNormalization(x, w)", consts="float[4] w = {1, 2, 3, 4}"),
    "SkipLayerNormalization": Case(
        "y = com.microsoft.SkipLayerNormalization(x, x, w)", SEQUENCE, "float[4] w = {1, 2, 3, 4}"
    ),
    "MeanVarianceNormalization": Case("y = MeanVarianceNormalization<axes = [2, 3]>(x)", IMAGE),
    "LSTM": Case(
        "t = Transpose<perm = [1, 0, 2]>(x) a, b, c = LSTM<hidden_size = 1>(t, w, r) y = Squeeze(b, i)",
        "float[n, 3, 1] x",
        "float[1, 4, 1] w = {1, 2, 3, 4}, float[1, 4, 1] r = {1, 2, 3, 4}, int64[1] i = {0}",
    ),
    "Reshape": Case("y = Reshape(x, t)", consts="int64[3] t = {-1, 2, 2}"),
    "Reshape by 0": Case("y = Reshape(x, t)", consts="int64[3] t = {0, 2, -1}"),
    # A sentence encoder's mask[row, place], as exporters without GatherND write it.
    "linear indices": Case(LINEAR.format(place="i0"), "int64[n, l] x", LINEAR_CONSTANTS),
    # An OCR recogniser's: right for a height of 1, and else what onnxruntime's optimiser makes of it.
    "Reshape of each row's own": Case(
        "s = Shape(x) l = Slice(s, two, three) t = Concat<axis = 0>(zero, one, l) y = Reshape(x, t)",
        "float[n, h, w] x",
        "int64[1] two = {2}, int64[1] three = {3}, int64[1] zero = {0}, int64[1] one = {1}",
    ),
    "Reshape by Shape": Case(
        "s = Shape(x) a = Gather(s, z) u = Unsqueeze(a, q) t = Concat<axis = 0>(u, k) y = Reshape(x, t)",
        consts="int64 z = {0}, int64[1] q = {0}, int64[2] k = {2, -1}",
    ),
    "merged and parted": Case(
        "t = Transpose<perm = [1, 0, 2]>(x) m = Reshape(t, f) g = MatMul(m, w) s = Shape(t) b = Reshape(g, s)"
        " y = Transpose<perm = [1, 0, 2]>(b)",
        SEQUENCE,
        f"{MATRIX}, int64[2] f = {{-1, 4}}",
    ),
    "attention as torch has it": Case(
        "t = Transpose<perm = [1, 0, 2]>(x) sh = Shape<start = 0, end = 2>(t) l = Gather(sh, i0) nn = Gather(sh, i)"
        " bh = Mul(nn, two) th = Concat<axis = 0>(l, bh, two) q = Reshape(t, th) h = Transpose<perm = [1, 0, 2]>(q)"
        " k = Transpose<perm = [0, 2, 1]>(h) s = MatMul(h, k) p = Softmax<axis = 2>(s) c = MatMul(p, h)"
        " d = Transpose<perm = [1, 0, 2]>(c) ln = Mul(l, nn) tf = Concat<axis = 0>(ln, four) f = Reshape(d, tf)"
        " g = Gemm(f, w) tb = Concat<axis = 0>(l, nn, four) o = Reshape(g, tb) y = Transpose<perm = [1, 0, 2]>(o)",
        SEQUENCE,
        f"{MATRIX}, int64[1] i0 = {{0}}, {ONE}, int64[1] two = {{2}}, int64[1] four = {{4}}",
    ),
    "Flatten": Case("y = Flatten<axis = 1>(x)", SEQUENCE),
    "Squeeze": Case("u = Unsqueeze(x, i) y = Squeeze(u, i)", consts=ONE),
    "Transpose": Case("y = Transpose<perm = [0, 2, 1]>(x)", SEQUENCE),
    "Tile": Case("y = Tile(x, i)", consts="int64[2] i = {1, 2}"),
    "Expand": Case("y = Expand(x, i)", "float[n, 1] x", "int64[2] i = {1, 3}"),
    "ConstantOfShape": Case("s = Shape(x) c = ConstantOfShape(s) y = Add(c, x)"),
    "Range": Case(
        "s = Shape<start = 0, end = 1>(x) q = Squeeze(s, z) r = Range(o, q, e) u = Unsqueeze(r, a) m = Expand(u, s2)"
        " v = Unsqueeze(m, b) t = Concat<axis = 0>(s, k2) k = Expand(k0, t) c = Concat<axis = 2>(v, k)"
        " y = GatherND(x, c)",
        "int64[n, 4] x",
        "int64[1] z = {0}, int64 o = {0}, int64 e = {1}, int64[1] a = {1}, int64[2] s2 = {1, 2}, int64[1] b = {2},"
        " int64[2] k2 = {2, 1}, int64[1, 2, 1] k0 = {3, 1}",
    ),
    "Concat": Case("y = Concat<axis = 1>(x, x)"),
    "Pad": Case("y = Pad(x, p)", consts="int64[4] p = {0, 1, 0, 1}"),
    "Split": Case("a, b = Split<axis = 1>(x, s) y = Add(a, b)", consts="int64[2] s = {2, 2}"),
    "Resize": Case("y = Resize(x, , s)", IMAGE, "float[4] s = {1, 1, 2, 2}"),
    "Resize, linear": Case('y = Resize<mode = "linear">(x, , s)', IMAGE, "float[4] s = {1, 1, 2, 2}"),
    "Resize, cubic": Case('y = Resize<mode = "cubic">(x, , s)', IMAGE, "float[4] s = {1, 1, 2, 2}"),
    "Resize of a signal, nearest": Case("y = Resize(x, , s)", "float[n, 2, 4] x", "float[3] s = {1, 1, 2}"),
    "Trilu": Case("y = Trilu(x)", SEQUENCE),
    "Conv": Case("y = Conv(x, w)", "float[n, 1, 6, 6] x", "float[1, 1, 2, 2] w = {1, 2, 3, 4}"),
    "MaxPool": Case("y = MaxPool<kernel_shape = [2, 2]>(x)", IMAGE),
    "GlobalAveragePool": Case("y = GlobalAveragePool(x)", IMAGE),
    "InstanceNormalization": Case("y = InstanceNormalization(x, w, w)", IMAGE, "float[2] w = {1, 2}"),
    "BatchNormalization": Case("y = BatchNormalization(x, w, w, w, w)", IMAGE, "float[2] w = {1, 2}"),
    "SpaceToDepth": Case("y = SpaceToDepth<blocksize = 2>(x)", IMAGE),
    "DFT": Case("y = DFT<axis = 1>(x)", "float[n, 4, 1] x"),
    "LinearRegressor": Case("y = ai.onnx.ml.LinearRegressor<coefficients = [1.0, 2.0, 3.0, 4.0]>(x)"),
    "Scaler": Case("y = ai.onnx.ml.Scaler<offset = [1.0], scale = [2.0]>(x)"),
    "LabelEncoder": Case('y = ai.onnx.ml.LabelEncoder<keys_int64s = [0, 1], values_strings = ["a", "b"]>(x)', INTEGERS),
    "StringNormalizer": Case('y = StringNormalizer<case_change_action = "NONE">(x)', TEXT),
    "MurmurHash3": Case("y = com.microsoft.MurmurHash3(x)", TEXT),
    "If": Case(
        "s = Shape(x) d = Gather(s, i) e = Equal(d, f) c = Squeeze(e) y = If(c) <then_branch = g () => (float[a] t)"
        " { t = Neg(x) }, else_branch = h () => (float[a] t) { t = Relu(x) }>",
        consts=f"{ONE}, int64[1] f = {{4}}",
    ),
}

SCAN = (
    "a, y = Scan({state}, {along}) <num_scan_inputs = 1, body = g (float[a, b] s, float[c] t)"
    " => (float[a, b] next, float[a] made)"
    " {{ next = {next} d = Sub(s, t) made = ReduceSumSquare<keepdims = 0>(d, one) }}>"
)
PROVED["Scan"] = Case(
    SCAN.format(state="x", along="w", next="Identity(s)").replace("a, y =", "a, m =") + " y = Transpose(m)",
    consts=f"{MATRIX}, int64[1] one = {{1}}",
)

REFUSED = {
    "Scan along the batch": Case(
        SCAN.format(state="w", along="x", next="Identity(s)"), consts=f"{MATRIX}, int64[1] one = {{1}}"
    ),
    "Scan whose rows meet": Case(
        "m = ReduceMax<keepdims = 0>(x) " + SCAN.format(state="x", along="w", next="Sub(s, m)"),
        consts=f"{MATRIX}, int64[1] one = {{1}}",
    ),
    "Scan whose state becomes rows": Case(
        SCAN.format(state="v", along="w", next="Add(s, x)"),
        consts=f"{MATRIX}, float[1, 4] v = {{1, 2, 3, 4}}, int64[1] one = {{1}}",
    ),
    "Scan without a sure turn": Case(
        "t = Transpose<perm = [1, 0, 2]>(z) " + SCAN.format(state="x", along="t", next="Identity(s)"),
        "float[n, 4] x, float[n, k, 4] z",
        "int64[1] one = {1}",
    ),
    "elementwise": Case("t = Transpose(x) y = Add(t, x)"),
    "a constant for each row": Case("y = Add(x, w)", consts="float[2, 4] w = {1, 2, 3, 4, 5, 6, 7, 8}"),
    "Clip": Case("m = ReduceMax<keepdims = 0>(x) y = Clip(x, m)"),
    "QuantizeLinear": Case("y = QuantizeLinear<axis = 0>(x, s, z)", consts="float[2] s = {1, 2}, uint8[2] z = {0, 0}"),
    "Gather": Case("y = Gather<axis = 0>(x, i)", consts="int64[2] i = {1, 0}"),
    "both sides of Gather": Case("t = ArgMax<axis = 1>(x) y = Gather<axis = 1>(x, t)"),
    "GatherElements": Case("y = GatherElements<axis = 0>(x, x2)", "float[n, 4] x, int64[n, 4] x2"),
    "GatherND": Case("y = GatherND(x, x2)", "float[n, 4] x, int64[n, 1] x2"),
    "ScatterElements": Case("y = ScatterElements<axis = 0>(x, x2, x)", "float[n, 4] x, int64[n, 4] x2"),
    "Slice": Case(
        "y = Slice(x, i, e, a, s)", consts="int64[1] i={-1}, int64[1] e={-99}, int64[1] a={0}, int64[1] s={-1}"
    ),
    "OneHot by rows": Case("m = ReduceMax<keepdims = 0>(x) y = OneHot(x, m, v)", INTEGERS, "float[2] v = {0, 1}"),
    "ArrayFeatureExtractor": Case("t = Transpose(x) y = ai.onnx.ml.ArrayFeatureExtractor(t, i)", consts=ONE),
    "MatMul": Case("t = Transpose(x) y = MatMul(x, t)"),
    "MatMul sums": Case("t = Transpose(x) y = MatMul(t, x)"),
    "MatMulInteger": Case("y = MatMulInteger(x, w, z)", UINT8, "uint8[4, 1] w = {1, 2, 3, 4}, uint8[2] z = {3, 4}"),
    "Gemm": Case("y = Gemm<transA = 1>(x, x)"),
    "Einsum": Case('y = Einsum<equation = "ni,nj->ij">(x, x)'),
    "CDist": Case('y = com.microsoft.CDist<metric = "euclidean">(x, x)'),
    "Softmax": Case("y = Softmax<axis = 0>(x)"),
    "old Softmax": Case("y = Softmax<axis = 0>(x)", opset=11),
    "ReduceMax": Case("m = ReduceMax<keepdims = 0>(x) y = Sub(x, m)"),
    "ReduceMean": Case("y = ReduceMean(x, i)", consts="int64[1] i = {0}"),
    "ArgMax": Case("y = ArgMax<axis = -2>(x)"),
    "CumSum": Case("y = CumSum(x, i)", consts="int64[1] i = {0}"),
    "TopK": Case("y, t = TopK<axis = 0>(x, i)", consts=ONE),
    "LpNormalization": Case("y = LpNormalization<axis = 0>(x)"),
    "LayerNormalization": Case("y = LayerNormalization<axis = 0>(x, w)", consts=MATRIX),
    "MeanVarianceNormalization": Case("y = MeanVarianceNormalization(x)", IMAGE),
    "LSTM": Case(
        "a, y, c = LSTM<hidden_size = 1>(x, w, r)",
        "float[n, 3, 1] x",
        "float[1, 4, 1] w = {1, 2, 3, 4}, float[1, 4, 1] r = {1, 2, 3, 4}",
    ),
    "Reshape": Case("t = Transpose(x) y = Reshape(t, s)", consts="int64[2] s = {-1, 4}"),
    "Reshape to what is fixed": Case("y = Reshape(x, s)", consts="int64[2] s = {2, -1}"),
    "linear indices beyond a row": Case(LINEAR.format(place="i1"), "int64[n, l] x", LINEAR_CONSTANTS),
    "Reshape by a 0 that is computed": Case(
        "s = Shape(x) b = Slice(s, i, j) z = Sub(b, b) t = Concat<axis = 0>(z, j) y = Reshape(x, t)",
        "float[n, h] x",
        "int64[1] i = {1}, int64[1] j = {2}",
    ),
    "Flatten": Case("y = Flatten<axis = 0>(x)"),
    "Squeeze": Case("y = Squeeze(x)"),
    "Transpose": Case("y = Transpose(x)"),
    "Tile": Case("y = Tile(x, i)", consts="int64[2] i = {2, 1}"),
    "Expand": Case("u = Unsqueeze(x, i) s = Shape(u) y = Expand(x, s)", consts=ONE),
    "row numbers": Case(
        "s = Shape<start = 0, end = 1>(x) q = Squeeze(s, z) r = Range(o, q, e) y = Cast<to = 1>(r)",
        consts="int64[1] z = {0}, int64 o = {0}, int64 e = {1}",
    ),
    "Concat": Case("y = Concat<axis = 0>(x, x)"),
    "Pad": Case("y = Pad(x, p)", consts="int64[4] p = {1, 0, 0, 0}"),
    "Split": Case("y, b = Split<axis = 0>(x, s)", consts="int64[2] s = {1, 2}"),
    "Resize": Case("y = Resize(x, , s)", IMAGE, "float[4] s = {2, 1, 1, 1}"),
    # onnxruntime weighs the next row with nought, and 0 · NaN is NaN.
    "Resize of a signal": Case('y = Resize<mode = "linear">(x, , s)', "float[n, 2, 4] x", "float[3] s = {1, 1, 2}"),
    "Resize of a vector": Case('y = Resize<mode = "cubic">(x, , s)', consts="float[2] s = {1, 2}"),
    "a size by the number of rows": Case(
        "s = Shape(x) c = Slice(s, i0, i2) n = Gather(s, i0) k = Mul(n, six) t = Concat<axis = 0>(c, k, k)"
        " y = Resize(x, , , t)",
        IMAGE,
        "int64[1] i0 = {0}, int64[1] i2 = {2}, int64[1] six = {6}",
    ),
    "Trilu": Case("y = Trilu(x)"),
    "Conv": Case("t = Transpose<perm = [1, 0, 2, 3]>(x) y = Conv(t, w)", IMAGE, "float[1, 1, 2, 2] w = {1, 2, 3, 4}"),
    "MaxPool's indices": Case("y, t = MaxPool<kernel_shape = [2, 2]>(x)", IMAGE, outputs="y, t"),
    "BatchNormalization": Case(
        "y, m, v = BatchNormalization<training_mode = 1>(x, w, w, w, w)", IMAGE, "float[2] w = {1, 2}"
    ),
    "DFT": Case("y = DFT<axis = 0>(x)", "float[n, 4, 1] x"),
    "a vector for a table": Case("y = ai.onnx.ml.Scaler<offset = [1.0], scale = [2.0]>(x)", "float[n] x"),
    "stop words": Case('y = StringNormalizer<stopwords = ["a"]>(x)', TEXT),
    "If": Case(
        "m = ReduceMax<keepdims = 0>(x) z = Sub(m, m) c = Cast<to = 9>(z) y = If(c) <then_branch = g () => (float[a] t)"
        " { t = Neg(x) }, else_branch = h () => (float[a] t) { t = Relu(x) }>"
    ),
    "DynamicQuantizeLinear": Case("q, s, z = DynamicQuantizeLinear(x) y = DequantizeLinear(q, s, z)"),
    "NonZero": Case("y = NonZero(x)"),
    "Compress": Case("c = Squeeze(x2, i) y = Compress<axis = 0>(x, c)", "float[n, 4] x, bool[n, 1] x2", ONE),
    "Unique": Case("y = Unique(x)"),
    "random": Case("r = RandomNormalLike(x) y = Add(x, r)"),
    "random but fixed": Case("r = RandomNormal<shape = [4]>() y = Add(x, r)"),
    "an unknown library": Case("y = my.own.Relu(x)"),
    "a number of rows": Case("s = Shape<start = 0, end = 1>(x) f = Cast<to = 1>(s) y = Div(x, f)"),
}


def sample(model: Any) -> dict[str, Any]:
    """Rows that differ, for each input."""
    random = np.random.default_rng(3)
    feeds: dict[str, Any] = {}
    for item in model.graph.input:
        shape = [dim.dim_value or ROWS for dim in item.type.tensor_type.shape.dim]
        feeds[item.name] = {
            1: lambda shape=shape: random.normal(size=shape).astype(np.float32),
            2: lambda shape=shape: random.integers(0, 9, shape).astype(np.uint8),
            7: lambda shape=shape: random.integers(0, 2, shape),
            8: lambda shape=shape: np.array(["Ab", "c", "ABC"], dtype=object),
        }[item.type.tensor_type.elem_type]()
    return feeds


@pytest.mark.parametrize("case", PROVED.values(), ids=PROVED)
def test_rows_apart_are_proved_and_are_apart(case: Case) -> None:
    model = case.model()
    verdict = prove(case.model())
    assert verdict.rows_apart, verdict.text
    feeds = sample(model)
    for together, single in zip(run(model, feeds), alone(model, feeds), strict=True):
        if together.dtype.kind == "f":
            np.testing.assert_allclose(together, single, rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(together, single)


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_rows_that_meet_are_refused(case: Case) -> None:
    verdict = prove(case.model())
    assert not verdict.rows_apart
    assert "not understood" not in verdict.why
    assert "max_batch_size" in verdict.text


def test_every_rule_has_an_operator_of_its_own() -> None:
    assert len({rule.__name__ for rule in RULES.values()}) > 50


def test_the_verdict_names_the_node_that_decided() -> None:
    verdict = prove(REFUSED["ReduceMax"].model())
    assert (verdict.op_type, verdict.node) == ("ReduceMax", "m")
    assert verdict.text.startswith("requests are not batched: node 'm' (ReduceMax): it works along all axes")


@pytest.mark.parametrize("case", PROVED.values(), ids=PROVED)
@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38], ids=str)
def test_a_row_without_numbers_spoils_no_other(case: Case, value: float) -> None:
    """What an operator multiplies by nought, it had better not have looked at: 0 · NaN is NaN."""
    feeds = sample(case.model())
    for array in feeds.values():
        if array.dtype.kind == "f":
            array[1] = value
    for together, single in zip(run(case.model(), feeds), alone(case.model(), feeds), strict=True):
        others = [row for row in range(len(together)) if row != 1]
        if together.dtype.kind == "f":
            np.testing.assert_allclose(together[others], single[others], rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(together[others], single[others])

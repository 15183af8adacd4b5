"""Random graphs, of operators that keep rows apart and of others: what is proved gives in company what it gives alone.

Integers, booleans and text are equal; floats are as near as onnxruntime is to the truth: within four times its own
error against the same graph in double precision.
"""

import dataclasses
from typing import Any

import numpy as np
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from nexus_grpc.worker.rowproof.proof import prove
from nexus_grpc.worker.rowproof.skim import NotSkimmed, skim
from tests.effort import IS_LONG, examples
from tests.unit.workers.rowgraphs import alone, graph, run
from tests.unit.workers.test_rowproof_table import PROVED

CONSTANTS = """
    {T}[4, 4] w = {{0.5, -1, 0.25, 2, 1, 0.125, -0.5, 1, 0.75, 1, -1, 0.5, 2, -0.25, 1, 1}},
    {T}[4] c = {{1, -2, 3, 0.5}}, {T}[1, 4] c1 = {{0.5, 1, 2, 4}}, {T} half = {{0.5}}, int64[1] i0 = {{0}},
    int64[1] i1 = {{1}}, int64[1] i2 = {{2}}, int64[1] end = {{9223372036854775807}}, int64[1] back = {{-1}},
    int64[1] first = {{-9223372036854775807}}, int64[1] wide = {{4}}, int64[3] square = {{0, 2, 2}},
    int64[2] row = {{0, 4}}, int64[2] flat = {{-1, 4}}, int64[4] order = {{3, 1, 0, 2}}, int64[2] halves = {{1, 3}},
    int64[4] pads = {{0, 1, 0, 0}}, int64[2] swap = {{4, -1}}, int64[2] one_row = {{1, -1}}
"""
GRAPHS = 10_000 if IS_LONG else 60
# From a, [n, 4], to o, [n, 4]; T is the type. Nothing is discontinuous in what comes out of other steps.
APART = {
    "Tanh": "{o} = Tanh({a})",
    "Sigmoid": "{o} = Sigmoid({a})",
    "Add": "{o} = Add({a}, c)",
    "Mul": "{o} = Mul({a}, c1)",
    "itself": "{o} = Mul({a}, {a})",
    "the input": "{o} = Add({a}, x)",
    "MatMul": "{o} = MatMul({a}, w)",
    "Gemm": "{o} = Gemm<alpha = 0.5, transB = 1>({a}, w, c)",
    "Softmax": "{o} = Softmax<axis = 1>({a})",
    "ReduceMean": "{o}m = ReduceMean({a}, i1) {o} = Sub({a}, {o}m)",
    "ReduceMax": "{o}m = ReduceMax<keepdims = 0>({a}, i1) {o}u = Unsqueeze({o}m, i1) {o} = Sub({a}, {o}u)",
    "CumSum": "{o} = CumSum({a}, i1)",
    "TopK": "{o}, {o}i = TopK<axis = 1>({a}, wide)",
    "Gather": "{o} = Gather<axis = 1>({a}, order)",
    "turned round": "{o} = Slice({a}, back, first, i1, back)",
    "all of the batch": "{o} = Slice({a}, i0, end, i0, i1)",
    "Concat": "{o}h, {o}t = Split<axis = 1>({a}, halves) {o} = Concat<axis = 1>({o}t, {o}h)",
    "Pad": "{o}p = Pad({a}, pads) {o} = Slice({o}p, i0, wide, i1)",
    "Transpose": "{o}s = Reshape({a}, square) {o}t = Transpose<perm = [0, 2, 1]>({o}s) {o} = Reshape({o}t, row)",
    "rows turned": "{o}t = Transpose({a}) {o}m = MatMul(w, {o}t) {o} = Transpose({o}m)",
    "of a row with itself": "{o}s = Reshape({a}, square) {o}m = MatMul({o}s, {o}s) {o} = Reshape({o}m, flat)",
    "Shape": "{o}n = Shape<start = 0, end = 1>({a}) {o}t = Concat<axis = 0>({o}n, i2, i2) {o}s = Reshape({a}, {o}t)"
    " {o}z = Softmax<axis = 2>({o}s) {o} = Flatten({o}z)",
    "merged": "{o}s = Reshape({a}, square) {o}t = Transpose<perm = [1, 0, 2]>({o}s) {o}m = Reshape({o}t, pairs)"
    " {o}z = Softmax<axis = 1>({o}m) {o}n = Shape({o}t) {o}b = Reshape({o}z, {o}n)"
    " {o}v = Transpose<perm = [1, 0, 2]>({o}b) {o} = Reshape({o}v, row)",
    "Expand": "{o}n = Shape<start = 0, end = 1>({a}) {o}t = Concat<axis = 0>({o}n, wide) {o}e = Expand(c, {o}t)"
    " {o} = Add({a}, {o}e)",
    "Where": "{o}c = Greater(x, half) {o} = Where({o}c, {a}, c)",
    "GatherElements": "{o}i = ArgMin<axis = 1>(x) {o}g = GatherElements<axis = 1>({a}, {o}i) {o} = Sub({a}, {o}g)",
    "OneHot": "{o}i = ArgMax<axis = 1, keepdims = 0>(x) {o}h = OneHot({o}i, wide, zero_one)"
    " {o}f = Cast<to = {number}>({o}h) {o} = Mul({a}, {o}f)",
    "integers": "{o}i = Cast<to = 7>(x) {o}m = ReduceSum({o}i, i1) {o}f = Cast<to = {number}>({o}m)"
    " {o} = Add({a}, {o}f)",
}
# Rows meet in each of these.
MEETING = {
    "ReduceMax": "{o}m = ReduceMax<keepdims = 0>({a}) {o} = Sub({a}, {o}m)",
    "ReduceMean": "{o}m = ReduceMean({a}, i0) {o} = Sub({a}, {o}m)",
    "Softmax": "{o} = Softmax<axis = 0>({a})",
    "CumSum": "{o} = CumSum({a}, i0)",
    "turned round": "{o} = Slice({a}, back, first, i0, back)",
    "each with each": "{o}t = Transpose({a}) {o}m = MatMul({a}, {o}t) {o} = MatMul({o}m, {a})",
    "mixed by Reshape": "{o}t = Transpose({a}) {o} = Reshape({o}t, flat)",
    "mixed, and back": "{o}t = Reshape({a}, swap) {o}z = Softmax<axis = 1>({o}t) {o} = Reshape({o}z, flat)",
    "one row of all": "{o}t = Reshape({a}, one_row) {o}z = Softmax<axis = 1>({o}t) {o} = Reshape({o}z, flat)",
    "the first row": "{o}f = Slice({a}, i0, i1, i0) {o} = Sub({a}, {o}f)",
    "how many": "{o}n = Shape<start = 0, end = 1>({a}) {o}f = Cast<to = {number}>({o}n) {o} = Mul({a}, {o}f)",
    "indices through the batch": "{o}i = ArgMax<axis = 0>(x) {o}g = Gather<axis = 0>(x, i0) {o} = Add({a}, {o}g)",
}
STEPS = {**{("apart", name): text for name, text in APART.items()}, **{("meet", n): t for n, t in MEETING.items()}}


@dataclasses.dataclass(frozen=True)
class Built:
    steps: tuple[tuple[str, str], ...]

    def model(self, kind: str) -> Any:
        number = {"float": 1, "double": 11}[kind]
        constants = CONSTANTS.format(T=kind) + ", int64[2] pairs = {-1, 2}, float[2] zero_one = {0, 1}"
        lines, at = [], "x"
        for index, step in enumerate(self.steps):
            lines.append(STEPS[step].format(a=at, o=f"v{index}", number=number))
            at = f"v{index}"
        body = " ".join([*lines, f"y = Identity({at})", "s = ArgMax<axis = 1>(x)", "b = Greater(x, half)"])
        return graph(body, f"{kind}[n, 4] x", constants, outputs="y, s, b")


apart = st.tuples(st.just("apart"), st.sampled_from(sorted(APART)))
meeting = st.tuples(st.just("meet"), st.sampled_from(sorted(MEETING)))
row = st.lists(st.floats(-4, 4, width=32), min_size=4, max_size=4)
batch = st.lists(row, min_size=2, max_size=5).map(lambda rows: np.array(rows, np.float32))


@settings(max_examples=GRAPHS, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(apart, min_size=1, max_size=6), rows=batch)
def test_what_is_proved_gives_in_company_what_it_gives_alone(steps: Any, rows: Any) -> None:
    built = Built(tuple(steps))
    verdict = prove(built.model("float"))
    assert verdict.rows_apart, verdict.text
    model = built.model("float")
    [together, *exact], [single, *exact_single] = run(model, {"x": rows}), alone(model, {"x": rows})
    for one, other in zip(exact, exact_single, strict=True):
        np.testing.assert_array_equal(one, other)
    [truth, *_] = alone(built.model("double"), {"x": rows.astype(np.float64)})
    assume(np.isfinite(truth).all() and np.isfinite(single).all())
    # At least one step of a float at the largest value there was: a short sum may happen to be exact.
    own = max(float(np.abs(single - truth).max()), float(np.spacing(np.abs(single).max(initial=1e-30))))
    assert float(np.abs(together - single).max()) <= 4 * own


@settings(max_examples=GRAPHS, deadline=None, suppress_health_check=list(HealthCheck))
@given(before=st.lists(apart, max_size=3), step=meeting, after=st.lists(apart, max_size=3))
def test_rows_that_meet_anywhere_are_never_proved(before: Any, step: Any, after: Any) -> None:
    assert not prove(Built((*before, step, *after)).model("float")).rows_apart


edit = st.tuples(st.integers(0, 2000), st.sampled_from(["set", "cut", "put"]), st.binary(min_size=1, max_size=3))


@settings(max_examples=examples(200), deadline=None)
@given(case=st.sampled_from(sorted(PROVED)), edits=st.lists(edit, min_size=1, max_size=4))
def test_no_file_is_too_strange_for_a_verdict(case: str, edits: Any) -> None:
    content = bytearray(PROVED[case].model().SerializeToString())
    for at, how, what in edits:
        at %= len(content)
        content[at : at + (0 if how == "put" else len(what))] = b"" if how == "cut" else what
    try:
        model = skim(memoryview(bytes(content)))
    except NotSkimmed:
        return
    verdict = prove(model)
    assert verdict.rows_apart or verdict.why

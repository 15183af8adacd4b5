"""Every single claim of the walk, on random graphs of anything: what it says of a value is so in company and alone.

The proof says of each value what it is: the same for all batches, a count of rows, rows apart in some layout. A graph's
verdict may be right by chance where a claim inside it is wrong; here each is compared with what onnxruntime gives.
"""

import time
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nexus_grpc.worker.rowproof import proof
from nexus_grpc.worker.rowproof.sizes import N, Size
from nexus_grpc.worker.rowproof.values import Fixed, Lost, RowNumbers, RowPlaces, Rows, Sizes, Value
from nexus_grpc.worker.rowproof.walk import State, Walk, tensor_value
from tests.effort import IS_LONG
from tests.property.rowgraphs import Graph, session
from tests.property.rowsteps import STEPS

GRAPHS = 2_000 if IS_LONG else 40
STEPS_MAX = 20
Array = np.ndarray[Any, Any]


def built(seed: int) -> Graph:
    graph = Graph(seed)
    for _ in range(graph.random.randint(2, STEPS_MAX)):
        try:
            graph.random.choice(STEPS)(graph)
        except Exception:  # whatever onnxruntime, or a choice among nothing, says: that step is none
            continue
    return graph


def claims(graph: Graph) -> State:
    """What the walk says of each value that a node makes, but for what is lost."""
    names = [name for node in graph.nodes for name in node.output]
    model = graph.model(names)
    proof._forget_claims(model.graph)
    state: State = {item.name: proof._input_rows(item.name, item.type, {}) for item in model.graph.input}
    shapes = proof._inferred(model)
    state |= {tensor.name: tensor_value(tensor) for tensor in model.graph.initializer}
    Walk({"": 18, "com.microsoft": 1, "ai.onnx.ml": 3}, shapes, time.monotonic() + 60).run(model.graph.node, state)
    return {name: state[name] for name in names if not isinstance(state[name], Lost)}


def number_of(size: Any, rows: int) -> int | float | None:
    """A size as a number, where it is one for this batch."""
    if isinstance(size, Size):
        return size.factor * rows if size.symbols == (N,) else None
    return size


def close(one: Array, other: Array) -> bool:
    if one.shape != other.shape:
        return False
    return bool(np.allclose(one, other, rtol=2e-3, atol=1e-3, equal_nan=True))


def cut(claim: Rows, value: Array, rows: int, row: int) -> Array | None:
    """What a value holds of one row, by the claim; None where its layout is not known as numbers."""
    before, per_row = number_of(claim.before, rows), number_of(claim.per_row, rows)
    if before is None and per_row is None:
        return None
    length = value.shape[claim.axis]
    before = before or length // (rows * per_row)
    per_row = per_row or length // (rows * before)
    assert length == before * rows * per_row
    split = value.reshape(*value.shape[: claim.axis], before, rows, per_row, *value.shape[claim.axis + 1 :])
    own = np.take(split, row, axis=claim.axis + 1)
    return own.reshape(*value.shape[: claim.axis], before * per_row, *value.shape[claim.axis + 1 :])


def check(claim: Value, value: Array, alone: list[Array]) -> None:
    rows = len(alone)
    if claim.shape is not None:
        assert len(claim.shape) == value.ndim
        for size, real in zip(claim.shape, value.shape, strict=True):
            assert number_of(size, rows) in (None, real)
    if isinstance(claim, Fixed):
        assert all(close(value, one) for one in alone)
    if isinstance(claim, Fixed | Sizes) and claim.value is not None:
        for element, real in zip(claim.value.flat, value.flat, strict=True):
            assert number_of(element, rows) in (None, real)
    if isinstance(claim, Rows) and value.size:
        for row, one in enumerate(alone):
            own = cut(claim, value, rows, row)
            assert own is None or close(own, one)
    if isinstance(claim, RowNumbers) and not claim.columns:
        numbers = np.arange(rows).reshape([rows if axis == claim.axis else 1 for axis in range(value.ndim)])
        assert np.array_equal(np.broadcast_to(numbers, value.shape), value)

    if isinstance(claim, RowPlaces) and isinstance(claim.stride, int) and value.size:
        whose = np.moveaxis(value, claim.axis, 0).reshape(rows, -1) // claim.stride
        assert np.array_equal(whose, np.repeat(np.arange(rows), whose.shape[1]).reshape(whose.shape))


def batches(graph: Graph, names: list[str], other_sizes: bool, optimised: bool) -> Any:
    """(values in company, values of each row alone), by name, of batches that run."""
    run = session(graph.model(names), optimised).run
    for rows in (2, 3, 4):
        feeds = graph.feeds(rows, rows, other_sizes)
        try:
            together = run(None, feeds)
        except Exception:
            continue
        parts = []
        for row in range(rows):
            try:
                parts.append(run(None, {name: array[row : row + 1] for name, array in feeds.items()}))
            except Exception:
                parts.append(None)
        yield dict(zip(names, together, strict=True)), [part and dict(zip(names, part, strict=True)) for part in parts]


@settings(max_examples=GRAPHS, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
@given(seed=st.integers(0, 1 << 32))
def test_what_the_walk_says_of_a_value_is_so(seed: int) -> None:
    graph = built(seed)
    found = claims(graph)
    if not found:
        return
    for together, alone in batches(graph, list(found), other_sizes=False, optimised=False):
        if all(alone):
            for name, claim in found.items():
                check(claim, together[name], [part[name] for part in alone])


@settings(max_examples=GRAPHS, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
@given(seed=st.integers(0, 1 << 32))
def test_what_is_proved_gives_in_company_what_it_gives_alone(seed: int) -> None:
    """As the server runs it: optimised, with dimensions of other sizes, believed only where rows come out for rows."""
    graph = built(seed)
    apart = [name for name, claim in claims(graph).items() if isinstance(claim, Rows) and claim.axis == 0]
    for name in [name for name in apart if proof.prove(graph.model([name])).rows_apart][-2:]:
        for together, alone in batches(graph, [name], other_sizes=True, optimised=True):
            value = together[name]
            if value.ndim == 0 or len(value) != len(alone):
                continue
            for row, part in enumerate(alone):
                assert part is not None, "a row that fails alone is answered in company"
                assert not np.isfinite(part[name]).all() or close(value[row : row + 1], part[name])

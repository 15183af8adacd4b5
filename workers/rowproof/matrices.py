"""Products of matrices: the batch is among the rows of one, or stacked."""

from collections.abc import Sequence

from .elementwise import together
from .sizes import Dim, broadcast
from .values import Call, Fixed, NotProved, Rows, Shape, Value, is_single, need, need_fixed, rows

CONTRACTS = "it sums along the batch axis"


def _operand(value: Value | None) -> Rows | Fixed:
    if not isinstance(value, Rows | Fixed) or value.shape is None:
        raise NotProved("an operand counts rows, or its number of dimensions is not known")
    return value


def _shape(value: Rows | Fixed) -> Shape:
    return value.shape or ()


def _turned(value: Rows | Fixed, turn: bool) -> Rows | Fixed:
    """With the last two dimensions exchanged."""
    if not turn:
        return value
    shape = list(_shape(value))
    need(len(shape) >= 2, "a vector is transposed")
    shape[-1], shape[-2] = shape[-2], shape[-1]
    if isinstance(value, Fixed):
        return Fixed(tuple(shape))
    last = value.rank - 1
    axis = {last: last - 1, last - 1: last}.get(value.axis, value.axis)
    return value.with_shape(shape, axis)


def matmul(call: Call) -> Sequence[Value]:
    need(not call.get("transBatchA") and not call.get("transBatchB"), "batches are transposed")
    first = _turned(_operand(call.given(0)), bool(call.get("transA")))
    second = _turned(_operand(call.given(1)), bool(call.get("transB")))
    return [_product(first, second)]


def _product(first: Rows | Fixed, second: Rows | Fixed) -> Rows:
    one, other = _shape(first), _shape(second)
    need(len(one) >= 2 and other, "the first operand is a vector")
    if isinstance(first, Rows):
        need(first.axis != first.rank - 1, CONTRACTS)
    if len(other) == 1:
        if isinstance(first, Rows) and isinstance(second, Fixed):
            return first.with_shape(first.shape[:-1])
        raise NotProved(CONTRACTS)
    if isinstance(second, Rows):
        need(second.axis != second.rank - 2, CONTRACTS)
    if isinstance(first, Rows) and isinstance(second, Fixed) and first.axis == first.rank - 2:
        return _line_of(first, one, other, last=False)
    if isinstance(second, Rows) and isinstance(first, Fixed) and second.axis == second.rank - 1:
        return _line_of(second, one, other, last=True)
    return _stacked(first, second)


def _line_of(value: Rows, one: Shape, other: Shape, last: bool) -> Rows:
    """The batch is the matrix's own rows (or columns): each gives its own row (column) of the product."""
    lead: list[Dim] = [1] * (max(len(one), len(other)) - 2)
    for shape in (one[:-2], other[:-2]):
        for index, size in enumerate(shape, len(lead) - len(shape)):
            lead[index] = broadcast(lead[index], size)
    return value.with_shape([*lead, one[-2], other[-1]], len(lead) + last)


def _stacked(first: Rows | Fixed, second: Rows | Fixed) -> Rows:
    """The batch is among the dimensions that matrices are stacked in, in every operand that has it."""
    operands: list[Value] = []
    for value in (first, second):
        shape = (*_shape(value)[:-2], 1, 1)
        if isinstance(value, Rows):
            need(value.axis < value.rank - 2, "the operands' batch axes do not line up")
            operands.append(value.with_shape(shape))
        else:
            operands.append(Fixed(shape))
    laid = together(operands)
    return laid.with_shape([*laid.shape[:-2], _shape(first)[-2], _shape(second)[-1]])


def quantised_matmul(call: Call) -> Sequence[Value]:
    """Of integers: whatever scales and shifts the side with rows must be one fixed number."""
    second, others = (3, (1, 2, 4, 5, 6, 7)) if call.op_type == "QLinearMatMul" else (1, tuple(range(2, 8)))
    for index in others:
        need(is_single(call.given(index)), "a scale or zero point is not a single fixed number")
    return [_product(_operand(call.given(0)), _operand(call.given(second)))]


def integer_matmul(call: Call) -> Sequence[Value]:
    """MatMulInteger and com.microsoft:MatMulIntegerToFloat, whose fixed side may have scales by column."""
    to_float = call.op_type == "MatMulIntegerToFloat"
    of_rows, of_weights = ((2, 4), (3, 5, 6)) if to_float else ((2,), (3,))
    first, second = _operand(call.given(0)), _operand(call.given(1))
    for index in of_rows:
        need(is_single(call.given(index)), "a scale or zero point is not a single fixed number")
    if isinstance(second, Rows):
        for index in of_weights:
            need(is_single(call.given(index)), "a scale or zero point is not a single fixed number")
    for index in of_weights:
        value = call.given(index)
        need(value is None or isinstance(value, Fixed), "a scale depends on the batch")
        vector = value is None or (isinstance(value, Fixed) and value.shape is not None and len(value.shape) <= 1)
        need(vector, "a scale is no vector")
    return [_product(first, second)]


def gemm(call: Call) -> Sequence[Value]:
    value = rows(call)
    weights = _operand(call.given(1))
    need(isinstance(weights, Fixed), "both factors depend on the batch")
    need(value.rank == 2 and value.axis == 0 and not call.get("transA"), CONTRACTS)
    need(len(_shape(weights)) == 2, "its second operand is no matrix")
    width = _shape(weights)[0 if call.get("transB") else 1]
    out = value.with_shape([value.shape[0], width])
    return [together([out, *call.inputs[2:3]])]


def packed_matmul(call: Call) -> Sequence[Value]:
    """com.microsoft:MatMulNBits: by weights of few bits."""
    value = rows(call)
    need_fixed(call)
    need(value.axis < value.rank - 1, CONTRACTS)
    return [value.with_shape([*value.shape[:-1], call.attributes["N"]])]


def einsum(call: Call) -> Sequence[Value]:
    equation = call.attributes["equation"].replace(" ", "")
    need("->" in equation and "." not in equation, "its equation is not followed")
    left, out = equation.split("->")
    terms = left.split(",")
    operands = [_operand(value) for value in call.inputs]
    need(len(terms) == len(operands), "its equation does not fit")
    batched = [
        (term[value.axis], value) for term, value in zip(terms, operands, strict=True) if isinstance(value, Rows)
    ]
    letter, first = batched[0]
    need(all(each == letter and value.layout == first.layout for each, value in batched), "batch axes do not line up")
    need(out.count(letter) == 1, CONTRACTS)
    sizes: dict[str, Dim] = {}
    for term, value in zip(terms, operands, strict=True):
        own = term.count(letter)
        need(own == (1 if isinstance(value, Rows) else 0), "an operand has its own extent along the batch axis")
        need(len(term) == len(_shape(value)), "its equation does not fit")
        for name, size in zip(term, _shape(value), strict=True):
            sizes[name] = broadcast(sizes.get(name, 1), size)
    return [first.with_shape([sizes[name] for name in out], out.index(letter))]


def distances(call: Call) -> Sequence[Value]:
    """com.microsoft:CDist: of each row to each of a fixed table."""
    one, other = (_operand(value) for value in call.inputs)
    need(isinstance(one, Rows) != isinstance(other, Rows), "both operands depend on the batch")
    need(len(_shape(one)) == len(_shape(other)) == 2, "an operand is no matrix")
    value = one if isinstance(one, Rows) else other
    if not isinstance(value, Rows) or value.axis != 0:
        raise NotProved("it works along the batch axis")
    return [value.with_shape([_shape(one)[0], _shape(other)[0]], 0 if value is one else 1)]

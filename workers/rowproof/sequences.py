"""Recurrent networks and attention, where the batch is a dimension of its own."""

from collections.abc import Sequence

from .sizes import Dim
from .values import Call, Fixed, NotProved, Rows, Value, need, need_fixed, rows


def recurrent(call: Call) -> Sequence[Value]:
    """LSTM, GRU, RNN: [time, N, features], or [N, time, features] with layout 1."""
    value = rows(call)
    own = 0 if call.get("layout") else 1
    need(value.rank == 3 and value.axis == own, "the batch is not where it has the batch")
    need_fixed(call, 1, 4)
    need(call.given(4) is None, "its sequence lengths")
    for index in (5, 6):
        state = call.given(index)
        if state is not None:
            fits = isinstance(state, Rows) and (state.axis, state.rank, state.layout) == (own, 3, value.layout)
            need(fits, "an initial state is not made of rows")
    need_fixed(call, 7)
    directions = 2 if call.get("direction") == "bidirectional" else 1
    hidden: Dim = call.attributes.get("hidden_size") or call.size("hidden")
    if own == 0:
        every = value.with_shape([*value.shape[:2], directions, hidden])
        last = value.with_shape([value.shape[0], directions, hidden])
    else:
        every = value.with_shape([value.shape[0], directions, value.shape[1], hidden], 2)
        last = value.with_shape([directions, value.shape[1], hidden], 1)
    return [every, last, last][: call.outputs]


def _as_operand(value: Value | None, like: Rows, rank: int) -> None:
    fits = isinstance(value, Rows) and (value.axis, value.rank, value.layout) == (0, rank, like.layout)
    need(value is None or fits, "an operand is not made of rows")


def attention(call: Call) -> Sequence[Value]:
    """com.microsoft's Attention and MultiHeadAttention on [N, length, features]; a mask is [N, length]."""
    value = rows(call)
    packed = call.op_type == "Attention"
    need(value.axis == 0 and value.rank == 3 and call.outputs == 1, "its layout is not followed")
    for index in range(1 if packed else 3):
        _as_operand(call.given(index), value, 3)
    first_mask = 3 if packed else 4
    need_fixed(call, 1 if packed else 3, first_mask)
    _as_operand(call.given(first_mask), value, 2)
    need(not any(call.inputs[first_mask + 1 :]), "a past or a bias")
    return [value.with_shape([*value.shape[:2], call.size("features")])]


def embed(call: Call) -> Sequence[Value]:
    """com.microsoft:EmbedLayerNormalization on ids [N, length]."""
    value = rows(call)
    need(value.axis == 0 and value.rank == 2 and call.outputs <= 2, "its layout is not followed")
    need_fixed(call, 2, 7)
    for value_index in (1, 7, 8):
        _as_operand(call.given(value_index), value, 2)
    table = call.given(2)
    if not isinstance(table, Fixed) or table.shape is None:
        raise NotProved("its table's shape is not known")
    every = value.with_shape([*value.shape, table.shape[1]])
    return [every, value.with_shape(value.shape[:1])][: call.outputs]

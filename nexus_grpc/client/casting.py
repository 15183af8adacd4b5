"""Inputs as the model takes them: one array for the only input, and numpy's defaults (float64, int64) as what the model
has, where that loses nothing.
"""

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nexus_grpc.client.codec import NUMBERS
from nexus_grpc.client.errors import InvalidInput, NexusClientError, invalid
from nexus_grpc.client.results import TensorInfo

# What numpy makes of Python's numbers, which says nothing of what the caller meant.
_DEFAULTS = frozenset({"float64", "int64"})
# A client of more models asks again now and then.
KNOWN_MAX = 1024
# No time is left: the call says so.
MOMENT_S = 0.001


def may_help(inputs: Any, datatypes: Mapping[str, str] | None, error: InvalidInput) -> bool:
    """Whether the server refused (not this client), and `fit` could change something."""
    return bool(error.details) and isinstance(inputs, Mapping) and _has_defaults(inputs, datatypes)


def _has_defaults(inputs: Mapping[str, Any], datatypes: Mapping[str, str] | None) -> bool:
    """Whether an array is of a type that numpy chose. What is no array is the codec's to refuse."""
    for name, value in inputs.items():
        with contextlib.suppress(ValueError):
            if name not in (datatypes or {}) and np.asarray(value).dtype.name in _DEFAULTS:
                return True
    return False


def fit(inputs: Any, known: Sequence[TensorInfo], datatypes: Mapping[str, str] | None) -> dict[str, npt.ArrayLike]:
    """Arrays by input name, cast to the model's datatypes.

    Args:
        inputs: arrays by name; or one array, for a model with one input.
        known: the model's inputs.
        datatypes: by name, what the caller says: these are left alone.

    Raises InvalidInput: one array for several inputs, or numbers that a cast would change.
    """
    if not isinstance(inputs, Mapping):
        if len(known) != 1:
            names = ", ".join(f"'{each.name}'" for each in known) or "none"
            raise invalid(f"one array is given, and the model's inputs are {names}; expected arrays by name")
        inputs = {known[0].name: inputs}
    wanted = {each.name: each.datatype for each in known if each.name not in (datatypes or {})}
    return {name: _cast(name, value, wanted.get(name, "")) for name, value in inputs.items()}


def _cast(name: str, value: npt.ArrayLike, datatype: str) -> npt.ArrayLike:
    dtype = NUMBERS.get(datatype)
    if dtype is None:
        return value
    try:
        array = np.asarray(value)
    except ValueError:
        return value  # the codec says what is wrong with it
    if array.dtype.name not in _DEFAULTS or array.dtype.name == dtype.name:
        return value
    with np.errstate(all="ignore"):
        cast = array.astype(dtype)
        is_same = np.array_equal(cast.astype(array.dtype), array, equal_nan=array.dtype.kind == "f")
        is_same = is_same and bool(((cast < 0) == (array < 0)).all())  # -1 as an unsigned number, and back, is -1
    if not is_same:
        raise invalid(
            f"input '{name}': the model takes {datatype}, and these {array.dtype} numbers are not exact in it; if that"
            f" is fine, send {name}.astype(np.{dtype.name})"
        )
    return cast


class StreamCasting:
    """The inputs of a stream. The model's are asked for once, with the first item that may need them: `asks`, and then
    `learn` or `failed`.
    """

    def __init__(self, datatypes: Mapping[str, str] | None) -> None:
        self._datatypes = datatypes
        self._known: Sequence[TensorInfo] | None = None
        self._has_asked = False

    def asks(self, inputs: Any) -> bool:
        if self._known is not None:
            return False
        return not isinstance(inputs, Mapping) or (not self._has_asked and _has_defaults(inputs, self._datatypes))

    def learn(self, known: Sequence[TensorInfo]) -> None:
        self._known = known

    def failed(self, inputs: Any, error: NexusClientError) -> None:
        """They cannot be had, by one who may only predict for instance: arrays by name go as they are. Raises the error
        for one array."""
        self._has_asked = True
        if not isinstance(inputs, Mapping):
            raise error

    def fit(self, inputs: Any) -> Any:
        """Raises InvalidInput."""
        return inputs if self._known is None else fit(inputs, self._known, self._datatypes)


def is_unchanged(inputs: Any, fitted: Mapping[str, Any]) -> bool:
    return isinstance(inputs, Mapping) and all(fitted[name] is value for name, value in inputs.items())


class KnownInputs:
    """Models' inputs by (model, version), as they were last. Any thread may use it."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[TensorInfo, ...]] = {}

    def get(self, key: tuple[str, str]) -> tuple[TensorInfo, ...] | None:
        return self._known.get(key)

    def keep(self, key: tuple[str, str], inputs: tuple[TensorInfo, ...]) -> None:
        if len(self._known) >= KNOWN_MAX:
            self._known.clear()
        self._known[key] = inputs

    def drop(self, key: tuple[str, str]) -> None:
        """The model may be another one by now."""
        self._known.pop(key, None)


class Deadline:
    """For what takes several calls."""

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        self._begun_s = time.monotonic()

    def remaining_s(self) -> float | None:
        """None: the client's own; what is no timeout is the call's to refuse."""
        if self._timeout_s is None or not self._timeout_s > 0:
            return self._timeout_s
        return max(self._timeout_s - (time.monotonic() - self._begun_s), MOMENT_S)

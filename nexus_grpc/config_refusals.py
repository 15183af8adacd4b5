"""How a model's configuration is refused: by its field's name, and with what was probably meant."""

import difflib
from collections.abc import Iterable

from nexus_grpc.ipc.errors import ModelNotServable


def refusal(field: str, complaint: str) -> ModelNotServable:
    """The error for a field."""
    return ModelNotServable(printable(f"{field}: {complaint}"), reason="BAD_MODEL_CONFIG", field=field)


def printable(text: str) -> str:
    """A lone surrogate can't be sent in a gRPC status or logged; a control character may command a terminal."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Such as `; did you mean "name"?`; empty when no known word is like it."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f'; did you mean "{close[0]}"?' if close else ""

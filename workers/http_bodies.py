"""The JSON bodies of the hot REST routes, and their strict reading: what is wrong is named, nothing is guessed.

msgspec reads and checks in one pass. Duplicate keys it would accept; those are looked for by counting, and only a
suspicious body is parsed again.
"""

import difflib
import json
import re
from typing import Any, NoReturn, TypeVar

import msgspec

from nexus_grpc.ipc.errors import InvalidInput
from nexus_grpc.ipc.wire import read_varint

NAME_FIELD_TAG, VERSION_FIELD_TAG = 0x0A, 0x12


class NamedTensor(msgspec.Struct, forbid_unknown_fields=True):
    """`data`: numbers, texts or booleans, flat in row-major order or nested. `shape` empty: as `data` is nested."""

    data: list[Any]
    shape: list[int] = []


class PredictBody(msgspec.Struct, forbid_unknown_fields=True):
    """POST /predict, as nexus.v1.PredictRequest. `features` may be rows, each a list."""

    model_id: str | msgspec.UnsetType = msgspec.UNSET
    features: list[Any] = []
    model_version: str = ""
    request_id: str = ""
    use_cache: bool = False
    nexus_timing: bool = False
    texts: list[str] = []
    inputs: dict[str, NamedTensor] = {}
    # For the front, which has used it by now (nexus_grpc/front/split.py).
    sticky_key: str = ""


class ApiPredictBody(msgspec.Struct, forbid_unknown_fields=True):
    """POST /api/v1/predict, as nexus.v1.ApiPredictRequest."""

    model_name: str
    features: list[Any]
    use_cache: bool = False


class ApiBatchPredictBody(msgspec.Struct, forbid_unknown_fields=True):
    """POST /api/v1/batch_predict, as nexus.v1.ApiBatchPredictRequest."""

    model_name: str
    features_batch: list[list[Any]]
    use_cache: bool = False


class InferBody(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/infer, as nexus.v1.InferRequest. A text is an image, or the one value of an input of text."""

    model: str
    input: dict[str, list[Any] | str]
    version: str = ""


class V2Input(msgspec.Struct, forbid_unknown_fields=True):
    """`data` is missing where the values stand behind the JSON (v2_envelope.py)."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any] | None = None
    parameters: dict[str, Any] | None = None


class V2Output(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    parameters: dict[str, Any] | None = None


class V2Body(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v2/models/{model_name}/infer, as nexus.v1.V2InferRequest. Null stands for nothing: clients write it out."""

    inputs: list[V2Input] = []
    id: str | int | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[V2Output] | None = None
    # The path says so, too.
    model_name: str | None = None
    model_version: str | int | None = None


Body = TypeVar("Body", bound=msgspec.Struct)
_KINDS: tuple[type[msgspec.Struct], ...] = (PredictBody, ApiPredictBody, ApiBatchPredictBody, InferBody, V2Body)
_DECODERS = {kind: msgspec.json.Decoder(kind) for kind in _KINDS}
# What may be a key; a key with an escape in it is looked for by the backslash.
_KEYS = re.compile(rb'"([^"\\]*)"\s*:').findall
_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(.*?)`(?: - at `\$(.*)`)?", re.DOTALL)
_MISSING_FIELD = re.compile(r"Object missing required field `(.*?)`(?: - at `\$(.*)`)?")
_AT_PATH = re.compile(r"(.*) - at `(key in )?\$\.?(.*)`", re.DOTALL)


def json_of(message: bytes) -> bytes:
    """The JSON in a message that front/http_calls.py has rewritten: after name and version, in the last field."""
    end = 0
    for tag in (NAME_FIELD_TAG, VERSION_FIELD_TAG):
        if message[end] == tag:
            _, end = _skip(message, end)
    start, end = _skip(message, end)
    return message[start:end]


def names_model(message: bytes) -> bool:
    """Whether the front found a model's name in it."""
    return message[0] == NAME_FIELD_TAG


def _skip(message: bytes, offset: int) -> tuple[int, int]:
    """(start, end) of the content of the length-delimited field at `offset`, whose tag is one byte."""
    length, start = read_varint(message, offset + 1)
    return start, start + length


def read_body(kind: type[Body], text: bytes) -> Body:
    """Parse and check. Raises InvalidInput naming the field."""
    try:
        body = _DECODERS[kind].decode(text)
    except msgspec.ValidationError as error:
        _refuse(kind, str(error))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"the body is not valid JSON: {error}{_hint(text)}" if text.strip() else _EMPTY) from None
    except RecursionError:
        raise InvalidInput("the body is not valid JSON for this server: it is nested too deeply") from None
    _refuse_duplicates(kind, body, text)
    return body  # type: ignore[return-value]


_EMPTY = "the body is empty; expected a JSON object"
# What Python's json and others write of a float that is no number.
_BARE = re.compile(rb"[\[,:]\s*(NaN|-?Infinity)\s*[,\]}]").search


def _hint(text: bytes) -> str:
    found = _BARE(text)
    return f'; write "{found[1].decode()}", with quotes, or null for a missing value' if found else ""


def _refuse(kind: type[msgspec.Struct], problem: str) -> NoReturn:
    """msgspec's words in ours. Raises InvalidInput."""
    if found := _UNKNOWN_FIELD.fullmatch(problem):
        name, path = found[1], (found[2] or "").lstrip(".")
        close = difflib.get_close_matches(name, _names_at(kind, path), 1, 0.6)
        hint = f'; did you mean "{close[0]}"?' if close else f"; expected {', '.join(_names_at(kind, path))}"
        where = f" in {path}" if path else ""
        raise InvalidInput(f'unknown field "{name}"{where}{hint}', field=name)
    if found := _MISSING_FIELD.fullmatch(problem):
        where = f" in {found[2].lstrip('.')}" if found[2] else ""
        raise InvalidInput(f'field "{found[1]}" is missing{where}', field=found[1])
    if found := _AT_PATH.fullmatch(problem):
        path = found[3] or "the body"
        raise InvalidInput(f"{path}: {found[1][:1].lower()}{found[1][1:]}".replace("`", ""), field=path)
    raise InvalidInput(f"the body: {problem[:1].lower()}{problem[1:]}".replace("`", ""))


def _names_at(kind: type[msgspec.Struct], path: str) -> tuple[str, ...]:
    if not path:
        return kind.__struct_fields__
    if kind is V2Body:
        return (V2Input if path.startswith("inputs") else V2Output).__struct_fields__
    return NamedTensor.__struct_fields__


def _refuse_duplicates(kind: type[msgspec.Struct], body: Any, text: bytes) -> None:
    """Raises InvalidInput naming a key that an object has twice."""
    if kind is V2Body:
        objects = len(body.inputs) + len(body.outputs or ())
        suspicious = (
            text.count(b'"name"') != objects
            or text.count(b'"data"') != len(body.inputs)
            or b'"model_' in text
            or text.count(b'"shape"') != len(body.inputs)
            or text.count(b'"inputs"') != 1
            or text.count(b'"outputs"') > 1
            or b'"parameters"' in text
            or b'"id"' in text
        )
    else:
        keys = _KEYS(text)
        suspicious = len(keys) != len(set(keys))
    if suspicious or b"\\" in text:
        try:
            json.loads(text, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, for one
            raise InvalidInput(f"the body is not valid JSON for this server: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> None:
    names = [name for name, _ in pairs]
    if len(names) != len(set(names)):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidInput(f'field "{twice}" appears twice', field=twice)

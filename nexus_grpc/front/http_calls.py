"""REST calls on their way to a worker: which model they name, found without understanding the rest of their JSON.

What Envoy sends is a twin's message (nexus_grpc/rest/twin.py): path parameters, and the JSON as it came in field 15. It
is rewritten to what every hot request looks like, name and version first, so that the same routing serves it:

    1: name   2: version   15: the JSON

Of /v2 the headers that say how to read the body go along, too (hot_methods.py, V2_HEADERS).
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from nexus_grpc.front.hot_methods import V2_HEADERS
from nexus_grpc.ipc import model_names
from nexus_grpc.ipc.errors import InvalidInput
from nexus_grpc.ipc.record import Method
from nexus_grpc.ipc.wire import HTTP_BODY_DATA, WireError, fields, length_prefix, read_varint
from nexus_grpc.rest.twin import BODY_FIELD

# Method → the JSON keys that name the model and its version ("" = no such key).
KEYS = {
    Method.HTTP_PREDICT: ("model_id", "model_version"),
    Method.HTTP_API_PREDICT: ("model_name", ""),
    Method.HTTP_API_BATCH_PREDICT: ("model_name", ""),
    Method.HTTP_V1_INFER: ("model", "version"),
}
Metadata = Iterable[tuple[str, str | bytes]]
_BODY_TAG, _TYPE_TAG, _DATA_TAG = 0x7A, 0x0A, 0x12
# A model's name or a version's; any other value is read as JSON.
_PLAIN = rb'"\s*:\s*"([%b]{0,%d})"' % (model_names.CHARACTERS.encode(), model_names.CHARACTERS_MAX)


def _needle(key: str) -> tuple[bytes, Callable[[bytes], re.Match[bytes] | None]]:
    """The key as it stands in JSON, and what finds it with a plain value."""
    return b'"%b"' % key.encode(), re.compile(b'"' + key.encode() + _PLAIN).search


_NEEDLES = {
    int(method): (_needle(name), _needle(version) if version else None) for method, (name, version) in KEYS.items()
}


def as_hot_request(method: int, message: bytes, metadata: Metadata = ()) -> bytes:
    """A twin's message, rewritten; without a name for /predict of the one model. Raises InvalidInput.

    Args:
        metadata: the call's headers.
    """
    headers = b""
    if method == Method.HTTP_V2_INFER:
        name, version, body = _split(message)
        headers = _v2_headers(metadata)
    else:
        usual = _usual_body(message)
        body = _split(message)[2] if usual is None else usual
        name, version = addressee(method, body)
        if version[:1] == b"v" and method == Method.HTTP_V1_INFER:
            version = version[1:]  # its users write "v1"
    head = length_prefix(1, len(name)) + name if name else b""
    if version:
        head += length_prefix(2, len(version)) + version
    return b"".join([head, headers, length_prefix(BODY_FIELD, len(body)), body])


def _v2_headers(metadata: Metadata) -> bytes:
    found = b""
    for key, value in metadata:
        field = V2_HEADERS.get(key)
        if field is not None:
            content = value.encode() if isinstance(value, str) else value
            found += length_prefix(field, len(content)) + content
    return found


def _usual_body(message: bytes) -> bytes | None:
    """The JSON of a message without parameters, as Envoy writes it; None for any other form.

    7A 00            an empty body: the transcoder binds the field first
    7A length        the body:  0A length type   12 length JSON
    """
    try:
        offset = 2 if message[1] == 0 else 0
        if message[offset] != _BODY_TAG:
            return None
        _, start = read_varint(message, offset + 1)
        if message[start] != _TYPE_TAG:
            return None
        start += 2 + message[start + 1]
        if message[start] != _DATA_TAG:
            return None
        length, start = read_varint(message, start + 1)
    except (IndexError, WireError):
        return None
    return message[start:] if start + length == len(message) else None


def _split(message: bytes) -> tuple[bytes, bytes, bytes]:
    """(field 1, field 2, the HttpBody's data)."""
    found = {1: b"", 2: b"", BODY_FIELD: b""}
    try:
        for number, _, start, end in fields(message):
            if number in found and end > start:
                found[number] = message[start:end]
        body = b""
        for number, _, start, end in fields(found[BODY_FIELD]):
            if number == HTTP_BODY_DATA:
                body = found[BODY_FIELD][start:end]
    except WireError:
        raise InvalidInput("the request is not a valid protobuf message") from None
    return found[1], found[2], body


def addressee(method: int, body: bytes) -> tuple[bytes, bytes]:
    """(model name, version or empty) that a JSON body names. Raises InvalidInput.

    A key that stands in it once, with a plain value, is taken without parsing; the worker, which parses, checks that it
    was the right one.
    """
    (name_needle, name_search), version_key = _NEEDLES[method]
    name = _peek(body, name_needle, name_search)
    version = _peek(body, *version_key) if version_key is not None else b""
    if name and version is not None:
        return name, version
    return _parsed_addressee(body, *KEYS[Method(method)], may_miss=method == Method.HTTP_PREDICT)


def _peek(body: bytes, needle: bytes, search: Callable[[bytes], re.Match[bytes] | None]) -> bytes | None:
    """The key's value; empty when the key is not there; None when only a parser can tell."""
    count = body.count(needle)
    if count != 1:
        return b"" if count == 0 and b"\\" not in body else None
    found = search(body)
    return found[1] if found else None


# What other servers, and people, call it.
NAME_KEYS = ("model_id", "model_name", "model", "name", "id")


def _parsed_addressee(body: bytes, name_key: str, version_key: str, *, may_miss: bool) -> tuple[bytes, bytes]:
    """`may_miss`: where nothing names a model the name is empty, which is for the routes to understand."""
    content = parse(body)
    if not isinstance(content, dict):
        raise InvalidInput(f"the body must be a JSON object, got {type(content).__name__}")
    given = next((each for each in NAME_KEYS if each in content), "")
    is_named = bool(given) or not may_miss
    name = content.get(name_key) if is_named else ""
    if name is None:
        meant = f'; is it what the body has as "{given}"?' if given else ""
        raise InvalidInput(f'field "{name_key}" is missing: it names the model{meant}', field=name_key)
    version = content.get(version_key, "") if version_key else ""
    for key, value in ((name_key, name), (version_key, version)):
        if not isinstance(value, str):
            raise InvalidInput(f'field "{key}" must be a string', field=key)
    if is_named and not name:
        raise InvalidInput(f'field "{name_key}" is empty: it names the model', field=name_key)
    return name.encode("utf-8", "replace"), version.encode("utf-8", "replace")


def parse(body: bytes) -> Any:
    """Any JSON. Raises InvalidInput."""
    if not body.strip():
        raise InvalidInput("the body is empty; expected a JSON object")
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise InvalidInput("the body is not valid JSON for this server: it is nested too deeply") from None

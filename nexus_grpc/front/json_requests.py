"""JSON bodies and parameters of REST's administrative routes, read strictly into the messages of proto/.

protobuf's own JSON reader is forgiving: of two equal keys the last wins, "5" is a number, null is nothing. Here what is
wrong is named. Keys are the fields' names in proto/.
"""

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from google.protobuf.message import Message

from nexus_grpc.ipc.errors import InvalidInput, TooLarge

# Names, labels and a few numbers; what is larger is meant for another route.
BODY_BYTES_MAX = 1 << 20
# RFC 8259, section 2.
JSON_WHITESPACE = b" \t\r\n"
INT32_MIN, INT32_MAX = -(1 << 31), (1 << 31) - 1
_BOOLEANS = {"true": True, "false": False}


def read_request(message_class: type[Message], body: bytes, parameters: Mapping[str, str]) -> Message:
    """The request message.

    Args:
        body: a JSON object, or nothing, which is {}.
        parameters: of the path and the query, by field; they win over the body.

    Raises:
        InvalidInput: names the field.
        TooLarge: a body of absurd size.
    """
    request = message_class()
    if body.strip(JSON_WHITESPACE):
        _fill(request, _object(body), "")
    fields: Any = request.DESCRIPTOR.fields_by_name
    for name, text in parameters.items():
        request.ClearField(name)
        setattr(request, name, _from_text(fields[name], text))
    return request


def _object(body: bytes) -> dict[str, Any]:
    if len(body) > BODY_BYTES_MAX:
        raise TooLarge(f"the body has {len(body)} bytes; this route takes at most {BODY_BYTES_MAX}")
    try:
        content = json.loads(body.decode(), object_pairs_hook=_unique, parse_constant=_no_number)
    except RecursionError:
        raise InvalidInput("the body is not valid JSON for this server: it is nested too deeply") from None
    except ValueError as error:
        # Also UnicodeDecodeError, and a number of more digits than Python converts.
        raise InvalidInput(f"the body is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise InvalidInput(f"the body must be a JSON object, got {_kind(content)}")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidInput(f'field "{twice}" is given twice', field=twice)
    return content


def _no_number(text: str) -> NoReturn:
    raise InvalidInput(f"the body is not valid JSON: {text} is no JSON number")


def _fill(message: Any, content: dict[str, Any], where: str) -> None:
    fields = message.DESCRIPTOR.fields_by_name
    for name, value in content.items():
        if name not in fields:
            _refuse_unknown(name, fields, where)
        field, path = fields[name], f"{where}{name}"
        if field.type == field.TYPE_MESSAGE and field.message_type.GetOptions().map_entry:
            _fill_map(getattr(message, name), field, value, path)
        elif field.is_repeated:
            for number, each in enumerate(_expect(list, value, "a list", path)):
                _append(getattr(message, name), field, each, f"{path}[{number}]")
        elif field.type == field.TYPE_MESSAGE:
            getattr(message, name).SetInParent()
            _fill(getattr(message, name), _expect(dict, value, "an object", path), f"{path}.")
        else:
            setattr(message, name, _scalar(field, value, path))


def _append(container: Any, field: Any, value: Any, path: str) -> None:
    if field.type == field.TYPE_MESSAGE:
        _fill(container.add(), _expect(dict, value, "an object", path), f"{path}.")
    else:
        container.append(_scalar(field, value, path))


def _fill_map(container: Any, field: Any, value: Any, path: str) -> None:
    """A map<string, ...> of plain values."""
    kind = field.message_type.fields_by_name["value"]
    for key, each in _expect(dict, value, "an object", path).items():
        container[_text(key, path)] = _scalar(kind, each, f"{path}.{key}")


def _refuse_unknown(name: str, known: Iterable[str], where: str) -> NoReturn:
    names = list(known)
    close = difflib.get_close_matches(name, names, 1, 0.6)
    expected = f"; expected {', '.join(names)}" if names else "; expected none"
    hint = f'; did you mean "{close[0]}"?' if close else expected
    place = f" in {where.rstrip('.')}" if where else ""
    raise InvalidInput(f'unknown field "{name}"{place}{hint}', field=name)


def _scalar(field: Any, value: Any, path: str) -> Any:
    if field.type == field.TYPE_STRING:
        return _text(_expect(str, value, "a string", path), path)
    if field.type == field.TYPE_BOOL:
        return _expect(bool, value, "true or false", path)
    if field.type == field.TYPE_INT32:
        number = _expect(int, value, "a whole number", path)
        if not INT32_MIN <= number <= INT32_MAX:
            raise InvalidInput(f'field "{path}" is out of range: {_short(number)}', field=path)
        return number
    assert field.type == field.TYPE_DOUBLE, "proto/ has no other types in administrative requests"
    return _finite(_expect((int, float), value, "a number", path), path)


def _finite(number: float, path: str) -> float:
    try:
        if math.isfinite(number):
            return float(number)
    except OverflowError:
        pass  # a whole number larger than any double
    raise InvalidInput(f'field "{path}" must be a finite number', field=path)


def _text(value: str, path: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f'field "{path}" is not Unicode text: it has half a surrogate pair', field=path) from None
    return value


def _expect(kind: type | tuple[type, ...], value: Any, words: str, path: str) -> Any:
    # For Python, true is a whole number.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InvalidInput(f'field "{path}" must be {words}, got {_kind(value)}', field=path)
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _short(number: int) -> str:
    return str(number) if abs(number) < 1 << 63 else "a very large number"


def _from_text(field: Any, text: str) -> Any:
    """A parameter of the path or the query."""
    if field.type == field.TYPE_STRING:
        return text
    try:
        if field.type == field.TYPE_BOOL:
            return _scalar(field, _BOOLEANS[text], field.name)
        # Python's own reading takes " 1_000 " too.
        if not text.isascii() or not text.replace("-", "").replace(".", "").isalnum():
            raise ValueError(text)
        return _scalar(field, int(text) if field.type == field.TYPE_INT32 else float(text), field.name)
    except (ValueError, KeyError):
        words = {field.TYPE_BOOL: "true or false", field.TYPE_INT32: "a whole number"}.get(field.type, "a number")
        raise InvalidInput(f'parameter "{field.name}" must be {words}, got "{text[:100]}"', field=field.name) from None

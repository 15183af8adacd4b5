"""A scanner for protobuf's wire format: where the top-level fields of a message lie. Reads nothing else.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from collections.abc import Iterator, Mapping, Sequence

VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5


_ONE_BYTE = tuple(bytes((value,)) for value in range(0x80))


class WireError(ValueError):
    """The bytes are not a protobuf message."""


def read_varint(message: bytes, offset: int) -> tuple[int, int]:
    """(value, offset after it). Raises WireError when it is cut or longer than 10 bytes."""
    value = shift = 0
    while True:
        if offset >= len(message) or shift > 63:
            raise WireError("a varint is cut or too long")
        byte = message[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, offset
        shift += 7


def varint(value: int) -> bytes:
    """Encode a non-negative integer."""
    if value <= 0x7F:
        return _ONE_BYTE[value]
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def length_prefix(field: int, length: int) -> bytes:
    """Tag and length that stand before a length-delimited field of `length` bytes."""
    return varint(field << 3 | LENGTH_DELIMITED) + varint(length)


def fields(message: bytes) -> Iterator[tuple[int, int, int, int]]:
    """(field number, wire type, start, end) of each top-level field's content, in order. Raises WireError."""
    offset = 0
    while offset < len(message):
        tag, offset = read_varint(message, offset)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == LENGTH_DELIMITED:
            length, offset = read_varint(message, offset)
            end = offset + length
        elif wire_type == VARINT:
            _, end = read_varint(message, offset)
        elif wire_type in (FIXED64, FIXED32):
            end = offset + (8 if wire_type == FIXED64 else 4)
        else:
            raise WireError(f"wire type {wire_type} is not supported")
        if end > len(message) or number == 0:
            raise WireError(f"field {number} is cut")
        yield number, wire_type, offset, end
        offset = end


def spans(message: bytes, field: int) -> list[tuple[int, int]]:
    """(start, end) of every occurrence of a length-delimited top-level field. Raises WireError."""
    return [
        (start, end) for number, kind, start, end in fields(message) if number == field and kind == LENGTH_DELIMITED
    ]


# Envoy keeps an answer by REST whole; larger ones are for gRPC.
HTTP_ANSWER_MAX_BYTES = 64 << 20
# google.api.HttpBody, which carries JSON between Envoy and us (google/api/httpbody.proto).
HTTP_BODY_TYPE, HTTP_BODY_DATA = 1, 2
_JSON_TYPE = b"application/json"
_DATA_TAG = varint(HTTP_BODY_DATA << 3 | LENGTH_DELIMITED)
_JSON_HEAD = length_prefix(HTTP_BODY_TYPE, len(_JSON_TYPE)) + _JSON_TYPE + _DATA_TAG


def json_body(text: bytes) -> bytes:
    """A serialised google.api.HttpBody with JSON in it."""
    return b"%b%b%b" % (_JSON_HEAD, varint(len(text)), text)


# Of an answer that carries HTTP headers of its own: a field that HttpBody has not, which stands first.
ANSWER_HEADERS_FIELD = 13
ANSWER_HEADERS_TAG = ANSWER_HEADERS_FIELD << 3 | LENGTH_DELIMITED


def http_body(kind: bytes, parts: Sequence[bytes], headers: Mapping[str, str]) -> bytes:
    """A serialised google.api.HttpBody of any type.

    Args:
        kind: the content type.
        parts: the content.
        headers: what else its HTTP answer has; `answer_headers` reads them.
    """
    told = "\n".join(f"{name}:{value}" for name, value in headers.items()).encode()
    size = sum([len(part) for part in parts])
    head = [length_prefix(ANSWER_HEADERS_FIELD, len(told)), told] if told else []
    return b"".join([*head, length_prefix(HTTP_BODY_TYPE, len(kind)), kind, _DATA_TAG, varint(size), *parts])


def answer_headers(body: bytes) -> tuple[tuple[str, str], ...]:
    """The headers of a `http_body` that begins with ANSWER_HEADERS_TAG."""
    length, start = read_varint(body, 1)
    lines = body[start : start + length].decode().split("\n")
    return tuple([(name, value) for name, _, value in [line.partition(":") for line in lines]])

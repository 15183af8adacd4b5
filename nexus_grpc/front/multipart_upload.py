"""An upload as a form: multipart/form-data (RFC 7578), read as it comes; the file goes on in pieces, never into memory.

    file (or model)   the model's file
    id, name, version, sha256, size_bytes, store_only, labels   as in nexus.v1.UploadHeader; labels as a JSON object

The client's name of the file is not looked at.
"""

import difflib
import json
import logging
import re
from collections.abc import Callable
from typing import Any, Protocol

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, MultipartState, parse_options_header

from nexus_grpc.ipc.errors import InvalidInput, TooLarge
from nexus_grpc.pb.nexus.v1.models_pb2 import UploadHeader

FILE_FIELDS = ("file", "model")
TEXT_FIELDS = ("id", "name", "version", "sha256", "size_bytes", "store_only", "labels")
FIELD_BYTES_MAX = 64 << 10
# The number of parts needs no limit of its own: each is a field that is known and was not there before.
PART_HEADERS_MAX = 8
PART_HEADER_BYTES_MAX = 4096
# RFC 2046, section 5.1.1.
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]", re.ASCII)
_TRUTH = {"true": True, "1": True, "false": False, "0": False, "": False}
_HOW = "send the model as a form: curl -F file=@model.onnx -F id=NAME"
_CUT = "the upload ends before the form does; nothing was stored"
# Its warnings repeat what clients send, as often as they like.
logging.getLogger("python_multipart").setLevel(logging.ERROR)


class FileSink(Protocol):
    """Where the file goes. Both raise NexusError."""

    def announce(self, header: UploadHeader) -> None:
        """What the fields before the file say of it."""

    def write(self, chunk: bytes) -> None: ...


class Form:
    """One form. write() takes the body in pieces, finish() its end; both raise NexusError.

    Args:
        content_type: the request's, with the boundary.
        sink: gets the file. It is announced first when its `id` stands before it.

    Raises:
        InvalidInput: the content type names no boundary.
    """

    def __init__(self, content_type: str, sink: FileSink) -> None:
        self._sink = sink
        self._texts: dict[str, str] = {}
        self._file_field = ""
        self._parts = 0
        # Of the part that is being read: its headers, its name, what is in it.
        self._headers: dict[str, bytes] = {}
        self._header_name = self._header_value = b""
        self._name = ""
        self._text = bytearray()
        callbacks: dict[str, Callable[..., None]] = {
            "on_part_begin": self._part_begins,
            "on_header_field": self._header_name_comes,
            "on_header_value": self._header_value_comes,
            "on_header_end": self._header_ends,
            "on_headers_finished": self._headers_end,
            "on_part_data": self._data_comes,
            "on_part_end": self._part_ends,
        }
        given: Any = callbacks
        self._parser = MultipartParser(
            _boundary_of(content_type),
            given,
            max_header_count=PART_HEADERS_MAX,
            max_header_size=PART_HEADER_BYTES_MAX,
        )

    def write(self, data: bytes) -> None:
        """The body's next bytes."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            if not self._parts:
                raise _wrong("the body does not begin with the boundary that Content-Type names") from None
            raise _wrong(f"the body is no well-formed multipart/form-data: {error}") from None

    def finish(self) -> UploadHeader:
        """The body is complete. What its fields say."""
        if self._parser.state == MultipartState.START:
            raise _wrong(f"the body is empty; {_HOW}")
        if self._parser.state != MultipartState.END:
            raise InvalidInput(_CUT, reason="TRUNCATED")
        if not self._parts:
            raise _wrong(f"the form is empty; {_HOW}")
        if not self._file_field:
            raise InvalidInput(f"the field 'file' is missing; {_HOW}", field="file")
        if "id" not in self._texts:
            raise InvalidInput("the field 'id' is missing: it names the model", field="id")
        return self._header()

    def _header(self) -> UploadHeader:
        texts = self._texts
        return UploadHeader(
            id=texts["id"],
            name=texts.get("name", ""),
            version=texts.get("version", ""),
            sha256=texts.get("sha256", ""),
            size_bytes=_size(texts.get("size_bytes", "")),
            labels=_labels(texts.get("labels", "")),
            store_only=_truth("store_only", texts.get("store_only", "")),
        )

    def _part_begins(self) -> None:
        self._parts += 1
        self._headers, self._name = {}, ""
        self._header_name = self._header_value = b""
        self._text = bytearray()

    # A header may come in pieces; the parser limits their length.
    def _header_name_comes(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _header_value_comes(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _header_ends(self) -> None:
        self._headers[self._header_name.decode("latin-1").lower()] = self._header_value
        self._header_name = self._header_value = b""

    def _headers_end(self) -> None:
        kind, options = parse_options_header(self._headers.get("content-disposition", b""))
        name = _decoded(options.get(b"name", b""), "a field's name")
        if kind != b"form-data" or not name:
            raise _wrong("each part of the form needs a name (Content-Disposition: form-data; name=...)")
        encoding = self._headers.get("content-transfer-encoding", b"binary").lower()
        if encoding not in (b"binary", b"8bit", b"7bit"):
            raise _wrong(f"'{name}' is encoded as {encoding.decode('latin-1')}; expected the bytes as they are")
        self._check_name(name, is_file=b"filename" in self._headers["content-disposition"].lower())
        self._name = name
        if name in FILE_FIELDS:
            self._file_field = name
            if "id" in self._texts:
                self._sink.announce(self._header())

    def _check_name(self, name: str, is_file: bool) -> None:
        if name in FILE_FIELDS:
            if self._file_field:
                raise InvalidInput(f"the form has two files: '{self._file_field}' and '{name}'; send one", field=name)
            if not is_file:
                text = f"'{name}' is the model's file: send it as one (curl -F {name}=@model.onnx)"
                raise InvalidInput(text, field=name)
            return
        if name not in TEXT_FIELDS:
            known = (*FILE_FIELDS, *TEXT_FIELDS)
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
            raise InvalidInput(f"unknown field '{name[:64]}'; {hint}", field=name)
        if is_file:
            raise InvalidInput(f"'{name}' is text, not a file; the file's field is 'file'", field=name)
        if name in self._texts:
            raise InvalidInput(f"the field '{name}' is there twice", field=name)

    def _data_comes(self, data: bytes, start: int, end: int) -> None:
        if self._name in FILE_FIELDS:
            self._sink.write(data[start:end])
            return
        if len(self._text) + end - start > FIELD_BYTES_MAX:
            raise TooLarge(f"the field '{self._name}' has more than {FIELD_BYTES_MAX} bytes", field=self._name)
        self._text += data[start:end]

    def _part_ends(self) -> None:
        if self._name not in FILE_FIELDS:
            self._texts[self._name] = _decoded(bytes(self._text), f"the field '{self._name}'")


def _wrong(message: str) -> InvalidInput:
    return InvalidInput(message, reason="INVALID_FORM")


def _boundary_of(content_type: str) -> str:
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"").decode("latin-1")
    if kind != b"multipart/form-data" or not _BOUNDARY.fullmatch(boundary):
        raise _wrong(
            "Content-Type must be multipart/form-data with a boundary of 1 to 70 characters; let your library write it"
        )
    return boundary


def _decoded(text: bytes, what: str) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise _wrong(f"{what} is not UTF-8 text") from None


def _size(text: str) -> int:
    if text and not (text.isascii() and text.isdecimal() and len(text) < 16):
        raise InvalidInput(f"size_bytes is '{text[:64]}'; expected a whole number", field="size_bytes")
    return int(text or 0)


def _truth(name: str, text: str) -> bool:
    if text.lower() not in _TRUTH:
        raise InvalidInput(f"{name} is '{text[:64]}'; expected true or false", field=name)
    return _TRUTH[text.lower()]


def _labels(text: str) -> dict[str, str]:
    try:
        labels = json.loads(text or "{}")
        # JSON can say half a character (\\ud800), which nothing else can.
        json.dumps(labels, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        labels = None
    if not isinstance(labels, dict) or not all(isinstance(value, str) for value in labels.values()):
        raise InvalidInput('labels must be a JSON object of texts, such as {"stage": "test"}', field="labels")
    return labels

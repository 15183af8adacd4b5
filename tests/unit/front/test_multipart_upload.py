"""nexus_grpc/front/multipart_upload.py: forms as clients send them, cut anywhere, and forms that are wrong."""

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus_grpc.front.multipart_upload import FIELD_BYTES_MAX, PART_HEADER_BYTES_MAX, Form
from nexus_grpc.ipc.errors import InvalidInput, NexusError, TooLarge
from nexus_grpc.pb.nexus.v1.models_pb2 import UploadHeader

BOUNDARY = "----WebKitFormBoundary7MA4YWxkTrZu0gW"
TYPE = f"multipart/form-data; boundary={BOUNDARY}"
SHA = "ab" * 32


class Kept:
    """A sink that keeps all."""

    def __init__(self) -> None:
        self.announced: list[UploadHeader] = []
        self.content = b""

    def announce(self, header: UploadHeader) -> None:
        assert not self.content, "announced too late"
        self.announced.append(header)

    def write(self, chunk: bytes) -> None:
        self.content += chunk


def part(name: str, content: bytes | str, more: str = "", headers: str = "") -> bytes:
    data = content.encode() if isinstance(content, str) else content
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n{headers}\r\n'
    return head.encode() + data + b"\r\n"


def file_part(content: bytes, name: str = "file") -> bytes:
    return part(name, content, '; filename="../../etc/passwd"', "Content-Type: application/octet-stream\r\n")


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def read(pieces: Iterable[bytes], content_type: str = TYPE) -> tuple[UploadHeader, Kept]:
    sink = Kept()
    reader = Form(content_type, sink)
    for piece in pieces:
        reader.write(piece)
    return reader.finish(), sink


def test_a_form() -> None:
    body = form(
        part("id", "iris"),
        part("name", "Schwertlilie größe"),
        part("version", "1.0.0"),
        part("sha256", SHA),
        part("size_bytes", "4"),
        part("store_only", "true"),
        part("labels", '{"team": "a"}'),
        file_part(b"\x08\x00\r\n"),
    )
    header, sink = read([body])
    assert header == UploadHeader(
        id="iris",
        name="Schwertlilie größe",
        version="1.0.0",
        sha256=SHA,
        size_bytes=4,
        store_only=True,
        labels={"team": "a"},
    )
    assert sink.content == b"\x08\x00\r\n"
    assert sink.announced == [header]


@pytest.mark.parametrize("name", ["file", "model"])
def test_the_file_may_come_first(name: str) -> None:
    header, sink = read([form(file_part(b"onnx", name), part("id", "iris"))])
    assert (header.id, header.version, sink.content, sink.announced) == ("iris", "", b"onnx", [])


@given(
    content=st.binary(max_size=300)
    | st.lists(
        st.sampled_from([b"\r\n", b"--", f"\r\n--{BOUNDARY}"[:-1].encode(), b"\r\n--x", b"\0"]), max_size=12
    ).map(b"".join),
    cuts=st.lists(st.integers(0, 700), max_size=12),
)
def test_where_it_is_cut_makes_no_difference(content: bytes, cuts: list[int]) -> None:
    body = form(part("id", "iris"), file_part(content), part("version", "7"))
    edges = [0, *sorted(cuts), len(body)]
    header, sink = read([body[start:end] for start, end in itertools.pairwise(edges) if start < end])
    assert (header.id, header.version, sink.content) == ("iris", "7", content)


@given(body=st.binary(max_size=200), prefix=st.booleans())
def test_any_bytes_are_refused_or_read_and_nothing_else(body: bytes, prefix: bool) -> None:
    head = part("id", "iris")[: -len("iris\r\n")] if prefix else b""
    with pytest.raises(NexusError):
        read([head + body])


@pytest.mark.parametrize("end", [1, 20, 60, 150, -5, -4])
def test_a_form_that_is_cut_short(end: int) -> None:
    body = form(part("id", "iris"), file_part(b"x" * 100))
    with pytest.raises(InvalidInput) as caught:
        read([body[:end]])
    assert caught.value.reason == "TRUNCATED"


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        (form(part("id", "iris")), "file", "'file' is missing"),
        (form(file_part(b"x")), "id", "'id' is missing"),
        (form(), "", "is empty"),
        (b"", "", "is empty"),
        (b"\r\n\r\n", "", "is empty"),
        (form(file_part(b"x"), file_part(b"y")), "file", "two files"),
        (form(file_part(b"x"), file_part(b"y", "model")), "model", "'file' and 'model'"),
        (form(part("versoin", "1")), "versoin", "did you mean 'version'"),
        (form(part("x" * 300, "1")), "x" * 99 + "…", "known: file, model, id"),
        (form(part("file", "model.onnx")), "file", "curl -F file=@"),
        (form(part("model", "iris")), "model", "curl -F model=@"),
        (form(file_part(b"x", "id")), "id", "is text"),
        (form(part("id", "a"), part("id", "b")), "id", "twice"),
        (form(part("id", b"\xff")), "", "not UTF-8"),
        (form(part("id", "a"), file_part(b"x"), part("size_bytes", "-1")), "size_bytes", "whole number"),
        (form(part("id", "a"), file_part(b"x"), part("size_bytes", "٣")), "size_bytes", "whole number"),
        (form(part("id", "a"), file_part(b"x"), part("store_only", "maybe")), "store_only", "true or false"),
        (form(part("id", "a"), file_part(b"x"), part("labels", "[1]")), "labels", "JSON object"),
        (form(part("id", "a"), file_part(b"x"), part("labels", '{"a": 1}')), "labels", "JSON object"),
        (form(part("id", "a"), file_part(b"x"), part("labels", '{"a": "\\ud800"}')), "labels", "JSON object"),
        (form(part("id", "a", headers="Content-Transfer-Encoding: base64\r\n")), "", "encoded as base64"),
        (form(f"--{BOUNDARY}\r\n\r\nx\r\n".encode()), "", "needs a name"),
        (form(part("", "x")), "", "needs a name"),
        (b"--other\r\n", "", "boundary that Content-Type names"),
        (b"PK\x03\x04 a zip file", "", "boundary that Content-Type names"),
        (
            form(*[part(name, "") for name in ("id", "name")], f"--{BOUNDARY}\r\nbad header\r\n\r\n".encode()),
            "",
            "well",
        ),
    ],
)
def test_forms_that_are_wrong(body: bytes, field: str, words: str) -> None:
    for pieces in ([body], [body[i : i + 1] for i in range(len(body))]):
        with pytest.raises(InvalidInput) as caught:
            read(pieces)
        assert words in caught.value.message
        assert caught.value.field == field


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        f"multipart/form-data; boundary={'b' * 71}",
        'multipart/form-data; boundary="a\u00e4"',
        "multipart/form-data; boundary=\x01",
        "multipart/mixed; boundary=b",
        "application/json",
    ],
)
def test_content_types_without_a_boundary(content_type: str) -> None:
    with pytest.raises(InvalidInput, match="boundary of 1 to 70"):
        Form(content_type, Kept())


def test_boundaries_may_be_quoted() -> None:
    body = form(part("id", "iris"), file_part(b"x"))
    assert read([body], f'Multipart/Form-Data; charset=utf-8; boundary="{BOUNDARY}"')[0].id == "iris"


def test_limits() -> None:
    with pytest.raises(TooLarge, match="'name' has more than"):
        read([form(part("name", "x" * (FIELD_BYTES_MAX + 1)))])
    assert len(read([form(part("id", "a"), part("name", "x" * FIELD_BYTES_MAX), file_part(b"y"))])[0].name)
    for headers in (f"X: {'a' * (PART_HEADER_BYTES_MAX + 1)}\r\n", "X: a\r\n" * 9):
        with pytest.raises(InvalidInput, match="Maximum header"):
            read([form(part("id", "iris", headers=headers))])

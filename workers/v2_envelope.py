"""A request of POST /v2/models/{model_name}/infer as front/http_calls.py hands it on: JSON, and what stands behind it.

The binary tensor data extension: the header Inference-Header-Content-Length says how long the JSON is; the values of
inputs with `binary_data_size` follow it, in the order of the inputs. A body may be compressed; the length counts plain.

Source: Triton's docs/protocol/extension_binary_data.md; content codings: RFC 9110, section 8.4.1.
"""

import zlib
from collections.abc import Sequence

from nexus_grpc.ipc.errors import InvalidInput
from nexus_grpc.ipc.wire import fields

LENGTH_FIELD, ENCODING_FIELD, ACCEPT_FIELD, BODY_FIELD = 3, 4, 5, 15
# As many bytes as the largest message has, unless an operator says otherwise.
PLAIN_BYTES_MAX = 64 << 20
# A larger answer goes as it is, which every client takes: compressing it would hold up all others.
COMPRESSED_BYTES_MAX = 4 << 20
_FAST = 1
# zlib's own form, and gzip's (zlib.h, inflateInit2): "deflate" means the former.
_WINDOW_BITS = {"deflate": zlib.MAX_WBITS, "gzip": zlib.MAX_WBITS | 16}
_LENGTH_DIGITS_MAX = 12


class Envelope:
    """`text` is the JSON, `binary` what follows, `coding` how the answer is to be compressed ("" = not)."""

    __slots__ = ("binary", "coding", "offset", "text")

    def __init__(self, text: bytes, binary: bytes, coding: str) -> None:
        self.text = text
        self.binary = binary
        self.coding = coding
        self.offset = 0

    def take(self, size: int, name: str) -> bytes:
        """The next input's bytes. Raises InvalidInput."""
        start = self.offset
        if size > len(self.binary) - start:
            raise InvalidInput(
                f"input '{name}': binary_data_size is {size}, but {len(self.binary) - start} bytes are left behind the"
                " JSON; check Inference-Header-Content-Length",
                field=name,
            )
        self.offset = start + size
        return self.binary[start : self.offset]

    def check_end(self) -> None:
        """Raises InvalidInput if there is more than the inputs take."""
        left = len(self.binary) - self.offset
        if left:
            raise InvalidInput(f"{left} bytes behind the JSON belong to no input; give inputs their binary_data_size")


def open_envelope(message: bytes) -> Envelope:
    """Raises InvalidInput."""
    found: dict[int, bytes] = {}
    for number, _, start, end in fields(message):
        found[number] = message[start:end]
    body = _plain(found.get(BODY_FIELD, b""), _text(found, ENCODING_FIELD))
    length = _length(_text(found, LENGTH_FIELD), len(body))
    return Envelope(body[:length], body[length:], _coding(_text(found, ACCEPT_FIELD)))


def compressed(parts: Sequence[bytes], coding: str) -> list[bytes] | None:
    """An answer's parts as one, compressed; None where it goes as it is."""
    if not coding or sum([len(part) for part in parts]) > COMPRESSED_BYTES_MAX:
        return None
    packer = zlib.compressobj(_FAST, zlib.DEFLATED, _WINDOW_BITS[coding])
    return [*[packer.compress(part) for part in parts], packer.flush()]


def _text(found: dict[int, bytes], field: int) -> str:
    return found.get(field, b"").decode("latin-1").strip().lower()


def _length(text: str, size: int) -> int:
    if not text:
        return size
    if not (text.isascii() and text.isdecimal() and len(text) <= _LENGTH_DIGITS_MAX) or int(text) > size:
        raise InvalidInput(
            f"Inference-Header-Content-Length is '{text[:64]}', but the body has {size} bytes; expected the length of"
            " its JSON"
        )
    return int(text)


def _plain(body: bytes, coding: str) -> bytes:
    if coding in ("", "identity"):
        return body
    if coding not in _WINDOW_BITS:
        raise InvalidInput(f"Content-Encoding is '{coding[:64]}'; expected gzip, deflate or none")
    unpacker = zlib.decompressobj(_WINDOW_BITS[coding])
    try:
        plain = unpacker.decompress(body, PLAIN_BYTES_MAX)
    except zlib.error as error:
        raise InvalidInput(f"the body is not {coding}, as Content-Encoding says: {error}") from None
    if unpacker.unconsumed_tail:
        raise InvalidInput(f"the body has more than {PLAIN_BYTES_MAX} bytes when it is decompressed; send fewer rows")
    if not unpacker.eof or unpacker.unused_data:
        raise InvalidInput(f"the body is not {coding}, as Content-Encoding says: it is cut, or something follows it")
    return plain


def _coding(accepted: str) -> str:
    """Whoever names one coding wants it. Who lists several takes an answer as it is, too, which costs the least."""
    return accepted if accepted in _WINDOW_BITS else ""

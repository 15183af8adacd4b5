"""One experiment's traffic: which variant a request goes to. One look-up in a table of 10,000 buckets.

A request without a key gets a bucket by chance, one with a key always the same one (nexus_grpc/traffic/assignment.py).
Of a hundred requests without one, each hundredth of the table gets one: shares come out closer than by chance alone,
and nobody can foresee which request goes where.
"""

import random
import re
import zlib
from collections.abc import Sequence
from typing import Any

import msgspec

from nexus_grpc.front.flight import Flight
from nexus_grpc.front.hot_methods import V2_HEADERS
from nexus_grpc.ipc.record import Method, is_http
from nexus_grpc.ipc.wire import LENGTH_DELIMITED, WireError, fields
from nexus_grpc.pb.inference import grpc_service_pb2 as infer_pb
from nexus_grpc.pb.nexus.v1 import inference_pb2 as predict_pb
from nexus_grpc.rest.twin import BODY_FIELD
from nexus_grpc.traffic.assignment import BUCKETS, bucket_of, decode

STRATA = 100
# A compressed body without a length is looked into so far: the front has no time for more.
PACKED_JSON_BYTES_MAX = 1 << 20
_PARAMETERS = infer_pb.ModelInferRequest.PARAMETERS_FIELD_NUMBER
_STICKY_KEY = predict_pb.PredictRequest.STICKY_KEY_FIELD_NUMBER
_STICKY_IN_JSON = re.compile(rb'"sticky_key"\s*:\s*"([^"\\]{0,512})"').search
_random = random.Random()


class Split:
    """`arms` are the variants' routes, `table` the arm of each bucket.

    Args:
        arms: anything; choose() returns one of them.
        assignment: the run-length text of the table.
        salt: the experiment's id, so that the next experiment draws anew.
        sticky: ("header" | "parameter", name), or None.
    """

    __slots__ = ("_header", "_parameter", "_salt", "_strata", "_table", "arms")

    def __init__(self, arms: Sequence[Any], assignment: str, salt: str, sticky: Sequence[str] | None) -> None:
        self.arms = tuple(arms)
        self._table = decode(assignment)
        self._salt = salt
        kind, name = sticky or ("", "")
        self._header = name if kind == "header" else ""
        self._parameter = name.encode() if kind == "parameter" else b""
        self._strata: list[int] = []

    def choose(self, flight: Flight) -> Any:
        """The arm for a request."""
        key = self._key_of(flight) if self._header or self._parameter else b""
        return self.arms[self._table[bucket_of(key, self._salt) if key else self._draw()]]

    def _draw(self) -> int:
        try:
            stratum = self._strata.pop()
        except IndexError:
            strata = list(range(STRATA))
            _random.shuffle(strata)
            stratum = strata.pop()
            self._strata = strata
        width = BUCKETS // STRATA
        return stratum * width + int(_random.random() * width)

    def _key_of(self, flight: Flight) -> bytes:
        if self._parameter:
            return _parameter_of(flight.method, flight.message, self._parameter)
        for name, value in flight.metadata:
            if name == self._header:
                return value.encode() if isinstance(value, str) else value
        return b""


def _parameter_of(method: int, message: bytes, name: bytes) -> bytes:
    """The sticky key that a request carries in its message; empty when it has none."""
    try:
        if method in (Method.MODEL_INFER, Method.MODEL_STREAM_INFER):
            return _infer_parameter(message, name)
        if is_http(method):
            return _json_key(method, message, name)
        if method in (Method.PREDICT, Method.PREDICT_STREAM):
            return _last(message, _STICKY_KEY)
    except WireError:  # the worker says what is wrong with it
        pass
    return b""


def _infer_parameter(message: bytes, name: bytes) -> bytes:
    for number, kind, start, end in fields(message):
        if number == _PARAMETERS and kind == LENGTH_DELIMITED:
            entry = message[start:end]
            if _last(entry, 1) == name:
                value = infer_pb.InferParameter.FromString(_last(entry, 2))
                chosen = value.WhichOneof("parameter_choice")
                return str(getattr(value, chosen)).encode() if chosen else b""
    return b""


def _json_key(method: int, message: bytes, name: bytes) -> bytes:
    body = _last(message, BODY_FIELD)
    if method != Method.HTTP_V2_INFER:
        found = _STICKY_IN_JSON(body)
        return found[1] if found else b""
    try:
        given = msgspec.json.decode(_v2_json(message, body), type=_V2Parameters)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, zlib.error):
        return b""
    value = (given.parameters or {}).get(name.decode())
    return str(value).encode() if isinstance(value, str | int | float | bool) else b""


def _v2_json(message: bytes, body: bytes) -> bytes:
    """What of a body is JSON (hot_methods.py, V2_HEADERS). Raises ValueError or zlib.error."""
    length = int(_last(message, V2_HEADERS["inference-header-content-length"]) or 0)
    if _last(message, V2_HEADERS["content-encoding"]) not in (b"", b"identity"):
        # zlib tells gzip and deflate apart by itself.
        body = zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(body, length or PACKED_JSON_BYTES_MAX)
    return body[:length] if length else body


# Not by a class statement, of which mypyc makes something that msgspec does not know.
_V2Parameters: Any = msgspec.defstruct("_V2Parameters", [("parameters", dict[str, Any] | None, None)])


def _last(message: bytes, field: int) -> bytes:
    """The content of a length-delimited field; the last one counts, as in protobuf."""
    found = b""
    for number, kind, start, end in fields(message):
        if number == field and kind == LENGTH_DELIMITED:
            found = message[start:end]
    return found

"""Records: the documented offsets are the ones in the structs."""

import struct

from nexus_grpc.ipc import record
from nexus_grpc.ipc.record import REQUEST_HEADER, RESPONSE_HEADER, Method


def at(packed: bytes, offset: int, kind: str) -> int:
    return int(struct.unpack_from(f"<{kind}", packed, offset)[0])


def test_request_header_lies_as_documented() -> None:
    packed = REQUEST_HEADER.pack(11, Method.BATCH_PREDICT, record.ISOLATED, 7, 2**63, 2**62, 2**61, 2**31, 0)
    assert len(packed) == record.REQUEST_HEADER_BYTES == 40
    assert at(packed, 0, "I") == 11
    assert at(packed, 4, "B") == 3
    assert at(packed, 5, "B") == 2
    assert at(packed, 6, "H") == 7
    assert [at(packed, offset, "Q") for offset in (8, 16, 24)] == [2**63, 2**62, 2**61]
    assert at(packed, 32, "I") == 2**31
    assert at(packed, 36, "I") == 0


def test_response_header_lies_as_documented() -> None:
    packed = RESPONSE_HEADER.pack(11, 13, record.OVERSIZE, 7, 2**63)
    assert len(packed) == record.RESPONSE_HEADER_BYTES == 16
    assert [at(packed, 0, "I"), at(packed, 4, "B"), at(packed, 5, "B")] == [11, 13, 1]
    assert at(packed, 6, "H") == 7
    assert at(packed, 8, "Q") == 2**63


def test_every_length_that_travels_fits_its_field() -> None:
    assert record.REQUEST_ID_MAX_BYTES < 1 << 16
    assert record.ERROR_MESSAGE_MAX_BYTES < 1 << 16
    assert max(Method) < 1 << 8


def test_flags_are_distinct_bits() -> None:
    assert record.OVERSIZE & record.ISOLATED == 0

"""The records that travel in the rings, byte for byte. Little-endian, 8-byte aligned, language-neutral.

Request record (front → worker):

    offset  bytes  field
    0       4      length          bytes after the header: request id, then the message; WRAP marks the ring's end
    4       1      method          Method
    5       1      flags           OVERSIZE, ISOLATED
    6       2      request_id_length
    8       8      sequence        unique per segment, increasing
    16      8      deadline_ns     CLOCK_MONOTONIC; 0 = none
    24      8      arrived_ns      CLOCK_MONOTONIC
    32      4      slot            model-version slot in the routing table
    36      4      reserved        0
    40      …      request id (ASCII), message (the client's bytes, untouched), zero to seven bytes of padding

Response record (worker → front):

    0       4      length          bytes of the payload
    4       1      code            gRPC status code
    5       1      flags           OVERSIZE; BLAME_SHIFT up: whose fault an error is, Blame
    6       2      message_length  code ≠ OK: bytes of the error message; the rest of the payload is a google.rpc.Status
    8       8      sequence        of the request it answers
    16      …      payload, padding

An OVERSIZE record carries no message in the ring: the message lies in a memfd that was sent over the segment's side
socket before the record was published (see oversize.py); `length` then counts only the request id (or 0).
"""

import enum
import struct


class Method(enum.IntEnum):
    """The hot methods, in the order used by records, statistics and metrics."""

    MODEL_INFER = 0
    MODEL_STREAM_INFER = 1
    PREDICT = 2
    BATCH_PREDICT = 3
    PREDICT_STREAM = 4
    # REST: JSON in google.api.HttpBody, by way of Envoy (nexus_grpc/rest/twin.py). From here on, see is_http().
    HTTP_PREDICT = 5
    HTTP_API_PREDICT = 6
    HTTP_API_BATCH_PREDICT = 7
    HTTP_V1_INFER = 8
    HTTP_V2_INFER = 9


def is_http(method: int) -> bool:
    return method >= Method.HTTP_PREDICT


class Blame(enum.IntEnum):
    """Whose fault an answer that is not OK is. It comes from where the failure arose, never from an error's text
    (docs/decisions/0013)."""

    NOBODY = 0  # not known, or nobody's: load, a crash, a deadline
    CALLER = 1  # our own checks refused it before anything ran, or the caller went away
    INPUT = 2  # the model did not run on it; on a known good input it does, or none is known
    MODEL = 3  # the model did not run on a known good input either


OVERSIZE = 1
# Where a response record's flags have their Blame.
BLAME_SHIFT = 1
# Never batched with others: the request was being executed when a worker died.
ISOLATED = 2

WRAP = 0xFFFFFFFF
ALIGNMENT = 8

REQUEST_HEADER = struct.Struct("<IBBHQQQII")
RESPONSE_HEADER = struct.Struct("<IBBHQ")
REQUEST_HEADER_BYTES = REQUEST_HEADER.size
RESPONSE_HEADER_BYTES = RESPONSE_HEADER.size

assert REQUEST_HEADER_BYTES == 40
assert RESPONSE_HEADER_BYTES == 16
assert REQUEST_HEADER_BYTES % ALIGNMENT == RESPONSE_HEADER_BYTES % ALIGNMENT == 0

# gRPC metadata keys are short; longer request ids are replaced by generated ones.
REQUEST_ID_MAX_BYTES = 128
# What of an error message reaches the wire; longer ones are cut by the worker.
ERROR_MESSAGE_MAX_BYTES = 4096

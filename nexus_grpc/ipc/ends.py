"""The four ends of a segment's two rings: which words and which bytes belong to which."""

from nexus_grpc.ipc.record import REQUEST_HEADER, RESPONSE_HEADER
from nexus_grpc.ipc.ring import RingConsumer, RingProducer
from nexus_grpc.ipc.segment import (
    REQUEST_PARKED_WORD,
    REQUEST_PUBLISHED_WORD,
    REQUEST_RELEASED_WORD,
    RESPONSE_PARKED_WORD,
    RESPONSE_PUBLISHED_WORD,
    RESPONSE_RELEASED_WORD,
    Segment,
)

_REQUEST = {"published": REQUEST_PUBLISHED_WORD, "released": REQUEST_RELEASED_WORD, "parked": REQUEST_PARKED_WORD}
_RESPONSE = {"published": RESPONSE_PUBLISHED_WORD, "released": RESPONSE_RELEASED_WORD, "parked": RESPONSE_PARKED_WORD}


def request_producer(segment: Segment, bell: int) -> RingProducer:
    """The front's end; `bell` is the worker's doorbell."""
    return RingProducer(segment.words, segment.request, bell=bell, **_REQUEST)


def request_consumer(segment: Segment) -> RingConsumer:
    """The worker's end."""
    return RingConsumer(segment.words, segment.request, REQUEST_HEADER, **_REQUEST)


def response_producer(segment: Segment, bell: int) -> RingProducer:
    """The worker's end; `bell` is the front's doorbell."""
    return RingProducer(segment.words, segment.response, bell=bell, **_RESPONSE)


def response_consumer(segment: Segment) -> RingConsumer:
    """The front's end."""
    return RingConsumer(segment.words, segment.response, RESPONSE_HEADER, **_RESPONSE)

"""Control frames: however the bytes are cut, messages and their descriptors come out whole and together."""

import json
import os
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from nexus_grpc.ipc.control import (
    FDS_MAX,
    FRAME_MAX_BYTES,
    ChannelClosed,
    ControlChannel,
    FrameReader,
    encode_frame,
    receive_some,
)
from tests.unit.support import open_descriptors

Sockets = tuple[socket.socket, socket.socket]


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    before = open_descriptors()
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    yield pair
    for one in pair:
        one.close()
    assert open_descriptors() == before


def raw_frame(text: bytes, count: int = 0) -> bytes:
    return struct.pack("<II", len(text), count) + text


def new_descriptors(count: int) -> list[int]:
    return [os.memfd_create(f"d{index}") for index in range(count)]


def test_frames_may_be_cut_anywhere() -> None:
    sent = [{"type": "a", "n": 1}, {"type": "b", "text": "ä" * 50}, {"type": "c"}]
    stream = b"".join(encode_frame(message, 0) for message in sent)
    for first in range(len(stream) + 1):
        reader = FrameReader()
        got = reader.feed(stream[:first], []) + reader.feed(stream[first:], [])
        assert [message for message, _ in got] == sent
    reader = FrameReader()
    assert [message for byte in stream for message, _ in reader.feed(bytes([byte]), [])] == sent


def test_descriptors_go_to_the_frames_that_announce_them() -> None:
    frames = [encode_frame({"type": str(count)}, count) for count in (0, 2, 1)]
    reader = FrameReader()
    assert reader.feed(frames[0] + frames[1][:3], [10, 11]) == [({"type": "0"}, [])]
    got = reader.feed(frames[1][3:] + frames[2], [12])
    assert got == [({"type": "2"}, [10, 11]), ({"type": "1"}, [12])]


def test_a_frame_waits_for_its_descriptors() -> None:
    reader = FrameReader()
    assert reader.feed(encode_frame({"type": "x"}, 1), []) == []
    assert reader.feed(b"", [5]) == [({"type": "x"}, [5])]


@pytest.mark.parametrize(
    "frame",
    [
        struct.pack("<II", FRAME_MAX_BYTES + 1, 0),
        struct.pack("<II", 2**32 - 1, 0),
        struct.pack("<II", 2, FDS_MAX + 1),
        raw_frame(b""),
        raw_frame(b"{"),
        raw_frame(b"\xff\xff"),
        raw_frame(b"[" * 200_000),
        raw_frame(b'{"type": ' + b"1" * 5000 + b"}"),
        raw_frame(b"[]"),
        raw_frame(b"{}"),
        raw_frame(b'{"type": 1}'),
    ],
    ids=["large", "huge", "fds", "empty", "cut", "not-utf-8", "deep", "long-number", "list", "no-type", "type-number"],
)
def test_what_is_no_frame_closes_the_channel(frame: bytes) -> None:
    with pytest.raises(ChannelClosed, match="a control frame"):
        FrameReader().feed(frame, [])


def test_a_bad_frame_leaves_no_descriptor_open() -> None:
    before = open_descriptors()
    reader = FrameReader()
    with pytest.raises(ChannelClosed):
        reader.feed(encode_frame({"type": "good"}, 2) + raw_frame(b"bad", 1), new_descriptors(4))
    assert open_descriptors() == before


def test_close_closes_what_came_for_a_frame_that_never_did() -> None:
    before = open_descriptors()
    reader = FrameReader()
    reader.feed(encode_frame({"type": "x"}, 2)[:-1], new_descriptors(2))
    reader.close()
    assert open_descriptors() == before


def test_a_frame_is_json_behind_two_lengths() -> None:
    frame = encode_frame({"type": "x"}, 3)
    assert struct.unpack_from("<II", frame) == (len(frame) - 8, 3)
    assert json.loads(frame[8:]) == {"type": "x"}


def test_messages_and_descriptors_through_a_socket(sockets: Sockets) -> None:
    before = open_descriptors()
    channel = ControlChannel(sockets[1])
    descriptors = new_descriptors(2)
    for number, descriptor in enumerate(descriptors):
        os.write(descriptor, b"%d" % number)
    socket.send_fds(sockets[0], [encode_frame({"type": "plain"}, 0)], [])
    socket.send_fds(sockets[0], [encode_frame({"type": "first"}, 1)], descriptors[:1])
    socket.send_fds(sockets[0], [encode_frame({"type": "second"}, 1)], descriptors[1:])
    for descriptor in descriptors:
        os.close(descriptor)
    assert channel.receive() == ({"type": "plain"}, [])
    for number, kind in enumerate(("first", "second")):
        message, [received] = channel.receive()
        assert message["type"] == kind
        assert os.pread(received, 10, 0) == b"%d" % number
        assert not os.get_inheritable(received)
        os.close(received)
    assert open_descriptors() == before


def test_a_large_message_takes_many_reads(sockets: Sockets) -> None:
    message = {"type": "big", "text": "x" * (1 << 20)}
    sender = threading.Thread(target=ControlChannel(sockets[0]).send, args=(message,))
    sender.start()
    assert ControlChannel(sockets[1]).receive() == (message, [])
    sender.join()


def test_the_other_side_closing_is_an_error_both_ways(sockets: Sockets) -> None:
    sockets[0].close()
    with pytest.raises(ChannelClosed):
        ControlChannel(sockets[1]).receive()
    with pytest.raises(ChannelClosed):
        ControlChannel(sockets[1]).send({"type": "x"})


def test_nothing_to_read_is_not_the_end(sockets: Sockets) -> None:
    sockets[1].setblocking(False)
    with pytest.raises(BlockingIOError):
        receive_some(sockets[1])

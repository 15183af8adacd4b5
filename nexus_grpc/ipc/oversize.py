"""Messages too large for a ring: one memfd each, handed over by file descriptor.

The sender writes the message into a fresh memfd, sends {sequence} with the descriptor over the pair's side socket and
then publishes a record flagged OVERSIZE; the receiver finds the descriptor waiting when it reads the record. Nothing
is chunked, the ring's size does not matter, and the memory is gone when both sides have closed it, also when one of
them is killed: descriptors in flight die with their socket.

The side socket is a SOCK_SEQPACKET pair, so that a hand-over is one datagram.
"""

import mmap
import os
import socket
import struct

_SEQUENCE = struct.Struct("<Q")


class HandOverError(Exception):
    """The other side announced a memfd that did not come, or it is not the one announced."""


def new_side_sockets() -> tuple[socket.socket, socket.socket]:
    """A connected pair of non-blocking side sockets (front's end, worker's end)."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    return one, other


def hand_over_nowait(side: socket.socket, sequence: int, parts: tuple[bytes, ...]) -> bool:
    """Put `parts`, joined, into a memfd and send it. False when the socket, memory or descriptors are used up."""
    try:
        descriptor = os.memfd_create("nexus-message", os.MFD_CLOEXEC)
    except OSError:
        return False
    try:
        for part in parts:
            _write_all(descriptor, part)
        socket.send_fds(side, [_SEQUENCE.pack(sequence)], [descriptor])
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _write_all(descriptor: int, part: bytes) -> None:
    view = memoryview(part)
    while view:
        view = view[os.write(descriptor, view) :]


def take_over(side: socket.socket, sequence: int) -> mmap.mmap:
    """Receive the memfd announced for `sequence` and map it. Closing the mapping gives the memory back.

    Ones that nobody took over before it are dropped: their records were refused unread.

    Raises HandOverError when it is not there or cannot be mapped.
    """
    while True:
        found, descriptor = _receive(side, sequence)
        try:
            if found == sequence:
                return mmap.mmap(descriptor, os.fstat(descriptor).st_size, prot=mmap.PROT_READ)
        except (ValueError, OSError) as error:
            raise HandOverError(f"message {sequence} cannot be mapped: {error}") from None
        finally:
            os.close(descriptor)


def _receive(side: socket.socket, sequence: int) -> tuple[int, int]:
    """The next hand-over: (its sequence, its descriptor). Raises HandOverError."""
    try:
        head, descriptors, _, _ = socket.recv_fds(side, _SEQUENCE.size, 1, socket.MSG_CMSG_CLOEXEC)
    except OSError as error:
        raise HandOverError(f"message {sequence} was announced and did not come: {error}") from None
    if len(head) != _SEQUENCE.size or len(descriptors) != 1:
        for descriptor in descriptors:
            os.close(descriptor)
        raise HandOverError(f"message {sequence} was announced and came without its memory")
    return int(_SEQUENCE.unpack(head)[0]), descriptors[0]

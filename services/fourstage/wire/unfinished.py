"""Connections that send a message without end are cut.

ZeroMQ's MAXMSGSIZE holds for each frame and its high-water mark for whole messages: a message of which one more frame
is always to come passes both and fills the memory (measured: 165 MB at a limit of 1 MB a frame). libzmq shows nothing
of it, but the kernel counts a connection's bytes (``struct tcp_info`` of linux/tcp.h), and every whole message tells
its connection's descriptor (ZMQ_SRCFD). So whoever has sent more than any message has since its last whole one is cut.
"""

import os
import socket
import struct
from contextlib import closing, suppress
from dataclasses import dataclass

_TCP_INFO_BYTES = 256
_BYTES_RECEIVED = struct.Struct("=128xQ")
"""``tcpi_bytes_received``, payload of this connection's whole life; Linux 4.1."""
_LOOK_SECONDS = 0.25
"""What a link carries in this time may lie in memory beyond the limit."""


@dataclass(slots=True)
class _Connection:
    inode: int
    """The number of a descriptor is used again by the next connection, this is not."""
    mark: int = 0
    """Bytes received when it was last looked at after a whole message."""
    spoke: bool = False
    """It has sent a whole message since."""


class Unfinished:
    """The TCP connections of one socket that binds."""

    def __init__(self, limit: int) -> None:
        """limit: bytes on the wire that a connection may send without a whole message."""
        self.limit = limit
        self._connections: dict[int, _Connection] = {}
        self._look_at = 0.0

    def accepted(self, descriptor: int) -> None:
        """A connection has come, as ZeroMQ's monitor says (ACCEPTED)."""
        if (connection := _duplicate(descriptor)) is not None:
            with closing(connection):
                self._connections[descriptor] = _Connection(os.fstat(connection.fileno()).st_ino)

    def spoke(self, descriptor: int) -> None:
        """A whole message of that connection (ZMQ_SRCFD) was read."""
        if (known := self._connections.get(descriptor)) is not None:
            known.spoke = True

    def end(self, descriptor: int) -> None:
        """Cut the connection that a message came over (ZMQ_SRCFD), whatever it has sent."""
        known, connection = self._connections.pop(descriptor, None), _duplicate(descriptor)
        if connection is not None:
            with closing(connection), suppress(OSError):
                if known is not None and os.fstat(connection.fileno()).st_ino == known.inode:
                    connection.shutdown(socket.SHUT_RDWR)

    def cut(self, now: float) -> int:
        """Cut those that have sent too much, a few times a second; how many there were.

        To be called when every whole message was read: what waits to be read would count as unfinished.
        """
        if now < self._look_at:
            return 0
        self._look_at = now + _LOOK_SECONDS
        cut = 0
        for descriptor, known in list(self._connections.items()):
            connection = _duplicate(descriptor)
            if connection is None:
                del self._connections[descriptor]
                continue
            with closing(connection):
                if os.fstat(connection.fileno()).st_ino != known.inode:
                    # Another one has the number; it is told of by itself.
                    del self._connections[descriptor]
                    continue
                received = _received(connection)
                if known.spoke:
                    known.mark, known.spoke = received, False
                elif received - known.mark > self.limit:
                    connection.shutdown(socket.SHUT_RDWR)
                    del self._connections[descriptor]
                    cut += 1
        return cut


def _duplicate(descriptor: int) -> socket.socket | None:
    """The connection under a descriptor of our own, so that nobody can close it meanwhile; None: it is closed."""
    try:
        duplicate = os.dup(descriptor)
    except OSError:
        return None
    try:
        return socket.socket(fileno=duplicate)
    except OSError:
        os.close(duplicate)
        return None


def _received(connection: socket.socket) -> int:
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        return int(_BYTES_RECEIVED.unpack_from(info)[0])
    except (OSError, struct.error):
        return 0

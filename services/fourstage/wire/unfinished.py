"""Connections that send a message without end are cut.

ZeroMQ's MAXMSGSIZE holds for each frame and its high-water mark for whole messages: a message of which one more frame
is always to come passes both and fills the memory (measured: 165 MB at a limit of 1 MB a frame). libzmq shows nothing
of it, but the kernel counts a connection's bytes (``struct tcp_info`` of linux/tcp.h), and every whole message tells
its connection's descriptor (ZMQ_SRCFD). So whoever has sent more than any message has since its last whole one is cut.
"""

import errno
import fcntl
import os
import socket
import struct
import termios
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
    spoke: bool = True
    """It has sent a whole message since; or is new, and nobody noticed what it has said so far."""
    over: bool = False
    """It had sent too much when it was last looked at. What was whole by then is read before the next look: only who
    has sent too much twice in a row has sent nothing whole."""


class Unfinished:
    """The TCP connections of one socket that binds."""

    def __init__(self, limit: int) -> None:
        """limit: bytes on the wire that a connection may send without a whole message."""
        self.limit = limit
        self._connections: dict[int, _Connection] = {}
        self._look_at = 0.0

    def accepted(self, descriptor: int) -> None:
        """A connection has come, as ZeroMQ's monitor says (ACCEPTED)."""
        with suppress(OSError):
            self._connections[descriptor] = _Connection(os.fstat(descriptor).st_ino)

    def spoke(self, descriptor: int) -> None:
        """A whole message of that connection (ZMQ_SRCFD) was read."""
        if (known := self._connections.get(descriptor)) is not None:
            known.spoke = True

    def end(self, descriptor: int) -> None:
        """Cut the connection that a message came over (ZMQ_SRCFD), whatever it has sent."""
        known = self._connections.get(descriptor)
        with suppress(OSError), closing(_duplicate(descriptor)) as connection:
            if known is not None and os.fstat(connection.fileno()).st_ino == known.inode:
                connection.shutdown(socket.SHUT_RDWR)

    def is_due(self, now: float) -> bool:
        """Whether it is time for another look."""
        return now >= self._look_at

    def cut(self, now: float) -> int:
        """Cut those that have sent too much, a few times a second; how many there were.

        To be called when every message was read that was whole when the look became due: what waits to be read would
        count as unfinished.
        """
        if not self.is_due(now):
            return 0
        self._look_at = now + _LOOK_SECONDS
        cut = 0
        for descriptor, known in list(self._connections.items()):
            try:
                cut += self._look(descriptor, known)
            except OSError as error:
                if error.errno == errno.EBADF:
                    del self._connections[descriptor]
        return cut

    def _look(self, descriptor: int, known: _Connection) -> bool:
        with closing(_duplicate(descriptor)) as connection:
            if os.fstat(connection.fileno()).st_ino != known.inode:
                # Another one has the number; it is told of by itself.
                del self._connections[descriptor]
                return False
            taken = _taken(connection)
            over, known.over = known.over, not known.spoke and taken - known.mark > self.limit
            if known.spoke:
                known.mark, known.spoke = taken, False
            if not (over and known.over):
                return False
            connection.shutdown(socket.SHUT_RDWR)
            del self._connections[descriptor]
            return True


def _duplicate(descriptor: int) -> socket.socket:
    """The connection under a descriptor of our own, so that nobody can close it meanwhile. Raises OSError; EBADF where
    it is closed."""
    duplicate = os.dup(descriptor)
    try:
        return socket.socket(fileno=duplicate)
    except OSError:
        os.close(duplicate)
        raise


def _taken(connection: socket.socket) -> int:
    """Bytes that ZeroMQ has read from a connection: those that have come, but for what still lies in the kernel."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    (received,) = _BYTES_RECEIVED.unpack_from(info)
    (waiting,) = struct.unpack("=i", fcntl.ioctl(connection, termios.FIONREAD, bytes(4)))
    return int(received) - int(waiting)

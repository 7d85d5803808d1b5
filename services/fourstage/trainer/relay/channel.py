"""Messages of the wire between two trainers of one machine, over a Unix socket.

::

    7 x uint32   number of parts, then the bytes of each; 0 where there is none
    part 0, 1    header and body: frames 0 and 1 of ``wire.codec``
    part 2..     payloads

A descriptor travels beside the first byte of its frame (SCM_RIGHTS, unix(7)). A call that has no more time leaves a
frame half read or half written, and the next one goes on there. (SOCK_SEQPACKET would keep frames whole, but takes
none larger than the socket's buffer, 208 KiB on most systems; a batch that came inline has 19 MB.)
"""

import array
import contextlib
import math
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fourstage.errors import PeerError, PeerLostError
from fourstage.process import socket_path
from fourstage.wire import side
from fourstage.wire.codec import decode, encode
from fourstage.wire.messages import Message

_HEAD = struct.Struct("<7I")
_MAX_PARTS = 6
_LARGEST_FRAME = 1 << 31
_TRUNCATED = int(socket.MSG_CTRUNC)
LINGER_SECONDS = 1.0
"""For the last words to be read, before a connection is ended."""
ARENA = struct.Struct("<3Q")
"""An arena that is in use: number, slots, bytes of a slot."""
_FIRST, _SECOND = "the trainer of the first column", "the trainer of the second column"


@dataclass(slots=True)
class Heard:
    """One message. descriptor: of the arena that came with it, closed with this unless it was taken."""

    message: Message
    payload: list[memoryview]
    descriptor: int | None

    def take_descriptor(self) -> int:
        """The descriptor, from now on the caller's. Raises PeerError where there is none."""
        if self.descriptor is None:
            raise PeerError("an arena without a descriptor")
        descriptor, self.descriptor = self.descriptor, None
        return descriptor

    def close(self) -> None:
        if self.descriptor is not None:
            os.close(self.take_descriptor())


class Channel:
    """One connection. One thread may receive while others send."""

    def __init__(self, connection: socket.socket, peer: str, *, descriptors: bool) -> None:
        """peer: how errors name it; descriptors: whether it may send any."""
        connection.setblocking(False)
        self.peer = peer
        self._socket = connection
        self._ancillary_size = socket.CMSG_LEN(array.array("i").itemsize) if descriptors else 0
        self._lock = threading.Lock()
        self._unsent: deque[_Outgoing] = deque()
        self._incoming = _Incoming()

    def send(self, message: Message, payload: Sequence[memoryview | bytes] = (), descriptor: int | None = None) -> None:
        """Queue a message; payloads must not change until it is out. The descriptor is closed then."""
        parts = [memoryview(part) for part in (*encode(message), *payload)]
        head = _HEAD.pack(len(parts), *[len(part) for part in parts], *[0] * (_MAX_PARTS - len(parts)))
        with self._lock:
            self._unsent.append(_Outgoing([memoryview(head), *[part for part in parts if part]], descriptor))

    def flush(self, timeout: float) -> bool:
        """Send what is queued; False where the peer took only a part of it within ``timeout`` seconds.

        Raises PeerLostError.
        """
        deadline = time.monotonic() + timeout
        # The lock is not held while this waits: nobody who has a word to add waits for a peer that does not read.
        while not self._write():
            if not self._wait(select.POLLOUT, deadline):
                return False
        return True

    def receive(self, timeout: float | None) -> Heard | None:
        """The next message; None where it has not come whole within ``timeout`` seconds (None: wait for ever).

        Raises PeerLostError once the peer has hung up, PeerError for anything that is not a message.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._read():
            if not self._wait(select.POLLIN, deadline):
                return None
        incoming, self._incoming = self._incoming, _Incoming()
        try:
            return Heard(decode(incoming.parts[:2]), incoming.parts[2:], incoming.descriptor)
        except PeerError:
            incoming.close()
            raise

    def hang_up(self) -> None:
        """End the connection both ways; whoever waits in ``flush`` or ``receive`` hears of it at once."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the descriptors back. Only when nobody is in ``flush`` or ``receive`` any more."""
        with self._lock:
            self._socket.close()
            for outgoing in self._unsent:
                outgoing.close()
            self._unsent.clear()
        self._incoming.close()

    def _write(self) -> bool:
        """Send as much as the socket takes; whether nothing is left."""
        with self._lock:
            try:
                while self._unsent:
                    first = self._unsent[0]
                    first.advance(self._socket.sendmsg(first.buffers, first.ancillary()))
                    if not first.buffers:
                        self._unsent.popleft()
            except BlockingIOError:
                return False
            except OSError as error:
                raise self._lost() from error
            return True

    def _read(self) -> bool:
        """Read as much as has come of one frame; whether it is whole."""
        incoming = self._incoming
        try:
            while incoming.buffers:
                count, ancillary, flags, _ = self._socket.recvmsg_into(
                    incoming.buffers, self._ancillary_size, socket.MSG_CMSG_CLOEXEC
                )
                if count == 0:
                    raise self._lost()
                incoming.keep(ancillary)
                if flags & _TRUNCATED:
                    raise PeerError(f"{self.peer} sent descriptors that nobody asked for")
                incoming.advance(count)
        except BlockingIOError:
            return False
        except OSError as error:
            raise self._lost() from error
        return True

    def _wait(self, events: int, deadline: float | None) -> bool:
        if deadline is not None and deadline <= time.monotonic():
            return False
        poll = select.poll()
        poll.register(self._socket, events)
        return bool(poll.poll(None if deadline is None else math.ceil(seconds_left(deadline) * 1000)))

    def _lost(self) -> PeerLostError:
        return PeerLostError(f"{self.peer} is gone", hint="fourstage run --resume goes on from the last checkpoint")


class Listener:
    """Where the second column's trainer finds the first one; it comes once."""

    def __init__(self, folder: Path) -> None:
        """Listen in a private folder. Raises SettingsError where its path is too long."""
        self.path = socket_path(folder, "column")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(os.fspath(self.path))
        self._socket.listen(1)
        self._socket.setblocking(False)

    def accept(self, timeout: float) -> Channel:
        """Wait for the other trainer, a process of this user. Raises TimeoutError after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        while poll.poll(math.ceil(seconds_left(deadline) * 1000)):
            if (connection := side.accept(self._socket)) is not None:
                return Channel(connection, _SECOND, descriptors=False)
        raise TimeoutError(f"{_SECOND} has not connected to {self.path}")

    def close(self) -> None:
        """Stop listening and take the socket off the file system."""
        self._socket.close()
        self.path.unlink(missing_ok=True)


def listen(folder: Path) -> Listener:
    """The first column's end. folder: one that only this user can enter."""
    return Listener(folder)


def connect(path: Path, timeout: float) -> Channel:
    """The second column's end. path: the listener's. Raises PeerLostError where nobody listens."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout)
    try:
        connection.connect(os.fspath(path))
    except OSError as error:
        connection.close()
        raise PeerLostError(f"{_FIRST} does not listen at {path}: {error.strerror or error}") from error
    return Channel(connection, _FIRST, descriptors=True)


def seconds_left(deadline: float) -> float:
    """Seconds until ``deadline``, on the monotonic clock; not less than 0."""
    return max(0.0, deadline - time.monotonic())


class _Outgoing:
    """A frame and how much of it is still to be sent."""

    def __init__(self, buffers: list[memoryview], descriptor: int | None) -> None:
        self.buffers = buffers
        self._descriptor = descriptor

    def ancillary(self) -> "list[tuple[int, int, array.array[int]]]":
        if self._descriptor is None:
            return []
        return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [self._descriptor]))]

    def advance(self, count: int) -> None:
        """The first ``count`` bytes are out, and with the first of them the descriptor."""
        self.buffers = _after(self.buffers, count)
        self.close()

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class _Incoming:
    """A frame and how much of it is still to come: first its head, then the parts that it announces."""

    def __init__(self) -> None:
        self.parts: list[memoryview] = []
        self.descriptor: int | None = None
        self._head = memoryview(bytearray(_HEAD.size))
        self.buffers = [self._head]

    def advance(self, count: int) -> None:
        """Another ``count`` bytes have come. Raises PeerError for a head that announces too little or too much."""
        self.buffers = _after(self.buffers, count)
        if self.buffers or self.parts:
            return
        number, *sizes = _HEAD.unpack(self._head)
        if not 2 <= number <= _MAX_PARTS or sum(sizes) > _LARGEST_FRAME or not all(sizes[:2]):
            raise PeerError(f"a frame of {number} parts of {sizes} bytes")
        # Each part has memory of its own, so that small ones do not keep the pixels alive; np.empty zeroes none of it.
        self.parts = [np.empty(size, np.uint8).data for size in sizes[:number]]
        self.buffers = [part for part in self.parts if part]

    def keep(self, ancillary: Sequence[tuple[int, int, bytes]]) -> None:
        """Take over the descriptor that came along. Raises PeerError for a second one."""
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                for descriptor in array.array("i", data):
                    if self.descriptor is not None:
                        os.close(descriptor)
                        raise PeerError("a frame with more than one descriptor")
                    self.descriptor = descriptor

    def close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


def _after(buffers: list[memoryview], count: int) -> list[memoryview]:
    """What is left of ``buffers`` after their first ``count`` bytes."""
    for number, buffer in enumerate(buffers):
        if count < len(buffer):
            return [buffer[count:], *buffers[number + 1 :]]
        count -= len(buffer)
    return []

"""The listening end of the side connections: who came, and who is gone.

A connection is a stranger until its first packet says who it is; then its owner adopts it under a key of his own,
and its hang-up is the proof that the peer has died.
"""

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from fourstage.errors import PeerError
from fourstage.wire import side
from fourstage.wire.sockets import Waiter

log = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Introduced:
    """A stranger's first packet; whoever gets this adopts or refuses the connection, and owns the descriptor."""

    connection: socket.socket
    packet: side.Packet
    descriptor: int | None


@dataclass(frozen=True, slots=True)
class HungUp(Generic[K]):
    """The peer of an adopted connection is gone; the connection is closed and forgotten."""

    key: K


class Door(Generic[K]):
    """A Unix socket that listens, and every connection through it. ``waiter`` wakes for all of them."""

    def __init__(self, path: Path, waiter: Waiter, on_fault: Callable[[], object] = lambda: None) -> None:
        """on_fault: called for every packet that is none."""
        self.path = path
        self._waiter = waiter
        self._on_fault = on_fault
        self._listener = side.listen(path)
        self._strangers: dict[int, socket.socket] = {}
        self._adopted: dict[K, socket.socket] = {}
        self._keys: dict[int, K] = {}
        self._spare = _reserve()
        """A descriptor kept for the connection that finds none: it is taken with it, to be refused."""
        waiter.add(self._listener.fileno())

    def events(self, readable: Iterable[int]) -> Iterator[Introduced | HungUp[K]]:
        """What happened on the descriptors that are readable; others' descriptors are passed over."""
        for descriptor in readable:
            if descriptor == self._listener.fileno():
                if (connection := self._accept()) is not None:
                    self._strangers[connection.fileno()] = connection
                    self._waiter.add(connection.fileno())
            elif descriptor in self._strangers:
                if (introduced := self._hear(self._strangers.pop(descriptor))) is not None:
                    yield introduced
            elif descriptor in self._keys:
                key = self._keys[descriptor]
                self.drop(key)
                yield HungUp(key)

    def adopt(self, connection: socket.socket, key: K) -> None:
        """Keep a connection that was introduced; its hang-up will be told under this key."""
        self._adopted[key] = connection
        self._keys[connection.fileno()] = key

    def refuse(self, connection: socket.socket) -> None:
        """Hang up on a connection that was introduced."""
        self._waiter.remove(connection.fileno())
        connection.close()

    def connection(self, key: K) -> socket.socket | None:
        """The adopted connection of that key."""
        return self._adopted.get(key)

    def drop(self, key: K) -> None:
        """Hang up on an adopted connection, if there is one."""
        if (connection := self._adopted.pop(key, None)) is not None:
            del self._keys[connection.fileno()]
            self.refuse(connection)

    def close(self) -> None:
        """Hang up on everybody and take the socket off the file system."""
        for connection in (*self._strangers.values(), *self._adopted.values()):
            self.refuse(connection)
        self._waiter.remove(self._listener.fileno())
        self._listener.close()
        if self._spare >= 0:
            os.close(self._spare)
        self.path.unlink(missing_ok=True)

    def _accept(self) -> socket.socket | None:
        try:
            return side.accept(self._listener)
        except OSError as error:
            log.warning("refused a side connection: %s; raise the limit (ulimit -n)", error.strerror)
        # Left in the queue it would wake us for ever; refused, its peer goes without.
        if self._spare >= 0:
            os.close(self._spare)
        with contextlib.suppress(OSError):
            self._listener.accept()[0].close()
        self._spare = _reserve()
        return None

    def _hear(self, connection: socket.socket) -> Introduced | None:
        try:
            received = side.receive(connection)
        except BlockingIOError:
            # The descriptor was readable when it was another, closed connection's.
            self._strangers[connection.fileno()] = connection
            return None
        except PeerError as error:
            self._on_fault()
            log.warning("dropped a side connection: %s", error)
            received = None
        if received is None:
            self.refuse(connection)
            return None
        return Introduced(connection, *received)


def _reserve() -> int:
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1

"""A network between two hosts that can be made to fail: a TCP proxy on the loopback."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

_CHUNK = 4096
_LOOK_SECONDS = 0.02
_GREETING_BYTES = 64
_HANG_UP = struct.pack("ii", 1, 0)
"""SO_LINGER of no time: the connection is reset, as by a router that forgot it."""


class Proxy:
    """Forwards 127.0.0.1:``port`` to ``target``, a port there, until it is closed.

    While nobody listens at the target, who dials is hung up on and comes again.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.delay = 0.0
        """Seconds that every piece takes longer."""
        self.rate = float("inf")
        """Bytes a second of each direction of each connection."""
        self._down = False
        self._silent = False
        self._truncate = False
        self._greeting = b""
        """What the last to dial said first."""
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._forgotten: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()
        for thread in self._threads:
            thread.join()

    def cut(self) -> None:
        """Every connection is reset, and so is whoever dials, until ``heal``."""
        self._down = True
        self.hang_up()

    def swallow(self) -> None:
        """Connections stay and nothing passes, in either direction, until ``heal``: then all of it does."""
        self._silent = True

    def forget(self) -> None:
        """Over the connections of now nothing passes any more, and nobody is told, as with a router that has lost its
        state; who dials again gets through."""
        with self._lock:
            self._forgotten |= self._sockets

    def truncate(self) -> None:
        """The next message that comes along is cut in the middle, and its connection with it."""
        self._truncate = True

    @property
    def truncated(self) -> bool:
        """Whether that has happened."""
        return not self._truncate

    def heal(self) -> None:
        """A network as it should be."""
        self.delay, self.rate, self._down, self._silent = 0.0, float("inf"), False, False

    def hang_up(self) -> None:
        """Every connection is reset once; who dials again gets through."""
        with self._lock:
            gone, self._sockets = self._sockets, set()
        for each in gone:
            _reset(each)

    def storm(self, connections: int) -> None:
        """Every connection is reset once, and the target is dialled so often at one time with what somebody else has
        said first."""
        self.hang_up()
        with contextlib.ExitStack() as stack:
            for _ in range(connections):
                with contextlib.suppress(OSError):
                    dialled = stack.enter_context(socket.create_connection(("127.0.0.1", self.target), 1.0))
                    dialled.sendall(self._greeting)

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                target = None if self._down else _dial(self.target)
                if target is None:
                    _reset(client)
                    continue
                with self._lock:
                    self._sockets |= {client, target}
                self._start(self._pump, client, target, True)
                self._start(self._pump, target, client, False)

    def _pump(self, source: socket.socket, sink: socket.socket, dialled: bool) -> None:
        try:
            for data in _pieces(source):
                if dialled and len(data) >= _GREETING_BYTES:
                    self._greeting = data[:_GREETING_BYTES]
                if self._truncate and len(data) > _GREETING_BYTES:
                    self._truncate = False
                    sink.sendall(data[: len(data) // 2])
                    raise ConnectionAbortedError
                time.sleep(self.delay + len(data) / self.rate)
                while (self._silent or source in self._forgotten) and not self._closed:
                    time.sleep(_LOOK_SECONDS)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            _reset(source)
            _reset(sink)


def _pieces(source: socket.socket) -> Iterator[bytes]:
    while data := source.recv(_CHUNK):
        yield data


def _dial(port: int) -> socket.socket | None:
    try:
        dialled = socket.create_connection(("127.0.0.1", port), 1.0)
    except OSError:
        return None
    # The limit was for dialling: nobody has to say anything.
    dialled.settimeout(None)
    return dialled


def _reset(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _HANG_UP)
        # Also for a thread that waits in it, which closing alone would not wake.
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()

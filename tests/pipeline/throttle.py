"""A TCP proxy with so many bytes a second in one direction, over all of its connections: a slow network."""

import contextlib
import socket
import threading
import time
from types import TracebackType
from typing import Literal, Self

_CHUNK = 4096
_BUFFER = 16_384


class Throttle:
    """Forwards 127.0.0.1:``port`` to a port there, until it is closed."""

    def __init__(self, target: int, bytes_per_second: float, direction: Literal["to-target", "from-target"]) -> None:
        self._target = target
        self._rate = bytes_per_second
        self._direction = direction
        self._wire = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
                target = socket.socket()
                target.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
                try:
                    target.connect(("127.0.0.1", self._target))
                except ConnectionRefusedError:
                    # Nobody listens there yet; who dials comes again.
                    client.close()
                    target.close()
                    continue
                self._sockets += [client, target]
                for source, sink, slow in (
                    (client, target, self._direction == "to-target"),
                    (target, client, self._direction == "from-target"),
                ):
                    threading.Thread(target=self._pump, args=(source, sink, slow), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, slow: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK):
                if slow:
                    with self._wire:
                        time.sleep(len(data) / self._rate)
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

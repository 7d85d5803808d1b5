"""Where the JPEG bytes of a lease lie: in the loader's arena of that stream, or in the message itself."""

import contextlib
import logging
import socket

import numpy as np

from fourstage.arena import Arena
from fourstage.errors import PeerError
from fourstage.wire import side
from fourstage.wire.messages import Lease, Stream
from fourstage.wire.sockets import Payload

log = logging.getLogger(__name__)


class JpegSources:
    """The loader's arenas by stream, as they came over the side connection."""

    def __init__(self) -> None:
        self._arenas: dict[bytes, Arena] = {}
        self._side: socket.socket | None = None

    def follow(self, connection: socket.socket | None) -> None:
        """The side connection after a WELCOME: where it is another one, so are the loader and its arenas."""
        if connection is not self._side:
            self._side = connection
            self.close()

    def attach(self, spec: Stream) -> None:
        """Map a stream's arena, which was sent before the message, if it comes by arena and is not mapped yet."""
        if spec.transport != "arena" or self._side is None or spec.stream in self._arenas:
            return
        while True:
            try:
                received = side.receive_arena(self._side)
            except (PeerError, TimeoutError) as error:
                log.warning("no arena from the loader: %s", error)
                # It leases by slot from now on. Hung up on, it says everything again over another connection.
                with contextlib.suppress(OSError):
                    self._side.shutdown(socket.SHUT_RDWR)
                return
            if received is None:
                return
            packet, arena = received
            self.drop(packet.stream)
            self._arenas[packet.stream] = arena
            if packet.stream == spec.stream:
                return

    def jpeg(self, lease: Lease, payload: list[Payload]) -> memoryview:
        """The images of a lease, one behind another. Raises PeerError where they are not where it says."""
        if not payload or len(lease.sizes) != 4 * lease.rows:
            raise PeerError(
                f"lease of {lease.rows} rows with {len(lease.sizes)} bytes of sizes and {len(payload)} payloads"
            )
        total = int(np.frombuffer(lease.sizes, "<u4").sum(dtype=np.int64))
        if lease.slot < 0:
            jpeg = payload[1] if len(payload) > 1 else memoryview(b"")
        elif lease.stream in self._arenas:
            jpeg = self._arenas[lease.stream].slot(lease.slot, total)
        else:
            raise PeerError(f"lease in slot {lease.slot} of an arena that was never handed over")
        if len(jpeg) != total:
            raise PeerError(f"{len(jpeg)} bytes of images announced as {total}")
        return jpeg

    def drop(self, stream: bytes) -> None:
        """The stream is over."""
        if arena := self._arenas.pop(stream, None):
            arena.close()

    def close(self) -> None:
        """Give every arena back."""
        while self._arenas:
            self._arenas.popitem()[1].close()

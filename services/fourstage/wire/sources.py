"""Where the JPEG bytes of a lease lie: in the loader's arena of that stream, or in the message itself."""

import contextlib
import logging
import os
import socket

import numpy as np

from fourstage.arena import Arena
from fourstage.errors import PeerError
from fourstage.wire import side
from fourstage.wire.messages import Lease, Stream
from fourstage.wire.sockets import Payload

log = logging.getLogger(__name__)


class JpegSources:
    """The loader's arenas by stream, as they came over the side connection.

    A stream may end and be opened again under its name, with another arena: which one a lease means is told by where
    STREAM and GONE stand among the messages, and the side connection may be ahead of them.
    """

    def __init__(self) -> None:
        self._arenas: dict[bytes, Arena] = {}
        """Those that leases mean now."""
        self._ahead: dict[bytes, Arena] = {}
        """Those whose STREAM has not been heard yet."""
        self._side: socket.socket | None = None

    def follow(self, connection: socket.socket | None) -> None:
        """The side connection after a WELCOME: where it is another one, so are the loader and its arenas."""
        if connection is not self._side:
            self._side = connection
            self.close()
        # Their STREAM was lost with the last session; what is still open comes again.
        _close(self._ahead)

    def attach(self, spec: Stream) -> None:
        """Read all that the side connection has brought, and map the stream's arena if it comes by arena: that was
        sent before the message, or is waited for.

        Where it does not come, or which one is meant cannot be told, the side connection is hung up on: the loader then
        says everything again over another one, and gives leases of another session.
        """
        if spec.transport != "arena" or self._side is None:
            return
        try:
            while side.readable(self._side) or not (spec.stream in self._arenas or spec.stream in self._ahead):
                received = side.receive_arena(self._side)
                if received is None:
                    break
                self._keep(*received)
            if spec.stream in self._arenas and spec.stream in self._ahead:
                raise PeerError("a stream that has not ended has another arena")
        except (PeerError, TimeoutError) as error:
            log.warning("no arena from the loader: %s", error)
            with contextlib.suppress(OSError):
                self._side.shutdown(socket.SHUT_RDWR)
            self._side = None
            self.close()
            return
        if (arena := self._ahead.pop(spec.stream, None)) is not None:
            self._arenas[spec.stream] = arena

    def _keep(self, packet: side.Packet, arena: Arena) -> None:
        """An arena that came. Raises PeerError where it is one too many to be told apart."""
        known = [arenas[packet.stream] for arenas in (self._arenas, self._ahead) if packet.stream in arenas]
        if any(os.path.sameopenfile(arena.descriptor, other.descriptor) for other in known):
            arena.close()
        elif packet.stream in self._ahead:
            arena.close()
            raise PeerError("two more arenas of one stream have come")
        else:
            self._ahead[packet.stream] = arena

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
        _close(self._arenas)
        _close(self._ahead)


def _close(arenas: dict[bytes, Arena]) -> None:
    while arenas:
        arenas.popitem()[1].close()

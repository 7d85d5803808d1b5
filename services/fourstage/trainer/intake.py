"""The streams of one trainer: from the loader's augmenters, or, on a second column, from the first one.

Both columns of a replica train on the same batches. The first one owns the stream and passes on where each batch
lies; its own slots and the second's mapping are the same memory.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from fourstage.errors import CheckpointError, FourstageError, StoppedError
from fourstage.process import StopFlag
from fourstage.settings import Settings
from fourstage.telemetry import Telemetry
from fourstage.trainer.encoded import Decoding
from fourstage.trainer.feed import Feed
from fourstage.trainer.inbox import StreamInfo
from fourstage.trainer.layout import Layout
from fourstage.trainer.relay import Batches, RelayedInbox, RelayingInbox, connect, listen
from fourstage.wire.messages import Open, Stages
from fourstage.wire.security import load

_OPEN_SECONDS = 60.0
_CONNECT_SECONDS = 30.0


class Intake:
    """Opens streams, and knows what the loader says of the stages before this one."""

    def __init__(
        self, settings: Settings, place: Layout, *, name: str, sockets: Path, telemetry: Telemetry, stop: StopFlag,
        decoding: Decoding | None = None,
    ) -> None:  # fmt: skip
        """A second column binds nothing: it never speaks to loader or augmenters. decoding: of a trainer that does."""
        self._settings = settings
        self._place = place
        self._sockets = sockets
        self._telemetry = telemetry
        self._stop = stop
        self._decoding = decoding
        self._streams: list[Batches] = []
        self._feed: Feed | None = None
        if place.column == 0:
            self._feed = Feed(
                settings.loader.address,
                trainers=settings.loader.trainers,
                name=name,
                sockets=sockets,
                receiver=settings.receiver,
                receiver_bind=settings.receiver_bind,
                telemetry=telemetry,
                security=load(settings.keys, "trainer"),
                decoding=decoding,
            )

    @property
    def stages(self) -> Stages | None:
        """The loader's last heartbeat."""
        return self._feed.stages if self._feed else None

    @property
    def waiting(self) -> str:
        """Why no batches can come, in words; empty while they may."""
        return self._feed.waiting if self._feed else ""

    @property
    def on_the_way(self) -> Mapping[str, float]:
        """Seconds that batches were between two processes, by way; nothing on a second column."""
        return self._feed.on_the_way if self._feed else {}

    def open(self, spec: Open, tell: Callable[[str], list[str]]) -> tuple[Batches, StreamInfo]:
        """Open a stream and wait for the loader's answer; all trainers open the same ones in the same order.

        tell: gives every trainer's text to all of them

        Raises FourstageError where the loader refuses or no loader answers, CheckpointError where the stream wants
        other pixels than this trainer decodes.
        """
        if self._decoding is not None and spec.identity not in (b"", self._decoding.identity):
            raise CheckpointError(
                f"the run began with pixels of identity {spec.identity.hex()}, this trainer decodes to "
                f"{self._decoding.identity.hex()}",
                hint="resume with the decode and the device that it began with",
            )
        stream = self._stream(spec, tell)
        self._streams.append(stream)
        return stream, self._opened(stream)

    def close(self) -> None:
        """Close every stream and say goodbye."""
        for stream in self._streams:
            stream.close()
        if self._feed is not None:
            self._feed.close()

    def _stream(self, spec: Open, tell: Callable[[str], list[str]]) -> Batches:
        place = self._place
        if place.columns == 1 and self._feed is not None:
            return self._feed.open(spec)
        listener = listen(self._sockets) if self._feed is not None else None
        paths = tell(str(listener.path) if listener else "")
        if self._feed is not None and listener is not None:
            return RelayingInbox(self._feed.open(spec), listener)
        return RelayedInbox(connect(Path(paths[place.rank - place.column]), _CONNECT_SECONDS), spec)

    def _opened(self, stream: Batches) -> StreamInfo:
        deadline = time.monotonic() + _OPEN_SECONDS
        while True:
            try:
                return stream.opened(0.5)
            except TimeoutError:
                self._telemetry.turn()
                if self._stop:
                    raise StoppedError(f"stopped before the first batch ({self._stop.reason})") from None
                if time.monotonic() > deadline:
                    raise FourstageError(
                        f"no loader at {self._settings.loader.address} has opened the stream in {_OPEN_SECONDS:.0f} s",
                        hint="start one with fourstage loader, or correct loader.address",
                    ) from None

"""Streams that this trainer has closed. A CLOSE that is lost leaves the stream open at the loader, which makes its
batches over and over; so it is said until nothing more comes of it.
"""

import time

from fourstage.wire.link import LoaderLink
from fourstage.wire.messages import Close

_MOST = 256
"""Streams that are remembered, the last ones closed: four times as many as a loader keeps of one trainer."""


class Closed:
    """What is said to the loader of streams that are over."""

    def __init__(self, link: LoaderLink) -> None:
        self._link = link
        self._said: dict[bytes, float] = {}
        """When each was last said to be closed, in monotonic seconds; in the order of their ends."""

    def add(self, stream: bytes) -> None:
        """A stream is over."""
        if len(self._said) >= _MOST:
            del self._said[next(iter(self._said))]
        self._say(stream)

    def say_again(self) -> None:
        """The loader has said WELCOME: whatever was said before may be lost."""
        for stream in self._said:
            self._say(stream)

    def remind(self, stream: bytes) -> None:
        """A batch came of a stream that is not open here: where it was closed the loader has not heard of that, or not
        long since."""
        said = self._said.get(stream)
        if said is not None and time.monotonic() - said >= self._link.heartbeat:
            self._say(stream)

    def _say(self, stream: bytes) -> None:
        self._said[stream] = time.monotonic()
        self._link.send(Close(stream))

"""The second column's end of the relay."""

import contextlib
import threading
import time
from collections.abc import Mapping

import numpy as np

from fourstage.arena import Arena
from fourstage.errors import CorruptSampleError, FourstageError, PeerError, PeerLostError, SettingsError
from fourstage.trainer.inbox import FeedBatch, Inbox, StreamInfo
from fourstage.trainer.relay.batches import OverInbox
from fourstage.trainer.relay.channel import ARENA, LINGER_SECONDS, Channel, Heard, seconds_left
from fourstage.wire.messages import Batch, Close, Failed, Holds, Open, Opened

_DEFINING = (
    "split", "view", "batch_size", "remainder", "shuffle", "seed", "rank", "world", "start", "epochs", "end",
    "on_corrupt",
)  # fmt: skip
"""Fields of OPEN that decide what the batches are."""


class RelayedInbox(OverInbox):
    """The second column's end: an inbox that is filled by the first column's trainer instead of a feed.

    It is read in the caller's thread. Whatever comes is checked as if an augmenter had sent it.
    """

    def __init__(self, channel: Channel, spec: Open) -> None:
        """spec: what this trainer would have asked the loader for."""
        self._channel = channel
        super().__init__(Inbox(spec, self._tell_held))
        self._expected = spec.start
        self._seen = 0
        self._held: dict[int, int] = {}
        """Batches that are in use here, and the number of the arena of each."""
        self._arenas: dict[int, Arena] = {}
        self._in_use: Mapping[int, tuple[int, int]] = {}
        """Arenas by number, as the first column last named them: slots, bytes of a slot."""
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._ended = False
        """The first column has closed the stream."""
        self._closed = threading.Event()

    def opened(self, timeout: float) -> StreamInfo:
        """Wait for what the first column's trainer says of the stream.

        Raises what went wrong, TimeoutError after ``timeout`` seconds, SettingsError where it opened another stream.
        """
        deadline = time.monotonic() + timeout
        with self._reading:
            while self._inbox.info is None and self._inbox.error is None and self._hear(deadline):
                pass
        return self._inbox.opened(0.0)

    def next(self, timeout: float) -> FeedBatch | None:
        """The next batch in order; None where it has not come within ``timeout`` seconds.

        Raises what went wrong; PeerLostError where the first column's trainer is gone.
        """
        deadline = time.monotonic() + timeout
        with self._reading:
            while not self._inbox.waiting and self._inbox.error is None and self._hear(deadline):
                pass
            return self._inbox.next(0.0)

    def close(self) -> None:
        """Tell the first column that nothing is taken any more, and hang up; arenas stay while batches are held."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._inbox.close()
        with contextlib.suppress(PeerLostError):
            self._channel.send(Close(self.spec.stream))
            self._channel.flush(LINGER_SECONDS)
        self._channel.hang_up()
        with self._reading:
            self._channel.close()
        with self._lock:
            self._in_use = {}
            self._unmap()

    def _hear(self, deadline: float) -> bool:
        """Take in one message; False where none has come in time."""
        if self._ended or self._closed.is_set():
            self._closed.wait(seconds_left(deadline))
            return False
        try:
            heard = self._channel.receive(seconds_left(deadline))
            if heard is None:
                return False
            with contextlib.closing(heard):
                self._take_in(heard)
        except FourstageError as error:
            if not self._closed.is_set():
                self._inbox.fail(error)
        return True

    def _take_in(self, heard: Heard) -> None:
        match heard.message:
            case Batch():
                self._take_batch(heard.message, heard)
            case Open():
                self._compare(heard.message)
                self._inbox.spec = heard.message
            case Opened(size=size):
                if len(heard.payload) != 1 or len(heard.payload[0]) != 12 * size * size:
                    raise PeerError(f"{self._channel.peer} sent no mean image of {size}x{size}")
                mean = np.frombuffer(heard.payload[0], "<f4").reshape(size, size, 3)
                self._inbox.open(heard.message, mean)
            case Failed(row=row, reason=reason):
                raise CorruptSampleError(reason) if row >= 0 else FourstageError(reason)
            case Close():
                self._ended = True
            case other:
                raise PeerError(f"{self._channel.peer} sent {type(other).__name__}, which is not for it to send")

    def _compare(self, theirs: Open) -> None:
        for name in _DEFINING:
            if (its := getattr(theirs, name)) != (mine := getattr(self.spec, name)):
                raise SettingsError(
                    f"{self._channel.peer} opened a stream with {name} = {its!r}, this one has {mine!r}",
                    hint="start both with the same settings and the same checkpoint",
                )

    def _take_batch(self, message: Batch, heard: Heard) -> None:
        if len(heard.payload) not in (3, 4):
            raise PeerError(f"relayed batch with {len(heard.payload)} payloads")
        samples, draws, arenas, *pixels = heard.payload
        self._map(arenas, heard)
        if message.seq != self._expected:
            raise PeerError(f"batch {message.seq} was relayed, expected {self._expected}")
        arena = self._arenas.get(message.session)
        batch = self._inbox.unpack(message, (samples, draws, *pixels), arena, worker=b"")
        with self._lock:
            self._held[batch.seq] = message.session
            self._seen = message.number
        self._expected += 1
        self._inbox.put(batch)
        # What was trained on is no longer counted as having arrived.
        self._inbox.progress()

    def _map(self, arenas: memoryview, heard: Heard) -> None:
        """Map the arena that is named for the first time; those that are named no more go with the next release."""
        if len(arenas) % ARENA.size:
            raise PeerError(f"a table of arenas of {len(arenas)} bytes, {ARENA.size} each")
        in_use = {number: (slots, size) for number, slots, size in ARENA.iter_unpack(arenas)}
        new = in_use.keys() - self._arenas.keys()
        if len(new) != (heard.descriptor is not None):
            raise PeerError(f"arenas {sorted(new)} are new; descriptors that came: {heard.descriptor is not None:d}")
        with self._lock:
            for number in new:
                self._arenas[number] = Arena.attach(heard.take_descriptor(), *in_use[number])
            self._in_use = in_use

    def _unmap(self) -> None:
        """Close arenas that the first column does not name and that nothing is read from. Holds the lock."""
        for number in self._arenas.keys() - self._in_use.keys() - set(self._held.values()):
            self._arenas.pop(number).close()

    def _tell_held(self) -> None:
        """Called whenever a batch was released here."""
        released = self._inbox.released()
        if not released:
            return
        with self._lock:
            for batch in released:
                self._held.pop(batch.seq, None)
            self._unmap()
            if not self._closed.is_set():
                self._channel.send(Holds(self.spec.stream, 0, self._seen, tuple(sorted(self._held))))
        # Where the first column is gone, ``next`` says so.
        with contextlib.suppress(PeerLostError):
            self._channel.flush(0.0)

"""The first column's end of the relay."""

import contextlib
import dataclasses
import threading
import time

import numpy as np

from fourstage.arena import Arena
from fourstage.errors import CorruptSampleError, FourstageError, PeerError, PeerLostError, of_the_machine
from fourstage.trainer.inbox import Draws, FeedBatch, Inbox, StreamInfo
from fourstage.trainer.relay.batches import OverInbox
from fourstage.trainer.relay.channel import ARENA, LINGER_SECONDS, Channel, Listener, seconds_left
from fourstage.trainer.relay.loans import Loans
from fourstage.wire.codec import encode_body
from fourstage.wire.codes import CODE_BYTES
from fourstage.wire.messages import Batch, Close, Failed, Holds, Samples, Times

_LONGEST_REASON = 1024


class RelayingInbox(OverInbox):
    """The first column's end: an inbox whose every batch goes to the second column as well.

    ``next`` sends in its caller's thread. A thread of its own listens: a slot goes back to its augmenter at once,
    also while that caller sleeps for a batch or for a buffer, and a death is noticed when it happens.
    """

    def __init__(self, inbox: Inbox, listener: Listener) -> None:
        """inbox: may be ended only after ``close``; listener: where the second column's trainer comes."""
        super().__init__(inbox)
        self._listener = listener
        self._channel: Channel | None = None
        self._listening: threading.Thread | None = None
        self._introduced = False
        self._unsent: FeedBatch | None = None
        """Taken from the inbox; the second column has not got all of its frame."""
        self._arenas: dict[Arena, int] = {}
        self._arenas_seen = 0
        self._loans = Loans()
        self._loans_lock = threading.Lock()
        self._taking = threading.Lock()
        self._gone = threading.Event()
        """The second column left or died; all that it said was heard."""
        self._closed = threading.Event()

    @property
    def done(self) -> bool:
        return super().done and self._unsent is None

    def opened(self, timeout: float) -> StreamInfo:
        """Wait for the second column's trainer and for the loader, and tell the one what the other said."""
        deadline = time.monotonic() + timeout
        with self._taking:
            channel = self._channel or self._accept(timeout)
            try:
                info = self._inbox.opened(seconds_left(deadline))
                if not self._introduced:
                    self._introduced = True
                    channel.send(self._inbox.spec)
                    channel.send(info.opened, [info.mean.astype("<f4").tobytes()])
                if not self._flush(channel, deadline):
                    raise TimeoutError(f"{channel.peer} does not read")
            except FourstageError as error:
                self._pass_on(channel, error)
                raise
            return info

    def next(self, timeout: float) -> FeedBatch | None:
        """The next batch in order, once the second column has been told of it.

        Raises what went wrong; PeerLostError where the second column's trainer is gone.
        """
        deadline = time.monotonic() + timeout
        with self._taking:
            channel = self._channel
            if channel is None:
                raise FourstageError("a batch was asked for before the stream was opened")
            if self._gone.is_set() and self._inbox.error is None:
                # It left in order; there is nobody to train with, and soon this side is closed as well.
                self._closed.wait(timeout)
                return None
            try:
                if self._unsent is None or self._inbox.error:
                    batch = self._inbox.next(timeout)
                    if batch is None:
                        return None
                    self._unsent = self._lend(channel, batch)
                if not self._flush(channel, deadline):
                    return None
            except FourstageError as error:
                self._pass_on(channel, error)
                raise
            batch, self._unsent = self._unsent, None
            return batch

    def close(self) -> None:
        """Tell the second column that nothing comes any more, and hang up."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._inbox.close()
        self._listener.close()
        if self._channel is None or self._listening is None:
            return
        with contextlib.suppress(PeerLostError):
            self._channel.send(Close(self.spec.stream))
            self._channel.flush(LINGER_SECONDS)
        self._channel.hang_up()
        self._listening.join()
        with self._taking:
            self._channel.close()

    def _accept(self, timeout: float) -> Channel:
        channel = self._listener.accept(timeout)
        self._listener.close()
        self._listening = threading.Thread(target=self._listen, args=(channel,), name="relay", daemon=True)
        self._listening.start()
        self._channel = channel
        return channel

    def _lend(self, channel: Channel, batch: FeedBatch) -> FeedBatch:
        """Queue a batch's frame; the batch as the first column gets it."""
        descriptor = self._number_arena(batch.arena)
        with self._loans_lock:
            number = self._loans.lend(batch)
        message = Batch(
            stream=self.spec.stream,
            seq=batch.seq,
            session=self._arenas[batch.arena] if batch.arena else 0,
            number=number,
            slot=batch.slot,
            rows=batch.place.rows,
            identity=batch.identity,
            code=bytes(CODE_BYTES),
            skipped=tuple(sample.row for sample in batch.skipped),
            # Its way to here is told by this trainer alone.
            times=Times(),
        )
        samples, draws = _as_planned(batch)
        arenas = b"".join(ARENA.pack(number, arena.slots, arena.slot_bytes) for arena, number in self._arenas.items())
        payload: list[memoryview | bytes] = [encode_body(samples), draws.pack(), arenas]
        if batch.arena is None:
            payload.append(batch.pixels.reshape(-1).data)
        channel.send(message, payload, descriptor)
        return dataclasses.replace(batch, _release=self._read_here)

    def _number_arena(self, arena: Arena | None) -> int | None:
        """Forget arenas that are closed, number a new one; the new one's descriptor, to be sent."""
        self._arenas = {known: number for known, number in self._arenas.items() if known.descriptor >= 0}
        if arena is None or arena in self._arenas:
            return None
        descriptor = arena.duplicate()
        self._arenas_seen += 1
        self._arenas[arena] = self._arenas_seen
        return descriptor

    def _flush(self, channel: Channel, deadline: float) -> bool:
        try:
            return channel.flush(seconds_left(deadline))
        except PeerLostError:
            # Whether it left or died is in what it said last: the listening thread knows when it has read that.
            self._gone.wait(seconds_left(deadline))
            if self._inbox.error:
                raise self._inbox.error from None
            return False

    def _pass_on(self, channel: Channel, error: FourstageError) -> None:
        row = 0 if isinstance(error, CorruptSampleError) else -1
        with contextlib.suppress(PeerLostError):
            channel.send(Failed(self.spec.stream, self.consumed, row, str(error)[:_LONGEST_REASON]))
            channel.flush(0.0)

    def _read_here(self, batch: FeedBatch) -> None:
        """Called by ``FeedBatch.release`` of the first column."""
        with self._loans_lock:
            free = self._loans.end_here(batch.seq)
        _release(free)

    def _listen(self, channel: Channel) -> None:
        try:
            self._heed(channel)
            self._end_there()
        except PeerLostError as error:
            # After ``close`` it is this side that has hung up, and the other may still read.
            if not self._closed.is_set():
                self._end_there()
                self._inbox.fail(error)
        except Exception as error:
            # Whoever breaks the protocol may still read as well: its slots are not given back.
            known = error if isinstance(error, FourstageError) else of_the_machine(error)
            self._inbox.fail(known or FourstageError(f"the relay failed: {error!r}"))
        finally:
            self._gone.set()

    def _heed(self, channel: Channel) -> None:
        """Give back what the second column has read, until it leaves. Raises PeerLostError, PeerError."""
        while (heard := channel.receive(None)) is not None:
            match heard.message:
                case Holds(seen=seen, seqs=seqs):
                    with self._loans_lock:
                        free = self._loans.reconcile(seen, seqs)
                    _release(free)
                case Close():
                    return
                case other:
                    raise PeerError(f"{channel.peer} sent {type(other).__name__}, which is not for it to send")

    def _end_there(self) -> None:
        with self._loans_lock:
            free = self._loans.end_there()
        _release(free)


def _as_planned(batch: FeedBatch) -> tuple[Samples, Draws]:
    """What the wire says of all planned rows; labels and draws of those that were skipped are zeros, for nobody looks
    at them."""
    keys, indices, labels = list(batch.keys), batch.indices, batch.labels
    offsets, reflections, shifts = batch.offsets, batch.reflections, batch.shifts
    if batch.skipped:
        gaps = [sample.row - before for before, sample in enumerate(batch.skipped)]
        indices = np.insert(indices, gaps, [sample.index for sample in batch.skipped])
        labels = np.insert(labels, gaps, 0)
        offsets, reflections = np.insert(offsets, gaps, 0, axis=0), np.insert(reflections, gaps, False)
        shifts = np.insert(shifts, gaps, 0.0, axis=0)
        for sample in batch.skipped:
            keys.insert(sample.row, sample.key)
    samples = Samples(indices.astype("<i8").tobytes(), labels.astype("<i4").tobytes(), tuple(keys))
    return samples, Draws(offsets, reflections, shifts)


def _release(batches: list[FeedBatch]) -> None:
    for batch in batches:
        batch.release()

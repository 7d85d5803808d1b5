"""Fills the slots of the streams with what their windows want, ahead of time."""

import os
import queue
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from fourstage.errors import FourstageError
from fourstage.loader.leases import Leases
from fourstage.loader.reader import Reader, ReadJob, ReadResult
from fourstage.loader.streams import LoaderStream
from fourstage.telemetry import StageMeter

_ANNOUNCED_OF_A_TURN = 8192
"""Samples that the kernel is told of, some 10 ms: a window may be anything, and nobody is heard meanwhile."""

Tag = tuple[LoaderStream, int, int]
"""The stream itself, for another one may have its name by the time a batch is read; number and slot of the batch."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A batch that a thread has finished with; ``error`` where it could not be read."""

    stream: bytes
    seq: int
    error: FourstageError | None


def _missing(streams: Mapping[bytes, LoaderStream], leases: Leases) -> Iterator[tuple[bytes, int]]:
    """Batches that are wanted and have no slot, as long as their stream has a free one; the emptiest stream's first."""
    for uuid in leases.emptiest():
        stream = streams[uuid]
        for seq in leases.wanted(uuid):
            if not stream.free:
                break
            if seq not in stream.slotted:
                yield uuid, seq


class ReadAhead:
    """The loader's reading threads and the account of their time."""

    def __init__(
        self, threads: int, meter: StageMeter, batch_seconds: float, repeated: Callable[[], None] = lambda: None
    ) -> None:
        """batch_seconds: of a simulated disk, which reads one batch at a time; 0: none. repeated: called from a reading
        thread whenever a sample is read again."""
        self.wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        """Readable once a batch was read that somebody waits for."""
        self._awaited = True
        self._meter = meter
        self._results: queue.SimpleQueue[ReadResult[Tag]] = queue.SimpleQueue()
        self._reader = Reader(threads, self._done, batch_seconds, repeated)
        self._under_way = 0
        self._mark = time.monotonic()

    def load(self, streams: Mapping[bytes, LoaderStream], leases: Leases, now: float) -> None:
        """Begin to read every wanted batch that has a slot; announce to the kernel those that may have one next, of its
        window and no more than there are slots."""
        left = _ANNOUNCED_OF_A_TURN
        for uuid, seq in _missing(streams, leases):
            stream = streams[uuid]
            slotted, indices = stream.claim(seq)
            self.account(now)
            self._under_way += 1
            target = stream.arena.slot(slotted.slot, slotted.size)
            self._reader.submit(ReadJob((stream, seq, slotted.slot), stream.split, indices, target))
            ahead = min(stream.end, seq + 1 + min(leases.window(uuid), stream.arena.slots))
            stream.prefetched = max(stream.prefetched, seq + 1)
            while stream.prefetched < ahead and left > 0:
                later = stream.order.indices(stream.prefetched)
                self._reader.prefetch(stream.split, later)
                stream.prefetched += 1
                left -= len(later)

    def rest(self, *, awaited: bool) -> bool:
        """Before the caller sleeps; whether it may, or a batch was read meanwhile that it waits for.

        awaited: what is read next is to wake it. Otherwise enough lies ready, and it will look when it wakes anyway.
        """
        self._awaited = awaited
        return not awaited or self._results.empty()

    def loaded(self, streams: Mapping[bytes, LoaderStream]) -> Iterator[Loaded]:
        """Batches that were read since the last call and are still wanted."""
        while not self._results.empty():
            result = self._results.get()
            self.account(result.ended)
            self._under_way -= 1
            stream, seq, slot = result.job.tag
            self._meter.done(0.0, items=len(result.job.indices), size=len(result.job.into))
            uuid = stream.spec.stream
            if streams.get(uuid) is not stream:
                continue
            stream.read_done(slot)
            if (slotted := stream.slotted.get(seq)) is not None:
                slotted.read_from, slotted.read_to = result.began, result.ended
                yield Loaded(uuid, seq, result.error)

    def account(self, now: float) -> None:
        """Charge the time since the last call: some read was under way, or nothing was wanted."""
        # Results are taken in another order than they ended, and after the time was charged up to now.
        seconds, self._mark = max(0.0, now - self._mark), max(self._mark, now)
        if self._under_way:
            self._meter.busy(seconds)
        else:
            self._meter.waited(seconds, "downstream")

    def close(self) -> None:
        """Finish the reads begun and stop the threads."""
        self._reader.close()
        os.close(self.wake)

    def _done(self, result: ReadResult[Tag]) -> None:
        self._results.put(result)
        if self._awaited or result.error is not None:
            os.eventfd_write(self.wake, 1)

"""Who makes which batch: a pure state machine without clock, socket or store.

Two laws. A batch may be made any number of times but is *used* once: whichever copy arrives first counts, so a
lease may be given again whenever in doubt. And nothing here is precious: every belief is either told again by the
peer that it is about (``beat``, ``progress``) or can be dropped.

A batch of a stream is, in this order: beyond the window; wanted (to be loaded); loaded; held by one worker or more;
arrived; consumed. Deaths, silences and losses only ever take holders away from a batch that has not arrived.
"""

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field

Worker = Hashable
StreamId = bytes

READ_AHEAD = 4
"""Batches that an automatic window holds beyond all slots of the workers: the one being trained on and the one being
copied, which may need no slot any more, one being read and one lying ready."""
SMALLEST_WINDOW = 4
"""The four stages of one pipeline, before any worker has come."""
DEATHS_BEFORE_POISON = 3
"""Holders that may die over a batch before the batch itself is suspected."""


@dataclass(frozen=True, slots=True)
class Grant:
    """An instruction: give this batch to this worker."""

    worker: Worker
    stream: StreamId
    seq: int
    number: int
    head: bool
    again: bool
    """Not the batch's first lease."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds."""

    silence: float
    hedge: float
    missing: float
    """A lease that its holder does not list for this long, without the batch arriving, was lost."""


@dataclass(slots=True)
class _Holding:
    number: int
    since: float
    head: bool = False
    missing_since: float | None = None


@dataclass(slots=True)
class _Batch:
    loaded: bool = False
    arrived: bool = False
    deaths: int = 0
    leases: int = 0
    holders: dict[Worker, _Holding] = field(default_factory=dict)


@dataclass(slots=True)
class _Stream:
    end: int
    window: int
    identity: bytes
    consumed: int
    batches: dict[int, _Batch] = field(default_factory=dict)
    lease_seconds: float = 0.0
    """Moving average from lease to arrival."""
    redispatched: int = 0


@dataclass(slots=True)
class _Worker:
    identity: bytes
    heard: float
    silent: bool = False
    numbers: int = 0
    unseen: list[tuple[int, StreamId]] = field(default_factory=list)
    free: dict[StreamId, int] = field(default_factory=dict)
    slots: dict[StreamId, int] = field(default_factory=dict)

    def available(self, stream: StreamId) -> int:
        """Free slots less the leases that the worker had not seen when it counted them."""
        return self.free.get(stream, 0) - sum(1 for _, unseen in self.unseen if unseen == stream)


class Leases:
    """The books of all streams and workers."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._streams: dict[StreamId, _Stream] = {}
        self._workers: dict[Worker, _Worker] = {}

    # Streams

    def open(
        self,
        stream: StreamId,
        *,
        start: int,
        end: int,
        window: int,
        identity: bytes = b"",
        arrived: Iterable[int] = (),
    ) -> None:
        """Begin a stream at ``start``. window: in batches, 0: sized by the workers' slots."""
        book = _Stream(end=end, window=window, identity=identity, consumed=start)
        self._streams[stream] = book
        self._extend(stream)
        self.progress(stream, start, arrived, now=0.0)

    def close(self, stream: StreamId) -> None:
        """End a stream; its leases are void."""
        self._streams.pop(stream, None)
        for worker in self._workers.values():
            worker.unseen = [(number, unseen) for number, unseen in worker.unseen if unseen != stream]
            worker.free.pop(stream, None)
            worker.slots.pop(stream, None)

    def streams(self) -> list[StreamId]:
        return list(self._streams)

    def loaded(self, stream: StreamId, seq: int) -> None:
        """The batch's JPEG bytes lie ready."""
        if batch := self._batch(stream, seq):
            batch.loaded = True

    def progress(self, stream: StreamId, consumed: int, arrived: Iterable[int], *, now: float) -> list[int]:
        """The receiver has used everything before ``consumed`` and holds ``arrived``.

        Returns the sequence numbers that are new in its hands: their JPEG slots are free.
        """
        book = self._streams.get(stream)
        if book is None:
            return []
        book.consumed = max(book.consumed, min(consumed, book.end))
        used = [seq for seq in book.batches if seq < book.consumed]
        ready = [seq for seq in arrived if book.consumed <= seq < book.end]
        fresh = []
        for seq in (*used, *ready):
            # A new loader's window is small until the workers are back: what has arrived may lie beyond it.
            batch = book.batches.setdefault(seq, _Batch())
            if not batch.arrived:
                self._arrive(book, batch, now)
                fresh.append(seq)
        for seq in used:
            del book.batches[seq]
        self._extend(stream)
        return fresh

    # Workers

    def join(self, worker: Worker, identity: bytes, now: float) -> None:
        """A worker said HELLO: its numbering starts again, what it was given before is void until it says so."""
        self._release(worker, died=False)
        self._workers[worker] = _Worker(identity=identity, heard=now)

    def leave(self, worker: Worker, *, died: bool) -> list[tuple[StreamId, int]]:
        """A worker is gone; its leases are free at once. Returns batches that are suspected of killing workers."""
        poisoned = self._release(worker, died=died)
        self._workers.pop(worker, None)
        for stream in self._streams:
            self._extend(stream)
        return poisoned

    def beat(
        self,
        worker: Worker,
        *,
        seen: int,
        held: Iterable[tuple[StreamId, int]],
        slots: Iterable[tuple[StreamId, int, int]],
        now: float,
    ) -> None:
        """A worker says all that it holds: the books follow it."""
        books = self._workers.get(worker)
        if books is None:
            return
        books.heard = now
        books.silent = False
        if seen > books.numbers:
            return  # It was said before the worker's last HELLO was answered: of leases that are void.
        books.unseen = [(number, stream) for number, stream in books.unseen if number > seen]
        books.free = {stream: free for stream, free, _ in slots}
        books.slots = {stream: total for stream, _, total in slots}
        listed = set(held)
        for stream, book in self._streams.items():
            self._extend(stream)
            for seq, batch in book.batches.items():
                holding = batch.holders.get(worker)
                if (stream, seq) in listed:
                    if holding is not None:
                        holding.missing_since = None
                    elif not batch.arrived:
                        # Given by a loader before this one, or before a silence: it may still be the first copy.
                        batch.holders[worker] = _Holding(number=0, since=now)
                elif holding is not None and holding.number <= seen and holding.missing_since is None:
                    holding.missing_since = now

    def tick(self, now: float) -> list[Worker]:
        """Let time pass: silent workers lose their leases (they are returned), lost leases are noticed."""
        silent = []
        for name, worker in self._workers.items():
            if not worker.silent and now - worker.heard > self._timing.silence:
                worker.silent = True
                silent.append(name)
        for name in silent:
            self._release(name, died=False)
        for book in self._streams.values():
            for batch in book.batches.values():
                for name, holding in list(batch.holders.items()):
                    since = holding.missing_since
                    if since is not None and now - since > self._timing.missing:
                        del batch.holders[name]
        return silent

    # Instructions

    def wanted(self) -> Iterator[tuple[StreamId, int]]:
        """Batches inside the windows that are not loaded, those of the emptiest stream first."""
        for stream in sorted(self._streams, key=self._fill):
            for seq, batch in sorted(self._streams[stream].batches.items()):
                if not batch.loaded and not batch.arrived:
                    yield stream, seq

    def plan(self, now: float) -> Iterator[Grant]:
        """Every lease that can be given now, one at a time: the books count it as given when it is yielded."""
        while grant := self._next(now):
            yield grant

    def revoke(self, grant: Grant) -> None:
        """A grant could not be sent: it never happened, and its worker gets nothing before it is heard again."""
        if batch := self._batch(grant.stream, grant.seq):
            batch.holders.pop(grant.worker, None)
            batch.leases -= 1
            self._streams[grant.stream].redispatched -= grant.again
        if worker := self._workers.get(grant.worker):
            worker.unseen = [(number, stream) for number, stream in worker.unseen if number != grant.number]
            worker.free.clear()

    def _next(self, now: float) -> Grant | None:
        for stream in sorted(self._streams, key=self._fill):
            book = self._streams[stream]
            head = self._head(book)
            for seq in sorted(book.batches):
                batch = book.batches[seq]
                is_head = seq == head
                if batch.arrived or not batch.loaded:
                    continue
                if batch.holders and not (is_head and self._is_slow(book, batch, now)):
                    continue
                worker = self._choose(stream, book, batch, spare=is_head)
                if worker is not None:
                    return self._give(worker, stream, seq, is_head, now)
                if not is_head:
                    break
        return None

    def _choose(self, stream: StreamId, book: _Stream, batch: _Batch, *, spare: bool) -> Worker | None:
        """The worker with most free slots; its last one only for the head."""
        best, most = None, 0 if spare else 1
        for name, worker in self._workers.items():
            if worker.silent or name in batch.holders or (book.identity and worker.identity != book.identity):
                continue
            available = worker.available(stream)
            if available > most:
                best, most = name, available
        return best

    def _give(self, name: Worker, stream: StreamId, seq: int, head: bool, now: float) -> Grant:
        worker, book = self._workers[name], self._streams[stream]
        batch = book.batches[seq]
        book.identity = book.identity or worker.identity
        worker.numbers += 1
        worker.unseen.append((worker.numbers, stream))
        again = batch.leases > 0
        book.redispatched += again
        batch.leases += 1
        batch.holders[name] = _Holding(worker.numbers, now, head)
        return Grant(name, stream, seq, worker.numbers, head, again)

    # What the state means

    def identity(self, stream: StreamId) -> bytes:
        """The pixels that this stream is pinned to; empty: no worker has been given a lease yet."""
        return self._streams[stream].identity

    def redispatched(self, stream: StreamId) -> int:
        """Leases of this stream that were not a batch's first."""
        return self._streams[stream].redispatched

    def window(self, stream: StreamId) -> int:
        """Batches between the last one consumed and the furthest that may be read."""
        book = self._streams[stream]
        if book.window:
            return book.window
        return max(SMALLEST_WINDOW, self.credits(stream) + READ_AHEAD)

    def credits(self, stream: StreamId) -> int:
        """Batches that all workers together can hold."""
        return sum(worker.slots.get(stream, 0) for worker in self._workers.values())

    def counts(self, stream: StreamId) -> tuple[int, int]:
        """Batches that are leased and not arrived, and loaded and not leased."""
        batches = [batch for batch in self._streams[stream].batches.values() if not batch.arrived]
        leased = sum(1 for batch in batches if batch.holders)
        return leased, sum(1 for batch in batches if batch.loaded and not batch.holders)

    def is_open(self, stream: StreamId, seq: int) -> bool:
        """Whether the batch lies in the window and has not arrived."""
        batch = self._batch(stream, seq)
        return batch is not None and not batch.arrived

    def serves(self, worker: Worker, stream: StreamId) -> bool:
        """Whether this worker makes the stream's pixels."""
        pinned = self._streams[stream].identity
        return not pinned or self._workers[worker].identity == pinned

    def _head(self, book: _Stream) -> int | None:
        """The batch that is needed first and has not arrived."""
        return min((seq for seq, batch in book.batches.items() if not batch.arrived), default=None)

    def _is_slow(self, book: _Stream, batch: _Batch, now: float) -> bool:
        """A live holder has had the batch for long, and nobody else was asked yet."""
        if len(batch.holders) > 1:
            return False
        patience = max(self._timing.hedge, 3.0 * book.lease_seconds)
        return all(now - holding.since > patience for holding in batch.holders.values())

    def _fill(self, stream: StreamId) -> float:
        book = self._streams[stream]
        busy = sum(1 for batch in book.batches.values() if batch.arrived or batch.holders)
        return busy / self.window(stream)

    def _arrive(self, book: _Stream, batch: _Batch, now: float) -> None:
        if batch.holders:
            seconds = now - min(holding.since for holding in batch.holders.values())
            book.lease_seconds += 0.2 * (max(0.0, seconds) - book.lease_seconds)
        batch.arrived = True
        batch.holders.clear()

    def _extend(self, stream: StreamId) -> None:
        book = self._streams[stream]
        for seq in range(book.consumed, min(book.consumed + self.window(stream), book.end)):
            if seq not in book.batches:
                book.batches[seq] = _Batch()

    def _batch(self, stream: StreamId, seq: int) -> _Batch | None:
        book = self._streams.get(stream)
        return book.batches.get(seq) if book else None

    def _release(self, name: Worker, *, died: bool) -> list[tuple[StreamId, int]]:
        held = [
            (not holding.head, holding.number, stream, seq, batch)
            for stream, book in self._streams.items()
            for seq, batch in book.batches.items()
            if (holding := batch.holders.pop(name, None)) is not None
        ]
        if not died or not held:
            return []
        # A worker makes one batch at a time, a head before the others, which come in the order in which they were
        # given: whatever the guilty batch was given as first, it is the head of its stream in the end.
        *_, stream, seq, batch = min(held, key=lambda entry: entry[:2])
        batch.deaths += 1
        return [(stream, seq)] if batch.deaths >= DEATHS_BEFORE_POISON else []

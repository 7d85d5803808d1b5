"""Who makes which batch: a pure state machine without clock, socket or store.

Two laws. A batch may be made any number of times but is *used* once: whichever copy arrives first counts, so a
lease may be given again whenever in doubt. And nothing here is precious: every belief is either told again by the
peer that it is about (``beat``, ``progress``) or can be dropped.

Every message costs what it says, and every lease what it takes to find its worker: nothing walks over all workers or
all batches, so five hundred workers are served like five.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from fourstage.loader.book import Batch, Book, Holding, Worker
from fourstage.loader.suspects import Suspects
from fourstage.loader.vacancies import Vacancies

StreamId = bytes
LARGEST_WINDOW = 1 << 16
"""Batches: nothing beyond was ever leased, whatever a trainer says of it."""
LOST_BEFORE_REFUSED = 32
"""Leases that a worker may lose after one HELLO, less those that arrive: a healthy one loses none, for ZeroMQ loses
messages with their connection alone."""
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
    trial: tuple[int, int] = (0, 0)
    """From where to where the rows are to be tried; (0, 0): the batch is to be made."""
    skip: tuple[int, ...] = ()
    """Rows that are not to be decoded."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds."""

    silence: float
    hedge: float
    missing: float
    """A lease that its holder does not list was lost where the receiver is heard this much later and does not name the
    batch either."""


@dataclass(slots=True)
class _Worker:
    identity: bytes
    heard: float
    silent: bool = False
    numbers: int = 0
    unseen: list[tuple[int, StreamId]] = field(default_factory=list)
    free: dict[StreamId, int] = field(default_factory=dict)
    slots: dict[StreamId, int] = field(default_factory=dict)
    holds: set[tuple[StreamId, int]] = field(default_factory=set)
    """Batches that name it as a holder."""
    lost: dict[StreamId, int] = field(default_factory=dict)
    """Leases that it has not listed for too long, since it said HELLO."""
    left: list["_Held"] = field(default_factory=list)
    """What it held when it fell silent."""

    def available(self) -> dict[StreamId, int]:
        """Free slots of each stream less the leases that the worker had not seen when it counted them."""
        if self.silent:
            return {}
        available = dict(self.free)
        for _, stream in self.unseen:
            available[stream] = available.get(stream, 0) - 1
        return available


@dataclass(frozen=True, slots=True)
class _Held:
    """A lease that is no more."""

    stream: StreamId
    seq: int
    holding: Holding

    @property
    def turn(self) -> tuple[bool, bool, int]:
        """The smallest is what its worker was making: one batch at a time, a trial before others, then a head, the
        others in the order in which they were given."""
        return self.holding.trial == (0, 0), not self.holding.head, self.holding.number


class Leases:
    """The books of all streams and workers."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._streams: dict[StreamId, Book] = {}
        self._vacancies: dict[StreamId, Vacancies] = {}
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
        only: Worker | None = None,
        rows: Callable[[int], int],
        arrived: Iterable[int] = (),
    ) -> None:
        """Begin a stream at ``start``. window: in batches, 0: sized by the workers' slots. only: the one worker that
        may be given leases; None: any that makes its pixels. rows: of a batch by its number."""
        self._streams[stream] = Book(start=start, end=end, window=window, identity=identity, only=only, rows=rows)
        self._vacancies[stream] = Vacancies()
        # Workers that served it under a loader before this one may have spoken first.
        for name, worker in self._workers.items():
            self._count_slots(stream, worker.slots.get(stream, 0))
            self._count_free(name)
        self.progress(stream, start, arrived, now=0.0)

    def close(self, stream: StreamId) -> None:
        """End a stream; its leases are void."""
        self._streams.pop(stream, None)
        self._vacancies.pop(stream, None)
        for name, worker in self._workers.items():
            worker.unseen = [(number, unseen) for number, unseen in worker.unseen if unseen != stream]
            worker.holds = {held for held in worker.holds if held[0] != stream}
            worker.free.pop(stream, None)
            worker.slots.pop(stream, None)
            worker.lost.pop(stream, None)
            self._count_free(name)

    def streams(self) -> list[StreamId]:
        return list(self._streams)

    def loaded(self, stream: StreamId, seq: int) -> None:
        """The batch's JPEG bytes lie ready."""
        if batch := self._batch(stream, seq):
            batch.loaded = True
            self._streams[stream].settle(seq)

    def progress(self, stream: StreamId, consumed: int, arrived: Iterable[int], *, now: float) -> list[int]:
        """The receiver has used everything before ``consumed`` and holds ``arrived``.

        Returns the sequence numbers that are new in its hands: their JPEG slots are free.
        """
        book = self._streams.get(stream)
        if book is None:
            return []
        book.told = max(book.told, now)
        used = book.consume(consumed)
        last = min(book.end, book.consumed + LARGEST_WINDOW)
        ready = sorted(seq for seq in set(arrived) - book.arrived if book.consumed <= seq < last)
        fresh = [seq for seq in used if seq not in book.arrived] + ready
        for seq in fresh:
            self._arrive(stream, seq, now)
        book.forget(used)
        book.extend()
        return fresh

    def refuse(self, stream: StreamId, worker: Worker) -> bool:
        """A worker gets no leases of the stream any more, and has none; whether that is news. One that is not here is
        passed over: who refuses it says so again."""
        book, books = self._streams.get(stream), self._workers.get(worker)
        if book is None or books is None or worker in book.refused:
            return False
        book.refused.add(worker)
        for held, seq in sorted(books.holds):
            if held == stream:
                self._let_go(worker, stream, seq)
        return True

    # Workers

    def join(self, worker: Worker, identity: bytes, now: float) -> None:
        """A worker said HELLO: its numbering starts again, what it was given before is void until it says so."""
        self._release(worker)
        self._remove(worker)
        self._workers[worker] = _Worker(identity=identity, heard=now)

    def leave(self, worker: Worker, *, died: bool) -> list[tuple[StreamId, int, int]]:
        """A worker is gone; its leases are free at once. Returns rows of batches that are now known to kill workers."""
        held = self._release(worker)
        if (books := self._workers.get(worker)) is not None:
            held += books.left
        guilty = self._accuse(held) if died else []
        self._remove(worker)
        for book in self._streams.values():
            book.refused.discard(worker)
        return guilty

    def tried(self, worker: Worker, stream: StreamId, seq: int, trial: tuple[int, int]) -> None:
        """A worker has lived through a trial; of another than the present one that means nothing any more."""
        batch = self._batch(stream, seq)
        if batch is None or trial == (0, 0) or worker not in batch.holders or batch.holders[worker].trial != trial:
            return
        if batch.suspects is not None and batch.suspects.trial == trial and batch.suspects.survived():
            batch.suspects = None
        self._let_go(worker, stream, seq)

    def skip(self, stream: StreamId, seq: int, row: int) -> None:
        """The batch is to be made without that row."""
        if batch := self._batch(stream, seq):
            batch.skip = tuple(sorted({*batch.skip, row}))

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
        books.left = []
        if seen > books.numbers:
            self._count_free(worker)
            return  # It was said before the worker's last HELLO was answered: of leases that are void.
        books.unseen = [(number, stream) for number, stream in books.unseen if number > seen]
        before, slots = books.slots, tuple(slots)
        books.free = {stream: free for stream, free, _ in slots}
        books.slots = {stream: total for stream, _, total in slots}
        for stream in books.slots.keys() | before.keys():
            self._count_slots(stream, books.slots.get(stream, 0) - before.get(stream, 0))
        self._count_free(worker)
        listed = set(held)
        for stream, seq in books.holds:
            holding = self._streams[stream].batches[seq].holders[worker]
            if (stream, seq) in listed:
                holding.missing_since = None
            elif holding.number <= seen and holding.missing_since is None:
                holding.missing_since = now
        for stream, seq in listed - books.holds:
            batch = self._batch(stream, seq)
            if batch is not None and not batch.arrived:
                # Given by a loader before this one, or before a silence: it may still be the first copy.
                self._hold(worker, stream, seq, Holding(number=0, since=now))

    def tick(self, now: float) -> list[Worker]:
        """Let time pass: silent workers lose their leases (they are returned), lost leases are noticed."""
        silent = []
        for name, worker in self._workers.items():
            if not worker.silent and now - worker.heard > self._timing.silence:
                worker.silent = True
                silent.append(name)
        for name in silent:
            self._workers[name].left = self._release(name)
            self._count_free(name)
        for stream, book in self._streams.items():
            for seq in list(book.held):
                for name, holding in list(book.batches[seq].holders.items()):
                    since = holding.missing_since
                    # A receiver that is cut off may have had it, and the worker done all that it should.
                    if since is not None and book.told - since > self._timing.missing:
                        self._let_go(name, stream, seq)
                        lost = self._workers[name].lost
                        lost[stream] = lost.get(stream, 0) + 1
        return silent

    def careless(self) -> list[tuple[StreamId, Worker]]:
        """Workers that have lost too many of the leases that their own free slots asked for."""
        return [
            (stream, name)
            for name, worker in self._workers.items()
            for stream, number in worker.lost.items()
            if number >= LOST_BEFORE_REFUSED and stream in self._streams and name not in self._streams[stream].refused
        ]

    # Instructions

    def emptiest(self) -> list[StreamId]:
        """Streams, the one first whose window has least at workers or arrived."""
        return sorted(self._streams, key=lambda stream: self._streams[stream].fill)

    def starving(self) -> bool:
        """Whether some stream has no batch left that lies loaded for the next worker."""
        return any(not book.ready_count for book in self._streams.values())

    def shortest(self) -> float:
        """Seconds from lease to arrival, of the stream where a batch is fastest; 0: nothing is known."""
        return min((book.lease_seconds for book in self._streams.values()), default=0.0)

    def wanted(self, stream: StreamId) -> Iterator[int]:
        """Batches inside a stream's window that are not loaded, in ascending order."""
        return self._streams[stream].wanted()

    def plan(self, now: float) -> Iterator[Grant]:
        """Every lease that can be given now, one at a time: the books count it as given when it is yielded."""
        while grant := self._next(now):
            yield grant

    def revoke(self, grant: Grant) -> None:
        """A grant could not be sent: it never happened, and its worker gets nothing before it is heard again."""
        if (batch := self._batch(grant.stream, grant.seq)) and grant.worker in batch.holders:
            self._let_go(grant.worker, grant.stream, grant.seq)
            batch.leases -= 1
            self._streams[grant.stream].redispatched -= grant.again
        if worker := self._workers.get(grant.worker):
            worker.unseen = [(number, stream) for number, stream in worker.unseen if number != grant.number]
            worker.free.clear()
            self._count_free(grant.worker)

    def _next(self, now: float) -> Grant | None:
        for stream in self.emptiest():
            book = self._streams[stream]
            head = book.head()
            for suspect in sorted(book.suspected):
                if not self._is_free(book, book.batches[suspect], now):
                    continue
                worker = self._choose(stream, book, book.batches[suspect], least=1 if suspect == head else 2)
                if worker is not None:
                    return self._give(worker, stream, suspect, True, now)
            # The head may take a worker's last slot, and a second worker where its holder is slow.
            if head is not None and self._may_be_given(book, batch := book.batches[head], now):
                worker = self._choose(stream, book, batch, least=1)
                if worker is not None:
                    return self._give(worker, stream, head, True, now)
            if (seq := book.first_ready(after=head)) is not None:
                worker = self._choose(stream, book, book.batches[seq], least=2)
                if worker is not None:
                    return self._give(worker, stream, seq, False, now)
        return None

    def _choose(self, stream: StreamId, book: Book, batch: Batch, *, least: int) -> Worker | None:
        """The worker that holds least, of those with at least that many free slots. It makes one batch at a time: by
        its slots for this stream alone several streams would all choose the same one."""
        for name in self._vacancies[stream].idlest_first(least):
            if name not in batch.holders and self._makes(name, book):
                return name
        return None

    def _give(self, name: Worker, stream: StreamId, seq: int, head: bool, now: float) -> Grant:
        worker, book = self._workers[name], self._streams[stream]
        batch = book.batches[seq]
        book.identity = book.identity or worker.identity
        worker.numbers += 1
        worker.unseen.append((worker.numbers, stream))
        again = batch.leases > 0
        book.redispatched += again
        batch.leases += 1
        trial = batch.suspects.trial if batch.suspects is not None else (0, 0)
        self._hold(name, stream, seq, Holding(worker.numbers, now, head, trial))
        self._vacancies[stream].put(name, worker.available().get(stream, 0), len(worker.holds))
        return Grant(name, stream, seq, worker.numbers, head, again, trial, batch.skip)

    # What the state means

    def identity(self, stream: StreamId) -> bytes:
        """The pixels that this stream is pinned to; empty: no worker has been given a lease yet."""
        return self._streams[stream].identity

    def redispatched(self, stream: StreamId) -> int:
        """Leases of this stream that were not a batch's first."""
        return self._streams[stream].redispatched

    def window(self, stream: StreamId) -> int:
        """Batches between the last one consumed and the furthest that may be read."""
        return self._streams[stream].window

    def credits(self, stream: StreamId) -> int:
        """Batches that all workers together can hold."""
        return self._streams[stream].credits

    def counts(self, stream: StreamId) -> tuple[int, int]:
        """Batches that are leased and not arrived, and loaded and not leased."""
        book = self._streams[stream]
        return len(book.held), book.ready_count

    def suspected(self, stream: StreamId) -> int | None:
        """The first batch that has killed workers and whose rows are being tried."""
        batches = self._streams[stream].batches
        return min((seq for seq, batch in batches.items() if batch.suspects is not None), default=None)

    def refuses(self, worker: Worker, stream: StreamId) -> bool:
        """Whether the stream takes nothing from this worker."""
        return worker in self._streams[stream].refused

    def is_open(self, stream: StreamId, seq: int) -> bool:
        """Whether the batch lies in the window and has not arrived."""
        batch = self._batch(stream, seq)
        return batch is not None and not batch.arrived

    def holds(self, worker: Worker, stream: StreamId, seq: int) -> bool:
        """Whether this worker has a lease of the batch."""
        batch = self._batch(stream, seq)
        return batch is not None and worker in batch.holders

    def serves(self, worker: Worker, stream: StreamId) -> bool:
        """Whether this worker may be given the stream's batches, and makes its pixels."""
        return self._makes(worker, self._streams[stream])

    def _makes(self, worker: Worker, book: Book) -> bool:
        if book.only not in (None, worker) or worker in book.refused:
            return False
        return not book.identity or self._workers[worker].identity == book.identity

    def _may_be_given(self, book: Book, head: Batch, now: float) -> bool:
        return head.loaded and head.suspects is None and self._is_free(book, head, now)

    def _is_free(self, book: Book, batch: Batch, now: float) -> bool:
        """Nobody has the batch, or every live holder has had it for long: the longer, the more there are. They may all
        be cut off from the receiver."""
        patience = len(batch.holders) * max(self._timing.hedge, 3.0 * book.lease_seconds)
        return all(now - holding.since > patience for holding in batch.holders.values())

    def _batch(self, stream: StreamId, seq: int) -> Batch | None:
        book = self._streams.get(stream)
        return book.batches.get(seq) if book else None

    # Changes

    def _hold(self, name: Worker, stream: StreamId, seq: int, holding: Holding) -> None:
        book = self._streams[stream]
        book.batches[seq].holders[name] = holding
        self._workers[name].holds.add((stream, seq))
        self._count_held(name)
        book.settle(seq)

    def _let_go(self, name: Worker, stream: StreamId, seq: int) -> Holding:
        book = self._streams[stream]
        self._workers[name].holds.discard((stream, seq))
        holding = book.batches[seq].holders.pop(name)
        self._count_held(name)
        book.settle(seq)
        return holding

    def _arrive(self, stream: StreamId, seq: int, now: float) -> None:
        book = self._streams[stream]
        batch = book.know(seq)
        if batch.holders:
            seconds = now - min(holding.since for holding in batch.holders.values())
            book.lease_seconds += 0.2 * (max(0.0, seconds) - book.lease_seconds)
        for name in batch.holders:
            worker = self._workers[name]
            worker.holds.discard((stream, seq))
            if worker.lost.get(stream):
                worker.lost[stream] -= 1
            self._count_held(name)
        batch.holders.clear()
        batch.arrived = True
        book.settle(seq)

    def _release(self, name: Worker) -> list[_Held]:
        """Take everything from a worker; what it was."""
        worker = self._workers.get(name)
        if worker is None:
            return []
        return [_Held(stream, seq, self._let_go(name, stream, seq)) for stream, seq in sorted(worker.holds)]

    def _accuse(self, held: list[_Held]) -> list[tuple[StreamId, int, int]]:
        """A worker has died that held these, also one that had fallen silent: the row that is now known to be guilty.

        Whatever the guilty batch was given as first, it is the head of its stream in the end.
        """
        there = [each for each in held if self.is_open(each.stream, each.seq)]
        if not there:
            return []
        last = min(there, key=lambda each: each.turn)
        book = self._streams[last.stream]
        batch = book.batches[last.seq]
        row: int | None = None
        if batch.suspects is None:
            batch.deaths += 1
            if batch.deaths >= DEATHS_BEFORE_POISON and (rows := book.rows(last.seq)):
                batch.suspects, batch.deaths = Suspects(0, rows), 0
        elif batch.suspects.trial == last.holding.trial:
            row = batch.suspects.died()
            batch.suspects = None if row is not None else batch.suspects
        book.settle(last.seq)
        return [(last.stream, last.seq, row)] if row is not None else []

    def _remove(self, name: Worker) -> None:
        """Its slots count no more."""
        worker = self._workers.pop(name, None)
        if worker is None:
            return
        for stream, total in worker.slots.items():
            self._count_slots(stream, -total)
        for vacancies in self._vacancies.values():
            vacancies.put(name, 0, 0)

    def _count_slots(self, stream: StreamId, more: int) -> None:
        if more and (book := self._streams.get(stream)) is not None:
            book.credits += more
            book.extend()

    def _count_free(self, name: Worker) -> None:
        worker = self._workers[name]
        available, held = worker.available(), len(worker.holds)
        for stream, vacancies in self._vacancies.items():
            vacancies.put(name, available.get(stream, 0), held)

    def _count_held(self, name: Worker) -> None:
        held = len(self._workers[name].holds)
        for vacancies in self._vacancies.values():
            vacancies.hold(name, held)

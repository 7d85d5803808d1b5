"""One stream's batches inside its window, and where each stands: no question walks over the window.

A batch is, in this order: beyond the window; wanted (to be loaded); loaded; held by one worker or more; arrived;
consumed. Deaths, silences and losses only ever take holders away from a batch that has not arrived.
"""

import heapq
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field

from fourstage.loader.suspects import Suspects

Worker = Hashable

READ_AHEAD = 4
"""Batches that an automatic window holds beyond all slots of the workers: the one being trained on and the one being
copied, which may need no slot any more, one being read and one lying ready."""
SMALLEST_WINDOW = 4
"""The four stages of one pipeline, before any worker has come."""


@dataclass(slots=True)
class Holding:
    """One worker's lease of a batch. since, missing_since: seconds of the caller's clock."""

    number: int
    since: float
    head: bool = False
    trial: tuple[int, int] = (0, 0)
    """Not of the batch, but of the rows from the first to before the second, for nothing; (0, 0): of the batch."""
    missing_since: float | None = None
    """Since when its worker does not list it."""


@dataclass(slots=True)
class Batch:
    """After a change of any of this ``Book.settle`` must hear of it."""

    loaded: bool = False
    arrived: bool = False
    deaths: int = 0
    leases: int = 0
    holders: dict[Worker, Holding] = field(default_factory=dict)
    suspects: Suspects | None = None
    """Where it has killed workers: the rows that may be guilty. It is given to nobody before that is known."""
    skip: tuple[int, ...] = ()
    """Rows that nobody is to decode any more."""


class Book:
    """A stream: its window of batches, and those of each kind."""

    def __init__(
        self, *, start: int, end: int, window: int, identity: bytes, only: Worker | None, rows: Callable[[int], int]
    ) -> None:
        """window: in batches, 0: sized by ``credits``. only: who alone is given leases; None: anybody. rows: of a batch
        by its number."""
        self.end = end
        self.rows = rows
        self.identity = identity
        self.only = only
        self.consumed = start
        self.credits = 0
        """Slots that all workers have for this stream."""
        self.lease_seconds = 0.0
        """Moving average from lease to arrival."""
        self.redispatched = 0
        self.told = float("-inf")
        """When the receiver last said what has arrived."""
        self.refused: set[Worker] = set()
        """Workers whose batches the receiver does not take, and those that cannot make any."""
        self.batches: dict[int, Batch] = {}
        self.held: set[int] = set()
        """Batches with a holder that have not arrived."""
        self.suspected: set[int] = set()
        """Batches whose rows are to be tried."""
        self.arrived: set[int] = set()
        self._window = window
        self._edge = start
        """Every batch from ``consumed`` to this one is known."""
        self._head = start
        self._wanted: dict[int, None] = {}
        """In ascending order, as they came into the window."""
        self._ready: set[int] = set()
        """Loaded, without a holder, not arrived."""
        self._ready_heap: list[int] = []
        """All of ``_ready``, and some that no longer are."""
        self.extend()

    @property
    def window(self) -> int:
        """Batches between the last one consumed and the furthest that may be read."""
        return self._window or max(SMALLEST_WINDOW, self.credits + READ_AHEAD)

    @property
    def fill(self) -> float:
        """Share of the window that is at workers or has arrived."""
        return (len(self.held) + len(self.arrived)) / self.window

    @property
    def ready_count(self) -> int:
        """Batches that wait for a worker."""
        return len(self._ready)

    def wanted(self) -> Iterator[int]:
        """Batches that are to be loaded, in ascending order."""
        return iter(self._wanted)

    def head(self) -> int | None:
        """The batch that is needed first and has not arrived."""
        while self._head in self.arrived:
            self._head += 1
        return self._head if self._head in self.batches else None

    def first_ready(self, *, after: int | None) -> int | None:
        """The lowest batch beyond ``after``, the head, that waits for a worker; before the head there is none."""
        heap = self._ready_heap
        while heap and (heap[0] not in self._ready):
            heapq.heappop(heap)
        if heap and heap[0] == after:
            heapq.heappop(heap)
            first = self.first_ready(after=None)
            heapq.heappush(heap, after)
            return first
        return heap[0] if heap else None

    def extend(self) -> None:
        """Take in what the window has come to reach."""
        for seq in range(self._edge, min(self.consumed + self.window, self.end)):
            self.know(seq)
            self._edge = seq + 1

    def know(self, seq: int) -> Batch:
        """The batch of that number, new if need be: what has arrived may lie beyond the window."""
        batch = self.batches.get(seq)
        if batch is None:
            batch = self.batches[seq] = Batch()
            self.settle(seq)
        return batch

    def consume(self, consumed: int) -> list[int]:
        """Everything before ``consumed`` was used; the batches of the window that are so now."""
        before, self.consumed = self.consumed, max(self.consumed, min(consumed, self.end))
        self._edge = max(self._edge, self.consumed)
        self._head = max(self._head, self.consumed)
        if self.consumed - before > len(self.batches):
            return sorted(seq for seq in self.batches if seq < self.consumed)
        return [seq for seq in range(before, self.consumed) if seq in self.batches]

    def forget(self, seqs: Iterable[int]) -> None:
        """They were consumed."""
        for seq in seqs:
            del self.batches[seq]
            for kind in (self.held, self.suspected, self.arrived, self._ready):
                kind.discard(seq)
            self._wanted.pop(seq, None)

    def settle(self, seq: int) -> None:
        """A batch has changed: count it where it belongs now."""
        batch = self.batches[seq]
        if batch.loaded or batch.arrived:
            self._wanted.pop(seq, None)
        else:
            self._wanted[seq] = None
        _put(self.arrived, seq, batch.arrived)
        _put(self.held, seq, bool(batch.holders) and not batch.arrived)
        open_ = batch.loaded and not batch.arrived
        _put(self.suspected, seq, open_ and batch.suspects is not None)
        ready = open_ and batch.suspects is None and not batch.holders
        if ready and seq not in self._ready:
            heapq.heappush(self._ready_heap, seq)
        _put(self._ready, seq, ready)


def _put(kind: set[int], seq: int, belongs: bool) -> None:
    if belongs:
        kind.add(seq)
    else:
        kind.discard(seq)
